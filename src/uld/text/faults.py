"""What an exception means to the person at the command line: an exit code, one sentence, and for a bug a report.

| exit code | what |
|---|---|
| 1 | a check failed |
| 2 | bad input, or a machine that cannot: no such file, no space, no memory |
| 70 | a fault of uld: the traceback lies in a file |
| 128 + n | ended by signal n, as 141 where nobody reads standard output any more |
"""

import errno
import os
import re
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

from uld.errors import ULDError
from uld.text.terminal import OutputError, one_line

WRONG, FAULT, UNREAD = 2, 70, 141
_LONGEST_NAME = 60  # letters of a name that a message shows
_LONGEST_MESSAGE = 300  # letters of an exception's message in a report: it may quote a document
_ENVIRONMENT = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG),
    *(errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ECONNREFUSED),
    *(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENOLCK, errno.EAGAIN),
}
# Memory that ran out is told by torch, by the C++ library and by what maps files, each in words of its own.
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|bad_alloc|unable to allocate",
    re.IGNORECASE,
)
_NO_THREADS = "can't start new thread"
_SECRET_NAME = re.compile(r"(?:^|_)(?:\w*KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^/\s@'\"]+@")


@dataclass(frozen=True)
class Outcome:
    """What a command that was ended by an exception says.

    Attributes:
        code: Exit code.
        sentence: To be printed; empty where there is nothing to say.
    """

    code: int
    sentence: str


def told(error: BaseException) -> Outcome | None:
    """What an exception says to a user; None for a bug.

    Args:
        error: Anything that a command raised.
    """
    if any(isinstance(one, OutputError) and one.unread for one in _chain(error)) or isinstance(error, BrokenPipeError):
        return Outcome(UNREAD, "")
    if isinstance(error, ULDError):
        return Outcome(WRONG, str(error))
    if isinstance(error, KeyboardInterrupt):
        return Outcome(WRONG, "interrupted")
    text = " ".join(str(error).split())
    first = text[:_LONGEST_MESSAGE]
    if (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError | OSError) and _NO_MEMORY.search(text))
    ):
        return Outcome(
            WRONG,
            "there is not enough memory: lower --batch-size, load with --dtype bf16, or take a smaller model or a "
            f"larger machine{f' ({first})' if first else ''}",
        )
    if isinstance(error, RuntimeError) and _NO_THREADS in text:
        return Outcome(WRONG, "the system allows no more threads: raise the limit (ulimit -u), or end other programs")
    if isinstance(error, RuntimeError) and "determine home directory" in text:
        return Outcome(
            WRONG, "there is no home folder to keep anything in: set HOME (uld demo: or name one with --cache)"
        )
    if isinstance(error, ValueError) and "embedded null byte" in text:
        return Outcome(WRONG, "a name of a file holds a null byte, which no name can: correct it")
    if "surrogates not allowed" in text or "lone leading surrogate" in text or "lone surrogate" in text:
        return Outcome(
            WRONG,
            "a name of a file or folder is not UTF-8, or a text holds half of a surrogate pair: rename or correct it",
        )
    if isinstance(error, OSError):
        return _of_the_system(error, first)
    return None


def _of_the_system(error: OSError, text: str) -> Outcome | None:
    """What the operating system refused; libraries raise `OSError` of their own, without a number, for the Hub."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    if not name and error.errno is not None and error.errno not in _ENVIRONMENT:
        return None
    if error.errno == errno.ENAMETOOLONG:
        return Outcome(WRONG, f"{_short(name) or 'a name'}: the name is too long for this file system: shorten it")
    if name:
        return Outcome(WRONG, f"{_short(name)}: {(error.strerror or text).lower()}")
    return Outcome(WRONG, f"{error.strerror.lower()}" if error.strerror else text or type(error).__name__)


def _short(name: str) -> str:
    """A name as a sentence can hold it."""
    return name if len(name) <= 4 * _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…{name[-10:]}"


def report(error: BaseException) -> Outcome:
    """Write what is needed to mend a bug into a file that only its owner can read, and say where.

    The file holds no local variables, no values of options, and no secret of the environment: the documents that are
    to be forgotten may be among the first, keys and passwords among the others. Messages, which may quote what was
    read, are cut short.

    Args:
        error: Of a bug.
    """
    what = f"{type(error).__name__}{_place(error)}"
    try:
        handle, name = tempfile.mkstemp(prefix="uld-fault-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(_account(error))
    except OSError as failure:
        where = f"; please report it (its traceback could not be written down: {failure.strerror})"
    else:
        where = f"; please report it with {name}, which holds the traceback (read it before you pass it on)"
    return Outcome(FAULT, f"this is a fault of uld ({what}), not of yours{where}")


def _place(error: BaseException) -> str:
    """The last line of ours that an exception came through."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if f"{os.sep}uld{os.sep}" in frame.filename]
    return f" in {Path(ours[-1].filename).name}, line {ours[-1].lineno}" if ours else ""


def _account(error: BaseException) -> str:
    """Command and traceback."""
    options = [part.partition("=")[0] for part in sys.argv[2:] if part.startswith("--")]
    lines = [f"command: uld {' '.join(part for part in sys.argv[1:2] if not part.startswith('-'))} {' '.join(options)}"]
    lines.append(f"python {sys.version.split()[0]} on {sys.platform}; {_versions()}")
    for one in reversed(_chain(error)):
        lines += ["", *(line.rstrip("\n") for line in traceback.format_tb(one.__traceback__))]
        lines.append(f"{type(one).__name__}: {one_line(without_secrets(_message(one)))}")
    return "\n".join(lines) + "\n"


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and what it came of, as a traceback shows them, the last one first."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return chain


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        return "(it has no message)"
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]} …"


def without_secrets(text: str) -> str:
    """A text without passwords of URLs and without the values of the environment's keys, tokens and passwords."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value.strip()) >= 8:
            text = text.replace(value.strip(), "…")
    return _IN_URL.sub("…@", text)


def _versions() -> str:
    """Of the packages that most bugs depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("uld-llm", "torch", "transformers", "peft"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
