"""Cells of several seeds as one row: means and ranges, in the order in which tables have them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from uld.report.cells import Cell, Folder, Identity, TableName
from uld.report.numbers import Spread, spread
from uld.report.paper import METHODS, ablation_order

NAMES = {"target": "target", "retain-only": "retain-only model"}
KEPT = 0.01  # M.U. that a method may lose and still count as having kept it
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Row:
    """All seeds of one method (or of target or retain-only model) and variant on one split.

    Attributes:
        method: Registered name, or the role.
        variant: Name of an ablation; empty for none.
        label: How tables call it, variant included.
        split: Forget split.
        cells: Those with a result, by seed.
        failed: Those without.
        missing: Planned ones that have no file.
    """

    method: str
    variant: str
    label: str
    split: str
    cells: tuple[Cell, ...]
    failed: tuple[Cell, ...]
    missing: tuple[Identity, ...]

    @property
    def key(self) -> tuple[str, str]:
        """What it shares with the same row on other splits."""
        return (self.method, self.variant)

    @property
    def is_method(self) -> bool:
        """Whether it is neither the target nor a retain-only model."""
        return self.method not in NAMES

    def of(self, read: Callable[[Cell], float | None], *, geometric: bool = False) -> Spread | None:
        """Mean and range of a number over seeds."""
        return spread(map(read, self.cells), geometric=geometric)

    def metric(self, name: str) -> Spread | None:
        """Mean and range of a field of `TofuResult`."""
        return self.of(lambda cell: getattr(cell.result, name), geometric=name == "forget_quality")

    @property
    def problems(self) -> list[str]:
        """One sentence for every seed that failed or is missing."""
        several = len(self.cells) + len(self.failed) + len(self.missing) > 1

        def which(cell: Identity) -> str:
            return f"{self.label}, {self.split}{f', seed {cell.seed}' if several else ''}"

        failed = [f"{which(cell)} failed: {cell.failure}" for cell in self.failed]
        return failed + [f"{which(cell)} is missing: it has not been run yet" for cell in self.missing]


def splits_of(folder: Folder, table: TableName | None = None) -> list[str]:
    """Forget splits of a table (or of any), in order; target and retain-only model alone make none but Table 2's."""
    every = [one for one in [*folder.cells, *folder.missing] if table is None or table in one.group]
    return sorted({one.split for one in every if one.role == "method" or table in (None, "table2")})


def rows_of(folder: Folder, split: str, table: TableName | None = None, *, references: bool = True) -> list[Row]:
    """Rows of a table on one split: target, retain-only model, the paper's baselines, other methods, ULD.

    Args:
        folder: What was read.
        split: Forget split.
        table: Name of the paper's table; None takes every cell of the split.
        references: Whether target and retain-only model have rows; they belong to every table.
    """
    found: dict[tuple[str, str], list[Identity]] = {}
    for one in [*folder.cells, *folder.missing]:
        belongs = (references if one.role != "method" else table is None or table in one.group) and one.split == split
        if belongs:
            found.setdefault((one.method or one.role, one.variant), []).append(one)
    rows = [_row(method, variant, split, members) for (method, variant), members in found.items()]
    return sorted(rows, key=order)


def _row(method: str, variant: str, split: str, members: Sequence[Identity]) -> Row:
    members = sorted(members, key=lambda one: one.seed)
    cells = [one for one in members if isinstance(one, Cell)]
    name = next((one.label for one in members if one.label), NAMES.get(method, method))
    return Row(
        method=method,
        variant=variant,
        label=f"{name}, {variant}" if variant else name,
        split=split,
        cells=tuple(cell for cell in cells if cell.failure is None),
        failed=tuple(cell for cell in cells if cell.failure is not None),
        missing=tuple(one for one in members if not isinstance(one, Cell)),
    )


def order(row: Row) -> tuple[int, int, str, int, str]:
    """Roles first, then baselines as in the paper, others by name, ULD; of each method the variants, itself last."""
    group = 0 if not row.is_method else 3 if row.method == "uld" else 1 if row.method in METHODS else 2
    known = (*NAMES, *METHODS)
    place = known.index(row.method) if row.method in known else 0
    return (group, place, row.method, ablation_order(row.variant), row.variant)


@dataclass(frozen=True)
class Verdict:
    """Which methods of a split keep the target's utility, and which of them forgets best.

    Attributes:
        split: Forget split.
        target: The target's M.U.
        keeping: Methods whose M.U. is at most `KEPT` below it, by falling forget quality.
        losing: The others, by falling forget quality.
    """

    split: str
    target: float
    keeping: list[Row]
    losing: list[Row]


def verdict(folder: Folder, split: str) -> Verdict | None:
    """Judge every method of Table 2 as it is by mean M.U. and F.Q. over seeds; None without the target's M.U."""
    rows = [row for row in rows_of(folder, split, "table2") if not row.variant]
    target = next((found for row in rows if row.method == "target" and (found := row.metric("model_utility"))), None)
    if target is None:
        return None
    judged: list[tuple[float, float, Row]] = []
    for row in rows:
        quality, utility = row.metric("forget_quality"), row.metric("model_utility")
        if row.is_method and quality and utility:
            judged.append((quality.mean, utility.mean, row))
    judged.sort(key=lambda one: -one[0])
    least = target.mean - KEPT - _ROUNDING
    keeping = [row for _, utility, row in judged if utility >= least]
    return Verdict(split, target.mean, keeping, [row for _, utility, row in judged if utility < least])


def partial_curves(rows: Iterable[Row]) -> list[str]:
    """A sentence for every row whose epochs were kept for some of its seeds alone."""
    found: dict[str, list[str]] = {}
    for row in rows:
        seeds = [cell.seed for cell in row.cells if cell.epochs]
        if 0 < len(seeds) < len(row.cells):
            found.setdefault(", ".join(map(str, seeds)), []).append(row.label)
    return [f"Epochs of {', '.join(names)}: of seed {seeds} alone." for seeds, names in found.items()]


def epoch_spread(row: Row, name: str) -> dict[int, Spread]:
    """Mean and range over seeds of a number after each epoch, where every seed that has epochs has it.

    Args:
        row: A row.
        name: Field of `uld.report.cells.Epoch`.
    """
    seeds = [{one.epoch: getattr(one, name) for one in cell.epochs} for cell in row.cells if cell.epochs]
    found = {}
    for epoch in sorted(set().union(*seeds)):
        values = [seed.get(epoch) for seed in seeds]
        if None not in values and (one := spread(values, geometric=name == "forget_quality")):
            found[epoch] = one
    return found


def seconds_per_epoch(row: Row) -> Spread | None:
    """Seconds of training over epochs, as the cells themselves measured them."""

    def read(cell: Cell) -> float | None:
        facts = cell.training
        return facts.seconds / facts.epochs if facts and facts.seconds and facts.epochs else None

    return row.of(read)
