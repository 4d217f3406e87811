"""Several seeds' values as one number with its range, and how tables write numbers."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from uld.report.paper import METRICS

NOTHING = "–"


@dataclass(frozen=True)
class Spread:
    """Several seeds' values of one number.

    Attributes:
        mean: Arithmetic; of forget quality geometric, because it is a p-value over many orders of magnitude.
        low: Smallest.
        high: Largest.
        count: Number of seeds.
    """

    mean: float
    low: float
    high: float
    count: int


def spread(values: Iterable[float | None], *, geometric: bool = False) -> Spread | None:
    """Mean and range.

    Args:
        values: One a seed; None is left out.
        geometric: ``10 ** mean(log10(value))``; 0 if any value is.

    Returns:
        None without values.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    if not geometric:
        mean = math.fsum(known) / len(known)
    elif min(known) <= 0:
        mean = 0.0
    else:
        mean = 10 ** (math.fsum(map(math.log10, known)) / len(known))
    low, high = min(known), max(known)
    return Spread(min(max(mean, low), high), low, high, len(known))


def quality(value: float) -> str:
    """A p-value: two digits, ``0.13``, below 0.01 as ``4.3e-25``; what would round to 1 and is less, ``>0.99``."""
    if 0.995 <= value < 1:
        return ">0.99"
    if value >= 0.01 or value <= 0:
        return f"{value:.2g}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def share(value: float) -> str:
    """Three decimals."""
    return f"{value:.3f}"


def exactly(value: float) -> str:
    """Four decimals, where a threshold is taken from it."""
    return f"{value:.4f}"


def percent(value: float) -> str:
    """A share in percent, one decimal."""
    return f"{100 * value:.1f}"


def count(value: float) -> str:
    """A whole number with commas."""
    return f"{value:,.0f}"


def seconds(value: float) -> str:
    """Three digits, whole from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def mebibytes(value: float) -> str:
    """Bytes in MiB, one decimal."""
    return f"{value / 2**20:,.1f}"


FORMS: dict[str, Callable[[float], str]] = dict(zip(METRICS, (quality, percent, share, percent), strict=True))


def show(found: Spread | None, form: Callable[[float], str]) -> str:
    """Mean, and behind it the range in brackets where there are several seeds that differ."""
    if found is None:
        return NOTHING
    low, high = form(found.low), form(found.high)
    return form(found.mean) if low == high else f"{form(found.mean)} ({low}–{high})"
