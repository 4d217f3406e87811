"""The paper's tables for the target at hand: what a comparison's cells come to."""

import math
from collections.abc import Callable, Mapping, Sequence

from uld.report.aggregate import (
    KEPT,
    Row,
    epoch_spread,
    order,
    partial_curves,
    rows_of,
    seconds_per_epoch,
    splits_of,
    verdict,
)
from uld.report.cells import Cell, Folder, Rate, TableName, best_rate
from uld.report.numbers import FORMS, NOTHING, Spread, count, exactly, mebibytes, quality, seconds, share, show
from uld.report.paper import METRICS, MODEL, paper_numbers
from uld.text.table import Table

OURS = "this comparison"
BEST_EPOCH = "best epoch (chosen on forget quality)"
_HEADS = ("F.Q.", "forget ROUGE-L (%)", "M.U.", "retain ROUGE-L (%)")
_TITLES: dict[TableName, str] = {
    "table2": "Table 2",
    "table4": "Table 4: ULD without augmentation",
    "table8": "Table 8: other training targets",
    "table9": "Table 9: ULD with a share of the retain set",
}
_NINE = [
    (task, metric)
    for task in ("retain", "real_authors", "world_facts")
    for metric in ("prob", "rouge_l", "truth_ratio")
]
_WORDS = {"prob": "Prob", "rouge_l": "ROUGE-L", "truth_ratio": "truth ratio"}


def all_tables(folder: Folder) -> list[Table]:
    """Every table that the cells have something for, in the order of the report."""
    tables = [
        summary_table(folder),
        overview_table(folder),
        *(table2(folder, split) for split in splits_of(folder, "table2")),
    ]
    for name in ("table4", "table8", "table9"):
        tables += [ablation_table(folder, name, split) for split in splits_of(folder, name)]
    tables += [parts_table(folder, split) for split in splits_of(folder)]
    tables += [training_table(folder, split) for split in splits_of(folder)]
    tables += [timing_table(folder), rates_table(folder)]
    return [table for table in tables if table is not None and table.rows]


def summary_table(folder: Folder) -> Table | None:
    """Which method keeps the target's utility at the highest forget quality, for each split."""
    rows = []
    for split in splits_of(folder, "table2"):
        found = verdict(folder, split)
        total = len(found.keeping) + len(found.losing) if found else 0
        if found is None or not total:
            continue
        row = [split, exactly(found.target), f"{len(found.keeping)} of {total}"]
        for choice in (found.keeping, sorted([*found.keeping, *found.losing], key=lambda one: -_mean(one))):
            best = choice[0] if choice else None
            shown = [show(best.metric(name), FORMS[name]) for name in (METRICS[0], METRICS[2])] if best else []
            row += [best.label, *shown] if best else ["none", NOTHING, NOTHING]
        rows.append(row)
    if not rows:
        return None
    return Table(
        "summary",
        f"Who forgets most without losing more than {KEPT:g} of the target's M.U.",
        ("split", "target's M.U.", "methods that keep it", "best of them", "F.Q.", "M.U.", "highest", "F.Q.", "M.U."),
        rows,
        groups=(("", 3), ("keeping M.U.", 3), ("whatever the M.U.", 3)),
        notes=["Every method of Table 2, without ablations; means over its seeds.", *folder.notes.get("table2", [])],
    )


def _mean(row: Row) -> float:
    found = row.metric("forget_quality")
    return found.mean if found else -1.0


def overview_table(folder: Folder) -> Table | None:
    """Table 2 as the paper prints it: all splits side by side, means alone."""
    splits = splits_of(folder, "table2")
    if len(splits) < 2:
        return None
    by_split = {split: {row.key: row for row in rows_of(folder, split, "table2")} for split in splits}
    every = {key: row for rows in by_split.values() for key, row in rows.items()}
    body = []
    for row in sorted(every.values(), key=order):
        found = [by_split[split].get(row.key) for split in splits]
        body.append(
            [row.label, *(text for one in found for text in (_own(one, ranges=False) if one else [NOTHING] * 4))]
        )
    return Table(
        "table2",
        "Table 2: every method on every split, last epoch, mean over seeds",
        ("method", *(("F.Q.", "forget R-L", "M.U.", "retain R-L") * len(splits))),
        body,
        groups=(("", 1), *((split, 4) for split in splits)),
        notes=[
            "R-L: ROUGE-L recall in percent. Ranges over seeds and the paper's numbers are in the tables that follow."
        ],
    )


