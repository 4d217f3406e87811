"""Thresholds: what a run must reach, from a small YAML file, and whether it does.

A line names a measure and says what it must be: ``forget_rouge: "<= 0.25"``, or beside another model
``retain_probability: ">= 0.9 * target"``, ``forget_re_entry: "<= retain-only + 0.1"``.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from uld.checking.measures import MEASURES, Value, is_lower_better
from uld.errors import ConfigError, flag
from uld.runs.values import shown
from uld.text.yaml_text import parse
from uld.training.settings import FileSettings, guess, place, read_yaml

TARGET, RETAIN_ONLY = "target", "retain-only"
_SENSES = ("<=", ">=")
_NUMBER = r"\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+"
_BOUND = re.compile(
    rf"(?P<sense>[^\s\w.-]*)\s*(?:(?P<number>{_NUMBER})|(?:(?P<factor>{_NUMBER})\s*\*\s*)?(?P<base>[a-zA-Z][\w -]*?)"
    rf"(?:\s*(?P<sign>[+-])\s*(?P<offset>{_NUMBER}))?)\s*"
)
_BARE = re.compile(r"\s*[\w-]+\s*:\s*>")  # YAML takes this for the beginning of a folded text
_ROUNDING = 1e-9  # 0.8 - 0.1 is a little more than 0.7, and a share of seven in ten is not beyond it
_EXAMPLES = '"<= 0.25", ">= 0.9 * target" or "<= retain-only + 0.1"'


@dataclass(frozen=True)
class Threshold:
    """What one number must be.

    Attributes:
        name: Of a measure.
        text: As it stands in the file.
        upper: Whether the number may be at most the limit; else it must be at least the limit.
        base: The model that it is compared with; None for a fixed limit.
        factor: What the other model's number is multiplied with.
        offset: What is added; a fixed limit is this alone.
    """

    name: str
    text: str
    upper: bool
    base: str | None
    factor: float
    offset: float

    def limit(self, others: Mapping[str, Mapping[str, Value]]) -> float:
        """The limit in numbers.

        Args:
            others: Numbers of ``target`` and, where there is one, ``retain-only``.
        """
        return self.offset if self.base is None else self.factor * others[self.base][self.name].value + self.offset

    def is_measured(self, values: Mapping[str, Value], others: Mapping[str, Mapping[str, Value]]) -> bool:
        """Whether a run, and the model that it is compared with, have the number."""
        return self.name in values and (self.base is None or self.name in others[self.base])

    def judge(self, value: Value, others: Mapping[str, Mapping[str, Value]]) -> "Verdict":
        """Whether a run's number is within."""
        limit = self.limit(others)
        within = value.value <= limit if self.upper else value.value >= limit
        passed = within or math.isclose(value.value, limit, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
        inside = value.low is not None and value.high is not None and value.low <= limit <= value.high
        return Verdict(self.name, self.text, value.value, limit, passed, inside and value.low != value.high)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a threshold for one run.

    Attributes:
        name: Of the measure.
        text: The threshold.
        value: The run's number.
        limit: What it was held against.
        passed: Whether it is within.
        close: Whether the limit lies inside of the number's interval, so that other questions could decide otherwise.
    """

    name: str
    text: str
    value: float
    limit: float
    passed: bool
    close: bool


def default_text(retain_only: bool) -> str:
    """The thresholds that come with the package, as they stand in their file.

    Args:
        retain_only: Whether there is a retain-only model to compare with.
    """
    name = "beside.yaml" if retain_only else "alone.yaml"
    return (files("uld.checking") / "thresholds" / name).read_text(encoding="utf-8")


def read_thresholds(
    given: str | Path | Mapping[str, str] | None, *, retain_only: bool, held_out: bool
) -> tuple[list[Threshold], str]:
    """Thresholds of a file or a mapping, or the default ones.

    Args:
        given: File, or texts by the names of measures; None takes the default ones, as far as they are measured.
        retain_only: Whether there is a retain-only model to compare with.
        held_out: Whether other wordings are asked.

    Returns:
        The thresholds, and what to write down of them.

    Raises:
        ConfigError: an unknown name or sense, no number, or a measure or model that there is not.
    """
    if given is None:
        lines = default_text(retain_only).splitlines(keepends=True)
        text = "".join(line for line in lines if held_out or not line.startswith("held_out_"))
        found, _ = parse(text)
        return [_threshold(name, one, "the default thresholds") for name, one in found.items()], text
    if isinstance(given, str | Path):
        source, settings = str(given), _read_file(given)
        text = settings.text
    elif not isinstance(given, Mapping):
        raise ConfigError(f"thresholds must be a file, or texts by the names of measures, not {shown(given)}")
    else:
        source, settings = "thresholds", FileSettings(given, {})
        text = "".join(f'{name}: "{one}"\n' for name, one in given.items())
    if not settings:
        raise ConfigError(f"{source}: names no threshold: write lines such as forget_rouge: {_EXAMPLES}")
    made = []
    for name, one in settings.items():
        where = place(source, settings, name)
        made.append(_threshold(name, one, where))
        if name.startswith("held_out_") and not held_out:
            raise ConfigError(f"{where}: {name} is not measured without other wordings: name them ({flag('held_out')})")
        if made[-1].base == RETAIN_ONLY and not retain_only:
            raise ConfigError(
                f"{where}: {name} compares with a retain-only model: name one ({flag('retain_model')}), or write a "
                "fixed limit"
            )
    return made, text


def _read_file(path: str | Path) -> FileSettings:
    """A file of thresholds; where it is no YAML because of a limit without quotation marks, say that."""
    try:
        return read_yaml(path, "--thresholds")
    except ConfigError as error:
        lines = Path(path).read_bytes().decode(errors="replace").splitlines() if Path(path).is_file() else []
        bare = next((one.strip() for one in lines if _BARE.match(one)), None)
        if bare is None:
            raise
        name, _, limit = bare.partition(":")
        raise ConfigError(f'{error}; limits stand in quotation marks: {name}: "{limit.strip()}"') from error


def _threshold(name: Any, text: Any, where: str) -> Threshold:
    """One line.

    Raises:
        ConfigError: it cannot be one.
    """
    if name not in MEASURES:
        raise ConfigError(f"{where}: there is no measure {shown(name)}{guess(name, MEASURES)}")
    found = _BOUND.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        raise ConfigError(f"{where}: {name} must be a text such as {_EXAMPLES}, not {shown(text)}")
    sense, base, number = found["sense"], found["base"], found["number"]
    if sense not in _SENSES:
        close = guess(sense[::-1], _SENSES) if sense else ""
        raise ConfigError(f"{where}: {name} must begin with one of {' and '.join(_SENSES)}, not {shown(text)}{close}")
    if base is not None and base not in (TARGET, RETAIN_ONLY):
        raise ConfigError(
            f"{where}: {name} must compare with a number, with {TARGET} or with {RETAIN_ONLY}, not with {shown(base)}"
            f"{guess(base, (TARGET, RETAIN_ONLY))}"
        )
    upper, lower = sense == "<=", is_lower_better(name)
    if upper != lower:
        wanted = "<=" if lower else ">="
        better = "lower" if lower else "higher"
        raise ConfigError(f"{where}: {name} is better when it is {better}, so its threshold begins with {wanted}")
    offset = float(number or found["offset"] or 0) * (-1 if found["sign"] == "-" else 1)
    factor = float(found["factor"] or 1)
    if not (math.isfinite(offset) and math.isfinite(factor)):
        raise ConfigError(f"{where}: {name} must be a finite number, not {shown(text)}")
    if MEASURES[name][1].form == "share" and base is None and not 0 <= offset <= 1:
        raise ConfigError(f"{where}: {name} is a share, between 0 and 1, and its threshold is {shown(text)}")
    return Threshold(name, text.strip(), upper, base, factor, offset)


def refuse_unmeasured(
    thresholds: Sequence[Threshold], values: Mapping[str, Value], others: Mapping[str, Mapping[str, Value]], run: str
) -> None:
    """Refuse a threshold on a number that a model did not give.

    Args:
        thresholds: All of them.
        values: The run's numbers.
        others: Those of the models that it is compared with.
        run: Its name.

    Raises:
        ConfigError: there is one.
    """
    for one in thresholds:
        if one.name not in values:
            raise ConfigError(f"{one.name} cannot be measured of {run}: take its threshold out ({flag('thresholds')})")
        if not one.is_measured(values, others):
            raise ConfigError(
                f"{one.name} cannot be measured of the {one.base} model, so {run} cannot be compared with it: write a "
                f"fixed limit ({flag('thresholds')})"
            )
