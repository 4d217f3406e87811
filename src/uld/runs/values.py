"""Kinds of values that settings, grids, run folders and flags share, and how a value is brought to its kind.

A kind is a type, ``Annotated`` with its range (`Within`) or with any function that says what is wrong with a value.
"""

import datetime
import math
import numbers
import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from uld.errors import ULDError

Rule = Literal["suppress", "subtract", "reference", "offset", "rank", "generic"]
"""How an assistant's logits change the target's; `uld.model.combine.Combination` says what each does."""
PAIRED: tuple[Rule, ...] = ("offset", "rank")
"""Rules that take two models for one."""
Outside = Literal["keep", "mask"]
MOST_WEIGHT = 10**6
"""Largest finite α: α · r must be a number in fp32; far smaller weights already do what inf does."""


@dataclass(frozen=True)
class Within:
    """The range of a kind of number.

    Attributes:
        least: Smallest number that may be.
        most: Largest number that may be.
        words: What to say of others, where it is not that they must be at least the one or at most the other.
        endless: Whether inf may be as well.
    """

    least: float
    most: float
    words: str = ""
    endless: bool = False

    def __call__(self, value: float) -> str | None:
        """What is wrong with a number; None where it lies within."""
        if self.least <= value <= self.most or (self.endless and value == math.inf):
            return None
        words = self.words or (f"be at least {self.least}" if value < self.least else f"be at most {self.most:,}")
        if not self.words and isinstance(value, float) and not math.isfinite(value):
            words = "be a finite number"
        return f"must {words}, not {shown(value)}"


_BELOW_ONE = math.nextafter(1, 0)
SHARE, WEIGHT = Within(0, 1, "lie between 0 and 1"), Within(0, MOST_WEIGHT, endless=True)
Share = Annotated[float, SHARE]
BelowOne = Annotated[float, Within(0, _BELOW_ONE, "be at least 0 and less than 1")]
Rate = Annotated[float, Within(math.ulp(0.0), _BELOW_ONE, "lie between 0 and 1")]
Weight = Annotated[float, WEIGHT]
Count = Annotated[int, Within(1, 10**9)]
CountFromZero = Annotated[int, Within(0, 10**9)]
Few = Annotated[int, Within(0, 10**4)]
Rows = Annotated[int, Within(1, 10**6)]
Epochs = Annotated[int, Within(1, 10**6)]
Length = Annotated[int, Within(2, 10**9)]  # tokens
Seed = Annotated[int, Within(0, 2**32 - 1)]  # numpy's

_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    tuple: "a text or a list of texts",
}


class OutOfRange(ValueError):
    """A value of the right type that its kind does not have."""


def brought(value: Any, kind: Any) -> Any:
    """A value as its kind has it: ints may stand for floats, one text for a list of one, a path for a text.

    Raises:
        OutOfRange: it has the type and is not of the kind.
        ValueError: it has another type. Both say what it must be, to be read after its name.
    """
    value = _typed(value, get_args(kind)[0] if get_origin(kind) is Annotated else kind)
    for mark in getattr(kind, "__metadata__", ()):
        if (fault := mark(value)) is not None:
            raise OutOfRange(fault)
    return value


def given(name: str, value: Any, kind: Any) -> Any:
    """An argument as its kind has it.

    Raises:
        ULDError: it cannot be; names it.
    """
    try:
        return brought(value, kind)
    except ValueError as error:
        raise ULDError(f"{name} {error}") from error


def given_or_none(name: str, value: Any, kind: Any) -> Any:
    """`given`, where None stands for a default."""
    return None if value is None else given(name, value, kind)


def bounds(kind: Any) -> dict[str, Any]:
    """The range of a kind of number, as ``min`` and ``max``."""
    (mark,) = (one for one in kind.__metadata__ if isinstance(one, Within))
    return {"min": mark.least, "max": mark.most}


def _typed(value: Any, kind: Any) -> Any:
    """Bring a value to a type."""
    base = get_origin(kind) or kind
    if base is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):  # numpy's among them
        return int(value)
    if base is float and isinstance(value, numbers.Real | str) and not isinstance(value, bool):
        try:  # YAML reads 1e-3 as a text
            return float(value)
        except OverflowError:
            raise ValueError(f"must be a finite number, not {shown(value)}") from None
        except ValueError:
            pass
    elif base is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        if all(isinstance(item, str | os.PathLike) for item in items):
            return tuple(_typed(item, str) for item in items)
    elif base is str and isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        if (fault := text_fault(text)) is not None:
            raise ValueError(fault)
        return text
    elif base is str and type(value) is datetime.date:
        return value.isoformat()
    elif type(value) is base or (base is Literal and isinstance(value, str) and value in get_args(kind)):
        return value
    wanted = ", ".join(get_args(kind)) if base is Literal else _NAMES[base]
    raise ValueError(f"must be {wanted}, not {shown(value)}")


def shown(value: object) -> str:
    """A value for a message: its beginning, if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no numbers of more than some thousand digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:80]}…"


def text_fault(text: object) -> str | None:
    """Why a text can be no place, name or template; None where it can."""
    if not isinstance(text, str):  # a path of bytes
        return f"must be a text, not {shown(text)}"
    if not text.strip():
        return "is empty: say what it is, or leave it out (is it a variable that is not set?)"
    if "\0" in text:
        return f"has a character in it that no text has (NUL): {shown(text)}"
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return f"cannot be written as text: {shown(text)}"
    return None
