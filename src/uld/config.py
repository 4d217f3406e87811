"""Settings of a training run: one dataclass is the YAML file, the command line and its help.

Light on purpose: the command line reads it without importing torch.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from uld.errors import ULDError


class ConfigError(ULDError):
    """A setting is unknown, of the wrong type or out of range."""


_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    tuple: "a text or a list of texts",
    type(None): "",  # not given; it needs no mention
}


def _setting(default: Any, text: str, group: str = "Training") -> Any:
    """A dataclass field with the text that ``--help`` and the documentation show."""
    return field(default=default, metadata={"help": text, "group": group})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run. Defaults are the paper's (arXiv 2406.08607, Appendix) unless said."""

    target: str = _setting("", "Model to unlearn from: folder or Hub id.", "Model and data")
    output: str = _setting("", "Run folder to make.", "Model and data")
    forget: tuple[str, ...] = _setting((), "JSON-lines file to forget (repeat for several).", "Model and data")
    retain: tuple[str, ...] = _setting((), "JSON-lines file to retain (repeat for several).", "Model and data")
    split: str | None = _setting(None, "TOFU split to forget instead of files: forget01, forget05, forget10.", "TOFU")
    data: str | None = _setting(None, "Folder of TOFU; without it the Hub's locuslab/TOFU.", "TOFU")
    augmented: str | None = _setting(None, "Folder with TOFU's paraphrases and wrong answers (D'f, D'r).", "TOFU")
    paraphrases: int = _setting(2, "Paraphrases of each forget item (with --augmented).", "TOFU")
    wrong_answers: int = _setting(2, "Wrong answers to each forget question (with --augmented).", "TOFU")
    retain_rows: int | None = _setting(None, "TOFU retain rows; default: as many as forget rows.", "TOFU")
    template: str | None = _setting(
        None, "Prompt template: a name (qa, plain, llama2) or inline; default: the chat template.", "Model and data"
    )
    tokenizer: str | None = _setting(
        None, "Folder or Hub id of the tokenizer; default: the target's.", "Model and data"
    )
    max_length: int = _setting(
        512, "Tokens a row may have; longer answers are cut, texts are chunked.", "Model and data"
    )

    method: str = _setting("uld", "Unlearning method (uld ls methods).", "Method")
    option: tuple[str, ...] = _setting(
        (), "Option of the method as NAME=VALUE (repeat for several; uld ls methods).", "Method"
    )
    alternatives: Literal["idk", "given"] = _setting(
        "idk",
        "Alternative answers (dpo, idk, altpo): idk declines to answer, in words of ours; given takes the key "
        "'alternative' of each forget record, with --split the first wrong answer of --augmented.",
        "Method",
    )
    small: str | None = _setting(
        None, "Small model of offset-…, of the target's vocabulary; default: the target's first K layers.", "Method"
    )
    num_layers: int | None = _setting(None, "K, the assistant's layers; default: a quarter of the target's.", "Method")
    lora_rank: int | None = _setting(
        None,
        "Rank of LoRA's matrices; default: 32 for an assistant, and all weights, without LoRA, for a target.",
        "Method",
    )
    lora_alpha: int = _setting(32, "LoRA alpha; the update is scaled by alpha / rank.", "Method")
    lora_dropout: float = _setting(0.0, "LoRA dropout.", "Method")
    retain_weight: float = _setting(6.5, "β, weight of the retain loss.", "Method")
    uniform_on: Literal["answer", "all"] = _setting(
        "answer", "Retain positions that carry the uniform loss: the answer's, or all.", "Method"
    )

    rule: Literal["suppress", "subtract", "reference", "offset"] | None = _setting(
        None, "How logits are combined; written to the run, can be changed at load.", "Combination"
    )
    weight: float | None = _setting(None, "α, how much of the assistant is subtracted.", "Combination")
    filter: float | None = _setting(None, "τ, plausibility filter (subtract, reference).", "Combination")
    min_tokens: float | None = _setting(None, "Least share of the vocabulary that the filter keeps.", "Combination")
    outside: Literal["keep", "mask"] | None = _setting(None, "Tokens outside the filter: keep or mask.", "Combination")

    epochs: int = _setting(10, "Passes over all rows.")
    batch_size: int = _setting(32, "Rows of an optimiser step, over all processes.")
    micro_batch_size: int | None = _setting(None, "Rows of one forward on one process; default: all of its share.")
    batch_tokens: int | None = _setting(
        None, "Padded tokens of an optimiser step, over all processes, instead of --batch-size rows."
    )
    learning_rate: float = _setting(1e-3, "Peak learning rate of AdamW; linear decay to 0.")
    warmup: float = _setting(0.1, "Share of the steps over which the learning rate rises.")
    weight_decay: float = _setting(0.01, "Weight decay of AdamW.")
    beta1: float = _setting(0.9, "β1 of AdamW.")
    beta2: float = _setting(0.99, "β2 of AdamW.")
    max_grad_norm: float = _setting(1.0, "Gradient clipping; 0 switches it off.")
    dtype: Literal["auto", "bf16", "fp32"] = _setting(
        "auto", "Weights and arithmetic; auto: bf16 on a GPU, else as stored."
    )
    gradient_checkpointing: bool = _setting(False, "Recompute activations in the backward pass to save memory.")
    seed: int = _setting(0, "Seed of LoRA's start, the batches and dropout.")
    save_steps: int = _setting(200, "Steps between checkpoints.")
    keep_epochs: bool = _setting(False, "Keep what was trained after every epoch, as a run in epochs/N.")
    report_to: str = _setting("none", "Experiment tracker of transformers' Trainer: tensorboard, wandb, trackio, none.")
    trust_remote_code: bool = _setting(False, "Run code that comes with the target's checkpoint.", "Model and data")
    revision: str | None = _setting(None, "Hub revision of the target.", "Model and data")

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            ConfigError: names the setting, its value and its range.
        """
        least = {"paraphrases": 0, "wrong_answers": 0, "retain_rows": 0, "max_length": 2, "num_layers": 1}
        least |= dict.fromkeys(
            ("lora_rank", "lora_alpha", "epochs", "batch_size", "micro_batch_size", "batch_tokens", "save_steps"), 1
        )
        least |= dict.fromkeys(("weight", "retain_weight", "weight_decay", "max_grad_norm", "seed"), 0)
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{flag(name)} must be a finite number, not {value}")
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{flag(name)} must be at least {low}, not {value}")
        for name in ("filter", "min_tokens"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{flag(name)} must lie between 0 and 1, not {value}")
        if self.batch_tokens is not None and self.micro_batch_size is not None:
            raise ConfigError("--batch-tokens and --micro-batch-size do not go together: give one of them")
        for name in ("warmup", "lora_dropout", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{flag(name)} must be at least 0 and less than 1, not {getattr(self, name)}")
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"--learning-rate must lie between 0 and 1, not {self.learning_rate}")

    @classmethod
    def of(cls, method: str = "uld", **settings: Any) -> "TrainConfig":
        """Settings over the defaults of a method.

        Raises:
            ConfigError: an unknown setting or a value of the wrong type.
        """
        return train_config([("settings", {"method": method, **settings})])

    def to_yaml(self) -> str:
        """Every setting, as a file that ``--config`` reads back."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(
        path.name.removesuffix(".yaml") for path in files("uld.presets").iterdir() if path.name.endswith(".yaml")
    )


