"""The one progress line of everything that takes long: what, how far, how long still."""

import sys
from math import ceil
from typing import Any

LINE = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}, ETA {remaining}"
_SHORT = 10.0  # seconds that may be silent
_SELDOM = 30.0  # seconds between two lines in a file, where none is drawn over another


class _Lines:
    """Standard error as a file has it: line below line, where a terminal sees one drawn over another."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> int:
        if line := text.strip("\r\n "):
            sys.stderr.write(f"{line}\n")
        return len(text)


def bar(total: int, what: str | None, unit: str, *, done: int = 0, shown: bool = True, logged: bool = True) -> Any:
    """A line on standard error that tells how far something is; close it, or use it as a context.

    What is done within ten seconds writes nothing where standard error is no terminal.

    Args:
        total: Steps in all.
        what: Is done; empty where that is plain, None shows nothing.
        unit: Of a step.
        done: Steps that were done before.
        shown: Whether it is shown at all.
        logged: Whether it is also written where standard error is no terminal, every half minute.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=unit,
        bar_format=("{desc}: " if what else "") + LINE,
        disable=not shown or what is None or not (terminal or logged),
        mininterval=0.1 if terminal else _SELDOM,
        delay=0.0 if terminal else _SHORT,
        file=None if terminal else _Lines(),
    )


def duration(seconds: float) -> str:
    """About how long, as people say it."""
    if seconds < 50:
        return "less than a minute"
    minutes = ceil(seconds / 60)
    return f"about {minutes} min" if minutes < 90 else f"about {seconds / 3600:.1f} h"
