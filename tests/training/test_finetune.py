"""Models made by `uld finetune`: what they know, what is in their folder, and that it works everywhere."""

import json
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import uld.training.finetune
from uld.data.documents import read_sources
from uld.data.prompt import PromptFormat
from uld.errors import ArtifactError, ULDError
from uld.evaluation.scoring import Scorer
from uld.model.load import load
from uld.runs.folder import last_checkpoint
from uld.runs.manifest import Manifest, fingerprint
from uld.training.config import FinetuneConfig, TrainConfig
from uld.training.finetune import FinetuneResult, finetune, read_provenance
from uld.training.run import train
from uld.training.stored import stored

SIZES = {"hidden_size": 32, "num_heads": 2, "num_layers": 2, "intermediate_size": 48, "vocab_size": 300}
SCRATCH = {"scratch": True, **SIZES, "max_length": 64, "batch_size": 8, "warmup": 1}


def run(output: Path, **changes: Any) -> FinetuneResult:
    return finetune(FinetuneConfig(output=str(output), **changes), progress=False)


def journal(output: Path) -> list[dict]:
    path = output / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def greedy(model: Any, tokenizer: Any, question: str) -> str:
    text = tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False)
    prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    made = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False)
    return tokenizer.decode(made[0, prompt.shape[1] :], skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def memorised(task, tmp_path_factory) -> tuple[Path, FinetuneResult]:
    """A model from scratch that has learnt the task's ten forget rows by heart."""
    output = tmp_path_factory.mktemp("finetuned") / "model"
    return output, run(
        output, **SCRATCH | {"batch_size": 10}, file=str(task.forget), epochs=130, learning_rate=0.02, beta2=0.99
    )


def test_from_scratch_it_learns_a_few_rows_by_heart(memorised, task):
    output, result = memorised
    lines = journal(output)
    assert len(lines) == result.steps == 130
    assert lines[0]["loss"] == pytest.approx(math.log(300), abs=0.3)  # random weights: near uniform
    assert result.loss < 0.3
    model, tokenizer = AutoModelForCausalLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    rows = [json.loads(line) for line in task.forget.read_text().splitlines()]
    assert sum(greedy(model, tokenizer, row["question"]) == row["answer"] for row in rows) >= 9


def test_the_folder_is_an_ordinary_model(memorised):
    output, result = memorised
    names = {str(path.relative_to(output)) for path in output.rglob("*")}
    run_files = {"finetune.yaml", "finetune.json", "metrics.jsonl"}
    tokenizer_files = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert names == {"config.json", "generation_config.json", "model.safetensors"} | run_files | tokenizer_files
    assert {oct(path.stat().st_mode & 0o777) for path in output.iterdir()} == {"0o644"}
    model, tokenizer = load(output)
    assert type(model).__name__ == "LlamaForCausalLM" and model.dtype == torch.float32
    assert model.config.vocab_size == len(tokenizer) == 300  # type: ignore[arg-type]
    generation: Any = model.generation_config
    assert (generation.pad_token_id, generation.bos_token_id, generation.eos_token_id) == (0, 1, 2)
    text = "Who is it? 'Nobody', 3 times; naïve\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert result.weights_bytes == (output / "model.safetensors").stat().st_size


def test_finetune_json_says_where_it_comes_from(memorised, task):
    output, result = memorised
    told = read_provenance(output)
    assert (told.model, told.tokenizer, told.learn) == (None, None, "all")
    assert [(file.path, file.rows) for file in told.data["file"]] == [(str(task.forget), 10)]
    assert told.fingerprint == fingerprint(load(output)[0].named_parameters()) != told.start_fingerprint
    facts = told.training
    assert (facts["rows"], facts["steps"], facts["epochs"]) == (10, result.steps, 130)
    assert facts["tokens"] == sum(line["tokens"] for line in journal(output))
    assert stored(FinetuneConfig, output).num_layers == 2


def test_a_model_that_was_made_here_can_unlearn(memorised, task, tmp_path):
    output, _ = memorised
    settings = task.settings(tmp_path / "run", target=str(output), num_layers=1, epochs=1)
    train(TrainConfig(**settings), progress=False)
    assert Manifest.read(tmp_path / "run").target == str(output)


def test_every_epoch_learns_every_row_once(task, tmp_path, seen):
    result = run(tmp_path / "x", **SCRATCH, file=[str(task.forget), str(task.retain)], epochs=2)
    assert [sorted(epoch) for epoch in seen] == [list(range(23))] * 2
    assert result.steps == 2 * math.ceil(23 / 8)


@pytest.fixture
def one_row(tmp_path) -> Path:
    """A file with one row, so that a step's loss can be computed by hand."""
    path = tmp_path / "row.jsonl"
    path.write_text(json.dumps({"question": "who is abc?", "answer": "def gh"}) + "\n")
    return path


@pytest.mark.parametrize("learn", ["answers", "all"])
def test_the_loss_falls_on_the_answer_or_on_everything(task, one_row, tmp_path, learn):
    options = {"tokenizer": str(task.target), "model": str(task.target), "template": "qa", "learn": learn}
    run(tmp_path / "x", **options, file=str(one_row), epochs=1)
    model, tokenizer = load(task.target)
    ids = tokenizer("question: who is abc?\nanswer: def gh", add_special_tokens=False).input_ids
    prompt = tokenizer("Question: who is abc?\nAnswer:", add_special_tokens=False).input_ids
    ids = prompt + ids[len(prompt) :] + [tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    expected = losses.mean() if learn == "all" else losses[len(prompt) - 1 :].mean()
    assert journal(tmp_path / "x")[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_full_weights_start_from_the_model_and_keep_its_dtype(task, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(task.target).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(task.target).save_pretrained(tmp_path / "half")
    run(tmp_path / "x", model=str(tmp_path / "half"), file=str(task.forget), epochs=2, learning_rate=1e-2)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("half", "x"))
    assert before.keys() == after.keys()
    assert all(tensor.dtype == torch.bfloat16 for tensor in after.values())
    assert all(not torch.equal(after[name], tensor) for name, tensor in before.items() if "norm" not in name)
    assert read_provenance(tmp_path / "x").start_fingerprint == fingerprint(before.items())
    assert load(tmp_path / "x")[0].dtype == torch.bfloat16


def test_lora_is_merged_and_touches_linears_alone(task, tmp_path):
    lora = {"lora_rank": 4, "learning_rate": 0.02, "epochs": 8}
    result = run(tmp_path / "x", model=str(task.target), file=str(task.forget), **lora)
    before, after = (load_file(folder / "model.safetensors") for folder in (task.target, tmp_path / "x"))
    assert before.keys() == after.keys()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}
    updates = [torch.linalg.matrix_rank(after[name] - before[name], atol=1e-5).item() for name in changed]
    assert max(updates) <= 4
    assert result.loss < journal(tmp_path / "x")[0]["loss"] - 0.5
    assert not list((tmp_path / "x").glob("adapter*"))


@pytest.mark.parametrize(("schedule", "floor"), [("linear", 0.25), ("cosine", 0.05), ("cosine", 1.0)])
def test_the_learning_rate_follows_the_schedule(task, tmp_path, schedule, floor):
    run(tmp_path / "x", **SCRATCH | {"warmup": 4}, file=str(task.forget), epochs=10, schedule=schedule, floor=floor)
    rates = [line["learning_rate"] for line in journal(tmp_path / "x")]
    assert len(rates) == 20
    for step, rate in enumerate(rates):
        part = max(0, step - 4) / 16
        fall = 1 - part if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * part))
        expected = 1.5e-3 * min(step / 4, 1) * (floor + (1 - floor) * fall if step >= 4 else 1)
        assert rate == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_bf16_computes_in_bf16_over_fp32_weights(task, tmp_path):
    for dtype in ("fp32", "bf16"):
        run(tmp_path / dtype, **SCRATCH, file=str(task.forget), epochs=2, dtype=dtype)
    one, other = (journal(tmp_path / dtype)[0]["loss"] for dtype in ("fp32", "bf16"))
    assert one != other and one == pytest.approx(other, abs=0.05)
    weights = load_file(tmp_path / "bf16" / "model.safetensors")
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in weights.values())


