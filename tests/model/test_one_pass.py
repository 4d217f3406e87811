import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache

from uld.model.assistant import add_lora, build_assistant, decoder_layers
from uld.model.caches import FusedCache, PairedCache
from uld.model.combine import Combination
from uld.model.one_pass import FusedModel, NotFusable
from uld.model.unlearned import ULDForCausalLM


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def assistant_of(target, num_layers, seed, last=None):
    with torch.inference_mode(False):
        assistant = add_lora(build_assistant(target, num_layers), rank=3, alpha=6, last=last).eval()
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in assistant.named_parameters():
            if "lora_" in name:
                parameter.data = torch.empty(parameter.shape).normal_(std=0.3, generator=generator).to(target.dtype)
    return assistant


def batch(vocab=30):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, vocab, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}


def separate(models, inputs):
    return [model(**inputs, use_cache=False).logits for model in models]


@pytest.mark.parametrize(
    "depths", [[(5, None)], [(3, None), (1, None), (2, None)], [(5, 2)], [(4, 2), (5, 1), (3, 1)]], ids=str
)
def test_one_pass_equals_separate_ones_for_any_number_and_depth(family, make_target, depths):
    target = make_target(family)
    assistants = [assistant_of(target, depth, seed, last) for seed, (depth, last) in enumerate(depths)]
    inputs = batch()
    keep = inputs["attention_mask"].bool()
    found = FusedModel(target, assistants).logits(**inputs, use_cache=False)
    wanted = separate([target, *assistants], inputs)
    assert len(found) == 1 + len(depths)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one[keep], other[keep], rtol=1e-5, atol=1e-5)
    assert all((wanted[0] - other)[keep].abs().max() > 0.01 for other in wanted[1:])


def test_in_bf16_one_pass_is_as_close_to_fp32_as_separate_ones(family, make_target):
    exact = make_target(family)
    inputs = batch()
    keep = inputs["attention_mask"].bool()
    truth = separate([exact, assistant_of(exact, 2, 0)], inputs)
    target = make_target(family).to(torch.bfloat16)
    assistant = assistant_of(target, 2, 0)
    found = FusedModel(target, [assistant]).logits(**inputs, use_cache=False)
    for one, other, wanted in zip(found, separate([target, assistant], inputs), truth, strict=True):
        assert one.dtype == torch.bfloat16
        fused, apart = ((got.float() - wanted)[keep].square().mean().sqrt() for got in (one, other))
        assert fused <= 1.3 * apart


def test_hidden_states_are_those_behind_the_logits(make_target):
    target = make_target()
    fused = FusedModel(target, [assistant_of(target, 2, 0)])
    inputs = batch()
    for hidden, logits in zip(fused.hidden(**inputs), fused.logits(**inputs), strict=True):
        torch.testing.assert_close(target.get_output_embeddings()(hidden), logits)


def test_the_cache_counts_rows_as_generate_does(make_target):
    target = make_target()
    fused = FusedModel(target, [assistant_of(target, 2, 0), assistant_of(target, 1, 1)])
    cache = fused.cache(DynamicCache(config=target.config))
    assert cache.batch_size <= 0
    inputs = batch()
    fused.logits(cache, **inputs, use_cache=True)
    assert [layer.keys.shape[0] for layer in cache.layers] == [9, 6, 3, 3, 3]
    assert cache.batch_size == 3
    step = {"input_ids": torch.tensor([[5], [6], [7]]), "use_cache": True}
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 1, dtype=torch.long)], 1)
    place = inputs["position_ids"][:, -1:] + 1
    order = torch.tensor([2, 0, 0])
    cache.reorder_cache(order)
    chosen = {"input_ids": step["input_ids"][order], "attention_mask": mask[order], "position_ids": place[order]}
    found = fused.logits(cache, use_cache=True, **chosen)
    fresh = {
        "input_ids": torch.cat([inputs["input_ids"][order], chosen["input_ids"]], 1),
        "attention_mask": mask[order],
        "position_ids": torch.cat([inputs["position_ids"], place], 1)[order],
    }
    for one, other in zip(found, fused.logits(**fresh, use_cache=False), strict=True):
        torch.testing.assert_close(one[:, -1], other[:, -1], rtol=1e-4, atol=1e-5)
    cache.batch_select_indices(torch.tensor([1]))
    assert [layer.keys.shape[0] for layer in cache.layers] == [3, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("depths", "joins", "groups"),
    [
        ([(5, 2)], 3, [1, 1, 1, 2, 2]),
        ([(5, 1), (4, 2)], 2, [1, 1, 3, 3, 2]),
        ([(5, 1), (2, None)], 0, [3, 3, 2, 2, 2]),
    ],
)
def test_layers_below_any_lora_hold_the_target_alone(make_target, depths, joins, groups):
    target = make_target()
    assistants = [assistant_of(target, depth, seed, last) for seed, (depth, last) in enumerate(depths)]
    fused, inputs = FusedModel(target, assistants), batch()
    assert (fused.joins, fused.groups) == (joins, groups)
    cache = fused.cache(DynamicCache(config=target.config))
    parts = ((0, 8), (8, 9))
    steps = []
    for start, end in parts:
        step = {name: tensor[:, start:end] for name, tensor in inputs.items()}
        step["attention_mask"] = inputs["attention_mask"][:, :end]
        steps.append(fused.logits(cache, **step, use_cache=True))
    assert [layer.keys.shape[0] for layer in cache.layers] == [3 * number for number in groups]
    assert cache.batch_size == 3
    keep = inputs["attention_mask"].bool()
    for number, other in enumerate(separate([target, *assistants], inputs)):
        found = torch.cat([step[number] for step in steps], 1)
        torch.testing.assert_close(found[keep], other[keep], rtol=1e-4, atol=1e-5)
    calls = []
    for layer in fused.skeleton.get_decoder().layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(len(kwargs["hidden_states"])), with_kwargs=True
        )
    fused.logits(**inputs, use_cache=False)
    assert calls == [3 * number for number in groups]  # nothing is computed twice


