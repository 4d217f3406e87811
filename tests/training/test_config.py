import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from uld.errors import ConfigError, ULDError, flag
from uld.methods.registry import get_method
from uld.model.combine import Combination
from uld.training.config import (
    SCRATCH,
    FinetuneConfig,
    RunConfig,
    TrainConfig,
    finetune_config,
    preset_names,
    read_preset,
    read_yaml,
    setting_fields,
    train_config,
)


def refused(values: dict[str, Any], source: str = "run.yaml") -> str:
    with pytest.raises(ConfigError) as caught:
        train_config([(source, values)])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_later_layers_win_and_none_is_not_given() -> None:
    layers: list[tuple[str, dict[str, Any]]] = [
        ("preset tofu-4m", {"epochs": 14, "num_layers": 3, "learning_rate": 0.004}),
        ("run.yaml", {"epochs": 5, "seed": 7}),
        ("the command line", {"epochs": None, "seed": 8, "num_layers": None}),
    ]
    config = train_config(layers)
    assert (config.epochs, config.num_layers, config.learning_rate, config.seed) == (5, 3, 0.004, 8)
    assert config.batch_size == TrainConfig().batch_size
    assert train_config([]) == TrainConfig()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("epoch", ": did you mean 'epochs'?"),
        ("learning-rate", ": did you mean 'learning_rate'?"),
        ("num_layer", ": did you mean 'num_layers'?"),
        ("zzz", ""),
        (3, ""),
    ],
)
def test_an_unknown_setting_is_refused_with_a_guess(name: Any, expected: str) -> None:
    assert refused({name: 1}) == f"run.yaml: there is no setting {name!r}{expected}"


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("epochs", "ten", "a whole number"),
        ("epochs", 2.5, "a whole number"),
        ("epochs", True, "a whole number"),
        ("num_layers", "all", "a whole number"),
        ("learning_rate", "fast", "a number"),
        ("learning_rate", False, "a number"),
        ("weight", [1.0], "a number"),
        ("gradient_checkpointing", "yes", "true or false"),
        ("gradient_checkpointing", 1, "true or false"),
        ("target", 7, "a text"),
        ("revision", 1234567, "a text"),
        ("rule", "substract", "suppress, subtract, reference, offset, rank, generic"),
        ("dtype", "fp16", "auto, bf16, fp32"),
        ("uniform_on", ["all"], "answer, all"),
        ("forget", 3, "a text or a list of texts"),
        ("forget", ["a.jsonl", 3], "a text or a list of texts"),
        ("forget", {"a": 1}, "a text or a list of texts"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(name: str, value: Any, wanted: str) -> None:
    assert refused({name: value}) == f"run.yaml: {name} must be {wanted}, not {value!r}"


def test_values_are_brought_to_their_type() -> None:
    config = train_config(
        [("x", {"learning_rate": "1e-3", "weight": 1, "forget": "a.jsonl", "retain": ["b", "c"], "num_layers": 2})]
    )
    assert config.learning_rate == 1e-3
    assert config.weight == 1.0 and type(config.weight) is float
    assert config.forget == ("a.jsonl",) and config.retain == ("b", "c")
    assert config.num_layers == 2


ZERO = (
    "paraphrases",
    "wrong_answers",
    "retain_rows",
    "weight",
    "margin",
    "retain_weight",
    "weight_decay",
    "max_grad_norm",
    "seed",
)
ONE = ("num_layers", "lora_rank", "lora_alpha", "epochs", "batch_size", "micro_batch_size", "save_steps")
SHARE = ("lora_dropout", "beta1", "beta2")


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        *((name, 0, -1) for name in ZERO),
        *((name, 1, 0) for name in ONE),
        ("max_length", 2, 1),
        *((name, 0.0, -0.1) for name in (*SHARE, "warmup")),
        ("warmup", 0.99, 1.5),
        ("warmup", 50.0, 50.1),
        *((name, 0.99, 1.0) for name in SHARE),
        *((name, 0.0, -0.1) for name in ("filter", "min_tokens", "floor")),
        *((name, 1.0, 1.1) for name in ("filter", "min_tokens")),
        ("learning_rate", 1e-9, 0.0),
        ("learning_rate", 0.99, 1.0),
        *((name, 0.5, float("nan")) for name in ("learning_rate", "retain_weight", "weight", "filter", *SHARE)),
        *((name, 0.5, float("inf")) for name in ("retain_weight", "margin", "weight_decay", "max_grad_norm")),
    ],
)
def test_ranges(name: str, inside: float, outside: float) -> None:
    assert getattr(train_config([("x", {name: inside})]), name) == inside
    message = refused({name: outside})
    said, _, value = message.rpartition(" not ")
    assert said.startswith(f"{flag(name)} must ") and repr(float(value)) == repr(float(outside))


