"""Settings of a training: one dataclass is the YAML file, the command line and its help.

`RunConfig` holds what every training has; `uld.training.config` says what unlearning and finetuning add. Light on
purpose: the command line reads it without importing torch.
"""

import dataclasses
import datetime
import difflib
import functools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from uld.data.clock import DATE, check_date
from uld.errors import ConfigError, ValueFault
from uld.text.yaml_text import Lines, YamlError, parse

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
    LEAST: ClassVar[dict[str, float]] = {
        "max_length": 2,
        **dict.fromkeys(("lora_rank", "lora_alpha", "epochs", "save_steps"), 1),
        **dict.fromkeys(("batch_size", "micro_batch_size", "batch_tokens"), 1),
        **dict.fromkeys(("warmup", "weight_decay", "max_grad_norm", "seed"), 0),
    }
    MOST: ClassVar[dict[str, float]] = {  # far above what anybody wants, and below what overflows
        "seed": 2**32 - 1,  # numpy's
        "lora_rank": 2**16,
        **dict.fromkeys(("epochs", "warmup"), 10**6),
        **dict.fromkeys(("max_length", "batch_size", "micro_batch_size", "batch_tokens", "save_steps"), 10**9),
        **dict.fromkeys(("lora_alpha", "weight_decay"), 10**38),  # more overflows in fp32
        "max_grad_norm": 10**12,
    }
    SHARES: ClassVar[tuple[str, ...]] = ()
    ENDLESS: ClassVar[tuple[str, ...]] = ()  # may be inf
    BELOW_ONE: ClassVar[tuple[str, ...]] = ("lora_dropout", "beta1", "beta2")

    @classmethod
    def under(cls, given: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Defaults that follow from what is given, and what to call them in messages."""
        return cls.__name__, {}

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            ConfigError: names the setting, its value and its range.
        """
        endless = {name for name in self.ENDLESS if getattr(self, name) == math.inf}
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value) and name not in endless:
                raise ValueFault(name, f"must be a finite number, not {value}")
        for name, low in self.LEAST.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueFault(name, f"must be at least {low}, not {shown(value)}")
        for name, high in self.MOST.items():
            value = getattr(self, name)
            if value is not None and value > high and name not in endless:
                raise ValueFault(name, f"must be at most {high:,}, not {shown(value)}")
        check_date(self.date)
        for name in self.SHARES:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueFault(name, f"must lie between 0 and 1, not {value}")
        if self.batch_tokens is not None and self.micro_batch_size is not None:
            raise ConfigError("--batch-tokens and --micro-batch-size do not go together: give one of them")
        for name in self.BELOW_ONE:
            if not 0 <= getattr(self, name) < 1:
                raise ValueFault(name, f"must be at least 0 and less than 1, not {getattr(self, name)}")
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise ValueFault("warmup", f"must be a share below 1, or a whole number of steps, not {self.warmup}")
        if not 0 < self.learning_rate < 1:
            raise ValueFault("learning_rate", f"must lie between 0 and 1, not {self.learning_rate}")

    def to_yaml(self) -> str:
        """Every setting, as a file that ``--config`` reads back."""
        values = {field.name: getattr(self, field.name) for field in setting_fields(type(self))}
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return yaml.safe_dump(listed, sort_keys=False, allow_unicode=True)


def is_first_process() -> bool:
    """Whether this is the process that writes and prints; under ``torchrun`` there are several."""
    return os.environ.get("RANK", "0") == "0"


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(
        path.name.removesuffix(".yaml")
        for path in files("uld.training.presets").iterdir()
        if path.name.endswith(".yaml")
    )


def read_preset(name: str) -> dict[str, Any]:
    """Settings of a preset.

    Raises:
        ConfigError: no such preset.
    """
    if name not in preset_names():
        raise ConfigError(f"there is no preset {name!r}: choose one of {', '.join(preset_names())} (--preset)")
    return parse((files("uld.training.presets") / f"{name}.yaml").read_text(encoding="utf-8"))[0] or {}


class FileSettings(dict[str, Any]):
    """Settings of a file, and the line of each.

    Attributes:
        lines: The line of every value, counted from 1, by the keys that lead to it.
    """

    def __init__(self, values: Mapping[str, Any], lines: Lines) -> None:
        """Take the settings and their lines."""
        super().__init__(values)
        self.lines = lines

    def part(self, *keys: str | int) -> "FileSettings":
        """The settings that stand in a mapping of the file, with their lines; none where there is no such mapping."""
        found: Any = self
        for key in keys:
            known = key in found if isinstance(found, dict) else isinstance(found, list)
            found = found[key] if known else {}
        size = len(keys)
        return FileSettings(
            found or {}, {path[size:]: line for path, line in self.lines.items() if path[:size] == keys}
        )


def read_yaml(path: str | Path) -> FileSettings:
    """Settings of a YAML file.

    Raises:
        ConfigError: missing, not YAML, or not a mapping.
    """
    try:
        values, lines = parse(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file (--config)") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error} (--config)") from error
    except YamlError as error:
        where = f"{path}:{error.line}" if error.line is not None else str(path)
        raise ConfigError(f"{where}: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a YAML file: it is not UTF-8") from error
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'setting: value' lines")
    return FileSettings(values or {}, lines)


