"""Settings of a training: one dataclass is the YAML file, the command line and its help.

`RunConfig` holds what every training has; `uld.config` says what unlearning and finetuning add. Light on purpose: the
command line reads it without importing torch.
"""

import dataclasses
import datetime
import difflib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from uld.data.clock import DATE, is_date
from uld.errors import ULDError


class ConfigError(ULDError):
    """A setting is unknown, of the wrong type or out of range."""


DTYPES = {"auto": "auto", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""Dtypes as users type them, and what transformers and torch call them."""
_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    tuple: "a text or a list of texts",
    type(None): "",  # not given; it needs no mention
}


def setting(default: Any, text: str, group: str = "Training") -> Any:
    """A dataclass field with the text that ``--help`` and the documentation show."""
    return field(default=default, metadata={"help": text, "group": group})


@dataclass(frozen=True)
class RunConfig:
    """Settings that every training has, whatever it trains."""

    output: str = setting("", "Run folder to make.", "Model and data")
    data: str | None = setting(None, "Folder of TOFU; without it the Hub's locuslab/TOFU.", "TOFU")
    template: str | None = setting(
        None, "Prompt template: a name (qa, plain, llama2) or inline; default: the chat template.", "Model and data"
    )
    date: str | None = setting(
        None,
        f"Day (2024-12-31) that a chat template with a clock writes into every prompt; default: {DATE}, or the day "
        "that the template is fixed to.",
        "Model and data",
    )
    tokenizer: str | None = setting(None, "Folder or Hub id of the tokenizer; default: the target's.", "Model and data")
    max_length: int = setting(
        512, "Tokens a row may have; longer answers are cut, texts are chunked.", "Model and data"
    )
    trust_remote_code: bool = setting(False, "Run code that comes with the target's checkpoint.", "Model and data")
    revision: str | None = setting(None, "Hub revision of the target.", "Model and data")

    lora_rank: int | None = setting(None, "Rank of LoRA's matrices; default: all weights, without LoRA.", "Method")
    lora_alpha: int = setting(32, "LoRA alpha; the update is scaled by alpha / rank.", "Method")
    lora_dropout: float = setting(0.0, "LoRA dropout.", "Method")

    epochs: int = setting(10, "Passes over all rows.")
    batch_size: int = setting(32, "Rows of an optimiser step, over all processes.")
    micro_batch_size: int | None = setting(None, "Rows of one forward on one process; default: all of its share.")
    batch_tokens: int | None = setting(
        None, "Padded tokens of an optimiser step, over all processes, instead of --batch-size rows."
    )
    learning_rate: float = setting(1e-3, "Peak learning rate of AdamW; linear decay to 0.")
    warmup: float = setting(0.1, "Share of the steps over which the learning rate rises; from 1 on: steps.")
    weight_decay: float = setting(0.01, "Weight decay of AdamW.")
    beta1: float = setting(0.9, "β1 of AdamW.")
    beta2: float = setting(0.99, "β2 of AdamW.")
    max_grad_norm: float = setting(1.0, "Gradient clipping; 0 switches it off.")
    dtype: Literal["auto", "bf16", "fp32"] = setting(
        "auto", "Weights and arithmetic; auto: bf16 on a GPU, else as stored."
    )
    gradient_checkpointing: bool = setting(False, "Recompute activations in the backward pass to save memory.")
    seed: int = setting(0, "Seed of LoRA's start, the batches and dropout.")
    save_steps: int = setting(200, "Steps between checkpoints.")
    report_to: str = setting("none", "Experiment tracker of transformers' Trainer: tensorboard, wandb, trackio, none.")

    FILE: ClassVar[str]  # where a run folder keeps its settings
    LEAST: ClassVar[dict[str, int]] = {
        "max_length": 2,
        **dict.fromkeys(("lora_rank", "lora_alpha", "epochs", "save_steps"), 1),
        **dict.fromkeys(("batch_size", "micro_batch_size", "batch_tokens"), 1),
        **dict.fromkeys(("warmup", "weight_decay", "max_grad_norm", "seed"), 0),
    }
    SHARES: ClassVar[tuple[str, ...]] = ()
    BELOW_ONE: ClassVar[tuple[str, ...]] = ("lora_dropout", "beta1", "beta2")

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            ConfigError: names the setting, its value and its range.
        """
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{flag(name)} must be a finite number, not {value}")
        for name, low in self.LEAST.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{flag(name)} must be at least {low}, not {value}")
        check_date(self.date)
        for name in self.SHARES:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{flag(name)} must lie between 0 and 1, not {value}")
        if self.batch_tokens is not None and self.micro_batch_size is not None:
            raise ConfigError("--batch-tokens and --micro-batch-size do not go together: give one of them")
        for name in self.BELOW_ONE:
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{flag(name)} must be at least 0 and less than 1, not {getattr(self, name)}")
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise ConfigError(f"--warmup must be a share below 1, or a whole number of steps, not {self.warmup}")
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"--learning-rate must lie between 0 and 1, not {self.learning_rate}")

    def to_yaml(self) -> str:
        """Every setting, as a file that ``--config`` reads back."""
        values = {field.name: getattr(self, field.name) for field in setting_fields(type(self))}
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return yaml.safe_dump(listed, sort_keys=False, allow_unicode=True)


def check_date(text: str | None) -> None:
    """Refuse a date that is none.

    Raises:
        ConfigError: it is not a day, written as 2024-12-31.
    """
    if text is not None and not is_date(text):
        raise ConfigError(f"--date must be a day, written as 2024-12-31, not {text!r}")


def is_first_process() -> bool:
    """Whether this is the process that writes and prints; under ``torchrun`` there are several."""
    return os.environ.get("RANK", "0") == "0"


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


C = TypeVar("C", bound=RunConfig)


def layered(kind: type[C], layers: Sequence[tuple[str, Mapping[str, Any]]]) -> C:
    """Settings of a kind, each value checked against its type."""
    types = get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    values: dict[str, Any] = {}
    for source, layer in layers:
        for name, value in layer.items():
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1)
                hint = f": did you mean {close[0]!r}?" if close else ""
                raise ConfigError(f"{source}: there is no setting {name!r}{hint}")
            if value is not None:
                values[name] = _coerce(value, types[name], name, source)
    return kind(**values)


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
        if option is str and type(value) is datetime.date:  # YAML reads 2024-12-31 as a date
            return value.isoformat()
        if option in (int, str, bool) and type(value) is option:
            return value
    wanted = [", ".join(get_args(o)) if get_origin(o) is Literal else _KINDS[get_origin(o) or o] for o in options]
    raise ConfigError(f"{source}: {name} must be {' or '.join(w for w in wanted if w)}, not {value!r}")


def setting_fields(kind: type[RunConfig]) -> list[dataclasses.Field[Any]]:
    """The fields of a config, for the command line and the documentation: its own, then those that all have."""
    own = list(kind.__annotations__)
    return sorted(fields(kind), key=lambda one: own.index(one.name) if one.name in own else len(own))