def table2(folder: Folder, split: str) -> Table:
    """Table 2 on one split, with the range over seeds, the best epoch and the paper's numbers."""
    rows = rows_of(folder, split, "table2")
    best = {row.key: _best_epoch(row) for row in rows}
    extra = [BEST_EPOCH] if any(text != NOTHING for text in best.values()) else []
    body = []
    for row in rows:
        middle = [best[row.key]] if extra else []
        body.append([row.label, *_own(row), _seeds(row), *middle, *_paper("table2", row)])
    found = verdict(folder, split)
    first = found.keeping[0].key if found and found.keeping else None
    notes = [
        "Last epoch; mean over seeds with the range in brackets (F.Q.: mean of log10). The paper's numbers are another "
        "model's, and each of them is the epoch with the best forget quality."
    ]
    if first is not None and found is not None:
        notes.append(
            f"Bold: {found.keeping[0].label}, which has the highest F.Q. of the methods whose M.U. is at most {KEPT:g} "
            f"below the target's ({exactly(found.target)})."
        )
    if extra:
        notes.append(
            "Best epoch: F.Q. of the epoch at which it is highest. It is chosen on the test, so it is no result; it is "
            "here because the paper reports it."
        )
    return Table(
        f"table2-{split}",
        f"Table 2 on {split}",
        ("method", *_HEADS, "seeds", *extra, *_HEADS),
        body,
        groups=(("", 1), (OURS, 5 + len(extra)), (MODEL, 4)),
        strong=frozenset(number for number, row in enumerate(rows) if row.key == first),
        faded=_last(4 + len(extra), 6 + len(extra) + 4),
        notes=[*notes, *partial_curves(rows), *_problems(rows)],
    )


def ablation_table(folder: Folder, name: TableName, split: str) -> Table:
    """Tables 4, 8 and 9: rows that differ in one thing, where there is a whole one with its effect and the paper's."""
    rows = rows_of(folder, split, name)
    wholes = {row.method: row for row in rows if row.is_method and not row.variant}
    compared = any(row.variant for row in rows)
    has_paper = any(paper_numbers(name, row.method, row.variant, split) for row in rows)
    body = []
    for row in rows:
        cells = [row.label, *_own(row), _seeds(row)]
        if compared:
            whole = wholes.get(row.method) if row.variant else None
            cells += _effects(row, whole, name) if has_paper else _effects(row, whole, name)[::2]
        body.append(cells + (_paper(name, row) if has_paper else []))
    columns, groups = ["method", *_HEADS, "seeds"], [("", 1), (OURS if has_paper else "", 5)]
    if compared:
        both = ("Δ log10 F.Q.", "Δ, the paper", "Δ M.U.", "Δ, the paper")
        columns += both if has_paper else both[::2]
        groups.append(("", 4 if has_paper else 2))
    if has_paper:
        columns += _HEADS
        groups.append((MODEL, 4))
    notes = ["Δ: change against the method as it is."] if compared else []
    notes += [_elsewhere(folder, row) for row in rows if row.is_method and _elsewhere(folder, row)]
    notes += folder.notes.get(name, [])
    faded = _last(4, len(columns)) | ({7, 9} if compared else set()) if has_paper else set()
    return Table(
        f"{name}-{split}",
        f"{_TITLES[name]}, {split}",
        columns,
        body,
        groups,
        faded=frozenset(faded),
        notes=notes + _problems(rows),
    )


def _elsewhere(folder: Folder, row: Row) -> str:
    """A row's numbers over all its seeds, for a table that has some of them alone; else nothing."""
    every = next(one for one in rows_of(folder, row.split) if one.key == row.key)
    if len(every.cells) <= len(row.cells):
        return ""
    quality_, _, utility, _ = _own(every)
    seeds = ", ".join(str(cell.seed) for cell in every.cells)
    return f"{row.label} over all its seeds ({seeds}): F.Q. {quality_}, M.U. {utility}."