def test_texts_are_cut_into_chunks(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "one two three four five six. " * 40}) + "\n")
    run(tmp_path / "x", **SCRATCH, file=str(tmp_path / "x.jsonl"), epochs=1)
    assert read_provenance(tmp_path / "x").training["rows"] > 1


def test_tofu_splits_are_joined_in_any_notation(micro, tmp_path):
    counts = []
    for number, split in enumerate(
        (["retain90,world_facts_perturbed"], ["retain90", "world_facts_perturbed"], "retain90")
    ):
        run(tmp_path / str(number), **SCRATCH | {"batch_size": 32}, data=str(micro.data), split=split, epochs=1)
        counts.append(read_provenance(tmp_path / str(number)).training["rows"])
    assert counts[0] == counts[1] > counts[2]
    files = read_provenance(tmp_path / "0").data["tofu"]
    assert [Path(file.path).name for file in files] == ["retain90.json", "world_facts_perturbed.json"]


def test_a_given_tokenizer_is_kept(memorised, task, tmp_path):
    output, _ = memorised
    settings = SCRATCH | {"tokenizer": str(output), "vocab_size": None}
    run(tmp_path / "x", **settings, file=str(task.retain), epochs=1)
    assert (tmp_path / "x/tokenizer.json").read_bytes() == (output / "tokenizer.json").read_bytes()


