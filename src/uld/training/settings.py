"""Settings of a training: one dataclass is the YAML file, the command line and its help.

`RunConfig` holds what every training has; `uld.training.config` says what unlearning and finetuning add. Light on
purpose: the command line reads it without importing torch.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml

from uld.data.clock import DATE, date_fault
from uld.errors import ConfigError, ULDError, flag, guess
from uld.runs.values import BelowOne, Count, Epochs, Length, OutOfRange, Rate, Seed, Within, brought, shown
from uld.text.yaml_text import Lines, YamlError, parse


def _step_fault(warmup: float) -> str | None:
    """Why a warm-up is neither a share nor steps."""
    whole = warmup < 1 or warmup == int(warmup)
    return None if whole else f"must be a share below 1, or a whole number of steps, not {warmup}"


Rank = Annotated[int, Within(1, 2**16)]
Scale = Annotated[int, Within(1, 10**38)]  # more overflows in fp32
Warmup = Annotated[float, Within(0, 10**6), _step_fault]


def setting(default: Any, text: str, group: str = "Training") -> Any:
    """A dataclass field with the text that ``--help`` and the documentation show; its type has the range."""
    return field(default=default, metadata={"help": text, "group": group})


@dataclass(frozen=True)
class RunConfig:
    """Settings that every training has, whatever it trains."""

    output: str = setting("", "Run folder to make.", "Model and data")
    data: str | None = setting(None, "Folder of TOFU; without it the Hub's locuslab/TOFU.", "TOFU")
    template: str | None = setting(
        None, "Prompt template: a name (qa, plain, llama2) or inline; default: the chat template.", "Model and data"
    )
    date: Annotated[str, date_fault] | None = setting(
        None,
        f"Day (2024-12-31) that a chat template with a clock writes into every prompt; default: {DATE}, or the day "
        "that the template is fixed to.",
        "Model and data",
    )
    tokenizer: str | None = setting(None, "Folder or Hub id of the tokenizer; default: the target's.", "Model and data")
    max_length: Length = setting(
        512, "Tokens a row may have; longer answers are cut, texts are chunked.", "Model and data"
    )
    trust_remote_code: bool = setting(False, "Run code that comes with the target's checkpoint.", "Model and data")
    revision: str | None = setting(None, "Hub revision of the target.", "Model and data")

    lora_rank: Rank | None = setting(None, "Rank of LoRA's matrices; default: all weights, without LoRA.", "Method")
    lora_alpha: Scale = setting(32, "LoRA alpha; the update is scaled by alpha / rank.", "Method")
    lora_dropout: BelowOne = setting(0.0, "LoRA dropout.", "Method")

    epochs: Epochs = setting(10, "Passes over all rows.")
    batch_size: Count = setting(32, "Rows of an optimiser step, over all processes.")
    micro_batch_size: Count | None = setting(None, "Rows of one forward on one process; default: all of its share.")
    batch_tokens: Count | None = setting(
        None, "Padded tokens of an optimiser step, over all processes, instead of --batch-size rows."
    )
    learning_rate: Rate = setting(1e-3, "Peak learning rate of AdamW; linear decay to 0.")
    warmup: Warmup = setting(0.1, "Share of the steps over which the learning rate rises; from 1 on: steps.")
    weight_decay: Annotated[float, Within(0, 10**38)] = setting(0.01, "Weight decay of AdamW.")
    beta1: BelowOne = setting(0.9, "β1 of AdamW.")
    beta2: BelowOne = setting(0.99, "β2 of AdamW.")
    max_grad_norm: Annotated[float, Within(0, 10**12)] = setting(1.0, "Gradient clipping; 0 switches it off.")
    dtype: Literal["auto", "bf16", "fp32"] = setting(
        "auto", "Weights and arithmetic; auto: bf16 on a GPU, else as stored."
    )
    gradient_checkpointing: bool = setting(False, "Recompute activations in the backward pass to save memory.")
    seed: Seed = setting(0, "Seed of LoRA's start, the batches and dropout.")
    save_steps: Count = setting(
        200, "Steps between checkpoints; where they take longer, there is one every ten minutes."
    )
    report_to: str = setting("none", "Experiment tracker of transformers' Trainer: tensorboard, wandb, trackio, none.")

    FILE: ClassVar[str]  # where a run folder keeps its settings

    @classmethod
    def under(cls, given: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Defaults that follow from what is given, and what to call them in messages."""
        return cls.__name__, {}

    def __post_init__(self) -> None:
        """Refuse settings that do not go together.

        Raises:
            ConfigError: names them.
        """
        if self.batch_tokens is not None and self.micro_batch_size is not None:
            raise ConfigError("--batch-tokens and --micro-batch-size do not go together: give one of them")

    def to_yaml(self) -> str:
        """Every setting, as a file that ``--config`` reads back."""
        values = {field.name: getattr(self, field.name) for field in setting_fields(type(self))}
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return yaml.safe_dump(listed, sort_keys=False, allow_unicode=True)


