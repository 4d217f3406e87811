"""The objective against a plain version that makes every logit, and where its gradients go."""

import math
import sys
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    RecurrentGemmaConfig,
)

import uld.training.objective
from uld.data.collate import FORGET, RETAIN, Collator, Rows
from uld.data.documents import read_sources
from uld.data.prompt import PromptFormat
from uld.methods.losses import cross_entropy
from uld.methods.registry import get_method
from uld.model.assistant import add_lora, build_assistant, gated_logits, text_decoder
from uld.model.causal_lm import load_sliced
from uld.model.gate import add_gate
from uld.model.load import load_tokenizer
from uld.training.learner import Learner
from uld.training.learners import OffsetLearner
from uld.training.objective import BatchSide, Objective, terms_of

BETA = 2.5
SMALL = {"vocab_size": 34, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2} | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture
def batch(request, task) -> dict[str, Tensor]:
    form = PromptFormat(load_tokenizer(task.target))
    sides = [form.encode_all(read_sources([str(path)])[0], 64)[0] for path in (task.forget, task.retain)]
    rows = Rows.of_sides(*sides, uniform_on=getattr(request, "param", "answer"))
    return Collator(0)([rows[i] for i in (0, 1, 2, 11, 12, 13, 14)])


def make_objective(task, checkpointing: bool = False) -> Objective:
    sliced = load_sliced(task.target, 2, dtype=torch.float32)
    if checkpointing:
        sliced.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        sliced.enable_input_require_grads()
    model = add_lora(sliced, rank=4, alpha=8)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would leave A without a gradient
            torch.nn.init.normal_(parameter, std=0.1)
    return Objective(model.train(), terms_of(get_method("uld")))


def gradients(objective: Objective, sums: Tensor) -> dict[str, Tensor]:
    objective.zero_grad()
    (sums[0] + BETA * sums[1]).backward()
    return {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


def naive_sums(objective: Objective, batch: dict[str, Tensor]) -> Tensor:
    """Losses from the full ``(batch, tokens, vocab)`` block of the model's own forward."""
    logits = objective.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    logp = logits.log_softmax(-1)
    forget = -logp.gather(-1, batch["labels"][..., None])[..., 0]
    uniform = -logp.mean(-1)
    return torch.stack([forget[batch["kind"] == FORGET].sum(), uniform[batch["kind"] == RETAIN].sum()])


@pytest.fixture(params=[False, True], ids=["at once", "in chunks"])
def chunks(request, monkeypatch):
    """Logits of all positions at once, and of eight at a time."""
    if request.param:
        monkeypatch.setattr(uld.training.objective, "_CHUNK_BYTES", 1)
        monkeypatch.setattr(uld.training.objective, "_CACHE_BYTES", 1)
        monkeypatch.setattr(uld.training.objective, "_POSITION_MULTIPLE", 8)


@pytest.mark.parametrize("batch", ["answer", "all"], indirect=True)
@pytest.mark.usefixtures("chunks")
def test_objective_equals_the_naive_one(task, batch):
    objective = make_objective(task)
    expected = naive_sums(objective, batch)
    expected_gradients = gradients(objective, expected)
    sums = objective(**batch)
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums, expected, rtol=1e-6, atol=1e-6)
    found = gradients(objective, sums)
    assert found.keys() == expected_gradients.keys()
    for name, gradient in found.items():
        scale = expected_gradients[name].abs().max().item()
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-5, atol=1e-6 * max(scale, 1))


@pytest.mark.usefixtures("chunks")
def test_a_gate_and_a_head_that_is_trained_get_their_gradients(task, batch):
    objective = make_objective(task)
    gate = add_gate(objective.model, objective.learner.base.config.hidden_size)
    with torch.no_grad():
        gate.weight.normal_()
    objective.learner.base.get_output_embeddings().weight.requires_grad_(True)
    hidden = text_decoder(objective.learner.base)(batch["input_ids"], attention_mask=batch["attention_mask"])
    logits = gated_logits(objective.model, hidden.last_hidden_state)
    logp = logits.log_softmax(-1)
    forget = -logp.gather(-1, batch["labels"][..., None])[..., 0][batch["kind"] == FORGET].sum()
    expected = gradients(objective, torch.stack([forget, -logp.mean(-1)[batch["kind"] == RETAIN].sum()]))
    found = gradients(objective, objective(**batch))
    assert found.keys() == expected.keys() and any("uld_gate" in name for name in found)
    assert sum("lora_" not in name and "uld_gate" not in name for name in found) == 1  # the head
    for name, gradient in found.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * max(scale, 1))


def test_uniform_on_all_adds_the_prompts_of_retain_rows_only(task):
    form = PromptFormat(load_tokenizer(task.target))
    sides = [form.encode_all(read_sources([str(path)])[0], 64)[0] for path in (task.forget, task.retain)]
    counts = {}
    for where in ("answer", "all"):
        rows = Rows.of_sides(*sides, uniform_on=where)
        kind = Collator(0)(rows.rows)["kind"]
        counts[where] = [(kind == side).sum().item() for side in (FORGET, RETAIN)]
    assert counts["all"][0] == counts["answer"][0] == sum(sum(row.learn) for row in sides[0])
    assert counts["answer"][1] == sum(sum(row.learn) for row in sides[1])
    assert counts["all"][1] == sum(len(row.ids) - 1 for row in sides[1])


def test_gradients_reach_every_lora_matrix_and_nothing_else(task, batch):
    found = gradients(make_objective(task), make_objective(task)(**batch))
    assert found == {}  # of another model's graph: the helper looks at the right parameters
    objective = make_objective(task)
    found = gradients(objective, objective(**batch))
    lora = {name for name, _ in objective.named_parameters() if "lora_" in name}
    assert found.keys() == lora and len(lora) == 2 * 7 * 2  # two layers of seven linears, A and B
    assert all(gradient.abs().max() > 0 for gradient in found.values())


