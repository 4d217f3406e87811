"""vLLM answers as `generate` does: tokens, log-probabilities, whatever its scheduler does meanwhile."""

import dataclasses
import gc
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import uld
from uld.errors import ArtifactError
from uld.model.combine import Combination
from uld.model.gate import Gate, save_gate

pytest.importorskip("vllm", reason="vLLM is not installed (make test-vllm)")
from vllm import SamplingParams, TokensPrompt  # type: ignore[import-not-found]
from vllm.sampling_params import StructuredOutputsParams  # type: ignore[import-not-found]

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3")
HOW = Combination(weight=3.0, margin=0.5, floor=0.01)
TOKENS = 64


def prompts(count: int = 16) -> list[list[int]]:
    """Prompts of many lengths; every other one begins like the first."""
    rng = random.Random(0)
    start = rng.choices(range(4, 34), k=20)
    drawn = [rng.choices(range(4, 34), k=rng.randint(1, 25)) for _ in range(count)]
    return [start + one if i % 2 else one for i, one in enumerate(drawn)]


def written(model: Any, prompt: list[int]) -> list[int]:
    """What `generate` writes greedily."""
    found = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=TOKENS, eos_token_id=None, pad_token_id=0
    )
    return found[0, len(prompt) :].tolist()


def greedy(**changes: Any) -> Any:
    return SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, **changes)


def asked(llm: Any, given: list[list[int]], how: Any) -> list[Any]:
    return llm.generate([TokensPrompt(prompt_token_ids=one) for one in given], how, use_tqdm=False)


