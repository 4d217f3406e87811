"""What may reach a terminal: every text is shown, none is obeyed.

Answers of models and endpoints, names of files and messages of libraries can hold control characters that move the
cursor, clear the screen, rename the window or turn the order of letters around. `visible` writes them out; `Screen`
stands before standard output and standard error, so that whatever is printed passes through it.
"""

import codecs
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from uld.errors import ULDError

# C0 but tab and line feed, DEL, C1; what turns the direction of writing; what is invisible or starts a line unseen;
# halves of surrogate pairs. The two joiners stay: scripts and emoji need them.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f\ud800-\udfff]"
)
_BYTES = range(0xDC80, 0xDD00)  # bytes of a file's name that are not UTF-8, as Python holds them
# How tqdm draws: a line over itself, and up to an earlier one. Nothing else begins so and has no line end.
_BAR = re.compile(r"\r[^\n]*|\n*(?:\x1b\[A)+")


def visible(text: str) -> str:
    r"""A text with everything that a terminal would obey, or would not show, written out: ``\x1b``, ``\u202e``.

    Args:
        text: Any text; tabs and line feeds stay as they are.
    """
    return _OBEYED.sub(lambda match: _written(match[0]), text)


def one_line(text: str) -> str:
    """The same for a sentence: a line feed is written out also."""
    return visible(text).replace("\n", "\\n")


def _written(character: str) -> str:
    """A character by its number, a byte that was no UTF-8 as that byte."""
    code = ord(character)
    if code in _BYTES:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _encoded(error: UnicodeError) -> tuple[str | bytes, int]:
    """For a stream that cannot hold a character: a name's own bytes as they were, anything else by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    if all(ord(one) in _BYTES for one in part):
        return bytes(ord(one) - 0xDC00 for one in part), error.end
    return "".join(_written(one) for one in part), error.end


_ERRORS = "uld.visible"
codecs.register_error(_ERRORS, _encoded)


class OutputError(ULDError):
    """Standard output cannot be written to.

    Attributes:
        unread: Whether that is because nobody reads it any more, as behind ``| head``.
    """

    def __init__(self, error: OSError) -> None:
        """Say what the system said."""
        super().__init__(f"cannot write to standard output: {(error.strerror or str(error)).lower()}")
        self.unread = isinstance(error, BrokenPipeError)


class Screen:
    """A text stream that shows everything and obeys nothing; otherwise the stream that it stands before.

    Attributes:
        rich_proxied_file: Where rich, which draws the help, writes by itself.
    """

    def __init__(self, stream: Any, *, shows: bool, comments: bool) -> None:
        """Stand before a stream.

        Args:
            stream: An open text stream.
            shows: Whether texts are made visible; without it they pass as they are.
            comments: Whether comments on the work go there: progress bars may draw, and if nobody can read them, the
                work does not suffer.
        """
        self.rich_proxied_file = stream
        self._shows = shows
        self._comments = comments

    def __getattr__(self, name: str) -> Any:
        """Whatever else the stream has."""
        return getattr(self.rich_proxied_file, name)

    def write(self, text: str) -> int:
        """Write a text and give its length."""
        if not isinstance(text, str):
            raise TypeError(f"text is written here, not {type(text).__name__}")
        shown = self._shown(text) if self._shows else text
        with self._failing():
            self.rich_proxied_file.write(shown)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand on what was written."""
        with self._failing():
            self.rich_proxied_file.flush()

    def _shown(self, text: str) -> str:
        if not (self._comments and _BAR.fullmatch(text)):
            return visible(text)
        return text if "\n" in text or text.startswith("\x1b") else "\r".join(map(visible, text.split("\r")))

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._comments:
                raise OutputError(error) from error


@contextmanager
def screens() -> Iterator[None]:
    """Put a `Screen` before standard output and standard error.

    Standard output is made visible only on a terminal: what is piped is data. Standard error always is, also in the
    file that it is kept in and looked at later, and a failure to write to it stops nothing. A stream that is closed is
    opened on nothing, so that no file of ours takes its place. Standard input is read as UTF-8, whatever the locale.
    """
    _reopen()
    before = sys.stdout, sys.stderr
    errors = [getattr(stream, "errors", None) for stream in before]
    _reconfigure(sys.stdin, encoding="utf-8", errors="strict")
    for stream in before:
        _reconfigure(stream, errors=_ERRORS)
    sys.stdout = Screen(before[0], shows=before[0].isatty(), comments=False)  # type: ignore[assignment]
    sys.stderr = Screen(before[1], shows=True, comments=True)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream, error in zip(before, errors, strict=True):
            _reconfigure(stream, errors=error)


def _reopen() -> None:
    """Open what of the three standard streams is closed; a free number goes to the first one that asks, so in order."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _reconfigure(stream: Any, **changes: str | None) -> None:
    with suppress(AttributeError, ValueError, OSError):  # a stream of another kind, closed, full, or read from already
        stream.reconfigure(**changes)


def discard(stream: Any) -> None:
    """Let a stream that nobody can read end in nothing: Python would complain about what is left in it."""
    with suppress(AttributeError, ValueError, OSError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
