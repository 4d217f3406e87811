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

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uld.config import ConfigError, TrainConfig, read_preset, read_yaml, train_config
from uld.data.tofu import check_split
from uld.errors import ULDError
from uld.methods.registry import get_method
from uld.report.paper import TableName

_OWN = ("target", "output", "data", "augmented", "split", "seed", "method", "keep_epochs", "forget", "retain")


class CellGroup(BaseModel):
    """Cells that differ in method, split and seed alone."""

    model_config = ConfigDict(extra="forbid")
    tables: list[str]
    methods: list[str]
    splits: list[str]
    seeds: list[int]
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

    model_config = ConfigDict(extra="forbid")
    candidates: list[float] = Field(min_length=1)
    split: str = "forget10"
    seed: int = 0
    families: dict[str, list[str]]


class Grid(BaseModel):
    """The file as it is read."""

    model_config = ConfigDict(extra="forbid")
    target: str = ""
    retain_only: dict[str, str] = {}
    data: str | None = None
    augmented: str | None = None
    settings: dict[str, Any] = {}
    methods: dict[str, dict[str, Any]] = {}
    labels: dict[str, str] = {}
    learning_rates: list[LearningRates] = []
    notes: dict[TableName, list[str]] = {}
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
    folder = files("uld.presets") / "grids"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def describe_preset(name: str) -> str:
    """What a grid that ships with the package says of itself: its first line."""
    text = (files("uld.presets") / "grids" / f"{name}.yaml").read_text(encoding="utf-8")
    return text.splitlines()[0].removeprefix("# ")


def read_grid(source: str, changes: Mapping[str, Any]) -> Grid:
    """Read a grid.

    Args:
        source: Name of a preset, or a YAML file.
        changes: ``target``, ``retain_only``, ``data``, ``augmented`` from the command line; None is not given.

    Raises:
        ULDError: no such grid, an unknown key, method or split, or settings that a method does not take.
    """
    if source in grid_presets():
        path = str(files("uld.presets") / "grids" / f"{source}.yaml")
    elif Path(source).exists():
        path = source
    else:
        raise ConfigError(f"there is no grid {source!r}: name a YAML file, or one of {', '.join(grid_presets())}")
    values = read_yaml(path)
    given = {name: value for name, value in changes.items() if value}
    try:
        grid = Grid.model_validate(values | given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{source}: {where or 'the grid'}: {first['msg'][0].lower()}{first['msg'][1:]}") from error
    if not grid.target:
        raise ConfigError(f"{source} names no target: name one with --target")
    for spec in [*specs(grid, dict.fromkeys(families(grid), 0.5)), *rate_specs(grid)]:
        if spec.split not in grid.retain_only:
            raise ConfigError(f"{source} names no retain-only model for {spec.split}: --retain-only {spec.split}=MODEL")
        if spec.method is not None:
            config(spec, grid, "")
    return grid


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
                    spec = Spec(
                        name,
                        "method",
                        method,
                        split,
                        seed,
                        group.variant,
                        tuple(group.tables),
                        settings,
                        group.keep_epochs,
                    )
                    if name in found:
                        spec = _merged(found[name], spec)
                    found[name] = spec
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
