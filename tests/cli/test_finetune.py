"""``uld finetune`` as a user runs it."""

import json
import re

import yaml
from typer.testing import CliRunner

from uld.cli.main import app
from uld.errors import ULDError
from uld.training.config import SCRATCH, FinetuneConfig

SMALL = {"hidden_size": 32, "num_heads": 2, "num_layers": 1, "intermediate_size": 48, "vocab_size": 300, "epochs": 1}


def finetune(*arguments: str):
    return CliRunner().invoke(app, ["finetune", *arguments])


def small() -> list[str]:
    return ["--scratch", *(part for k, v in SMALL.items() for part in ("--" + k.replace("_", "-"), str(v)))]


def asked(monkeypatch, *arguments: str) -> FinetuneConfig:
    """What a finetuning is asked to do, which is then left undone."""
    configs: list[FinetuneConfig] = []

    def stop(config: FinetuneConfig, **flags: object) -> None:
        configs.append(config)
        raise ULDError("seen")

    with monkeypatch.context() as patch:
        patch.setattr("uld.training.finetune.finetune", stop)
        assert finetune(*arguments).output == "uld: seen\n"
    return configs[0]


def test_flags_and_a_file_are_the_same_thing(task, tmp_path, monkeypatch):
    flags = [*small(), "--file", str(task.forget), "-q"]
    told = finetune(*flags, "--output", str(tmp_path / "flags"))
    assert told.exit_code == 0, told.output
    pattern = r".*/flags: 1 steps in \d+ s, loss \d\.\d{3} nats/token, weights \d+ KiB\n"
    assert re.fullmatch(pattern, told.stdout), told.stdout
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"scratch": True, **SMALL, "file": str(task.forget), "epochs": 3}))
    output = ["--output", str(tmp_path / "again")]
    by_flags = asked(monkeypatch, *flags, *output)
    assert by_flags == asked(monkeypatch, "--config", str(tmp_path / "x.yaml"), "--epochs", "1", *output)
    assert by_flags == asked(monkeypatch, "--config", str(tmp_path / "flags/finetune.yaml"), *output)


def test_from_scratch_has_defaults_of_its_own_and_flags_win(task, tmp_path, monkeypatch):
    config = asked(monkeypatch, *small(), "--file", str(task.forget), "--output", str(tmp_path / "x"), "--warmup", "2")
    stored = yaml.safe_load(config.to_yaml())
    for name, value in {**SCRATCH, **SMALL, "warmup": 2}.items():
        assert stored[name] == value, name


def test_bad_input_is_one_sentence_and_exit_code_2(task, tmp_path):
    file, output = ["--file", str(task.forget)], ["--output", str(tmp_path / "x")]
    for arguments, sentence in (
        ([*small(), "--split", "retain91", *output], "TOFU has no split 'retain91'"),
        ([*small(), "--hidden-size", "31", *file, *output], "--hidden-size 31 cannot be shared by 2 attention heads"),
        ([*small(), "--vocab-size", "9", *file, *output], "--vocab-size 9 is too small"),
        ([*small(), *output], "nothing to learn"),
        ([*file, *output], "nothing to start from"),
        (["--model", "no-such-folder/model", *file, *output], "no-such-folder/model"),
        ([*small(), *file, "--output", str(tmp_path)], "is not empty and holds no run of uld finetune"),
    ):
        (tmp_path / "something").touch()
        told = finetune(*arguments)
        assert told.exit_code == 2, told.output
        assert told.output.startswith("uld: ") and sentence in told.output and told.output.count("\n") == 1
        assert not (tmp_path / "x").exists()


def test_a_finetuned_model_is_evaluated_like_any_other(micro, tmp_path):
    size = ["--hidden-size", "64", "--num-heads", "1", "--num-layers", "1", "--intermediate-size", "64"]
    for name, split in (("target", "full"), ("retain-only", "retain90")):
        data = [
            "--split",
            f"{split},real_authors_perturbed",
            "--data",
            str(micro.data),
            "--tokenizer",
            str(micro.target),
        ]
        output = ["--output", str(tmp_path / name), "--epochs", "1", "-q"]
        told = finetune("--scratch", *size, *data, *output)
        assert told.exit_code == 0, told.output
    models = ["--model", str(tmp_path / "target"), "--retain-model", str(tmp_path / "retain-only")]
    rest = ["--data", str(micro.data), "--split", "forget10", "--limit", "2", "--max-new-tokens", "4"]
    told = CliRunner().invoke(app, ["eval", "tofu", *models, *rest, "--output", str(tmp_path / "eval")])
    assert told.exit_code == 0, told.output
    assert json.loads(next((tmp_path / "eval").rglob("*.json")).read_text())


def test_every_setting_of_finetuning_has_help():
    from uld.training.config import setting_fields

    for field in setting_fields(FinetuneConfig):
        assert field.metadata["help"] and field.metadata["group"]
