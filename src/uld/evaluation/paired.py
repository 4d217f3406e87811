"""Standard errors of the difference between two models that answered the same documents. Arrays in, numbers out.

The documents are the sample: two models that are right and wrong on the same ones differ by little even where each
model's own score is uncertain.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 1000
"""Draws of a bootstrap: its standard error is then known to about 2 % (one over the root of twice as many)."""


def mean_difference_stderr(before: Sequence[float], after: Sequence[float]) -> float | None:
    """Standard error of ``mean(after) − mean(before)``: ``s/√n`` with ``s`` the deviation of the n differences (n − 1).

    Args:
        before: A model's value on each document.
        after: The other's on the same documents, in the same order.

    Returns:
        None for fewer than two documents, or values that are not finite.
    """
    with np.errstate(invalid="ignore"):
        differences = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
        return _finite(differences.std(ddof=1) / math.sqrt(len(differences))) if len(differences) > 1 else None


def bootstrap_difference_stderr(
    before: Sequence[Any],
    after: Sequence[Any],
    aggregate: Callable[[list[Any]], float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> float | None:
    """Standard error of ``aggregate(after) − aggregate(before)`` by the paired bootstrap.

    Every draw takes documents with replacement, the same ones for both models. Source: Efron & Tibshirani 1993,
    An Introduction to the Bootstrap, §6.2.

    Args:
        before: What ``aggregate`` takes, an entry a document.
        after: The other model's, in the same order.
        aggregate: From entries to a score.
        resamples: Number of draws.
        seed: Of the draws.

    Returns:
        None for fewer than two documents, or where a draw has no finite score.
    """
    if len(before) < 2:
        return None
    rng = np.random.default_rng(seed)
    differences = []
    for _ in range(resamples):
        drawn = rng.integers(len(before), size=len(before))
        try:
            differences.append(aggregate([after[i] for i in drawn]) - aggregate([before[i] for i in drawn]))
        except (OverflowError, ZeroDivisionError):
            return None
    with np.errstate(invalid="ignore"):
        return _finite(np.std(differences, ddof=1))


def independent_difference_stderr(before: float | None, after: float | None) -> float | None:
    """``√(a² + b²)`` of two standard errors, as if the models had answered different documents: too large, never small.

    Args:
        before: Standard error of the one score; None where it is not known.
        after: Of the other.
    """
    return None if before is None or after is None else _finite(math.hypot(before, after))


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