def test_the_resolved_settings_are_read_back_as_they_were(tmp_path: Path) -> None:
    given = {
        "target": "modèle: 7b #1",
        "forget": ["a.jsonl", "b.jsonl"],
        "template": "Q: {question}\nA: {answer}",
        "learning_rate": 1e-5,
        "revision": "1234567",
        "rule": "subtract",
        "retain_rows": 0,
        "gradient_checkpointing": True,
    }
    for config in (TrainConfig(), train_config([("x", given)])):
        path = tmp_path / "train.yaml"
        path.write_text(config.to_yaml(), encoding="utf-8")
        assert train_config([("train.yaml", read_yaml(path))]) == config
        assert list(yaml.safe_load(config.to_yaml())) == [field.name for field in setting_fields(TrainConfig)]


def test_yaml_reads_an_exponent_without_a_point_as_a_number(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("learning_rate: 5e-4\nforget: a.jsonl\n")
    assert train_config([("run.yaml", read_yaml(path))]).learning_rate == 5e-4


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: 1\nb: [1, 2\n", ":3: not a YAML file"),
        (b"a: 1\n\tb: 2\n", ":2: not a YAML file: found character '\\t'"),
        (b"\xff\xfe", ": not a YAML file"),
        (b"- a\n- b\n", ": expected 'setting: value' lines"),
        (b"just words", ": expected 'setting: value' lines"),
    ],
)
def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}{expected}") and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no such file \(--config\)"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory \(--config\)"):
        read_yaml(tmp_path)


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("# nothing yet\n")
    assert read_yaml(path) == {}


def test_every_preset_of_the_package_is_valid() -> None:
    assert {"demo", "reference", "tofu-4m"} <= set(preset_names())
    for name in preset_names():
        values = read_preset(name)
        config = train_config([(f"preset {name}", values)])
        assert {key: getattr(config, key) for key in values} == values  # each says something, in the right type
        get_method(config.method)
        combination = {key: getattr(config, key) for key in ("rule", "weight", "filter", "min_tokens", "outside")}
        Combination(**{key: value for key, value in combination.items() if value is not None})


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"there is no preset 'tofu': choose one of demo, .*tofu-4m.* \(--preset\)"):
        read_preset("tofu")


GROUPS = ("Model and data", "Augmentation", "TOFU", "Method", "Combination", "Training")


def test_every_setting_has_help_a_group_and_a_default() -> None:
    assert {field.name for field in setting_fields(TrainConfig)} == {
        field.name for field in dataclasses.fields(TrainConfig)
    }
    for field in setting_fields(TrainConfig):
        assert field.metadata["help"].endswith(".") and len(field.metadata["help"]) > 10
        assert field.metadata["group"] in GROUPS
        assert field.default is not dataclasses.MISSING
    helps = [field.metadata["help"] for field in setting_fields(TrainConfig)]
    assert len(set(helps)) == len(helps)


def test_the_papers_defaults() -> None:
    """arXiv 2406.08607, its section on settings."""
    from uld.training.learners import LORA_RANK

    config = TrainConfig()
    assert (LORA_RANK, config.lora_alpha, config.retain_weight) == (32, 32, 6.5)
    assert (config.learning_rate, config.batch_size, config.epochs) == (1e-3, 32, 10)
    assert (config.beta1, config.beta2, config.weight_decay) == (0.9, 0.99, 0.01)
    assert (config.paraphrases, config.wrong_answers, config.num_layers) == (2, 2, None)


