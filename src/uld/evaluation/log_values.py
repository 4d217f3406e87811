"""What the columns of a per-sample log may hold: numbers within their range, and no key twice."""

import math
import numbers
import operator
from typing import Any

import numpy as np

from uld.errors import ULDError

_RANGES = {
    **dict.fromkeys(("rouge1", "rougeL", "stored_prob", "paraphrase_rougeL", "clean"), (0.0, 1.0)),
    **dict.fromkeys(("extraction_strength", "exact_memorization"), (0.0, 1.0)),
    **dict.fromkeys(("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus"), (-math.inf, math.inf)),
    "judged_tokens": (0.0, math.inf),
    **dict.fromkeys(("tokens", "paraphrase_tokens", "wrong_tokens"), (1.0, math.inf)),
}
"""What a value may be; every other column holds what is 0 or more."""
_ROUNDING = 1e-4  # how far below 0 a loss may come by rounding, and above 1 a share


class LogError(ULDError, ValueError):
    """An evaluation log that cannot be read, written or compared."""


def plain(column: str, key: str, value: Any) -> Any:
    """A column's value in a row, with plain Python types.

    Raises:
        LogError: it is NaN, of another type or out of its range; says in which row.
    """
    try:
        if column == "generated":
            prompt, generation, truth = value
            if isinstance(value, str | dict) or not all(isinstance(text, str) for text in value):
                raise TypeError
            return prompt, generation, truth
        if column == "question":
            if not isinstance(value, str):
                raise TypeError
            return value
        if column == "samples":
            if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
                raise TypeError
            return list(value)
        number = _whole if column == "unknown_words" or "tokens" in column else _real
        each = [number(v) for v in value] if column.startswith("wrong_") else [number(value)]
    except (TypeError, ValueError, OverflowError):
        raise LogError(f"Column {column!r} cannot hold {str(value)[:60]!r} (row {key!r}): evaluate again.") from None
    if any(math.isnan(v) or v == -math.inf for v in each):
        raise LogError(
            f"Column {column!r} is NaN or -inf in row {key!r}: the model's scores are unusable, evaluate it again."
        )
    low, high = _RANGES.get(column, (0.0, math.inf))
    for one in each:
        if not low - _ROUNDING <= one <= high + _ROUNDING:
            wanted = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise LogError(f"Column {column!r} must be {wanted}, not {one:g} (row {key!r}): evaluate again.")
    return each if column.startswith("wrong_") else each[0]


def _real(value: Any) -> float:
    """A number as a float; texts and truth values are none."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError
    return float(value)


def _whole(value: Any) -> int:
    """A whole number that a float can be as exactly, as an int; truth values are none."""
    if isinstance(value, bool | np.bool_):
        raise TypeError
    whole = operator.index(value)
    if abs(whole) > 2**53:
        raise OverflowError
    return whole


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of which no key stands there twice: the second would silently take the place of the first."""
    found = dict(pairs)
    if len(found) != len(pairs):
        left = dict(found)
        twice = next(key for key, _ in pairs if left.pop(key, left) is left)
        raise LogError(f"{twice[:40]!r} stands there twice in one mapping; evaluate again.")
    return found
