"""The report as one self-contained page: summary, figures, tables, answers, every setting and digest."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from uld.report.aggregate import KEPT, Row, Verdict, rows_of, splits_of, verdict
from uld.report.cells import Answer, Cell, Folder
from uld.report.figures import Figure
from uld.report.numbers import exactly, quality, share, show
from uld.report.tables import machine_words
from uld.text.table import Table, is_strong

_BASE = "base.html.j2"


def page(folder: Folder, tables: Sequence[Table], figures: Sequence[Figure]) -> str:
    """Render the page. Everything that comes from files is escaped, except our own SVG.

    Args:
        folder: What was read.
        tables: The report's tables.
        figures: The report's figures.
    """
    verdicts = [found for split in splits_of(folder, "table2") if (found := verdict(folder, split))]
    problems = [problem for split in splits_of(folder) for row in rows_of(folder, split) for problem in row.problems]
    trained = [cell for cell in folder.cells if cell.settings]
    common = common_settings(trained)
    return rendered(
        "uld.report",
        "page.html.j2",
        counts=_counts(folder),
        sentences=[sentence for one in verdicts for sentence in verdict_sentences(one)],
        problems=problems,
        notes=folder.notes.get("table2", []),
        tables=tables,
        figures=figures,
        is_strong=is_strong,
        before_after=[one for split in splits_of(folder) for one in comparisons(folder, split)],
        common=_shown(common),
        cells=[(cell, _shown(_own(cell, common)), _facts(cell)) for cell in folder.cells],
        versions=_distinct(folder.cells, lambda cell: cell.versions),
        machines=_distinct(folder.cells, lambda cell: cell.machine),
    )


def rendered(package: str, template: str, **values: Any) -> str:
    """A page of the house, self-contained: head, colours, print and phone are those of ``base.html.j2`` in this room.

    Args:
        package: Where the template is.
        template: Its name; it extends the base. Everything in it is escaped unless it is marked as safe.
        values: What it shows.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def read(name: str) -> str:
        return (files("uld.report" if name == _BASE else package) / name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values).strip() + "\n"


def verdict_sentences(found: Verdict) -> list[str]:
    """Which method keeps utility at the highest forget quality, and what those that forget more lose."""
    total = len(found.keeping) + len(found.losing)
    if not total:
        return [f"{found.split}: no method has a result yet."]
    target = f"M.U. within {KEPT:g} of the target's ({exactly(found.target)})"
    if not found.keeping:
        best = found.losing[0]
        return [
            f"{found.split}: none of {total} methods keeps {target}. The highest F.Q. is {best.label}'s: "
            f"{_quality(best)} at M.U. {_utility(best)}{_seeds(best)}."
        ]
    best = found.keeping[0]
    sentences = [
        f"{found.split}: {best.label} has the highest F.Q., {_quality(best)}, of the methods that keep {target}; "
        f"its M.U. is {_utility(best)}{_seeds(best)}. {len(found.keeping)} of {total} methods keep it."
    ]
    own = _mean(best)
    more = [row for row in found.losing if _mean(row) > own]
    if more:
        words = "; ".join(f"{row.label} {_quality(row)} at M.U. {_utility(row)}" for row in more)
        sentences.append(f"{found.split}: higher F.Q. at the cost of utility: {words}.")
    return sentences


def _mean(row: Row) -> float:
    found = row.metric("forget_quality")
    return found.mean if found else 0.0


def _quality(row: Row) -> str:
    return show(row.metric("forget_quality"), quality)


def _utility(row: Row) -> str:
    return show(row.metric("model_utility"), share)


def _seeds(row: Row) -> str:
    return f", mean and range of {len(row.cells)} seeds" if len(row.cells) > 1 else ""


@dataclass(frozen=True)
class Comparison:
    """Answers of all methods to one question.

    Attributes:
        split: Forget split.
        side: ``forget`` or ``retain``.
        question: What was asked.
        answers: ``(who, answer)``: the true answer, the target's, every method's.
    """

    split: str
    side: str
    question: str
    answers: Sequence[tuple[str, str]]


def comparisons(folder: Folder, split: str) -> list[Comparison]:
    """Before and after, question by question; of several seeds the first."""
    said: list[tuple[str, dict[tuple[str, str, str], Answer]]] = []
    for row in rows_of(folder, split):
        for cell in row.cells:
            if cell.name in folder.answers:
                name = {"target": "before (target)"}.get(row.method, row.label)
                said.append((name, _by_question(folder, cell)))
                break
    questions: dict[tuple[str, str, str], None] = {}
    for _, answers in said:
        questions |= dict.fromkeys(answers)
    return [
        Comparison(
            split,
            side,
            question,
            [("true answer", truth), *((who, given[key].answer) for who, given in said if key in given)],
        )
        for key in sorted(questions, key=lambda one: one[0])  # forget before retain, as they stand in the files
        for side, question, truth in [key]
    ]


def _by_question(folder: Folder, cell: Cell) -> dict[tuple[str, str, str], Answer]:
    answers = folder.answers[cell.name]
    return {
        (side, one.question, one.truth): one
        for side, rows in (("forget", answers.forget), ("retain", answers.retain))
        for one in rows
    }


def common_settings(cells: Sequence[Cell]) -> dict[str, Any]:
    """Settings that all trainings share."""
    if not cells:
        return {}
    first = cells[0].settings
    return {
        name: value
        for name, value in first.items()
        if all(name in cell.settings and cell.settings[name] == value for cell in cells)
    }


def _own(cell: Cell, common: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in cell.settings.items() if name not in common}


def _facts(cell: Cell) -> list[tuple[str, str]]:
    return _shown(cell.training.model_dump(exclude_none=True)) if cell.training else []


def _shown(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values as texts, by name."""
    texts = {name: value if isinstance(value, str) else _json(value) for name, value in sorted(values.items())}
    return list(texts.items())


def _json(value: Any) -> str:
    return "(not given)" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _counts(folder: Folder) -> str:
    """How many cells there are, in words."""
    failed = sum(cell.failure is not None for cell in folder.cells)
    parts = [f"{len(folder.cells) - failed} finished cells"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{len(folder.missing)} missing"] if folder.missing else []
    return ", ".join(parts)


def _distinct(cells: Iterable[Cell], read: Any) -> list[tuple[str, int]]:
    """Different values over cells in words, with the number of cells that have each."""
    found: dict[str, int] = {}
    for cell in cells:
        if value := read(cell):
            words = machine_words(value)
            found[words] = found.get(words, 0) + 1
    return sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
