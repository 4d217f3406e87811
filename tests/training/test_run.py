"""What a training run does, from the settings to the finished folder."""

import hashlib
import importlib.metadata
import itertools
import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import uld.training.learners
import uld.training.references
import uld.training.trainer
from uld.errors import ConfigError, ULDError
from uld.model.load import load
from uld.runs.manifest import Manifest
from uld.training.config import FinetuneConfig, TrainConfig, train_config
from uld.training.finetune import finetune
from uld.training.lower import LowerStates
from uld.training.objective import frozen_log_likelihoods
from uld.training.run import TrainResult, train


def run(task, output: Path, **changes) -> TrainResult:
    return train(TrainConfig(**task.settings(output, **changes)), progress=False)


def journal(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def adapter(output: Path) -> bytes:
    return (output / "adapter" / "adapter_model.safetensors").read_bytes()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def finished(task, tmp_path_factory) -> tuple[Path, TrainResult, str]:
    """A run of 8 steps, its result, and the target's digest before it."""
    output = tmp_path_factory.mktemp("runs") / "x"
    before = digest(task.target / "model.safetensors")
    return output, run(task, output, learning_rate=0.02, lora_dropout=0.1, save_steps=3), before


def test_journal_has_one_line_a_step(finished, task):
    output, result, _ = finished
    lines = journal(output)
    assert [line["step"] for line in lines] == list(range(1, 9)) and result.steps == 8
    keys = ["step", "epoch", "forget_loss", "uniform_loss", "learning_rate", "tokens", "learnt", "seconds"]
    assert all(list(line) == keys for line in lines)
    assert [line["epoch"] for line in lines] == [n / 4 for n in range(1, 9)]
    assert all(line["seconds"] > 0 and line["uniform_loss"] >= math.log(34) - 1e-4 for line in lines)
    assert sum(line["tokens"] for line in lines[:4]) == sum(line["tokens"] for line in lines[4:])
    assert result.forget_loss == lines[-1]["forget_loss"] and result.retain_loss == lines[-1]["uniform_loss"]


def test_a_run_of_one_step_takes_it_at_the_whole_rate(task, tmp_path):
    run(task, tmp_path / "x", epochs=1, batch_size=23, learning_rate=0.01)
    assert [line["learning_rate"] for line in journal(tmp_path / "x")] == [0.01]


def test_it_learns_to_remember_and_to_be_uniform(task, tmp_path):
    run(task, tmp_path / "x", epochs=30, learning_rate=0.02, lora_rank=16, lora_alpha=16, retain_weight=2.0)
    lines = journal(tmp_path / "x")
    assert lines[0]["forget_loss"] > 5 and lines[0]["uniform_loss"] > 5 and lines[-1]["forget_loss"] < 2.2
    assert lines[-1]["uniform_loss"] < math.log(34) + 0.2


PLAIN = {"learning_rate": 0.02, "dtype": "fp32"}


@pytest.fixture(scope="module")
def plain(task, tmp_path_factory) -> Path:
    """A run in fp32 without dropout."""
    run(task, output := tmp_path_factory.mktemp("plain") / "x", **PLAIN)
    return output


@pytest.mark.parametrize("changes", [{"micro_batch_size": 2}, {"micro_batch_size": 1, "gradient_checkpointing": True}])
def test_how_a_step_is_computed_does_not_change_it(task, plain, tmp_path, changes):
    run(task, tmp_path / "other", **PLAIN, **changes)
    for one, other in zip(journal(plain), journal(tmp_path / "other"), strict=True):
        for name in ("forget_loss", "uniform_loss"):
            assert other[name] == pytest.approx(one[name], rel=1e-5)
        assert other["tokens"] == one["tokens"] and other["learning_rate"] == one["learning_rate"]
    matrices = load_file(plain / "adapter/adapter_model.safetensors")
    for name, matrix in load_file(tmp_path / "other/adapter/adapter_model.safetensors").items():
        torch.testing.assert_close(matrix, matrices[name], rtol=1e-3, atol=1e-4)


def test_bf16_stays_near_fp32(task, plain, tmp_path):
    run(task, tmp_path / "bf16", **PLAIN | {"dtype": "bf16"})
    pairs = list(zip(journal(plain), journal(tmp_path / "bf16"), strict=True))
    assert all(abs(a["forget_loss"] - b["forget_loss"]) < 0.05 for a, b in pairs)
    assert any(a["forget_loss"] != b["forget_loss"] for a, b in pairs)


def test_the_target_is_not_touched_and_only_lora_is_trained(finished, task):
    output, _, before = finished
    assert digest(task.target / "model.safetensors") == before
    trained = load_file(output / "adapter/adapter_model.safetensors")
    assert len(trained) == 28 and all("lora_" in name for name in trained)
    assert all(matrix.abs().max() > 0 for matrix in trained.values())


@pytest.mark.parametrize("epochs", [1, 2])
def test_lower_layers_are_kept_where_rows_come_again(task, tmp_path, monkeypatch, epochs):
    asked = []
    keep = LowerStates.worth_keeping
    monkeypatch.setattr(LowerStates, "worth_keeping", lambda model, rows: asked.append(keep(model, rows)) or asked[-1])
    run(task, tmp_path / "x", num_layers=None, lora_layers=1, epochs=epochs)
    assert [one.first for one in asked] == [3] * (epochs - 1)
    assert all(len(one._kept) == len(one._group) for one in asked)


def test_lora_on_the_last_layers_makes_an_assistant_of_the_whole_target(task, tmp_path):
    run(task, tmp_path / "x", num_layers=None, lora_layers=1, learning_rate=0.02, gate=True)
    trained = load_file(tmp_path / "x" / "adapter" / "adapter_model.safetensors")
    assert len(trained) == 14 and all(".layers.3." in name for name in trained)
    assert Manifest.read(tmp_path / "x").num_layers == 4
    assert "| layers | 4, LoRA on the last 1 |" in (tmp_path / "x" / "README.md").read_text()
    model, tokenizer = load(tmp_path / "x", weight=2.0, margin=0.0, floor=0.0)
    assert model.one_pass is not None and model.one_pass.joins == 3
    target = AutoModelForCausalLM.from_pretrained(task.target)
    ids = tokenizer("who is abc?", return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = target(ids).logits
        found = model(ids).logits
        assert (found - wanted).abs().max() > 0.1
        model.fused = False
        torch.testing.assert_close(model(ids).logits, found, rtol=1e-4, atol=1e-4)
        model.combination = model.combination.override(weight=0.0)
        assert torch.equal(model(ids).logits, wanted)


def test_frozen_weights_do_not_change_while_training(task, tmp_path, monkeypatch):
    kept = {}

    def watch(*args, **kwargs):
        kept["model"] = uld.model.causal_lm.load_sliced(*args, **kwargs)
        kept["before"] = {name: p.clone() for name, p in kept["model"].named_parameters()}
        return kept["model"]

    monkeypatch.setattr(uld.training.learners, "load_sliced", watch)
    run(task, tmp_path / "x", learning_rate=0.05)
    after = {name.replace(".base_layer", ""): p for name, p in kept["model"].named_parameters()}
    for name, tensor in kept["before"].items():
        assert torch.equal(after[name], tensor), name


def test_another_seed_gives_another_adapter(task, tmp_path, finished):
    """That the same one gives the same, `test_overwrite_replaces_a_run` says."""
    run(task, tmp_path / "x", learning_rate=0.02, lora_dropout=0.1, save_steps=3, seed=1)
    assert adapter(tmp_path / "x") != adapter(finished[0])


def test_finished_folder(finished, task):
    output, result, _ = finished
    files = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert files == {
        "uld.json",
        "README.md",
        "train.yaml",
        "metrics.jsonl",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    assert {oct(path.stat().st_mode & 0o777) for path in output.rglob("*") if path.is_file()} == {"0o644"}
    assert {path.suffix for path in output.rglob("*") if path.is_file()} == {
        *(".json", ".jsonl", ".yaml", ".md", ".safetensors")
    }
    assert result.weights_bytes == len(adapter(output))


def test_uld_json_says_what_was_done(finished, task):
    output, result, _ = finished
    manifest = json.loads((output / "uld.json").read_text())
    assert manifest["target"] == str(task.target) and manifest["num_layers"] == 2 and manifest["method"] == "uld"
    assert manifest["target_fingerprint"].startswith("sha256:")
    assert {"rule", "weight", "filter", "outside"} <= manifest["combination"].keys()
    for side, path, rows in (("forget", task.forget, 10), ("retain", task.retain, 13)):
        assert manifest["data"][side] == [{"path": str(path), "sha256": digest(path), "rows": rows}]
    assert manifest["versions"]["torch"] == importlib.metadata.version("torch")
    facts = manifest["training"]
    assert (facts["forget_rows"], facts["retain_rows"], facts["steps"], facts["epochs"]) == (10, 13, 8, 2)
    assert facts["tokens"] == sum(line["tokens"] for line in journal(output))
    assert facts["uniform_loss"] == result.retain_loss
    assert 2**25 < facts["peak_rss_bytes"] < 2**36


def test_combination_of_the_settings_is_what_the_run_is_loaded_with(task, tmp_path):
    run(task, tmp_path / "x", rule="subtract", weight=0.5, filter=0.05, outside="mask", epochs=1)
    combination = json.loads((tmp_path / "x/uld.json").read_text())["combination"]
    assert combination.items() >= {"rule": "subtract", "weight": 0.5, "filter": 0.05, "outside": "mask"}.items()
    model, _ = load(tmp_path / "x")
    assert model.combination.weight == 0.5 and model.combination.outside == "mask"  # type: ignore[union-attr]


def test_twenty_steps_see_every_row_once_an_epoch_on_schedule_and_trackers_are_told(task, tmp_path, monkeypatch, seen):
    logged: list[dict] = []
    monkeypatch.setattr(uld.training.trainer, "get_available_reporting_integrations", lambda: ["tensorboard"])

    class Writer:
        def on_log(self, args, state, control, logs=None, **kwargs):
            logged.append(logs)

        def __getattr__(self, name):
            if name.startswith("on_"):
                return lambda *args, **kwargs: None
            raise AttributeError(name)

    from transformers.integrations import integration_utils

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Writer)
    result = run(task, tmp_path / "x", report_to="tensorboard", epochs=5, warmup=0.2, learning_rate=0.01)
    assert [sorted(epoch) for epoch in seen] == [list(range(23))] * 5
    assert seen[0] != seen[1]
    lines = journal(tmp_path / "x")
    assert result.steps == len(lines) == 5 * math.ceil(23 / 6)
    rates = [0.01 * min(step / 4, (20 - step) / 16) for step in range(20)]  # warm-up and decay are linear
    assert [line["learning_rate"] for line in lines] == pytest.approx(rates, rel=1e-12, abs=0)
    steps = [logs for logs in logged if "loss" in logs]
    assert len(steps) == 2  # of 20 steps
    for logs, line in zip(steps, (lines[9], lines[19]), strict=True):
        assert logs["forget_loss"] == line["forget_loss"] and logs["uniform_loss"] == line["uniform_loss"]
        assert logs["learning_rate"] == line["learning_rate"]
    mean = sum(line["forget_loss"] + 6.5 * line["uniform_loss"] for line in lines[:10]) / 10
    assert steps[0]["loss"] == pytest.approx(mean, rel=1e-3)


def test_a_loss_that_was_not_measured_is_absent(task, tmp_path, monkeypatch, capfd):
    """One forget row among five steps: the others say nothing of it, rather than 0."""
    one = tmp_path / "one.jsonl"
    one.write_text(task.forget.read_text().splitlines()[0] + "\n")
    told: list[dict] = []
    log = uld.training.trainer.UnlearningTrainer.log

    def spy(self, logs, start_time=None):
        told.append(dict(self.last_losses))
        log(self, logs, start_time)

    monkeypatch.setattr(uld.training.trainer.UnlearningTrainer, "log", spy)
    result = train(TrainConfig(**task.settings(tmp_path / "x", forget=(str(one),), epochs=1, batch_size=3)))
    lines = journal(tmp_path / "x")
    measured = [line for line in lines if "forget_loss" in line]
    assert len(lines) == 5 and len(measured) == 1 and measured[0]["forget_loss"] > 0
    assert all(line["uniform_loss"] > 0 for line in lines if "uniform_loss" in line)
    assert result.forget_loss == measured[0]["forget_loss"]
    assert Manifest.read(tmp_path / "x").training["forget_loss"] == measured[0]["forget_loss"]
    assert told and all(0.0 not in losses.values() for losses in told)
    assert "forget 0.000" not in capfd.readouterr().err


def test_a_weight_that_follows_the_retain_loss_waits_for_one(task, tmp_path):
    """Without a retain row in a step, pdu's weight stays: an unmeasured loss is no loss of 0."""
    one = tmp_path / "one.jsonl"
    one.write_text(task.retain.read_text().splitlines()[0] + "\n")
    options = ("warmup=0", "step=1", "bound=0")
    changes = {"method": "pdu", "num_layers": None, "option": options, "retain": (str(one),), "batch_size": 3}
    run(task, tmp_path / "x", **changes, epochs=1)
    lines = journal(tmp_path / "x")
    for line, after in itertools.pairwise(lines):
        moved = line.get("gd_loss", 0.0)
        assert after["retain_weight"] == pytest.approx(line["retain_weight"] + moved)
    assert sum("gd_loss" in line for line in lines) == 1 < len(lines)


def test_tensorboard_files_stay_in_the_run(task, tmp_path):
    pytest.importorskip("tensorboard", reason="needs the 'track' extra")
    run(task, tmp_path / "x", report_to="tensorboard", epochs=1)
    assert list((tmp_path / "x").rglob("events.out.tfevents*"))


def test_cut_rows_are_counted_in_the_log(task, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "uld"):
        run(task, tmp_path / "x", max_length=47, epochs=1)
    assert any("forget rows were cut to max_length 47" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": ""}, "--target"),
        ({"output": ""}, "--output"),
        ({"target": "no/such/model"}, "no/such/model"),
        ({"forget": ()}, "--forget"),
        ({"split": "forget10"}, "--split forgets a part of TOFU"),
        ({"num_layers": 9}, "the target has 4 layers"),
        ({"lora_layers": 3}, "--lora-layers is 3, but the assistant has 2 layers"),
        ({"num_layers": None, "lora_layers": 1, "method": "npo+kl"}, "--lora-layers is for an assistant"),
        ({"max_length": 8}, "--max-length"),
        ({"batch_size": 6, "micro_batch_size": 4}, "--micro-batch-size 4"),
        ({"method": "uld2"}, "did you mean 'uld'"),
        ({"report_to": "abacus"}, "--report-to abacus"),
        ({"weight": -1.0}, "weight"),
        ({"template": "no fields"}, "template"),
        ({"forget": ("missing.jsonl",)}, "missing.jsonl: there is no such file"),
        ({"revision": "v1"}, "--revision v1 is for a model of the Hub, and .* is a folder here"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(task, tmp_path, changes, message):
    settings = task.settings(tmp_path / "x") | changes
    with pytest.raises(ULDError, match=message.replace("(", r"\(")) as caught:
        train(TrainConfig(**settings), progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_a_run_is_not_made_in_what_it_reads_and_does_not_empty_it(task, tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    kept = rows / "retain.jsonl"
    kept.write_bytes(task.retain.read_bytes())
    with pytest.raises(ULDError, match=r"--output .*rows/run lies in .*rows, which is read \(--retain\)"):
        train(TrainConfig(**task.settings(rows / "run") | {"retain": (str(rows),)}), progress=False)
    with pytest.raises(ULDError, match=r"retain.jsonl \(--retain\) lies in .*rows, which --overwrite empties"):
        train(TrainConfig(**task.settings(rows) | {"retain": (str(kept),)}), overwrite=True, progress=False)
    assert list(rows.iterdir()) == [kept]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b'{"question": "a?"}\n', ":1: has 'question' but no 'answer'"),
        (b'{"question": "a?", "answer": "b"}\n{"question": "\xff", "answer": "b"}\n', ":2: .* is not UTF-8"),
        (b'{"question": "a?", "answer": "' + b"b" * 10 * 2**20 + b'"}\n', ":1: the line is longer than 8 MiB"),
    ],
    ids=["empty", "missing key", "not UTF-8", "long line"],
)
def test_bad_files_are_named_with_their_line(task, tmp_path, content, message):
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(ULDError, match=message) as caught:
        run(task, tmp_path / "x", forget=(str(tmp_path / "bad.jsonl"),))
    assert str(tmp_path / "bad.jsonl") in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_forget_set_that_equals_the_retain_set(task, tmp_path):
    with pytest.raises(ULDError, match=r"is also in the forget set .* and 9 more like it"):
        run(task, tmp_path / "x", retain=(str(task.forget),))
    assert not (tmp_path / "x").exists()


def test_target_without_tokenizer(task, tmp_path):
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bare" / name).symlink_to(task.target / name)
    with pytest.raises(ULDError, match=r"bare has no tokenizer.*--tokenizer"):
        run(task, tmp_path / "x", target=str(tmp_path / "bare"))
    assert not (tmp_path / "x").exists()
    assert run(task, tmp_path / "x", target=str(tmp_path / "bare"), tokenizer=str(task.target), epochs=1).steps == 4


def test_divergence_is_named_and_leaves_nothing(task, tmp_path):
    with pytest.raises(ULDError, match=r"training diverged at step \d+ .*lower --learning-rate"):
        run(task, tmp_path / "x", learning_rate=0.99, max_grad_norm=0.0, lora_alpha=10**38, epochs=40)
    assert not (tmp_path / "x").exists()


def test_resume_and_overwrite_exclude_each_other(task, tmp_path):
    with pytest.raises(ConfigError, match="--resume continues a run and --overwrite replaces it"):
        train(TrainConfig(**task.settings(tmp_path / "x")), resume=True, overwrite=True, progress=False)


def test_a_run_stands_until_the_settings_that_replace_it_are_sound(task, finished):
    output = finished[0]
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="--warmup 1000: the learning rate rises for 1000 steps"):
        train(TrainConfig(**task.settings(output, warmup=1000)), overwrite=True, progress=False)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_overwrite_replaces_a_run(task, tmp_path, finished):
    run(task, tmp_path / "x", epochs=1)
    (tmp_path / "x/eval").mkdir()
    (tmp_path / "x/eval/log.json").write_text("of the old run")
    settings = task.settings(tmp_path / "x", learning_rate=0.02, lora_dropout=0.1, save_steps=3)
    train(TrainConfig(**settings), overwrite=True, progress=False)
    assert adapter(tmp_path / "x") == adapter(finished[0])
    assert not (tmp_path / "x/eval").exists()


_PEFT_ALONE = """
import sys, torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM
config = AutoConfig.from_pretrained(sys.argv[1])
config.num_hidden_layers = 2
base = AutoModelForCausalLM.from_pretrained(sys.argv[1], config=config)
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
print(model(torch.tensor([[1, 5, 9]])).logits.sum().item())
assert "uld" not in sys.modules
"""


@pytest.mark.slow
def test_peft_alone_can_load_the_adapter(finished, task):
    output, _, _ = finished
    told = subprocess.run(
        [sys.executable, "-c", _PEFT_ALONE, str(task.target), str(output / "adapter")], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    model, _ = load(output)
    with torch.no_grad():
        logits = model.assistant(torch.tensor([[1, 5, 9]])).logits  # type: ignore[operator]
    assert float(told.stdout) == pytest.approx(logits.sum().item(), abs=1e-4)


def test_batches_by_tokens(task, tmp_path):
    result = train(TrainConfig(**task.settings(tmp_path / "run", batch_tokens=192)), progress=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == result.steps
    assert result.steps % 2 == 0
    assert all(line["tokens"] <= 192 for line in lines)
    half = result.steps // 2
    assert sum(line["tokens"] for line in lines[:half]) == sum(line["tokens"] for line in lines[half:])
    with pytest.raises(ConfigError, match="--micro-batch-size"):
        TrainConfig(batch_tokens=192, micro_batch_size=2)


def test_a_run_knows_its_target_from_every_folder(task, tmp_path, monkeypatch):
    monkeypatch.chdir(task.target.parent)
    train(TrainConfig(**task.settings(tmp_path / "run", epochs=1, target="target")), progress=False)
    monkeypatch.chdir(tmp_path)
    model, _ = load("run")
    assert model.target.config.num_hidden_layers == 4
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (stored["target_config"]["num_hidden_layers"], stored["num_layers"]) == (4, 2)


def test_references_are_computed_once_and_kept_for_a_run_that_goes_on(task, tmp_path, monkeypatch):
    kept: dict[str, float] = {}
    asked: list[int] = []

    def spy(learner, rows, pad, **how):
        asked.append(len(rows))
        return frozen_log_likelihoods(learner, rows, pad)

    def stop(trainer, *args, **kwargs):
        kept["first"] = trainer.rows.rows[0].reference
        raise KeyboardInterrupt

    monkeypatch.setattr(uld.training.references, "frozen_log_likelihoods", spy)
    settings = {**task.settings(tmp_path / "x", epochs=1), "num_layers": None, "method": "npo+gd"}
    (tmp_path / "x").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(uld.training.run, "run_steps", stop)
        with pytest.raises(KeyboardInterrupt):
            train(TrainConfig(**settings), progress=False)
    stored = json.loads((tmp_path / "x/checkpoints/references.json").read_text())
    assert asked == [10] and stored["forget"][0] == kept["first"] < 0
    train(TrainConfig(**settings), resume=True, progress=False)
    assert asked == [10]
    assert not (tmp_path / "x/checkpoints").exists()


def test_references_of_other_rows_are_not_taken_for_these(task, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        uld.training.references,
        "frozen_log_likelihoods",
        lambda *some, **how: asked.append(1) or frozen_log_likelihoods(*some, **how),
    )
    settings = {**task.settings(tmp_path / "x", epochs=1), "num_layers": None, "method": "npo"}

    def start(**flags) -> list[float]:
        with monkeypatch.context() as patch:
            patch.setattr(uld.training.run, "run_steps", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                train(TrainConfig(**settings), progress=False, **flags)
        return json.loads((tmp_path / "x/checkpoints/references.json").read_text())["forget"]

    (tmp_path / "x").mkdir()
    first = start()
    path = tmp_path / "x/checkpoints/references.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": "of other rows", "forget": [0.0] * 10}))
    assert start(resume=True) == first and len(asked) == 2


def test_kept_epochs_are_runs_that_say_how_they_were_trained(task, tmp_path):
    run(task, tmp_path / "x", keep_epochs=True, template="plain", learning_rate=0.02)
    kept = sorted((tmp_path / "x" / "epochs").iterdir())
    assert [folder.name for folder in kept] == ["1", "2"]
    assert [Manifest.read(folder).template for folder in (*kept, tmp_path / "x")] == ["plain"] * 3
    assert adapter(kept[1]) == adapter(tmp_path / "x") != adapter(kept[0])
    assert load(kept[0])[0].manifest.training["epochs"] == 1


def test_settings_that_would_do_nothing_are_refused_or_told(task, tmp_path, caplog):
    with pytest.raises(ConfigError, match="--small is for offset-… and dd…, and --method is uld"):
        run(task, tmp_path / "x", small=str(task.target))
    assert not (tmp_path / "x").exists()
    with caplog.at_level(logging.WARNING):
        run(task, tmp_path / "x", retain_rows=3, epochs=1)
    assert "--retain-rows chooses among TOFU's rows" in caplog.text


@pytest.mark.parametrize("made", [FinetuneConfig, dict, None], ids=str)
def test_the_settings_of_another_training_are_refused_by_their_kind(made, tmp_path):
    given = made and made(output=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"the settings must be a uld\.TrainConfig, not "):
        train(given)
    with pytest.raises(ConfigError, match=r"the settings must be a uld\.FinetuneConfig, not "):
        finetune(given if made is not FinetuneConfig else TrainConfig(output=str(tmp_path / "run")))
    assert not list(tmp_path.iterdir())


def test_rows_longer_than_the_positions_of_a_target_are_refused_before_anything_is_written(task, tmp_path) -> None:
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    size = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 12}
    GPT2LMHeadModel(GPT2Config(**size)).save_pretrained(tmp_path / "target")
    AutoTokenizer.from_pretrained(task.target).save_pretrained(tmp_path / "target")
    with pytest.raises(ULDError, match=r"the longest row \(--max-length \d+\) takes \d+ positions, .* no more than 12"):
        train(TrainConfig(**task.settings(tmp_path / "run", target=str(tmp_path / "target"))), progress=False)
    changes = {"model": str(tmp_path / "target"), "file": (str(task.forget),), "output": str(tmp_path / "run")}
    with pytest.raises(ULDError, match=r"the longest row .* no more than 12"):
        finetune(FinetuneConfig(**changes), progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (20.0, 2.0, 5e-4)),  # two thirds of log V are 2.3 nats
        ({"filter": 0.1}, (20.0, 2.0, 5e-4)),
        ({"weight": 0.7}, (0.7, 0.0, 0.0)),
        ({"margin": 2.0}, (1.5, 2.0, 0.0)),
        ({"rule": "subtract"}, (1.5, 0.0, 0.0)),
    ],
)
def test_an_assistant_gets_the_margin_of_its_vocabulary_unless_something_is_said(task, tmp_path, changes, expected):
    settings = {"epochs": 1} | changes
    result = train(train_config([("test", task.settings(tmp_path / "x", **settings))]), progress=False)
    how = Manifest.read(result.output).combination
    assert (how.weight, how.margin, how.floor) == expected
