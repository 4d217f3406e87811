"""All runs below a folder: what each is, and what is wrong with those that cannot be read."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from uld.errors import ArtifactError
from uld.runs.card import check_of
from uld.runs.manifest import MANIFEST, RUN_SETTINGS, Manifest


@dataclass(frozen=True)
class Listed:
    """A run as it is listed.

    Attributes:
        run: Its folder.
        method: Registered name; None where it cannot be read.
        target: Folder or Hub id.
        data: Names of the forget files and of TOFU's splits, with their rows.
        check: ``passed`` or ``failed``; None where it was not checked.
        date: Day on which ``uld.json`` was last written, ISO 8601, UTC.
        problem: Why it is no finished run; None for one.
    """

    run: str
    method: str | None = None
    target: str | None = None
    data: str | None = None
    check: str | None = None
    date: str | None = None
    problem: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        """All fields."""
        return asdict(self)


def runs_below(folder: str | Path) -> list[Listed]:
    """Every run in a folder or below it, by place; what lies within a run, such as its epochs, is part of it.

    Raises:
        ArtifactError: there is no such folder, or one below it cannot be read.
    """
    if not os.path.isdir(folder):
        raise ArtifactError(f"there is no folder {folder}: name the one that your runs are in")
    return [_listed(path) for path in _found(Path(folder))]


def _found(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise ArtifactError(f"{error.filename} cannot be read: {(error.strerror or str(error)).lower()}") from error

    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:  # links lead to it as well
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if MANIFEST in names or RUN_SETTINGS in names:
            folders.clear()
            yield Path(parent)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _listed(folder: Path) -> Listed:
    path = folder / MANIFEST
    if not path.is_file():
        return Listed(str(folder), problem=f"unfinished: it has no {MANIFEST}")
    try:
        manifest = Manifest.read(folder)
        written = datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
    except (ArtifactError, OSError) as error:
        return Listed(str(folder), problem=str(error))
    files = manifest.data.get("forget", [])
    names = ", ".join(f"{Path(file.path).name} ({file.rows})" for file in files)
    check = check_of(folder)
    told = None if check is None else "passed" if check["passed"] else "failed"
    return Listed(str(folder), manifest.method, manifest.target, names or None, told, written)
