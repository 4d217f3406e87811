"""A folder while it is being filled, an evaluation's or another's: whose it is, and one file of finished rows a task.

A row is written as soon as it is done, so that what was killed at any moment continues where it was.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from uld.errors import ArtifactError
from uld.runs.files import present, sweep, write_text, writing
from uld.runs.locks import LOCK, hold, locked
from uld.runs.manifest import read_object
from uld.text.json_text import dumps

CLAIM = "settings.json"  # in the folder of an evaluation or an augmentation: whose it is
_NEWER = {"tokenizer"}  # what earlier versions did not write: unknown there, and not different
_WAIT = 5.0  # seconds in which another process has surely looked whose a folder is


def claim(folder: Path, about: dict[str, Any], what: str = "evaluation") -> None:
    """Take a folder for one evaluation, or find it taken by the same one.

    Args:
        folder: Made if it is missing.
        about: Everything that decides a row's numbers, as plain JSON types; ``model``, the name that the model was
            loaded by, is written down but may differ.
        what: What the folder is filled with, for messages.

    Raises:
        ArtifactError: the folder holds another evaluation, or something else.
    """
    with claiming(folder, what):
        take(folder, about, what)


@contextmanager
def claiming(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder while somebody looks whose it is, and takes it or gives it up.

    Raises:
        ArtifactError: it cannot be made or written, or another process looks at it for too long.
    """
    with ExitStack() as stack:
        with writing(folder):
            if folder.exists() and not folder.is_dir():
                raise ArtifactError(f"{folder} is a file: name another folder with --output")
            folder.mkdir(parents=True, exist_ok=True)
            mine = stack.enter_context(locked(folder / LOCK, wait=_WAIT))
        if not mine:
            raise ArtifactError(
                f"another {what} is about to begin in {folder}: try again, or name another folder with --output"
            )
        sweep(folder)
        yield


def take(folder: Path, about: dict[str, Any], what: str) -> None:
    """`claim`, while the folder is held."""
    path = folder / CLAIM
    about = json.loads(json.dumps(about))
    if path.is_file():
        found = read_object(path, f"remove {folder}, or name another with --output")
        unknown = {"model", *(_NEWER - found.keys())}
        if different := [one for one in _different(found, about) if one not in unknown]:
            raise ArtifactError(
                f"{folder} holds {_one(what)} of another model or with other settings ({', '.join(different)}): "
                "name another folder with --output, or remove it"
            )
        return
    if any((folder / name).is_file() for name in present(folder)):  # a grid lies in folders of its own
        raise ArtifactError(f"{folder} is not empty and holds no {what}: name another folder with --output")
    write_text(path, dumps(about, indent=2) + "\n")


def give_up(folder: Path, what: str = "evaluation") -> None:
    """Leave a folder that was claimed to others, if nothing came of it: its settings bind nobody."""
    with claiming(folder, what):
        if present(folder) == {CLAIM}:
            for name in (CLAIM, LOCK):
                (folder / name).unlink()
            folder.rmdir()


def _different(one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    """Names of what is not the same in two; of what has parts, its parts' names as well."""
    for name in sorted({*one, *other}):
        both = one.get(name), other.get(name)
        if both[0] == both[1]:
            continue
        inner = [*_different(*both)] if all(isinstance(each, dict) for each in both) else []  # type: ignore[arg-type]
        yield f"{name}: {' and '.join(inner)}" if inner else name


def _one(what: str) -> str:
    """A word with its article."""
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"


class RowFile:
    """The finished rows of a task, one JSON object a line; open in one process at a time.

    Attributes:
        rows: Results by row number. Lines that cannot be read are passed over; of two with one number the later counts.
    """

    @classmethod
    def of(cls, folder: Path, task: str, process: int = 0) -> Self:
        """Open a task's file: the first process's, or the part of another, whose name ends in its number."""
        return cls(folder / (f"{task}.{process}.jsonl" if process else f"{task}.jsonl"))

    @staticmethod
    def read(folder: Path, task: str) -> dict[int, dict[str, Any]]:
        """All finished rows of a task; of several processes those that were merged."""
        path = folder / f"{task}.jsonl"
        return _parse(path.read_bytes())[0] if path.exists() else {}

    def merge(self, order: Sequence[int]) -> None:
        """Take over the rows of the other processes' parts; leave one file, each row once, and no parts.

        The file is replaced at once, in the given order, if there is a part or a row that was done again.

        Raises:
            ArtifactError: the disk is full or the folder cannot be written.
        """
        parts = sorted(self.folder.glob(f"{self._path.stem}.*.jsonl"))
        for part in parts:
            self.rows |= _parse(part.read_bytes())[0]
        if parts or self._untidy:
            numbers = [*order, *sorted(self.rows.keys() - set(order))]
            whole = "".join(dumps({"row": i, **self.rows[i]}) + "\n" for i in numbers if i in self.rows)
            write_text(self._path, whole)
            old = self._file
            self._open()
            old.close()
        for part in parts:
            part.unlink()

    def __init__(self, path: Path, what: str = "evaluation") -> None:
        """Open the file, made if it is missing, and read it; a last line that a kill cut short is removed.

        Raises:
            ArtifactError: another process has it open, or it cannot be written.
        """
        self.folder = path.parent
        self._path = path
        self._what = what
        self._open()

    def _open(self) -> None:
        with writing(self.folder):
            self._file = self._path.open("a+b")
            mine = hold(self._file, self._path)  # not where `merge` of another process has replaced it
        if not mine:
            self._file.close()
            raise ArtifactError(
                f"another {self._what} is writing to {self.folder}: wait for it to end, or name another folder with "
                "--output"
            )
        self._file.seek(0)
        content = self._file.read()
        self.rows, whole = _parse(content)
        self._untidy = content.count(b"\n") != len(self.rows)
        with writing(self.folder):
            self._file.truncate(whole)

    def add(self, row: int, result: dict[str, Any]) -> None:
        """Write a finished row.

        Raises:
            ArtifactError: the disk is full or the folder cannot be written.
        """
        with writing(self.folder):
            self._file.write((dumps({"row": row, **result}) + "\n").encode())
            self._file.flush()
        self._untidy |= row in self.rows
        self.rows[row] = result

    def __enter__(self) -> Self:
        """Nothing to do: the file is open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file and give up the lock."""
        with writing(self.folder):
            self._file.close()


def _parse(content: bytes) -> tuple[dict[int, dict[str, Any]], int]:
    """Rows by number, and the length of what is whole: a last line that a kill cut short is not."""
    rows: dict[int, dict[str, Any]] = {}
    whole = content.rfind(b"\n") + 1
    for line in content[:whole].splitlines():
        try:
            result = json.loads(line)
            rows[int(result.pop("row"))] = result
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return rows, whole
