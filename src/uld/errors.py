"""The one base class of every error that a user can cause, and how an exception of a library becomes one.

The command line prints such an error as a single sentence and ends with exit code 2; a traceback is for bugs only.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_LONGEST = 400  # characters of a library's words in one of our sentences
_BARE = (LookupError, AttributeError, TypeError, ArithmeticError, AssertionError, NameError, RecursionError)
_MEMORY = ("out of memory", "allocate memory", "bad_alloc", "Unable to allocate", "Cannot allocate")


class ULDError(Exception):
    """Bad input: says what was wrong, where (file, line, flag), and how to mend it."""


class DataError(ULDError):
    """A file or a line of it cannot be used."""


class ArtifactError(ULDError):
    """A run folder is missing, damaged, taken, or belongs to another target."""


class DiskFullError(ArtifactError):
    """The disk is full."""


@contextmanager
def explained(what: str, error: type[ULDError] = ULDError) -> Iterator[None]:
    """Turn whatever a library raises while it reads a user's files into one sentence with the library's own words.

    Only calls of libraries belong into the block: a bug of ours must stay a traceback.

    Args:
        what: What was tried, before the colon.
        error: Class of the sentence.

    Raises:
        ULDError: the block raised anything but an interrupt.
    """
    try:
        yield
    except ULDError:
        raise
    except Exception as cause:
        raise error(f"{what}: {words(cause)}") from cause


def words(error: BaseException) -> str:
    """What an exception says, on one line, without control characters."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error))
    lines = [line for one in text.splitlines() if (line := " ".join(one.split()))]
    first = lines[0] if lines else ""
    if first.endswith(":") and len(lines) > 1:
        first = f"{first} {lines[1]}"
    if any("trust_remote_code=True" in line for line in lines):
        first = f"{first.rstrip(' .')}; if you trust it, --trust-remote-code runs it"
    first = "".join(letter if letter.isprintable() else " " for letter in first)
    if not first:
        return "out of memory" if isinstance(error, MemoryError) else type(error).__name__
    shown = first if len(first) <= _LONGEST else f"{first[:_LONGEST]} …"
    return f"{type(error).__name__}: {shown}" if isinstance(error, _BARE) else shown


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it wraps, says that there is no memory left, on a processor or on a card."""
    while error is not None:
        if isinstance(error, MemoryError) or any(one in str(error) for one in _MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


class ConfigError(ULDError):
    """A setting is unknown, of the wrong type or out of range."""


def guess(name: object, known: Iterable[str], most: int = 1) -> str:
    """What was probably meant by an unknown name, as the end of a message: ``: did you mean 'x'?``, or nothing.

    Those that are close to it, or else those that it is a part of.

    Args:
        name: What was given.
        known: What there is.
        most: Names to offer, at most.
    """
    import difflib

    given, known = str(name).lower(), list(known)
    whole = [one for one in known if given in one.lower()] if len(given) > 2 else []
    close = difflib.get_close_matches(given, known) or whole
    close = sorted(close, key=lambda one: abs(len(one) - len(given)))[:most]
    return f": did you mean {', '.join(map(repr, close))}?" if close else ""


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")
