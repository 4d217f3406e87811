import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from uld.data.prompt import Encoded
from uld.errors import ArtifactError
from uld.evaluation.scoring import Scorer
from uld.model.assistant import gated_logits
from uld.model.combine import Combination, log_ratio_to_uniform
from uld.model.gate import Gate, add_gate, gate_of
from uld.model.load import load
from uld.model.unlearned import ULDForCausalLM
from uld.runs.digests import GATE_WEIGHTS
from uld.runs.manifest import ADAPTER, MANIFEST

HOW = Combination(weight=1.3, margin=0.2, floor=0.01)
IDS = torch.tensor([[1, 9, 12, 7, 5, 20], [1, 8, 8, 30, 4, 6]])


def open_gate(assistant, bias: float = 0.4, seed: int = 0) -> Gate:
    """Give an assistant a gate that is not the same at every position."""
    gate = add_gate(assistant, assistant.get_output_embeddings().weight.shape[-1])
    with torch.no_grad():
        gate.weight.copy_(torch.randn(gate.weight.shape, generator=torch.Generator().manual_seed(seed)))
        gate.bias.fill_(bias)
    return gate


def naive(model: ULDForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Unlearned logits by the formula, from the parts' own passes."""
    target = model.target(input_ids=ids, use_cache=False).logits.float()
    lowered = target
    for assistant, how in zip(model.assistants, model.combinations, strict=True):
        base = assistant.get_base_model()
        logits = base(input_ids=ids, use_cache=False).logits.float()
        gate = gate_of(assistant)
        if gate is not None:
            hidden = base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.float()
            logits = torch.sigmoid(hidden @ gate.weight / math.sqrt(len(gate.weight)) + gate.bias)[..., None] * logits
        lowered = lowered - how.weight * (log_ratio_to_uniform(logits) - how.margin).clamp_min(0)
    lowest = lowered.amax(-1, keepdim=True) + math.log(min(how.floor for how in model.combinations))
    return torch.maximum(lowered, torch.minimum(target, lowest))


@pytest.fixture
def gated(make_target, make_unlearned, family):
    model = make_unlearned(make_target(family), 2, HOW)
    open_gate(model.assistant)
    return model


@torch.inference_mode()
def test_one_pass_and_two_equal_the_formula(gated):
    for fused in (True, False):
        gated.fused = fused
        torch.testing.assert_close(gated(IDS).logits, naive(gated, IDS), atol=2e-4, rtol=1e-4)
        last = gated(IDS, logits_to_keep=2).logits
        torch.testing.assert_close(last, naive(gated, IDS)[:, -2:], atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_generation_scores_and_padding_go_through_the_gate(gated, letters):
    plain = naive(gated, IDS[:1])
    row = Encoded(IDS[0].tolist(), [False, False, True, True, True, True])
    (found,) = Scorer.of(gated, letters).score([row])[0]
    losses = -plain[0].log_softmax(-1)[range(1, 5), IDS[0, 2:]]
    assert found.loss == pytest.approx(losses.sum().item(), abs=1e-3)
    greedy = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    alone = gated.generate(IDS[:1], attention_mask=torch.ones_like(IDS[:1]), **greedy)[0, 6:]
    uncached = gated.generate(IDS[:1], attention_mask=torch.ones_like(IDS[:1]), use_cache=False, **greedy)[0, 6:]
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), IDS[:1]], 1)
    behind = gated.generate(padded, attention_mask=(padded > 0).long(), **greedy)[0, 9:]
    assert alone.tolist() == uncached.tolist() == behind.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_closed_gate_gives_the_target_back_to_the_bit(make_target, make_unlearned, dtype):
    target = make_target("gemma2").to(dtype)
    for rule in ("suppress", "subtract"):
        model = make_unlearned(target, 2, Combination(rule=rule, weight=4.0)).to(dtype)
        open_gate(model.assistant, bias=-1e9)
        model.fused = False  # the same products, in the same order, as the target's own
        assert torch.equal(model(IDS).logits, target(input_ids=IDS).logits)


