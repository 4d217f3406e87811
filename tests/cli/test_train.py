"""``uld train`` as a user runs it."""

import json
import re
from dataclasses import replace

import pytest
import yaml
from typer.testing import CliRunner

import uld.training.run
from uld.cli.main import app
from uld.training.config import TrainConfig

OPTIONS = {"lora_dropout": 0.1, "learning_rate": 0.02, "gradient_checkpointing": True, "seed": 5}


def uld_train(*arguments: str) -> tuple[int, str]:
    """Exit code of ``uld train``, and what it printed."""
    done = CliRunner().invoke(app, ["train", *arguments])
    return done.exit_code, done.output


@pytest.fixture
def asked(monkeypatch) -> list[TrainConfig]:
    """What trainings are asked to do, which is then left undone."""
    configs: list[TrainConfig] = []

    def stop(config: TrainConfig, **flags: object) -> None:
        configs.append(config)
        raise uld.ULDError("seen")

    monkeypatch.setattr(uld.training.run, "train", stop)
    return configs


def test_flags_and_file_are_the_same_thing_and_flags_win(task, tmp_path, asked):
    uld_train(*task.flags(tmp_path / "flags", **OPTIONS), "--quiet")
    settings = task.settings(tmp_path / "unused", **OPTIONS) | {"epochs": 7}
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(listed))
    uld_train("--config", str(tmp_path / "x.yaml"), "--output", str(tmp_path / "file"), "--epochs", "2")
    (tmp_path / "train.yaml").write_text(asked[0].to_yaml())  # as a run keeps it
    other = ["--no-gradient-checkpointing", "--lora-dropout", "0.0", "-q"]
    uld_train("--config", str(tmp_path / "train.yaml"), "--output", str(tmp_path / "other"), *other)
    flags, file, changed = asked
    assert flags == TrainConfig(**task.settings(tmp_path / "flags", **OPTIONS))
    assert replace(flags, output=str(tmp_path / "file")) == file
    assert replace(flags, output=str(tmp_path / "other"), gradient_checkpointing=False, lora_dropout=0.0) == changed


def test_a_user_sees_our_own_output_only(task, start_uld, tmp_path):
    out, err = tmp_path / "out", tmp_path / "err"
    process = start_uld(["train", *task.flags(tmp_path / "x", **OPTIONS)], out, errors=err)
    process.join()
    assert process.exitcode == 0, err.read_text()
    pattern = r".*/x: 8 steps in \d+ s, forget loss \d\.\d{3}, retain loss \d\.\d{3} nats, weights 19 KiB\n"
    assert re.fullmatch(pattern, out.read_text()), out.read_text()
    lines = [line for line in re.split(r"[\r\n]+", err.read_text()) if line]
    assert all(re.match(r" *\d+%\|", line) for line in lines), err.read_text()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_layers": 9}, "num_layers (K) is 9, but the target has 4 layers"),
        ({"max_length": 8}, "forget.jsonl:1: the prompt is"),
        ({"learning_rate": 7}, "--learning-rate must lie between 0 and 1, not 7"),
        ({"rule": "guess"}, "the command line: rule must be suppress, subtract, reference"),
        ({"target": "no-such-folder/model"}, "no-such-folder/model"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(task, tmp_path, changes, sentence):
    code, told = uld_train(*task.flags(tmp_path / "x", **changes))
    assert code == 2
    assert told.startswith("uld: ") and sentence in told and told.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_adapter_of_another_target_is_refused_with_both_fingerprints(task, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    code, told = uld_train(*task.flags(tmp_path / "x", epochs=1))
    assert code == 0, told
    other = tmp_path / "other"
    other.mkdir()
    for path in task.target.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    weights = load_file(other / "model.safetensors")
    weights["lm_head.weight"] += torch.ones(())
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    arguments = ["generate", "--model", str(tmp_path / "x"), "--target", str(other), "who is abc?"]
    done = CliRunner().invoke(app, arguments)
    told = done.stderr
    assert done.exit_code == 2 and told.count("\n") == 1
    named = json.loads((tmp_path / "x/uld.json").read_text())["target_fingerprint"]
    assert named in told and len(set(re.findall(r"sha256:[0-9a-f]{64}", told))) == 2


def test_interrupt_before_training_leaves_nothing(task, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(uld.training.run, "read_inputs", interrupt)
    told = CliRunner().invoke(app, ["train", *task.flags(tmp_path / "x")])
    assert told.exit_code == 2 and told.output == "uld: interrupted\n"
    assert not (tmp_path / "x").exists()