def read_preset(name: str) -> dict[str, Any]:
    """Settings of a preset.

    Raises:
        ConfigError: no such preset.
    """
    if name not in preset_names():
        raise ConfigError(f"there is no preset {name!r}: choose one of {', '.join(preset_names())} (--preset)")
    return yaml.safe_load((files("uld.presets") / f"{name}.yaml").read_text(encoding="utf-8")) or {}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Settings of a YAML file.

    Raises:
        ConfigError: missing, not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file (--config)") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error} (--config)") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f"{path}:{line + 1}" if line is not None else str(path)
        raise ConfigError(f"{where}: not a YAML file: {getattr(error, 'problem', None) or error}") from error
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'setting: value' lines")
    return values or {}


def train_config(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> TrainConfig:
    """Build the settings from layers, later ones winning; the lowest are the method's own defaults.

    Args:
        layers: Pairs of a name for messages (a file, a preset, ``the command line``) and settings; None is not given.

    Raises:
        ConfigError: an unknown setting or a value of the wrong type, with its layer, or settings that were made for
            another method.
    """
    kinds = get_type_hints(TrainConfig)
    values: dict[str, Any] = {}
    named = [(source, layer["method"]) for source, layer in layers if layer.get("method") is not None]
    method = str(named[-1][1]) if named else "uld"
    for source, other in named:
        if source.startswith("preset ") and other != method:
            raise ConfigError(
                f"{source} has settings for the method {other}: leave it out, or leave out --method {method}"
            )
    if method != "uld":
        from uld.methods.registry import get_method

        layers = [(f"method {method}", get_method(method).defaults), *layers]
    for source, layer in layers:
        for name, value in layer.items():
            if name not in kinds:
                close = difflib.get_close_matches(str(name), kinds, n=1)
                hint = f": did you mean {close[0]!r}?" if close else ""
                raise ConfigError(f"{source}: there is no setting {name!r}{hint}")
            if value is not None:
                values[name] = _coerce(value, kinds[name], name, source)
    return TrainConfig(**values)


def _coerce(value: Any, kind: Any, name: str, source: str) -> Any:
    """Check a YAML or flag value against a field's type; ints may stand for floats, one string for a list of one."""
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for option in options:
        if get_origin(option) is Literal and value in get_args(option):
            return value
        if get_origin(option) is tuple:
            items = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else None
            if items is not None and all(isinstance(item, str) for item in items):
                return tuple(items)
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option is float and isinstance(value, str):  # YAML reads 1e-3 as a string
            try:
                return float(value)
            except ValueError:
                continue
        if option in (int, str, bool) and type(value) is option:
            return value
    wanted = [", ".join(get_args(o)) if get_origin(o) is Literal else _KINDS[get_origin(o) or o] for o in options]
    raise ConfigError(f"{source}: {name} must be {' or '.join(w for w in wanted if w)}, not {value!r}")


def setting_fields() -> list[dataclasses.Field[Any]]:
    """The fields of `TrainConfig`, for the command line and the documentation."""
    return list(fields(TrainConfig))