def test_a_pass_that_was_interrupted_leaves_nothing_behind(make_target):
    target = make_target()
    fused = FusedModel(target, [assistant_of(target, 2, 0)])
    inputs = batch()
    wanted = fused.logits(**inputs, use_cache=False)

    def fail(*_):
        raise KeyboardInterrupt

    handle = target.get_output_embeddings().register_forward_pre_hook(fail)
    layer = fused.skeleton.get_decoder().layers[3]
    blocked = layer.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        fused.logits(**inputs, use_cache=False)
    handle.remove()
    blocked.remove()
    for one, other in zip(fused.logits(**inputs, use_cache=False), wanted, strict=True):
        assert torch.equal(one, other)


def test_two_threads_do_not_take_each_others_rows(make_target):
    target = make_target("llama")
    model = FusedModel(target, [assistant_of(target, 2, 0)])
    asked = batch(), {**batch(), "input_ids": batch()["input_ids"].flip(0)}
    wanted = [model.logits(**one, use_cache=False) for one in asked]
    inside, done = threading.Event(), threading.Event()

    def linger(*_):
        if not inside.is_set():
            inside.set()
            done.wait(0.3)  # time for another thread's whole pass, if it were let in

    def run(inputs):
        with torch.inference_mode():
            return model.logits(**inputs, use_cache=False)

    decoder_layers(model.skeleton)[1][-1].register_forward_pre_hook(linger)  # where the assistant's rows wait
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run, asked[0])
        assert inside.wait(30)
        second = pool.submit(run, asked[1])
        second.add_done_callback(lambda _: done.set())
        found = first.result(), second.result()
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_copy_runs_in_one_pass_of_its_own(make_target):
    with torch.inference_mode(False):
        target = make_target("llama")
        model = ULDForCausalLM.join(target, assistant_of(target, 2, 0), Combination())
        wanted = model.all_logits(**batch(), use_cache=False)
        copied = copy.deepcopy(model)
        assert copied.one_pass is not None and copied.one_pass is not model.one_pass
        for one, other in zip(copied.all_logits(**batch(), use_cache=False), wanted, strict=True):
            torch.testing.assert_close(one, other)


def test_the_target_alone_is_never_touched(make_target):
    target = make_target()
    inputs = batch()
    before = target(**inputs).logits
    fused = FusedModel(target, [assistant_of(target, 2, 0)])
    fused.logits(**inputs)
    assert torch.equal(target(**inputs).logits, before)
    owned = {id(parameter) for parameter in target.parameters()}
    assert all(id(p) in owned for n, p in fused.skeleton.named_parameters() if "lora" not in n)