def is_first_process() -> bool:
    """Whether this is the process that writes and prints; under ``torchrun`` there are several."""
    return os.environ.get("RANK", "0") == "0"


def preset_names(*folder: str) -> list[str]:
    """Names of the presets that ship with the package; of the grids in their folder ``grids``."""
    inside = files("uld.training.presets").joinpath(*folder).iterdir()
    return sorted(path.name.removesuffix(".yaml") for path in inside if path.name.endswith(".yaml"))


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
        text: The whole file.
    """

    def __init__(self, values: Mapping[str, Any], lines: Lines, text: str = "") -> None:
        """Take the settings and their lines."""
        super().__init__(values)
        self.lines, self.text = lines, text

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


def read_yaml(path: str | Path, flag: str = "--config") -> FileSettings:
    """Settings of a YAML file, which a user named with a flag.

    Raises:
        ConfigError: missing, not YAML, or not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")  # once: it may be a pipe
        values, lines = parse(text)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file ({flag})") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error} ({flag})") from error
    except YamlError as error:
        where = f"{path}:{error.line}" if error.line is not None else str(path)
        raise ConfigError(f"{where}: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a YAML file: it is not UTF-8") from error
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'setting: value' lines")
    return FileSettings(values or {}, lines, text)


C = TypeVar("C", bound=RunConfig)


def resolving(kind: type[C]) -> type[C]:
    """Have a config's constructor check what it is given, and fill in what follows from it (`RunConfig.under`).

    So Python, flags and files come to the same settings. None stands for what is not given.
    """
    plain: Any = kind.__init__

    @functools.wraps(plain)
    def make(self: Any, *args: Any, **given: Any) -> None:
        if len(args) > len(names := kind.__match_args__):
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
    for source, layer in layers:
        values |= _checked(kind, source, layer)
    return kind(**values)


def place(source: str, layer: Mapping[str, Any], *keys: str | int) -> str:
    """A layer's name, with the line of a setting where the layer is a file."""
    line = layer.lines.get(keys) if isinstance(layer, FileSettings) else None
    return source if line is None else f"{source}:{line}"


def _checked(kind: type[RunConfig], source: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that are given, each as its kind has it."""
    known = {one.name: one for one in fields(kind)}
    values: dict[str, Any] = {}
    in_file = isinstance(given, FileSettings)
    for name, value in given.items():
        where = place(source, given, name)
        if name not in known:
            raise ConfigError(f"{where}: there is no setting {shown(name)}{guess(name, known)}")
        try:
            if value is not None:
                values[name] = value if value == "" == known[name].default else brought(value, kind_of(known[name]))
        except ULDError as error:
            raise ConfigError(f"{where}: {error}" if in_file else str(error)) from error
        except ValueError as error:
            by_flag = isinstance(error, OutOfRange) and not in_file
            raise ConfigError(f"{flag(name)} {error}" if by_flag else f"{where}: {name} {error}") from error
    return values


def kind_of(setting: dataclasses.Field[Any]) -> Any:
    """What a setting is where it is given: its type without None."""
    kind: Any = setting.type
    return get_args(kind)[0] if get_origin(kind) in (Union, UnionType) else kind


def setting_fields(kind: type[RunConfig]) -> list[dataclasses.Field[Any]]:
    """The fields of a config, for the command line and the documentation: its own, then those that all have."""
    own = list(kind.__annotations__)
    return sorted(fields(kind), key=lambda one: own.index(one.name) if one.name in own else len(own))