def parts_table(folder: Folder, split: str) -> Table:
    """The nine parts of M.U., and what is left of the forget answers."""
    rows = rows_of(folder, split)
    names = [f"{task}_{metric}" for task, metric in _NINE]
    names += ["forget_prob", "forget_truth_ratio"]
    tasks = [(task.replace("_", " "), 3) for task in ("retain", "real_authors", "world_facts")]
    return Table(
        f"parts-{split}",
        f"The nine parts of M.U. on {split}",
        ("method", *(_WORDS[metric] for _, metric in _NINE), "Prob", "truth ratio"),
        [[row.label, *(show(row.metric(name), share) for name in names)] for row in rows],
        groups=(("", 1), *tasks, ("forget", 2)),
        notes=["Shares; M.U. is the harmonic mean of the first nine."],
    )


def training_table(folder: Folder, split: str) -> Table:
    """What each training took."""
    columns: dict[str, Callable[[Row], str]] = {
        "seconds": lambda row: show(_fact(row, "seconds"), seconds),
        "epochs": lambda row: show(_fact(row, "epochs"), lambda value: f"{value:g}"),
        "seconds an epoch": lambda row: show(seconds_per_epoch(row), seconds),
        "steps": lambda row: show(_fact(row, "steps"), count),
        "tokens": lambda row: show(_fact(row, "tokens"), count),
        "weights (MiB)": lambda row: show(_fact(row, "weights_bytes"), mebibytes),
        "peak memory (MiB)": lambda row: show(_fact(row, "peak_rss_bytes"), mebibytes),
    }
    rows = [row for row in rows_of(folder, split, references=False) if any(cell.training for cell in row.cells)]
    return Table(
        f"training-{split}",
        f"Training on {split}",
        ("method", *columns),
        [[row.label, *(read(row) for read in columns.values())] for row in rows],
        notes=["Seconds as each cell measured them, alone on its machine or not."],
    )


def timing_table(folder: Folder) -> Table | None:
    """Seconds an epoch of ``timing.json``, and as multiples of ULD's."""
    if folder.timing is None:
        return None
    measured = folder.timing.seconds_per_epoch
    labels = {cell.method: cell.label for cell in folder.cells if cell.method and cell.label}
    rows = folder.timing.rows_per_epoch
    own = measured.get("uld")
    rising = sorted(measured.items(), key=lambda pair: (pair[1], pair[0]))
    return Table(
        "timing",
        f"Seconds an epoch on {folder.timing.split}, measured in turn in one run",
        ("method", "seconds an epoch", "rows an epoch", "relative to ULD", "relative to ULD, on as many rows"),
        [
            [
                labels.get(name) or name,
                seconds(value),
                count(rows[name]) if name in rows else NOTHING,
                f"{value / own:.3g}" if own else NOTHING,
                f"{value / own * rows['uld'] / rows[name]:.3g}" if own and {name, "uld"} <= rows.keys() else NOTHING,
            ]
            for name, value in rising
        ],
        notes=[f"Machine: {machine_words(folder.timing.machine)}."] if folder.timing.machine else [],
    )


