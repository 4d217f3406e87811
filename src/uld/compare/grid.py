"""A grid on paper: the YAML file that names methods, splits, seeds and ablations, and the cells that it comes to.

```yaml
target: MODEL                       # folder or Hub id
retain_only: {forget10: MODEL}      # per split
data: FOLDER                        # TOFU; without it the Hub's
augmented: FOLDER
settings: {max_length: 256}         # of every method
methods:
  uld: {preset: tofu-4m}            # settings of one method, over those of every method
  npo+kl: {epochs: 10}
learning_rates:                     # chosen on the training side, the same way for all
  - {candidates: [1e-4, 3e-4], families: {npo+kl: [npo, npo+gd, npo+kl]}}
notes: {table2: [ULD has twice the epochs.]}  # sentences under a table of the report
cells:
  - {tables: [table2], methods: [uld, npo+kl], splits: [forget10], seeds: [0, 1, 2], keep_epochs: true}
  - {tables: [table4], methods: [uld], splits: [forget10], seeds: [0], variant: "no D'f", settings: {paraphrases: 0}}
```
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from uld.data.tofu import FORGET_SPLITS, check_split
from uld.errors import ConfigError, ULDError, guess
from uld.methods.registry import get_method
from uld.report.paper import TableName
from uld.runs import values as kinds
from uld.training.config import TrainConfig, preset_names, read_preset, read_yaml, train_config
from uld.training.settings import FileSettings, place

_OWN = ("target", "output", "data", "augmented", "split", "seed", "method", "keep_epochs", "forget", "retain")

Text = Annotated[str, PlainValidator(lambda value: kinds.brought(value, str))]
Seed = Annotated[int, PlainValidator(lambda value: kinds.brought(value, kinds.Seed))]
Rate = Annotated[float, PlainValidator(lambda value: kinds.brought(value, kinds.Rate))]
_STRICT = ConfigDict(extra="forbid", strict=True)


class CellGroup(BaseModel):
    """Cells that differ in method, split and seed alone."""

    model_config = _STRICT
    tables: list[TableName]
    methods: list[Text] = Field(min_length=1)
    splits: list[Text] = Field(min_length=1)
    seeds: list[Seed] = Field(min_length=1)
    variant: str = ""
    settings: dict[str, Any] = {}
    keep_epochs: bool = False


class LearningRates(BaseModel):
    """Learning rates that are chosen on the training side, by one rule for all methods (`uld.compare.rates`).

    Attributes:
        candidates: Rates to try.
        split: Forget split that they are tried on.
        seed: Of these trainings.
        families: Methods that share a rate, under the one that it is chosen by.
    """

    model_config = _STRICT
    candidates: list[Rate] = Field(min_length=1)
    split: Text = "forget10"
    seed: Seed = 0
    families: dict[str, list[Text]]


class Grid(BaseModel):
    """The file as it is read."""

    model_config = _STRICT
    target: Text = ""
    retain_only: dict[str, Text] = {}
    data: Text | None = None
    augmented: Text | None = None
    settings: dict[str, Any] = {}
    methods: dict[str, dict[str, Any]] = {}
    labels: dict[str, Text] = {}
    learning_rates: list[LearningRates] = []
    notes: dict[TableName, list[Text]] = {}
    cells: list[CellGroup] = Field(min_length=1)


@dataclass(frozen=True)
class Spec:
    """One cell to be computed.

    Attributes:
        name: What its files are called.
        role: ``method``, ``target``, ``retain-only``, or ``rate``: a method with one candidate for its learning rate.
        method: Registered name; None for a model that is only evaluated.
        variant: Name of an ablation.
        tables: Tables that it belongs to.
        split: Forget split.
        seed: Of the training.
        settings: Training settings, without paths.
        keep_epochs: Whether every epoch is evaluated (without generation).
    """

    name: str
    role: str
    method: str | None
    split: str
    seed: int = 0
    variant: str = ""
    tables: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    keep_epochs: bool = False


def grid_presets() -> list[str]:
    """Names of the grids that ship with the package."""
    return preset_names("grids")


def describe_preset(name: str) -> str:
    """What a grid that ships with the package says of itself: its first line."""
    text = (files("uld.training.presets") / "grids" / f"{name}.yaml").read_text(encoding="utf-8")
    return text.splitlines()[0].removeprefix("# ")


def read_grid(source: str, changes: Mapping[str, Any] | None = None) -> Grid:
    """Read a grid.

    Args:
        source: Name of a preset, or a YAML file.
        changes: ``target``, ``retain_only``, ``data``, ``augmented`` from the command line; None is not given.

    Raises:
        ULDError: no such grid, an unknown key, method or split, or settings that a method does not take; with the line.
    """
    if source in grid_presets():
        path = str(files("uld.training.presets") / "grids" / f"{source}.yaml")
    elif os.path.exists(source):
        path = source
    else:
        raise ConfigError(f"there is no grid {source!r}: name a YAML file, or one of {', '.join(grid_presets())}")
    read = read_yaml(path, "GRID")
    given = {name: value for name, value in (changes or {}).items() if value}
    lines = {keys: line for keys, line in read.lines.items() if not keys or keys[0] not in given}
    values = FileSettings({name: value for name, value in read.items() if value is not None} | given, lines)
    try:
        grid = Grid.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_sentence(source, values, error.errors())) from error
    _check_names(source, values, grid)
    if not grid.target:
        raise ConfigError(f"{source} names no target: name one with --target")
    for spec in [*specs(grid, dict.fromkeys(families(grid), 0.5)), *rate_specs(grid)]:
        if spec.split not in grid.retain_only:
            raise ConfigError(f"{source} names no retain-only model for {spec.split}: --retain-only {spec.split}=MODEL")
        if spec.method is not None:
            try:
                config(spec, grid, "")
            except ULDError as error:
                raise ConfigError(f"{source}: {error}") from error
    return grid


def _where(source: str, values: FileSettings, keys: tuple[str | int, ...]) -> str:
    """A place in the file: its line, or that of what it stands in, and the keys that lead to it."""
    known = next((keys[:size] for size in range(len(keys), 0, -1) if keys[:size] in values.lines), ())
    return f"{place(source, values, *known)}: {'.'.join(map(str, keys)) or 'the grid'}"


_LEVELS: dict[str | None, type[BaseModel]] = {None: Grid, "cells": CellGroup, "learning_rates": LearningRates}
_WANTED = {
    "list_type": "a list",
    "too_short": "a list with something in it",
    **dict.fromkeys(("dict_type", "model_type"), "a mapping"),
    "bool_type": "true or false",
    "string_type": "a text",
}


def _sentence(source: str, values: FileSettings, faults: Sequence[Any]) -> str:
    """What pydantic found wrong, as a sentence; an unknown key comes first, for then another is missing."""
    fault = min(faults, key=lambda one: one["type"] != "extra_forbidden")
    keys = tuple(key for key in fault["loc"] if key != "[key]")
    where, given = _where(source, values, keys), kinds.shown(fault["input"])
    if fault["type"] == "extra_forbidden":
        *above, name = keys
        return f"{where}: there is no key {name!r}{_meant(name, _LEVELS[above[0] if above else None].model_fields)}"
    if fault["type"] == "literal_error":
        return f"{where}: there is no table {given}{_meant(fault['input'], get_args(TableName))}"
    if fault["type"] == "missing":
        return f"{where} is missing"
    if fault["type"] == "value_error":  # in words of ours
        return f"{where}: {fault['ctx']['error']}"
    return f"{where}: must be {_WANTED[fault['type']]}, not {given}"


def _meant(name: object, known: Iterable[str]) -> str:
    """What was probably meant by a name, or what there is to choose from."""
    return guess(name, known) or f": choose one of {', '.join(known)}"


def _names(grid: Grid) -> Iterator[tuple[tuple[str | int, ...], Callable[[str], object], str]]:
    """Every name of a split or a method in a grid: the keys that lead to it, what checks it, and the name itself."""
    yield from ((("retain_only", name), _check_split, name) for name in grid.retain_only)
    for key in ("methods", "labels"):
        yield from (((key, name), get_method, name) for name in getattr(grid, key))
    for number, rates in enumerate(grid.learning_rates):
        yield ("learning_rates", number, "split"), _check_split, rates.split
        for first, names in rates.families.items():
            yield ("learning_rates", number, "families", first), get_method, first
            for index, name in enumerate(names):
                yield ("learning_rates", number, "families", first, index), get_method, name
    for number, group in enumerate(grid.cells):
        for key, check in (("methods", get_method), ("splits", _check_split)):
            yield from ((("cells", number, key, index), check, name) for index, name in enumerate(getattr(group, key)))


def _check_split(name: str) -> None:
    if name not in FORGET_SPLITS:
        raise ULDError(f"{name!r} is not a forget split of TOFU{_meant(name, FORGET_SPLITS)}")


def _check_names(source: str, values: FileSettings, grid: Grid) -> None:
    """Refuse methods, splits and settings that do not exist, also those that no cell would come to.

    Raises:
        ConfigError: with the place, and what was probably meant.
    """
    for keys, check, name in _names(grid):
        try:
            check(name)
        except ULDError as error:
            raise ConfigError(f"{_where(source, values, keys)}: {error}") from error
    seen: dict[str, str] = {}
    blocks_of: dict[str, int] = {}
    for number, rates in enumerate(grid.learning_rates):
        for first, names in rates.families.items():
            where = _where(source, values, ("learning_rates", number, "families", first))
            if blocks_of.setdefault(first, number) != number:
                raise ConfigError(
                    f"{where}: {first} chooses a rate in another block too: name its methods in one of them"
                )
            for name in names:
                if seen.setdefault(name, first) != first:
                    raise ConfigError(f"{where}: {name} has its rate from {seen[name]} already: leave it out of one")
    blocks: list[tuple[tuple[str | int, ...], str | None]] = [(("settings",), None)]
    blocks += [(("methods", name), name) for name in grid.methods]
    blocks += [(("cells", number, "settings"), None) for number in range(len(grid.cells))]
    for keys, method in blocks:
        part = values.part(*keys)
        if taken := [name for name in _OWN if name in part]:
            where = _where(source, values, (*keys, taken[0]))
            raise ConfigError(f"{where}: {taken[0]} is decided by the grid, so it cannot stand among the settings")
        preset = part.pop("preset", None)
        if preset is not None:
            try:
                read_preset(preset)
            except ConfigError as error:
                raise ConfigError(f"{_where(source, values, (*keys, 'preset'))}: {error}") from error
        train_config([(source, part), *([("", {"method": method})] if method is not None else [])])


def families(grid: Grid) -> dict[str, list[str]]:
    """Methods that share a learning rate, under the name of the one that it is chosen by."""
    return {first: names for rates in grid.learning_rates for first, names in rates.families.items()}


def specs(grid: Grid, rates: Mapping[str, float]) -> list[Spec]:
    """Every cell of a grid, those that others need first.

    Args:
        grid: The grid.
        rates: Chosen learning rate of each family's first method.

    Raises:
        ULDError: an unknown method or split.
    """
    found: dict[str, Spec] = {}
    splits = list(dict.fromkeys(split for group in grid.cells for split in group.splits))
    for split in splits:
        check_split(split)
        for role in ("retain-only", "target"):
            spec = Spec(f"{role}-{split}", role, None, split, tables=("table2",))
            found[spec.name] = spec
    leader = {name: first for first, names in families(grid).items() for name in names}
    for group in grid.cells:
        for split in group.splits:
            for method in group.methods:
                get_method(method)
                for seed in group.seeds:
                    settings = _settings(grid, method) | group.settings
                    if method in leader and "learning_rate" not in settings:
                        settings["learning_rate"] = rates[leader[method]]
                    name = "-".join(filter(None, (method, _slug(group.variant), split, f"seed{seed}")))
                    tables = tuple(group.tables)
                    spec = Spec(name, "method", method, split, seed, group.variant, tables, settings, group.keep_epochs)
                    found[name] = _merged(found[name], spec) if name in found else spec
    return list(found.values())


def rate_specs(grid: Grid) -> list[Spec]:
    """The trainings that learning rates are chosen by: the first method of each family with every candidate."""
    return [
        Spec(
            f"{method}-lr{rate:g}",
            "rate",
            method,
            rates.split,
            rates.seed,
            settings=_settings(grid, method) | {"learning_rate": rate},
        )
        for rates in grid.learning_rates
        for method in rates.families
        for rate in rates.candidates
    ]


def config(spec: Spec, grid: Grid, output: str) -> TrainConfig:
    """The training settings of a cell.

    Raises:
        ConfigError: an unknown setting, or one that the grid itself decides.
    """
    settings = dict(spec.settings)
    if taken := [name for name in _OWN if name in settings]:
        raise ConfigError(f"{spec.name}: {taken[0]} is decided by the grid, so it cannot stand among the settings")
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if (preset := settings.pop("preset", None)) is not None:
        layers.append((f"preset {preset}", read_preset(preset)))
    layers.append((spec.name, settings))
    places = {"target": grid.target, "output": output, "data": grid.data, "augmented": grid.augmented}
    fixed = {"method": spec.method, "split": spec.split, "seed": spec.seed, "keep_epochs": spec.keep_epochs}
    layers.append((spec.name, places | fixed))
    return train_config(layers)


def _settings(grid: Grid, method: str) -> dict[str, Any]:
    """Settings of a method in this grid."""
    return dict(grid.settings) | dict(grid.methods.get(method, {}))


def _merged(one: Spec, other: Spec) -> Spec:
    """One cell that stands in two groups.

    Raises:
        ULDError: with different settings.
    """
    if dict(one.settings) != dict(other.settings):
        raise ULDError(f"the grid has two cells {one.name} with different settings: give one of them a variant")
    tables = tuple(dict.fromkeys((*one.tables, *other.tables)))
    return replace(one, tables=tables, keep_epochs=one.keep_epochs or other.keep_epochs)


def _slug(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^\w.]+", "-", text).strip("-.").lower()