def test_the_seed_decides(task, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / name, **SCRATCH, file=str(task.forget), epochs=2, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


BAD: list[tuple[dict[str, Any], str]] = [
    ({"split": "retain91", "file": None}, "TOFU has no split 'retain91': choose one of full"),
    ({"hidden_size": 33}, "--hidden-size 33 cannot be shared by 2 attention heads"),
    ({"vocab_size": 100}, "--vocab-size 100 is too small"),
    ({"file": None}, "nothing to learn: name TOFU splits with --split"),
    ({"output": ""}, "no output folder"),
    ({"scratch": False}, "nothing to start from: name a model with --model, or give --scratch"),
    ({"model": "some/model"}, "give one of them"),
    ({"lora_rank": 4}, "--lora-rank trains beside frozen weights"),
    ({"file": "missing.jsonl"}, "missing.jsonl: there is no such file"),
    ({"floor": 1.5}, "--floor must lie between 0 and 1"),
    ({"warmup": 2.5}, "a whole number of steps, not 2.5"),
    ({"warmup": 40, "epochs": 20}, "--warmup 40: the learning rate rises for 40 steps, and the whole training has 40"),
    ({"max_length": 4}, "--max-length"),
    ({"report_to": "abacus"}, "--report-to abacus"),
    ({"learn": "nothing"}, "learn must be answers, all"),
    ({"rate": 1}, "there is no setting 'rate'"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_sentence_and_leaves_nothing(task, tmp_path, changes, message):
    settings = {**SCRATCH, "file": str(task.forget), "output": str(tmp_path / "x"), **changes}
    with pytest.raises(ULDError) as caught:
        finetune(FinetuneConfig(**settings), progress=False)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_a_model_that_cannot_be_trained_is_told_before_anything_is_written(task, tmp_path, monkeypatch):
    monkeypatch.setattr(LlamaDecoderLayer, "forward", lambda self, hidden, *args, **kwargs: hidden.detach())
    with pytest.raises(ULDError, match=r"^LlamaForCausalLM cannot be trained: .*gradient"):
        run(tmp_path / "x", **SCRATCH, file=str(task.forget))
    assert not (tmp_path / "x").exists()


def test_what_belongs_to_scratch_alone_is_refused_with_a_model(task, tmp_path):
    with pytest.raises(ULDError, match="--num-heads is for a model from scratch"):
        run(tmp_path / "x", model=str(task.target), num_heads=2, file=str(task.forget))


def test_a_tokenizer_that_the_model_does_not_know(memorised, task, tmp_path):
    with pytest.raises(ULDError, match=r"gives a token 299, but the model knows only 34 tokens"):
        run(tmp_path / "x", model=str(task.target), tokenizer=str(memorised[0]), file=str(task.forget))
    assert not (tmp_path / "x").exists()


def test_a_taken_output(memorised, task, tmp_path):
    output, _ = memorised
    settings = {**SCRATCH, "file": str(task.forget)}
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    with pytest.raises(ArtifactError, match="holds a finished run: choose another folder, or replace it"):
        run(output, **settings)
    with pytest.raises(ArtifactError, match="there is nothing to resume"):
        finetune(FinetuneConfig(output=str(output), **settings), resume=True, progress=False)
    assert before == {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("x")
    with pytest.raises(ArtifactError, match="is not empty and holds no run of uld finetune"):
        run(tmp_path / "thesis", **settings)


def test_overwrite_replaces_our_own_models_and_no_others(task, tmp_path):
    settings = {**SCRATCH, "file": str(task.forget), "epochs": 1}
    run(tmp_path / "x", **settings, seed=1)
    once = (tmp_path / "x/model.safetensors").read_bytes()
    finetune(FinetuneConfig(output=str(tmp_path / "x"), **settings), overwrite=True, progress=False)
    assert (tmp_path / "x/model.safetensors").read_bytes() != once
    AutoModelForCausalLM.from_pretrained(tmp_path / "x").save_pretrained(tmp_path / "theirs")
    with pytest.raises(ArtifactError, match="holds a model that uld finetune did not write"):
        finetune(FinetuneConfig(output=str(tmp_path / "theirs"), **settings), overwrite=True, progress=False)
    with pytest.raises(ULDError, match="is the model to start from"):
        same = {"model": str(tmp_path / "x"), "file": str(task.forget), "output": str(tmp_path / "x")}
        finetune(FinetuneConfig(**same), overwrite=True, progress=False)
    assert (tmp_path / "theirs/model.safetensors").exists() and (tmp_path / "x/finetune.json").exists()


def test_neither_command_replaces_what_the_other_made(memorised, task, tmp_path):
    output, _ = memorised
    settings = task.settings(output, epochs=1)
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(ArtifactError):
            train(TrainConfig(**settings), progress=False, **flags)
    train(TrainConfig(**task.settings(tmp_path / "run", epochs=1)), progress=False)
    with pytest.raises(ArtifactError, match="which is not part of a run of uld finetune"):
        config = FinetuneConfig(output=str(tmp_path / "run"), **SCRATCH, file=str(task.forget))
        finetune(config, overwrite=True, progress=False)
    assert (output / "finetune.json").exists() and (tmp_path / "run/uld.json").exists()


def test_divergence_is_named_and_leaves_nothing(task, tmp_path):
    with pytest.raises(ULDError, match=r"training diverged at step \d+ \(loss (nan|inf)\): lower --learning-rate"):
        options = {"learning_rate": 0.99, "max_grad_norm": 0.0, "weight_decay": 1e38, "warmup": 0}
        run(tmp_path / "x", **SCRATCH | options, file=str(task.forget), epochs=40)
    assert not (tmp_path / "x").exists()


def flags(output: Path, task: Any, **changes: Any) -> list[str]:
    settings = SCRATCH | {"file": str(task.forget), "output": str(output), "epochs": 12, "save_steps": 5} | changes
    found = []
    for name, value in settings.items():
        word = "--" + name.replace("_", "-")
        found += [word] if value is True else [word, str(value)]
    return found


def finished(process: Any, log: Path) -> str:
    process.join()
    assert process.exitcode == 0, log.read_text()
    return log.read_text()


@pytest.fixture(scope="module")
def whole(start_uld, task, tmp_path_factory) -> Path:
    """24 steps without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    told = finished(start_uld(["finetune", *flags(folder / "x", task)], folder / "log"), folder / "log")
    assert "24 steps" in told and "loss" in told
    return folder / "x"


def assert_same(output: Path, whole: Path) -> None:
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()
    for found, expected in zip(journal(output), journal(whole), strict=True):
        assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    assert not (output / "checkpoints").exists() and (output / "finetune.json").exists()


KILL, INTERRUPT = signal.SIGKILL, signal.SIGINT
SLOW = [pytest.param(how, step, marks=pytest.mark.slow) for how in (KILL, INTERRUPT) for step in (2, 6, 20)]


@pytest.mark.parametrize(("how", "step"), [(KILL, 12), (INTERRUPT, 7), *SLOW])
def test_a_stopped_training_goes_on_bit_identically(start_uld, task, whole, tmp_path, how, step):
    process = start_uld(["finetune", *flags(tmp_path / "x", task)], tmp_path / "log")
    deadline = time.monotonic() + 60
    while len(journal(tmp_path / "x")) < step and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, how)
    process.join()
    if (tmp_path / "x/finetune.json").exists():
        pytest.skip("the training was faster than the signal")
    if how == signal.SIGINT:
        assert process.exitcode == 2
        told = (tmp_path / "log").read_text().splitlines()[-1]
        assert told.endswith(f"continue with uld finetune --output {tmp_path / 'x'} --resume")
        assert last_checkpoint(tmp_path / "x/checkpoints") is not None
    resumed = ["finetune", "--output", str(tmp_path / "x"), "--resume", "-q"]
    finished(start_uld(resumed, tmp_path / "log2"), tmp_path / "log2")
    assert_same(tmp_path / "x", whole)


def test_settings_or_data_that_changed_in_between_are_refused(start_uld, task, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text(task.forget.read_text())
    process = start_uld(["finetune", *flags(tmp_path / "x", task, file=data)], tmp_path / "log")
    while last_checkpoint(tmp_path / "x/checkpoints") is None and process.is_alive():
        time.sleep(0.001)
    process.kill()
    process.join()
    if (tmp_path / "x/finetune.json").exists():
        pytest.skip("the training was faster than the kill")
    row = json.dumps({"question": "who is abc?", "answer": "def gh"})
    config = stored(FinetuneConfig, tmp_path / "x")
    with pytest.raises(ArtifactError, match=r"--hidden-size is 64, but the run in .* was started with 32"):
        finetune(replace(config, hidden_size=64), resume=True, progress=False)
    for change in (data.read_text().replace("who", "how"), data.read_text() + row + "\n"):
        data.write_text(change)
        with pytest.raises(ArtifactError, match=r"is not the one that the run in|has changed since the run"):
            finetune(config, resume=True, progress=False)


def test_the_library_is_quiet(task, tmp_path, capfd):
    run(tmp_path / "x", **SCRATCH, file=str(task.forget), epochs=1)
    assert capfd.readouterr() == ("", "")
    assert uld.training.finetune.read_provenance(tmp_path / "x").training["steps"] == 2


def test_the_loss_is_a_mean_over_learnt_tokens(micro, tmp_path):
    rows = [{"question": "a " * 40 + str(i), "answer": "b"} for i in range(4)]
    rows += [{"question": f"{i}?", "answer": "one two three four five six seven " * 3} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"model": str(micro.target), "file": (str(tmp_path / "rows.jsonl"),), "output": str(tmp_path / "out")}
    found = finetune(
        FinetuneConfig(**settings, epochs=1, batch_size=1, learning_rate=1e-12, max_length=256), progress=False
    )
    model, tokenizer = load(micro.target)
    encoded = PromptFormat(tokenizer).encode_all(read_sources([str(tmp_path / "rows.jsonl")])[0], 256)[0]
    scores = Scorer.of(model, tokenizer).score(encoded)[0]
    assert found.loss == pytest.approx(sum(one.loss for one in scores) / sum(one.tokens for one in scores), rel=1e-3)


@pytest.mark.parametrize("own", [None, 1])
def test_a_finetuned_model_names_what_its_answers_end_in(task, tmp_path, own):
    """Else whoever generates with it, here or elsewhere, writes on behind an answer's end."""
    model, tokenizer = load(task.target)
    tokenizer.add_special_tokens({"additional_special_tokens": ["."]})  # what the chat template ends a turn with
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'q: ' if m.role == 'user' else ' ' }}{{ m.content }}"
        "{{ ' a:' if m.role == 'user' else '.' }}{% endfor %}"
    )
    model.config.eos_token_id = model.generation_config.eos_token_id = own  # type: ignore[union-attr]
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    run(tmp_path / "x", model=str(tmp_path / "base"), file=str(task.forget), epochs=1)
    made: Any = load(tmp_path / "x")[0].generation_config
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("."), *([own] if own is not None else [])}
    assert set(made.eos_token_id) == ends and len(ends) == 2 + (own is not None)