def test_the_settings_are_read_without_torch() -> None:
    code = (
        "import sys, uld.training.config; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'pydantic')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_the_settings_of_finetuning_are_made_in_the_same_way() -> None:
    given = FinetuneConfig(model="m", split="full,real_authors", epochs=3)
    assert (given.learning_rate, given.learn, given.hidden_size, given.epochs) == (1e-5, "answers", None, 3)
    assert given.splits == ["full", "real_authors"]
    assert FinetuneConfig(split=["full", " world_facts ,"]).splits == ["full", "world_facts"]
    assert finetune_config([("x.yaml", yaml.safe_load(given.to_yaml()))]) == given
    with pytest.raises(ConfigError, match=r"^x: there is no setting 'splits': did you mean 'split'\?$"):
        finetune_config([("x", {"splits": "full"})])


def test_from_scratch_the_defaults_are_others_and_lie_below_every_layer() -> None:
    made = finetune_config([("x.yaml", {"scratch": True, "epochs": 7}), ("the command line", {"floor": 0.5})])
    assert {name: getattr(made, name) for name in SCRATCH} == {**SCRATCH, "epochs": 7, "floor": 0.5}
    undone = finetune_config([("x.yaml", {"scratch": True}), ("the command line", {"scratch": False})])
    assert undone == FinetuneConfig()
    assert finetune_config([("x", yaml.safe_load(made.to_yaml()))]) == made


def test_both_commands_share_their_common_settings() -> None:
    train, finetune = ({field.name: field for field in setting_fields(kind)} for kind in (TrainConfig, FinetuneConfig))
    common = {field.name for field in dataclasses.fields(RunConfig)}
    assert train.keys() & finetune.keys() - common == {
        "split",
        "num_layers",
        "floor",
    }  # of the same name, but not the same
    for name, field in finetune.items():
        assert field.metadata["help"].endswith((".", "…")) and field.metadata["group"], name


def test_a_warm_up_of_more_steps_than_the_training_has_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    from uld.training.trainer import refuse_long_warmup

    for warmup in (0.1, 0.99, 5, 9):
        refuse_long_warmup(TrainConfig(warmup=warmup), 10)
    for warmup in (10, 1000):
        with pytest.raises(
            ConfigError, match=f"--warmup {warmup}: .* {warmup} steps, and the whole training has 10: give fewer"
        ):
            refuse_long_warmup(TrainConfig(warmup=warmup), 10)
    assert not caplog.records
    refuse_long_warmup(FinetuneConfig(scratch=True), 10)  # a default is told of, and not refused
    assert "so it never comes to its peak" in caplog.text


def test_a_method_that_there_is_not_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    for text, said in (("npu", "there is no method 'npu': did you mean"), ("7", "method must be a text, not 7")):
        path.write_text(f"epochs: 3\nmethod: {text}\n")
        with pytest.raises(ConfigError, match=f"^{path}:2: {said}"):
            train_config([(str(path), read_yaml(path))])
    with pytest.raises(ConfigError, match=r"^there is no method 'npu': did you mean"):
        train_config([("the command line", {"method": "npu"})])


def test_a_value_out_of_range_is_refused_also_where_a_later_layer_has_another() -> None:
    with pytest.raises(ConfigError, match=r"^--epochs must be at least 1, not 0$"):
        train_config([("preset x", {"epochs": 0}), ("the command line", {"epochs": 3})])


def test_a_weight_that_would_overflow_is_refused() -> None:
    for value in (1e7, 1e308):
        with pytest.raises(ConfigError, match="--weight must be at most 1,000,000"):
            TrainConfig(weight=value)
        with pytest.raises(ULDError, match=r"weight \(α\) must lie between 0 and 1,000,000 or be inf"):
            Combination(weight=value)
    assert TrainConfig(weight=math.inf).weight == math.inf
    with pytest.raises(ConfigError, match="--retain-weight must be a finite number"):
        TrainConfig(retain_weight=math.inf)


def test_python_takes_paths_and_refuses_what_files_do() -> None:
    assert TrainConfig(output=Path("a") / "b", forget=Path("f")) == TrainConfig(output="a/b", forget=("f",))  # type: ignore[arg-type]
    for wrong in ({"epoch": 3}, {"epochs": "3"}, {"epochs": True}, {"forget": ("",)}, {"template": " "}, {"chunks": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}"):
            TrainConfig(**wrong)  # type: ignore[arg-type]
    assert TrainConfig(epochs=None, rule=None) == TrainConfig()  # type: ignore[arg-type]
    changed = dataclasses.replace(TrainConfig(method="npo+kl"), seed=1)
    assert changed == TrainConfig(method="npo+kl", seed=1)
