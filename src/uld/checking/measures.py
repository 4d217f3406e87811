"""The numbers of a check: what each of them is, which way it is better, and how it follows from the rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uld.checking.questions import SETS, Item
from uld.data.text import folded, words_of
from uld.data.words import common_words, re_enters, said_of, telling
from uld.evaluation import reading
from uld.evaluation.benchmark import Row
from uld.evaluation.memorization import longest_verbatim_run
from uld.evaluation.rouge import rouge_l_recall

JUDGED, KL = "judged", "kl"
"""Ends of the names of the tasks in which the target says what it makes of a model's answers."""
LEVEL = 0.95
"""Of the bootstrap's intervals."""
KNOWN = 0.5
"""The target knows an answer when it says this share of its key words, or all of it word for word."""
_DRAWS = 1000
_LARGEST = 700.0  # above, exp is no float

Array = NDArray[np.float64]
Statistic = Callable[[Array, Array], Array]


@dataclass(frozen=True, slots=True)
class Value:
    """A number over some questions.

    Attributes:
        value: The number.
        low: Lower end of its interval; None where a value is infinite.
        high: Upper end.
        rows: Questions that count.
    """

    value: float
    low: float | None
    high: float | None
    rows: int


@dataclass(frozen=True)
class Side:
    """One set of questions and what a model did with them: those that the target knew, or all that are kept.

    Attributes:
        items: The questions.
        rows: Results of `uld.checking.asked.Asked`.
        before: The target's.
        judged: What the target says of the answers.
        kl: Divergence from the target; None where it is not known.
        keys: Key words of each true answer.
    """

    items: Sequence[Item]
    rows: Sequence[Row]
    before: Sequence[Row]
    judged: Sequence[Row]
    kl: Sequence[Row] | None
    keys: Sequence[frozenset[str]]


@dataclass(frozen=True)
class Measure:
    """A number of one set.

    Attributes:
        title: What people read.
        lower: Whether less of it is better; for what is to be forgotten.
        kept_lower: The same for what is to be kept; None where it has no such number.
        form: ``share``, ``nats``, ``words`` or ``perplexity``.
        of: From a side to numbers a row, ``(rows, k)``; a row that is None does not count.
        statistic: From those and how often each row is drawn, ``(draws, rows)``, to the number of each draw.
    """

    title: str
    lower: bool
    kept_lower: bool | None
    form: str
    of: Callable[[Side], Sequence[Sequence[float] | None]]
    statistic: Statistic


def _mean(values: Array, counts: Array) -> Array:
    return counts @ values[:, 0] / counts.sum(1)


def _largest(values: Array, counts: Array) -> Array:
    return np.where(counts > 0, values[:, 0], -math.inf).max(1)


def _perplexity(values: Array, counts: Array) -> Array:
    return np.exp(np.minimum(counts @ values[:, 0] / (counts @ values[:, 1]), _LARGEST))


def _each(value: Callable[[Item, Row], float]) -> Callable[[Side], list[tuple[float]]]:
    return lambda side: [(value(item, row),) for item, row in zip(side.items, side.rows, strict=True)]


def _loss(_: Item, row: Row) -> float:
    return row["loss"] / row["tokens"]


def _re_entry(side: Side) -> list[tuple[float] | None]:
    said = zip(side.rows, side.keys, strict=True)
    return [(float(re_enters(row["generated"], keys)),) if keys else None for row, keys in said]


def _run(item: Item, row: Row) -> float:
    """Longest run of words that stands in the answer and in the true one."""
    numbers: dict[str, int] = {}
    said, truth = (
        [numbers.setdefault(word, len(numbers)) for word in words_of(text)] for text in (row["generated"], item.answer)
    )
    return float(longest_verbatim_run(said, truth))


def _degenerate(item: Item, row: Row) -> float:
    found = reading.read(row["generated"], unknown=row["unknown_words"])
    return float(found.empty or found.loop or found.broken or (found.cut and not item.passage))


def same_words(one: str, other: str) -> bool:
    """Whether two texts say the same, word for word; without words, sign for sign."""
    first, second = words_of(one), words_of(other)
    return first == second and (bool(first) or folded(one) == folded(other))