C = TypeVar("C", bound=RunConfig)


def resolving(kind: type[C]) -> type[C]:
    """Have a config's constructor check what it is given, and fill in what follows from it (`RunConfig.under`).

    So Python, flags and files come to the same settings. None stands for what is not given.
    """
    plain: Any = kind.__init__
    names = [one.name for one in fields(kind)]

    @functools.wraps(plain)
    def make(self: Any, *args: Any, **given: Any) -> None:
        if len(args) > len(names):
            raise TypeError(f"{kind.__name__} has {len(names)} settings, and {len(args)} were given")
        asked = _checked(kind, kind.__name__, dict(zip(names, args, strict=False)) | given)
        source, defaults = kind.under(asked)
        plain(self, **_checked(kind, source, defaults) | asked)

    kind.__init__ = make
    return kind


def layered(kind: type[C], layers: Sequence[tuple[str, Mapping[str, Any]]]) -> C:
    """Settings of a kind, later layers winning.

    Raises:
        ConfigError: a setting that does not exist, or a value of the wrong type or out of range, with its layer.
    """
    values: dict[str, Any] = {}
    places: dict[str, str | None] = {}
    for source, layer in layers:
        found = _checked(kind, source, layer)
        values |= found
        places |= {name: place(source, layer, name) if isinstance(layer, FileSettings) else None for name in found}
    try:
        return kind(**values)
    except ValueFault as error:
        if (where := places.get(error.name)) is None:
            raise
        raise ConfigError(f"{where}: {error.in_file}") from error


def place(source: str, layer: Mapping[str, Any], *keys: str | int) -> str:
    """A layer's name, with the line of a setting where the layer is a file."""
    line = layer.lines.get(keys) if isinstance(layer, FileSettings) else None
    return source if line is None else f"{source}:{line}"


def guess(name: object, known: Iterable[str]) -> str:
    """What was probably meant by an unknown name, as the end of a message: ``: did you mean 'x'?``, or nothing."""
    close = difflib.get_close_matches(str(name).lower(), known, n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def shown(value: object) -> str:
    """A value for a message: its beginning, if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no numbers of more than some thousand digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:80]}…"


def _checked(kind: type[RunConfig], source: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that are given, each brought to its type."""
    known = {one.name: one for one in fields(kind)}
    types = _types(kind)
    values: dict[str, Any] = {}
    for name, value in given.items():
        where = place(source, given, name)
        if name not in known:
            raise ConfigError(f"{where}: there is no setting {shown(name)}{guess(name, known)}")
        if value is not None:
            usual = known[name].default
            values[name] = value if value is usual or value == usual == "" else _coerce(value, types[name], name, where)
    return values


@functools.cache
def _types(kind: type) -> dict[str, Any]:
    """The types of a config's fields."""
    return get_type_hints(kind)


def _coerce(value: Any, kind: Any, name: str, source: str) -> Any:
    """Bring a value to a field's type; ints may stand for floats, one text for a list of one, a path for a text."""
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for option in options:
        if get_origin(option) is Literal and isinstance(value, str) and value in get_args(option):
            return value
        if get_origin(option) is tuple:
            items = list(value) if isinstance(value, list | tuple) else [value]
            texts = [os.fspath(item) if isinstance(item, os.PathLike) else item for item in items]
            if all(isinstance(text, str) for text in texts):
                return tuple(_text(text, name, source) for text in texts)
        if option is float and isinstance(value, int | float | str) and not isinstance(value, bool):
            try:  # YAML reads 1e-3 as a text
                return float(value)
            except OverflowError:
                raise ConfigError(f"{source}: {name} must be a finite number, not {shown(value)}") from None
            except ValueError:
                continue
        if option is str and isinstance(value, str | os.PathLike):
            return _text(os.fspath(value), name, source)
        if option is str and type(value) is datetime.date:  # YAML reads 2024-12-31 as a date
            return value.isoformat()
        if option in (int, bool) and type(value) is option:
            return value
    wanted = [", ".join(get_args(o)) if get_origin(o) is Literal else _KINDS[get_origin(o) or o] for o in options]
    raise ConfigError(f"{source}: {name} must be {' or '.join(w for w in wanted if w)}, not {shown(value)}")


def _text(text: Any, name: str, source: str) -> str:
    """A text that says something and that a file's name can hold."""
    if (fault := text_fault(text)) is not None:
        raise ConfigError(f"{source}: {name} {fault}")
    return text


def text_fault(text: object) -> str | None:
    """Why a text can be no place, name or template; None where it can."""
    if not isinstance(text, str):  # a path of bytes
        return f"must be a text, not {shown(text)}"
    if not text.strip():
        return "is empty: say what it is, or leave it out (is it a variable that is not set?)"
    if "\0" in text:
        return f"has a character in it that no text has (NUL): {shown(text)}"
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return f"cannot be written as text: {shown(text)}"
    return None


def setting_fields(kind: type[RunConfig]) -> list[dataclasses.Field[Any]]:
    """The fields of a config, for the command line and the documentation: its own, then those that all have."""
    own = list(kind.__annotations__)
    return sorted(fields(kind), key=lambda one: own.index(one.name) if one.name in own else len(own))