def rates_table(folder: Folder) -> Table | None:
    """What every candidate for a learning rate did, and which was chosen."""
    if not folder.rates:
        return None
    labels = {cell.method: cell.label for cell in folder.cells if cell.method and cell.label}
    by_method: dict[str, list[Rate]] = {}
    for rate in folder.rates:
        by_method.setdefault(rate.method, []).append(rate)
    best = {method: best_rate(rates) for method, rates in by_method.items()}
    edges = {
        which: [labels.get(method) or method for method, rates in by_method.items() if best[method] is rates[end]]
        for which, end in (("smallest", 0), ("largest", -1))
    }
    body = [
        [
            labels.get(rate.method) or rate.method,
            f"{rate.learning_rate:g}",
            *(NOTHING if value is None else share(value) for value in (rate.forgotten, rate.kept)),
            "failed" if rate.error else share(rate.score),
        ]
        for rate in folder.rates
    ]
    return Table(
        "rates",
        "Learning rates, chosen on the training side",
        ("method", "learning rate", "forgotten", "kept", "score"),
        body,
        strong=frozenset(i for i, rate in enumerate(folder.rates) if best[rate.method] is rate),
        notes=[
            "Shares of the target's probability of trained forget answers (1 − share) and of retain answers that are "
            "neither trained nor evaluated; the score is their harmonic mean. Bold: the chosen rate, which the methods "
            "of its family use on every split and seed.",
            *(f"The {which} candidate was chosen for {', '.join(names)}." for which, names in edges.items() if names),
        ],
    )


def machine_words(machine: object) -> str:
    """What a machine is, in one line."""
    if isinstance(machine, Mapping):
        return ", ".join(f"{name}: {value}" for name, value in machine.items())
    return str(machine)


def _seeds(row: Row) -> str:
    return str(len(row.cells)) if row.is_method and row.cells else NOTHING


def _own(row: Row, *, ranges: bool = True) -> list[str]:
    """The four numbers of a row, or why there are none."""
    if not row.cells:
        return ["failed" if row.failed else "missing", *[NOTHING] * 3]
    found = {name: row.metric(name) for name in METRICS}
    if ranges:
        return [show(one, FORMS[name]) for name, one in found.items()]
    return [NOTHING if one is None else FORMS[name](one.mean) for name, one in found.items()]


def _paper(table: TableName, row: Row) -> list[str]:
    """The paper's four numbers for a row."""
    forms = FORMS | {"model_utility": lambda value: f"{value:.2f}"}  # the paper prints two decimals
    numbers = paper_numbers(table, row.method, row.variant, row.split)
    return [forms[name](numbers[name]) if name in numbers else NOTHING for name in METRICS]


def _effects(row: Row, whole: Row | None, table: TableName) -> list[str]:
    """What leaving something out does: ours and the paper's change of log10 F.Q., ours and the paper's of M.U."""
    if whole is None:
        return [NOTHING] * 4
    ours = [{name: one.mean for name in METRICS if (one := which.metric(name))} for which in (row, whole)]
    theirs = [paper_numbers(table, row.method, variant, row.split) for variant in (row.variant, "")]
    return [
        change
        for name in ("forget_quality", "model_utility")
        for now, before in (ours, theirs)
        for change in [_change(now.get(name), before.get(name), name)]
    ]


def _change(now: float | None, before: float | None, name: str) -> str:
    if now is None or before is None:
        return NOTHING
    if name == "forget_quality":
        if not (now > 0 and before > 0):
            return NOTHING
        change, digits = math.log10(now) - math.log10(before), 1
    else:
        change, digits = now - before, 3
    text = f"{round(change, digits) + 0.0:+.{digits}f}"
    return text.lstrip("+") if float(text) == 0 else text.replace("-", "−")


def _best_epoch(row: Row) -> str:
    """Forget quality of the epoch at which it is highest, and which one that is."""
    found = {epoch: one for epoch, one in epoch_spread(row, "forget_quality").items() if epoch > 0}
    if not found:
        return NOTHING
    epoch = max(found, key=lambda one: (found[one].mean, -one))
    kept = [cell.seed for cell in row.cells if cell.epochs]
    seed = f", seed {', '.join(map(str, kept))}" if len(kept) < len(row.cells) else ""
    return f"{quality(found[epoch].mean)}, epoch {epoch}{seed}"


def _fact(row: Row, name: str) -> Spread | None:
    return row.of(lambda cell: _number(cell, name))


def _number(cell: Cell, name: str) -> float | None:
    return getattr(cell.training, name) if cell.training else None


def _problems(rows: Sequence[Row]) -> list[str]:
    return [f"{problem.rstrip('.')}." for row in rows for problem in row.problems]


def _last(count: int, total: int) -> frozenset[int]:
    return frozenset(range(total - count, total))