def logprobs_of(model: Any, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """The model's log-probabilities of every token at each place of an answer: ``(tokens, vocab)``."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens]), use_cache=False).logits[0]
    return logits.float().log_softmax(-1)[len(prompt) - 1 : -1]


@pytest.mark.parametrize("last", [None, 1], ids=["first layers", "last layers"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_log_probabilities_are_those_of_generate(family: str, last: int | None, run_of, engine):
    """In chunks of 32 tokens, with shared prefixes, and with pages for a few of the requests at a time."""
    run = run_of(family, how=HOW, last=last)
    llm = engine(
        [run], max_num_batched_tokens=64, enable_prefix_caching=True, num_gpu_blocks_override=14, block_size=32
    )
    model, _ = uld.load(run, attn_implementation="eager")  # the others leave out Gemma-2's soft-caps
    near = (
        1e-3 if last is None else 3e-3
    )  # LoRA is added to the weights, and no layer follows that evens its rounding out
    given = prompts()
    found = asked(llm, given, greedy(logprobs=5))
    del llm
    gc.collect()
    for prompt, one in zip(given, found, strict=True):
        answer = one.outputs[0]
        tokens = list(answer.token_ids)
        assert tokens == written(model, prompt)
        wanted = logprobs_of(model, prompt, tokens)
        for place, shown in enumerate(answer.logprobs):
            for token, value in shown.items():
                assert value.logprob == pytest.approx(float(wanted[place, token]), abs=near)


@pytest.mark.parametrize("last", [None, 1], ids=["first layers", "last layers"])
def test_in_bf16_it_rounds_no_more_than_transformers_does(last: int | None, run_of, engine):
    run = run_of("llama", how=HOW, last=last)
    llm = engine([run], dtype="bfloat16")
    given = prompts(8)
    found = [one.outputs[0] for one in asked(llm, given, greedy(logprobs=5))]
    del llm
    gc.collect()
    exact, rounded = (uld.load(run, dtype=dtype)[0] for dtype in (torch.float32, torch.bfloat16))
    off: dict[str, list[float]] = {"vllm": [], "transformers": []}
    for prompt, answer in zip(given, found, strict=True):
        tokens = list(answer.token_ids)
        true, other = (logprobs_of(model, prompt, tokens) for model in (exact, rounded))
        for place, shown in enumerate(answer.logprobs):
            for token, value in shown.items():
                off["vllm"].append(abs(value.logprob - float(true[place, token])))
                off["transformers"].append(abs(float(other[place, token] - true[place, token])))
    mean = {name: sum(some) / len(some) for name, some in off.items()}
    assert 0 < mean["vllm"] <= 1.5 * mean["transformers"]


def with_gate(run: Path) -> Path:
    """The run with a gate that is neither open nor closed."""
    from uld.runs.digests import weights_digests
    from uld.runs.manifest import Manifest

    model, _ = uld.load(run)
    model.assistant.uld_gate = Gate(128)
    with torch.no_grad():
        model.assistant.uld_gate.weight.normal_(std=1.0)
        model.assistant.uld_gate.bias.fill_(0.5)
    save_gate(model.assistant, run / "adapter")
    manifest = Manifest.read(run)
    manifest.model_copy(update={"weights": weights_digests(run)}).write(run)
    return run


@pytest.mark.parametrize(
    "how",
    [
        HOW,
        Combination(weight=float("inf"), margin=0.5, floor=0.01),
        Combination(rule="subtract", weight=1.5, filter=0.01, outside="mask"),
        Combination(rule="reference", weight=0.8, filter=0.02),
    ],
    ids=["suppress", "without limit", "subtract", "reference"],
)
def test_several_runs_a_gate_and_every_rule(how: Combination, run_of, engine, make_unlearned):
    run = run_of("llama", how=how)
    other = _second(run, make_unlearned)
    runs = [with_gate(run), other]
    llm = engine(runs)
    model, _ = uld.load(runs)
    given = prompts(4)
    for prompt, one in zip(given, asked(llm, given, greedy(logprobs=3)), strict=True):
        answer = one.outputs[0]
        wanted = logprobs_of(model, prompt, list(answer.token_ids))
        for place, shown in enumerate(answer.logprobs):
            for token, value in shown.items():
                if value.logprob > -50:
                    assert value.logprob == pytest.approx(float(wanted[place, token]), abs=1e-3)


def test_runs_that_join_the_target_at_several_depths(run_of, engine, make_unlearned):
    """The later one is named first, and one with the first layers stands between them."""
    how = dataclasses.replace(HOW, weight=1.0)
    run = run_of("llama", how=how, last=1)
    runs = [with_gate(run), _second(run, make_unlearned, 2), _second(run, make_unlearned, 5, last=2)]
    llm = engine(runs)
    model, _ = uld.load(runs)
    given = prompts(6)
    found = asked(llm, given, greedy(logprobs=3))
    served = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.model
    assert served.joined == [2, 0]  # in the order in which they join
    for prompt, one in zip(given, found, strict=True):
        answer = one.outputs[0]
        assert list(answer.token_ids) == written(model, prompt)
        wanted = logprobs_of(model, prompt, list(answer.token_ids))
        for place, shown in enumerate(answer.logprobs):
            for token, value in shown.items():
                if value.logprob > -50:
                    assert value.logprob == pytest.approx(float(wanted[place, token]), abs=1e-3)


def _second(run: Path, make_unlearned: Any, depth: int = 3, last: int | None = None) -> Path:
    """Another run of the same target: other LoRA, another depth."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from uld.runs.manifest import CombinationSettings, Manifest, fingerprint

    target = AutoModelForCausalLM.from_pretrained(run.parent / "target")
    model = make_unlearned(target, depth, HOW, seed=depth, last=last)
    own = Manifest.read(run)
    shared = [
        (name.removeprefix("base_model.model.").replace(".base_layer", ""), value)
        for name, value in model.assistant.named_parameters()
        if "lora_" not in name
    ]
    rule = CombinationSettings(**own.combination.model_dump())
    model.combinations = [Combination(**rule.model_dump())]
    model.manifests = [
        own.model_copy(
            update={"num_layers": depth, "target_fingerprint": fingerprint(shared), "combination": rule, "weights": {}}
        )
    ]
    folder = run.parent / f"second-{depth}"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(run).save_pretrained(folder)
    return folder


def test_what_vllm_offers_is_of_the_unlearned_model(run_of, engine):
    """Log-probabilities of prompts, several answers, seeds, a grammar, a bias: none sees the target alone."""
    run = run_of("llama", how=HOW)
    llm = engine([run])
    model, tokenizer = uld.load(run)
    (prompt,) = prompts(2)[1:]
    (one,) = asked(llm, [prompt], greedy(prompt_logprobs=0))
    wanted = logprobs_of(model, prompt[:1], prompt[1:])
    for place, shown in enumerate(one.prompt_logprobs[1:]):
        token = prompt[place + 1]
        assert shown[token].logprob == pytest.approx(float(wanted[place, token]), abs=1e-3)
    sampled = SamplingParams(n=3, temperature=1.0, seed=7, max_tokens=16, ignore_eos=True, logprobs=0)
    first, second = (asked(llm, [prompt], sampled)[0].outputs for _ in range(2))
    assert [list(one.token_ids) for one in first] == [list(one.token_ids) for one in second]
    assert len({tuple(one.token_ids) for one in first}) == 3
    for answer in first:
        tokens = list(answer.token_ids)
        wanted = logprobs_of(model, prompt, tokens)
        for place, shown in enumerate(answer.logprobs):
            assert shown[tokens[place]].logprob == pytest.approx(float(wanted[place, tokens[place]]), abs=1e-3)
    choice = SamplingParams(
        temperature=0, max_tokens=8, structured_outputs=StructuredOutputsParams(choice=["ab", "cd"])
    )
    (one,) = asked(llm, [prompt], choice)
    assert tokenizer.decode(one.outputs[0].token_ids, skip_special_tokens=True) in ("ab", "cd")
    (one,) = asked(llm, [prompt], greedy(logit_bias={9: 100.0}))
    assert set(one.outputs[0].token_ids) == {9}


def test_a_checkpoint_whose_target_was_changed_does_not_start(run_of, engine, monkeypatch: pytest.MonkeyPatch):
    from safetensors.torch import load_file, save_file

    from uld.serving.vllm import export as exporting

    real, name = exporting.export, "model.layers.0.mlp.up_proj.weight"

    def then_change(*args: Any) -> Path:
        folder = real(*args)
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        save_file(weights | {name: weights[name] * 1.5}, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    monkeypatch.setattr(exporting, "export", then_change)
    with pytest.raises(ArtifactError, match="not those of the target that run was trained on"):
        engine([run_of("llama", how=HOW)])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"enable_lora": True}, "lora"),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}}, "draft"),
    ],
)
def test_what_the_combination_is_not_right_under_does_not_start(changes: dict[str, Any], said: str, run_of, engine):
    with pytest.raises(Exception, match=f"(?i){said}"):
        engine([run_of("llama", how=HOW)], **changes)


@pytest.mark.slow
@pytest.mark.parametrize("last", [None, 1], ids=["first layers", "last layers"])
def test_compiled_it_writes_what_it_writes_step_by_step(last: int | None, run_of, engine):
    run = run_of("llama", how=HOW, last=last)
    model, _ = uld.load(run)
    given = prompts(4)
    found = asked(engine([run], enforce_eager=False), given, greedy())
    for prompt, one in zip(given, found, strict=True):
        assert list(one.outputs[0].token_ids) == written(model, prompt)


@pytest.mark.slow
@pytest.mark.parametrize("last", [None, 1], ids=["first layers", "last layers"])
def test_two_processes_that_share_the_weights_write_what_one_writes(
    last: int | None, run_of, engine, monkeypatch: pytest.MonkeyPatch
):
    """Tensor parallelism on the CPU (gloo): four heads, two of them in each process."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    run = run_of("llama", how=HOW, last=last)
    model, _ = uld.load(run)
    given = prompts(4)
    llm = engine([run], tensor_parallel_size=2, distributed_executor_backend="mp")
    found = asked(llm, given, greedy())
    for prompt, one in zip(given, found, strict=True):
        assert list(one.outputs[0].token_ids) == written(model, prompt)