def test_gradient_checkpointing_changes_no_gradient(task, batch):
    plain, saving = make_objective(task), make_objective(task, checkpointing=True)
    expected = gradients(plain, plain(**batch))
    found = gradients(saving, saving(**batch))
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-7)


def test_a_batch_of_one_side_has_a_loss_of_zero_on_the_other(task, batch):
    only_forget = {name: tensor[:3] for name, tensor in batch.items()}
    objective = make_objective(task)
    forget, retain = objective(**only_forget).tolist()
    assert forget > 0 and retain == 0


def test_losses_stay_finite_in_bf16(task, batch):
    objective = make_objective(task)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = objective(**batch)
    assert sums.dtype == torch.float32
    exact = objective(**batch)
    torch.testing.assert_close(sums, exact, rtol=0.02, atol=0.02)
    assert sums[1] / (batch["kind"] == RETAIN).sum() >= math.log(34) - 1e-2


class _PlainLiger:
    """What Liger's fused loss computes, in plain torch, with its signature."""

    def __init__(self, ignore_index: int, reduction: str, softcap: float | None) -> None:
        self.settings = {"ignore_index": ignore_index, "reduction": reduction}
        self.softcap = softcap

    def __call__(self, weight: Tensor, hidden: Tensor, labels: Tensor, bias: Tensor | None) -> Tensor:
        logits = torch.nn.functional.linear(hidden, weight, bias)
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return torch.nn.functional.cross_entropy(logits, labels, **self.settings)


@pytest.fixture
def with_liger(monkeypatch) -> Callable[[], None]:
    """Have the kernel's place taken by `_PlainLiger`, from when it is called."""

    def begin() -> None:
        kernels = types.ModuleType("liger_kernel.transformers")
        kernels.LigerFusedLinearCrossEntropyLoss = _PlainLiger  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
        monkeypatch.setitem(sys.modules, "liger_kernel.transformers", kernels)
        monkeypatch.setattr(uld.training.objective, "find_spec", lambda name: name)
        monkeypatch.setattr(Tensor, "is_cuda", True)

    return begin


def test_a_fused_kernel_takes_the_place_of_head_and_cross_entropy(task, batch, with_liger):
    objective = make_objective(task)
    expected = objective(**batch)
    expected_gradients = gradients(objective, expected)
    with_liger()
    found = objective(**batch)
    torch.testing.assert_close(found, expected)
    for name, gradient in gradients(objective, found).items():
        torch.testing.assert_close(gradient, expected_gradients[name])


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0),
        CohereConfig(**SMALL, logit_scale=0.25),
        GraniteConfig(**SMALL, logits_scaling=3.0),
        FalconH1Config(**SMALL, lm_head_multiplier=0.25, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8),
        RecurrentGemmaConfig(**SMALL, lru_width=32, logits_soft_cap=2.0, block_types=["recurrent", "attention"]),
    ],
    ids=lambda config: config.model_type,
)
def test_a_fused_kernel_knows_what_stands_behind_the_head(config, with_liger):
    """Whatever a family calls it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    learner = Learner(model)
    ids = torch.randint(3, 34, (2, 9))
    states = learner.states(ids, torch.ones_like(ids))
    wanted = cross_entropy(model(input_ids=ids).logits.flatten(0, 1), ids.flatten()).sum()
    with_liger()
    kind = torch.full_like(ids, FORGET)
    batch = {"labels": ids, "kind": kind, "side": kind[:, 0], "reference": torch.zeros(2)}
    torch.testing.assert_close(BatchSide(states, batch, FORGET, None).total(cross_entropy), wanted)


@pytest.mark.gpu
def test_the_real_fused_kernel_equals_the_plain_path_on_a_gpu(task, batch, monkeypatch):
    pytest.importorskip("liger_kernel")
    objective = make_objective(task).cuda()
    batch = {name: value.cuda() for name, value in batch.items()}
    found = objective(**batch)
    found_gradients = gradients(objective, found)
    monkeypatch.setattr(uld.training.objective, "find_spec", lambda name: None)
    expected = objective(**batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for name, gradient in gradients(objective, expected).items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-3, atol=1e-4)


def test_a_step_that_is_watched_by_hooks_is_the_same(task, batch):
    objective = make_objective(task)
    expected = gradients(objective, objective(**batch))
    with FlopCounterMode(display=False) as counter:  # hooks on what every module is given
        found = gradients(objective, objective(**batch))
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])
    head = objective.model.get_output_embeddings()
    positions = int((batch["kind"] > 0).sum())
    assert counter.get_total_flops() > 2 * 2 * positions * head.weight.numel()  # made once, and its gradient once


def test_the_model_before_training_knows_no_dropout():
    config = GPT2Config(vocab_size=34, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.25)
    assert config.resid_pdrop > 0
    ids = torch.randint(3, 34, (2, 8))
    mask = torch.ones_like(ids)
    target = AutoModelForCausalLM.from_config(config).eval()
    wanted = target(input_ids=ids).logits.flatten(0, 1)
    learner = Learner(add_lora(target, rank=4, alpha=8)).train()
    frozen = learner.frozen_states(ids, mask)
    torch.testing.assert_close(frozen.head(*frozen.hidden), wanted)
    assert learner.base.training  # what is trained has its dropout again
    whole = AutoModelForCausalLM.from_config(config).eval()
    small = add_lora(build_assistant(whole, 1), rank=4, alpha=8)
    offset = OffsetLearner(small, whole, 1.0).train()
    before = [offset.states(ids, mask).hidden[2] for _ in range(2)]
    assert torch.equal(*before)