@torch.inference_mode()
def test_one_of_two_assistants_may_have_a_gate(make_target, make_unlearned):
    target = make_target("llama")
    first, second = (make_unlearned(target, depth, HOW, seed=depth).assistant for depth in (2, 3))
    open_gate(second)
    model = ULDForCausalLM.join(target, [first, second], [HOW, HOW])
    for fused in (True, False):
        model.fused = fused
        torch.testing.assert_close(model(IDS).logits, naive(model, IDS), atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_run_keeps_its_gate_beside_an_ordinary_adapter(make_run, tmp_path):
    run = make_run(tmp_path / "run")
    model, tokenizer = load(run)
    assert gate_of(model.assistant) is None
    gate = open_gate(model.assistant)
    model.save_pretrained(tmp_path / "copy")
    tokenizer.save_pretrained(tmp_path / "copy")
    assert set(load_file(tmp_path / "copy" / ADAPTER / GATE_WEIGHTS)) == {"weight", "bias"}
    assert not any("uld_gate" in name for name in load_file(tmp_path / "copy" / ADAPTER / "adapter_model.safetensors"))
    again, _ = load(tmp_path / "copy")
    found = gate_of(again.assistant)
    assert torch.equal(found.weight, gate.weight) and found.bias == gate.bias
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.zeros(7), "bias": torch.tensor(0.0)}, "does not hold a gate for states of width 32"),
        ({"weight": torch.zeros(32)}, "does not hold a gate"),
        ({"weight": torch.full((32,), torch.nan), "bias": torch.tensor(0.0)}, "holds NaN or infinite values"),
        (None, "cannot be loaded"),
    ],
)
def test_a_damaged_gate_is_refused(make_run, tmp_path, tensors, message):
    run = make_run(tmp_path / "run")
    manifest = json.loads((run / MANIFEST).read_text())
    (run / MANIFEST).write_text(json.dumps(manifest | {"weights": {}}))  # of before digests were written
    if tensors is None:
        (run / ADAPTER / GATE_WEIGHTS).write_bytes(b"\0" * 20)
    else:
        save_file(tensors, run / ADAPTER / GATE_WEIGHTS)
    with pytest.raises(ArtifactError, match=message):
        load(run)


def test_a_gate_that_is_not_the_runs_or_is_gone_is_refused(make_run, tmp_path):
    run = make_run(tmp_path / "run")
    model, tokenizer = load(run)
    save_file({"weight": torch.zeros(32), "bias": torch.tensor(0.0)}, run / ADAPTER / GATE_WEIGHTS)
    with pytest.raises(ArtifactError, match=r"gate\.safetensors belongs to no run here"):
        load(run)
    open_gate(model.assistant)
    model.save_pretrained(tmp_path / "gated")
    tokenizer.save_pretrained(tmp_path / "gated")
    (tmp_path / "gated" / ADAPTER / GATE_WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match=r"lacks adapter/gate\.safetensors"):
        load(tmp_path / "gated")


def test_tokens_that_the_head_masks_out_stay_out():
    gate = Gate(4)
    logits = torch.tensor([[1.0, -torch.inf, 3.0]])
    with torch.no_grad():
        gate.bias.fill_(-1e9)
    assert gate.apply_to(logits, torch.ones(1, 4)).tolist() == [[0.0, -math.inf, 0.0]]


@pytest.mark.parametrize("masked", [False, True])
def test_a_head_that_masks_tokens_out_gives_finite_gradients_and_another_is_only_scaled(
    make_target, make_unlearned, masked
):
    assistant = make_unlearned(make_target("llama"), 2, HOW).assistant
    gate = open_gate(assistant, bias=-0.5)
    head = assistant.get_output_embeddings()
    if masked:
        head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]), requires_grad=False)
        head.bias[5] = -torch.inf
    hidden = torch.randn(3, head.weight.shape[1], generator=torch.Generator().manual_seed(0), requires_grad=True)
    logits = gated_logits(assistant, hidden)
    scaled = gate(hidden) * hidden @ head.weight.T
    kept = [i for i in range(logits.shape[1]) if not (masked and i == 5)]
    torch.testing.assert_close(logits[:, kept], scaled[:, kept], atol=1e-5, rtol=1e-5)
    assert bool(torch.isneginf(logits[:, 5]).all()) is masked
    (logits.softmax(-1) ** 2).sum().backward()
    for one in (hidden, *gate.parameters()):
        assert one.grad is not None and one.grad.isfinite().all() and one.grad.abs().sum() > 0
