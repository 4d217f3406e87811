"""lm-eval's results of one or two models as a table: before, after, difference, standard errors."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uld.evaluation.paired import (
    bootstrap_difference_stderr,
    independent_difference_stderr,
    mean_difference_stderr,
)
from uld.evaluation.result import Result
from uld.text.table import aligned

_SLOW = ("bleu", "chrf", "chrf++", "ter")  # lm-eval, too, draws only 100 times for these
_FEW = 100


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one task.

    Attributes:
        task: Task or group.
        metric: Name, with the filter of answers behind a comma unless that is lm-eval's ``none``.
        higher_is_better: None where the task does not say.
        shots: Examples in a prompt.
        documents: How many were scored.
        after: The model's score.
        after_stderr: Its standard error, as lm-eval gives it; None where it gives none.
        before: The score of the model that it is compared with.
        before_stderr: Of it.
        difference: After − before.
        difference_stderr: See ``kind``; None where it cannot be told.
        kind: ``paired`` from the documents' own differences, ``bootstrap`` from draws of documents, the same for both
            models, or ``combined`` from the two standard errors as if they were independent.
    """

    task: str
    metric: str
    higher_is_better: bool | None
    shots: int | None
    documents: int | None
    after: float
    after_stderr: float | None
    before: float | None = None
    before_stderr: float | None = None
    difference: float | None = None
    difference_stderr: float | None = None
    kind: str | None = None


@dataclass(frozen=True)
class HarnessResult(Result):
    """All scores, in the order of tasks and metrics."""

    scores: list[Score]

    def table(self) -> str:
        """Return a Markdown table; the arrow points to the better side."""
        both = any(one.before is not None for one in self.scores)
        scores = ("before", "after", "difference", "± is") if both else ("score",)
        head = ("task", "metric", "better", "shots", "documents", *scores)
        rows = []
        for one in self.scores:
            better = {True: "↑", False: "↓", None: ""}[one.higher_is_better]
            row = (one.task, one.metric, better, *("-" if n is None else str(n) for n in (one.shots, one.documents)))
            after = _with_error(one.after, one.after_stderr)
            change = (_with_error(one.before, one.before_stderr), after) if both else (after,)
            if both:
                change += (_with_error(one.difference, one.difference_stderr, sign="+"), one.kind or "-")
            rows.append((*row, *change))
        return "\n".join(aligned(head, rows)) + "\n"


def before_and_after(
    after: Mapping[str, Any], before: Mapping[str, Any] | None, aggregations: Mapping[str, Mapping[str, Callable]]
) -> HarnessResult:
    """From lm-eval's results to the table's rows.

    Args:
        after: ``results`` as lm-eval's `simple_evaluate` returns them, and ``scores``: by task, metric and document
            the value that a metric is made of.
        before: The same of the model to compare with.
        aggregations: By task and metric, from the values of documents to a score.
    """
    return HarnessResult([_score(key, after, before, aggregations) for key in _metrics(after["results"])])


def _metrics(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Task, metric and filter of every score."""
    for task, metrics in results["results"].items():
        for key, value in metrics.items():
            metric, comma, chosen = key.partition(",")
            if comma and not metric.endswith("_stderr") and _number(value) is not None:
                yield task, metric, chosen


def _score(
    key: tuple[str, str, str],
    after: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    aggregations: Mapping[str, Mapping[str, Callable]],
) -> Score:
    task, metric, chosen = key
    whole = after["results"]
    found = whole["results"][task]
    shared: dict[str, Any] = {
        "task": task,
        "metric": metric if chosen == "none" else f"{metric},{chosen}",
        "higher_is_better": whole.get("higher_is_better", {}).get(task, {}).get(metric),
        "shots": whole.get("n-shot", {}).get(task),
        "documents": found.get("sample_len"),
        "after": found[f"{metric},{chosen}"],
        "after_stderr": _number(found.get(f"{metric}_stderr,{chosen}")),
    }
    if before is None:
        return Score(**shared)
    old = before["results"]["results"][task]
    shared |= {
        "before": old[f"{metric},{chosen}"],
        "before_stderr": _number(old.get(f"{metric}_stderr,{chosen}")),
        "difference": _subtracted(found[f"{metric},{chosen}"], old[f"{metric},{chosen}"]),
    }
    pairs = [one["scores"].get(task, {}).get(f"{metric},{chosen}", {}) for one in (before, after)]
    if set(pairs[0]) == set(pairs[1]) != set():
        old_values, values = ([one[document] for document in pairs[1]] for one in pairs)
        aggregate = aggregations[task].get(metric)
        shared["kind"], shared["difference_stderr"] = _paired(old_values, values, metric, aggregate)
    else:
        shared["kind"] = "combined"
        shared["difference_stderr"] = independent_difference_stderr(shared["before_stderr"], shared["after_stderr"])
    if shared["difference_stderr"] is None:
        shared["kind"] = None
    return Score(**shared)


def _paired(
    before: Sequence[Any], after: Sequence[Any], metric: str, aggregate: Callable | None
) -> tuple[str, float | None]:
    """How the standard error of a difference was found, and the standard error."""
    from lm_eval.api.metrics import mean

    if aggregate is None or aggregate is mean:  # lm-eval takes the mean where a task names no other
        return "paired", mean_difference_stderr(before, after)
    draws = {"resamples": _FEW} if metric in _SLOW else {}
    return "bootstrap", bootstrap_difference_stderr(before, after, aggregate, **draws)


def _number(value: Any) -> float | None:
    """A number as it is; None for lm-eval's ``N/A``."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _subtracted(after: float, before: float) -> float | None:
    """None for two infinite perplexities."""
    return None if math.isinf(after) and math.isinf(before) else after - before


def _with_error(value: float | None, error: float | None, sign: str = "") -> str:
    if value is None or math.isnan(value):
        return "-"
    shown = f"{value:{sign}.4f}" if abs(value) < 100 else f"{value:{sign}.4g}"
    return shown if error is None else f"{shown} ± {error:.4f}" if error < 100 else f"{shown} ± {error:.4g}"