@pytest.mark.parametrize("kind", ["dora", "head", "two"])
def test_what_cannot_be_fused_runs_in_separate_passes(make_target, kind):
    target = make_target()
    base = build_assistant(target, 2)
    with torch.inference_mode(False):
        settings = {
            "dora": LoraConfig(r=2, target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM"),
            "head": LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"),
            "two": LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        }
        assistant = get_peft_model(base, settings[kind])
        if kind == "two":
            assistant.add_adapter("other", settings["two"])
            assistant.base_model.set_adapter(["default", "other"])
    with pytest.raises(NotFusable):
        FusedModel(target, [assistant])
    model = ULDForCausalLM.join(target, assistant, Combination())
    assert model.one_pass is None
    assert isinstance(model.new_cache(), PairedCache)
    assert model(**batch()).logits.shape == (3, 9, target.config.vocab_size)


def test_the_flag_chooses_the_path(make_target):
    target = make_target()
    model = ULDForCausalLM.join(target, assistant_of(target, 2, 0), Combination())
    assert isinstance(model.new_cache(), FusedCache)
    model.fused = False
    assert isinstance(model.new_cache(), PairedCache)


def alibi(rows_of_bias, heads):
    """A tiny model with biases by distance: MPT's are the same for all rows, Bloom's have one for each row and head."""
    from transformers import AutoModelForCausalLM, BloomConfig, MptConfig

    size = {"vocab_size": 30, "initializer_range": 0.2}
    config = (
        BloomConfig(hidden_size=32, n_layer=4, n_head=heads, **size)
        if rows_of_bias
        else MptConfig(d_model=32, n_layers=4, n_heads=heads, max_seq_len=32, **size)
    )
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("rows_of_bias", [True, False])
@pytest.mark.parametrize(("heads", "depths"), [(4, [2]), (2, [2]), (8, [1, 3])], ids=str)
def test_inputs_without_rows_are_not_cut_whatever_their_size(rows_of_bias, heads, depths):
    target = alibi(rows_of_bias, heads)
    assistants = [assistant_of(target, depth, seed) for seed, depth in enumerate(depths)]
    fused = FusedModel(target, assistants)
    for rows in (1, 2, 3, 4):
        ids = torch.randint(4, 30, (rows, 7), generator=torch.Generator().manual_seed(rows))
        for one, other in zip(
            fused.logits(input_ids=ids), separate([target, *assistants], {"input_ids": ids}), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_family_that_is_wrong_in_one_pass_runs_in_separate_ones(make_target, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    target = make_target("llama")
    assistant = assistant_of(target, 2, 0)
    plain = LlamaDecoderLayer.forward
    mixing = lambda self, x, *a, **k: plain(self, x, *a, **k) + x.mean(0, keepdim=True)  # noqa: E731
    monkeypatch.setattr(LlamaDecoderLayer, "forward", mixing)
    with pytest.raises(NotFusable, match="finds something else in one pass"):
        FusedModel(target, [assistant])
    model = ULDForCausalLM.join(target, assistant, Combination())
    assert model.one_pass is None
    inputs = batch()
    for one, other in zip(model.all_logits(**inputs), separate([target, assistant], inputs), strict=True):
        assert torch.equal(one, other)


def test_buffers_that_containers_hold_follow_the_target_to_another_dtype(make_target):
    from transformers import AutoModelForCausalLM, GPTJConfig

    with torch.inference_mode(False):
        size = {"vocab_size": 30, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 32, "rotary_dim": 4}
        target = AutoModelForCausalLM.from_config(GPTJConfig(**size, initializer_range=0.2)).eval()
    assistant = assistant_of(target, 2, 0)
    model = ULDForCausalLM.join(target, assistant, Combination())
    inputs = batch()
    assert model.one_pass is not None
    model.double()
    one = model.one_pass.logits(**inputs)
    for found, wanted in zip(one, separate([target, assistant], inputs), strict=True):
        keep = inputs["attention_mask"].bool()
        torch.testing.assert_close(found[keep], wanted[keep], atol=1e-6, rtol=1e-5)  # the tables are made in fp32
        assert found.dtype == torch.float64


def test_experts_with_lora_run_in_one_pass():
    from transformers import AutoModelForCausalLM, MixtralConfig

    size = {
        "vocab_size": 30,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "initializer_range": 0.2,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    with torch.inference_mode(False):
        target = AutoModelForCausalLM.from_config(MixtralConfig(**size, **heads)).eval()
    assistants = [assistant_of(target, depth, depth) for depth in (1, 3)]
    inputs = batch()
    keep = inputs["attention_mask"].bool()
    found = FusedModel(target, assistants).logits(**inputs, use_cache=False)
    for one, other in zip(found, separate([target, *assistants], inputs), strict=True):
        torch.testing.assert_close(one[keep], other[keep], rtol=1e-4, atol=1e-4)