def _same(side: Side) -> list[tuple[float]]:
    both = zip(side.rows, side.before, strict=True)
    return [(float(same_words(row["generated"], before["generated"])),) for row, before in both]


def _kl(side: Side) -> list[tuple[float]]:
    return [(row["kl"] / row["tokens"],) for row in side.kl or ()]


def _judged(side: Side) -> list[tuple[float, float] | None]:
    """Of an empty answer nothing: a model that says nothing is not fluent."""
    return [(row["judged_loss"], row["judged_tokens"]) if row["judged_tokens"] else None for row in side.judged]


_SHARED = {
    "loss": Measure("loss of the true answer", False, True, "nats", _each(_loss), _mean),
    "probability": Measure(
        "probability of the true answer", True, False, "share", _each(lambda i, r: math.exp(-_loss(i, r))), _mean
    ),
    "rouge": Measure(
        "true words in the answer (ROUGE-L)",
        True,
        False,
        "share",
        _each(lambda i, r: rouge_l_recall(r["generated"], i.answer)),
        _mean,
    ),
    "exact": Measure(
        "true answer, word for word",
        True,
        False,
        "share",
        _each(lambda i, r: float(same_words(r["generated"], i.answer))),
        _mean,
    ),
    "run": Measure("true words in a row", True, False, "words", _each(_run), _mean),
    "longest_run": Measure("the same, the longest of all", True, False, "words", _each(_run), _largest),
    "memorization": Measure(
        "true tokens foreseen", True, False, "share", _each(lambda i, r: float(r["memorization"])), _mean
    ),
    "extraction": Measure(
        "extraction strength", True, False, "share", _each(lambda i, r: float(r["extraction"])), _mean
    ),
    "re_entry": Measure("key words that come back", True, None, "share", _re_entry, _mean),
    "degenerate": Measure("answers that are none", True, True, "share", _each(_degenerate), _mean),
    "perplexity": Measure(
        "perplexity under the target",
        True,
        True,
        "perplexity",
        _judged,
        _perplexity,
    ),
}
_KEPT = {
    "same": Measure("as before, word for word", False, False, "share", _same, _mean),
    "kl": Measure("distance to the target (KL)", True, True, "nats", _kl, _mean),
}

MEASURES: dict[str, tuple[str, Measure]] = {
    f"{name}_{short}": (name, measure)
    for name in SETS
    for short, measure in (_SHARED | (_KEPT if name == "retain" else {})).items()
    if name != "retain" or measure.kept_lower is not None
}
"""Every number by its name, ``forget_rouge`` and the like, with the set that it is of."""


def is_lower_better(name: str) -> bool:
    """Which way a number is better."""
    where, measure = MEASURES[name]
    return bool(measure.kept_lower) if where == "retain" else measure.lower


def measured(sides: Mapping[str, Side]) -> dict[str, Value]:
    """Every number that some sides give, each with its interval.

    Args:
        sides: By the names of the sets.
    """
    found = {}
    for name, (where, measure) in MEASURES.items():
        if where not in sides or not len(rows := [row for row in measure.of(sides[where]) if row is not None]):
            continue
        values = np.asarray(rows, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            (whole,) = measure.statistic(values, np.ones((1, len(values))))
            low = high = None
            if np.isfinite(values).all():
                draws = measure.statistic(values, reading.resamples(len(values), _DRAWS))
                low, high = reading.interval(draws, LEVEL)
        found[name] = Value(float(whole), low, high, len(values))
    return found


def key_words(items: Sequence[Item], kept: Sequence[str]) -> list[frozenset[str]]:
    """What gives each true answer away (`uld.data.words.telling`): no word common in the kept answers."""
    common = common_words(kept)
    return [telling(item.question, item.answer, common, passage=item.passage) for item in items]


def is_known(item: Item, row: Row, keys: frozenset[str]) -> bool:
    """Whether an answer is known to the model that gave it: the stated measure of "nothing to forget"."""
    if same_words(row["generated"], item.answer):
        return True
    return bool(keys) and len(said_of(row["generated"], keys)) >= KNOWN * len(keys)
