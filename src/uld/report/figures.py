"""The paper's Figures 3, 4 and 5 for the target at hand."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from uld.report.aggregate import Row, epoch_spread, partial_curves, rows_of, seconds_per_epoch, splits_of
from uld.report.cells import Cell, Folder
from uld.report.numbers import Spread, quality
from uld.report.svg import REFERENCES, Look, as_svg, looks, new_axes, plain_ticks, quality_axis, swatch

_LEAST = 1e-30  # forget qualities below it are drawn there


@dataclass(frozen=True)
class Panel:
    """One plot: its title, its SVG, and in words what it shows."""

    title: str
    svg: str


@dataclass(frozen=True)
class Figure:
    """Plots that belong together.

    Attributes:
        name: Identifier.
        title: What they show.
        panels: The plots.
        legend: ``(label, SVG of its line and marker)``.
        notes: Sentences below it.
    """

    name: str
    title: str
    panels: Sequence[Panel]
    legend: Sequence[tuple[str, str]]
    notes: Sequence[str]


def all_figures(folder: Folder) -> list[Figure]:
    """Every figure that the cells have something for."""
    import matplotlib.style

    styles = looks(one.method for one in [*folder.cells, *folder.missing] if one.method)
    with matplotlib.style.context("default"):  # whatever the user's own settings are
        splits = splits_of(folder, "table2")
        made = [_losses(folder, styles, split) for split in splits]
        made += [_trajectories(folder, styles, split) for split in splits]
        made.append(_speed(folder, styles))
    return [figure for figure in made if figure is not None]


def _losses(folder: Folder, styles: dict[str, Look], split: str) -> Figure | None:
    """Figure 3: cross-entropy on forget rows and on retain rows that are not trained on, along training."""
    rows = rows_of(folder, split, "table2", references=False)
    panels = []
    drawn: dict[tuple[str, str], Row] = {}
    for name, title in (("forget_loss", "on the forget rows"), ("held_out_loss", "on held-out retain rows")):
        lines = {row.key: found for row in rows if (found := epoch_spread(row, name))}
        if not lines:
            continue
        drawn |= {row.key: row for row in rows if row.key in lines}
        panels.append(
            _epochs_panel(
                f"figure3-{split}-{name}", f"Cross-entropy {title}", [r for r in rows if r.key in lines], lines, styles
            )
        )
    if not panels:
        return None
    return Figure(
        f"figure3-{split}",
        f"Figure 3: cross-entropy along training, {split}",
        panels,
        _legend(f"figure3-{split}", drawn.values(), styles, line=True),
        [
            "Nats a token, after each epoch. High on forget rows is forgetting; on held-out retain rows it is damage.",
            *partial_curves(drawn.values()),
        ],
    )


def _epochs_panel(
    name: str, title: str, rows: list[Row], lines: dict[tuple[str, str], dict[int, Spread]], styles: dict[str, Look]
) -> Panel:
    figure, axes = new_axes()
    for row in rows:
        points = lines[row.key]
        axes.plot(list(points), [one.mean for one in points.values()], **styles[row.method].kwargs(line=True))
    highest = max(one.mean for points in lines.values() for one in points.values())
    lowest = min(one.mean for points in lines.values() for one in points.values())
    if lowest > 0 and highest > 30 * lowest:
        axes.set_yscale("log")
        plain_ticks(axes.yaxis, lambda value: f"{value:g}")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("nats a token")
    axes.xaxis.get_major_locator().set_params(integer=True)
    last = {row.label: list(lines[row.key].values())[-1].mean for row in rows}
    words = ", ".join(f"{label} {value:.3g}" for label, value in last.items())
    return Panel(title, as_svg(figure, name, f"{title}. After the last epoch: {words}."))


def _trajectories(folder: Folder, styles: dict[str, Look], split: str) -> Figure | None:
    """Figure 4: forget quality against utility, from epoch to epoch."""
    rows = rows_of(folder, split, "table2", references=False)
    ends = {row.key: end for row in rows if (end := _end(row))}
    if not any(_curve(row) for row in rows):
        return None
    figure, axes = new_axes()
    drawn = [row for row in rows if row.key in ends]
    for row in drawn:
        look = styles[row.method]
        axes.plot(*_drawn(_curve(row)), **look.kwargs(line=True) | {"markersize": 2.5})
        axes.plot(*_drawn([ends[row.key]]), **look.kwargs(line=False) | {"markersize": 8})
    fixed = [row for row in rows_of(folder, split, "table2") if not row.is_method and _end(row)]
    places = {row.method: end for row in fixed if (end := _end(row))}
    for role, end in places.items():
        axes.plot(*_drawn([end]), **REFERENCES[role].kwargs(line=False) | {"markersize": 10})
    quality_axis(axes)
    axes.set_xlabel("M.U. without ROUGE")
    words = "; ".join(f"{row.label}: {quality(ends[row.key][1])} at {ends[row.key][0]:.3f}" for row in drawn)
    text = f"Forget quality against model utility without ROUGE, {split}. Last epoch: {words}."
    return Figure(
        f"figure4-{split}",
        f"Figure 4: forget quality and utility by epoch, {split}",
        [Panel("Forget quality against utility", as_svg(figure, f"figure4-{split}", text))],
        _legend(
            f"figure4-{split}",
            [*fixed, *drawn],
            styles | REFERENCES,
            line=True,
        ),
        [
            "A small mark an epoch, where epochs were kept; the large one is the last, over all seeds. Up is "
            "forgotten, right is useful. ROUGE needs generated answers, which only the last epoch has.",
            *partial_curves(drawn),
            *_cut(value for _, value in ends.values()),
        ],
    )


def _curve(row: Row) -> list[tuple[float, float]]:
    """Utility without ROUGE and forget quality after every epoch, of the seeds whose epochs were kept."""
    qualities, utilities = (epoch_spread(row, name) for name in ("forget_quality", "utility_without_rouge"))
    return [(utilities[epoch].mean, qualities[epoch].mean) for epoch in qualities if epoch in utilities]


def _end(row: Row) -> tuple[float, float] | None:
    """The same after the last epoch, over all seeds."""
    utility, reached = row.of(_utility_without_rouge), row.metric("forget_quality")
    return (utility.mean, reached.mean) if utility and reached else None


def _utility_without_rouge(cell: Cell) -> float | None:
    """Harmonic mean of the six parts of M.U. that need no generated answers."""
    tasks, metrics = ("retain", "real_authors", "world_facts"), ("prob", "truth_ratio")
    parts = [getattr(cell.result, f"{task}_{metric}") for task in tasks for metric in metrics]
    if None in parts:
        return None
    return len(parts) / sum(1 / part for part in parts) if min(parts) > 0 else 0.0


def _speed(folder: Folder, styles: dict[str, Look]) -> Figure | None:
    """Figure 5: forget quality against seconds an epoch, relative to ULD's."""
    panels, drawn, reached_all = [], {}, []
    measured = folder.timing.seconds_per_epoch if folder.timing else None
    for split in [folder.timing.split] if folder.timing else splits_of(folder, "table2"):
        points = {}
        rows = [row for row in rows_of(folder, split, references=False) if not row.variant]
        for row in rows:
            own = seconds_per_epoch(row)
            seconds = measured.get(row.method) if measured else own.mean if own else None
            reached = row.metric("forget_quality")
            if seconds and reached:
                points[row.method] = (seconds, reached.mean)
        if len(points) < 2:
            continue
        unit = points["uld"][0] if "uld" in points else 1.0
        figure, axes = new_axes()
        for method, (seconds, reached) in points.items():
            size = 9 if method == "uld" else 7
            axes.plot(*_drawn([(seconds / unit, reached)]), **styles[method].kwargs(line=False) | {"markersize": size})
        axes.set_xscale("log")
        plain_ticks(axes.xaxis, lambda value: f"{value:g}", subs=(1.0, 2.0, 5.0))
        quality_axis(axes)
        what = "seconds an epoch, ULD = 1" if "uld" in points else "seconds an epoch"
        axes.set_xlabel(what)
        drawn |= {row.method: row for row in rows if row.method in points and row.method not in drawn}
        reached_all += [reached for _, reached in points.values()]
        labels = {row.method: row.label for row in rows}
        words = "; ".join(f"{labels[m]}: {quality(q)} at {s / unit:.3g}" for m, (s, q) in points.items())
        text = f"Forget quality against {what}, {split}. {words}."
        panels.append(Panel(split, as_svg(figure, f"figure5-{split}", text)))
    if not panels:
        return None
    source = (
        "Seconds measured in turn in one run (timing.json), each method on its own rows: the table of seconds an epoch "
        "has their numbers, and the ratios on as many rows."
        if measured
        else "Seconds as each cell measured them, alone on its machine or not."
    )
    return Figure(
        "figure5",
        "Figure 5: forget quality against seconds an epoch",
        panels,
        _legend("figure5", sorted(drawn.values(), key=lambda row: row.label), styles, line=False),
        [f"{source} Left is fast, up is forgotten.", *_cut(reached_all)],
    )


def _cut(values: Iterable[float]) -> list[str]:
    """A sentence where some forget qualities are too small to be drawn where they are."""
    return [f"F.Q. below {quality(_LEAST)} is drawn there."] if any(value < _LEAST for value in values) else []


def _drawn(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Places and forget qualities as they are drawn on a logarithmic axis."""
    return [x for x, _ in points], [max(value, _LEAST) for _, value in points]


def _legend(name: str, rows: Iterable[Row], styles: dict[str, Look], *, line: bool) -> list[tuple[str, str]]:
    return [(row.label, swatch(styles[row.method], f"{name}-{row.key}", line=line)) for row in rows]
