"""What `uld augment` leaves in its folder, and how training reads it.

| file | what |
|---|---|
| ``paraphrases.jsonl`` | records to forget, too |
| ``questions.jsonl`` | questions about texts with their answers, to forget, too |
| ``wrong_answers.jsonl`` | records to retain |
| ``settings.json`` | what decides them |
| ``report.json`` | counts, and every candidate that was dropped with its reason; written last |

Every row is a record of `uld.data.record` with two more keys: ``of``, the digest of the record that it was made of, and
``copy``, its number among those of one item, from 0.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from uld.augment.items import Augmented, digest, digests, row
from uld.data.documents import AUGMENTED, hub_place
from uld.data.files import File, check_name
from uld.data.record import Record, parse_record
from uld.data.rows import read_lines
from uld.errors import ArtifactError, DataError
from uld.runs.files import is_special, write_text, writing
from uld.runs.manifest import DataFile
from uld.runs.rows import CLAIM

logger = logging.getLogger(__name__)

FILES = {"paraphrases": "paraphrases.jsonl", "wrong": "wrong_answers.jsonl", "asked": "questions.jsonl"}
REPORT = "report.json"


def folder_beside(path: str | Path) -> Path:
    """Where `uld augment` writes by default: ``forget-augmented`` beside ``forget.jsonl``; see `hub_place`.

    Raises:
        DataError: nothing can stand beside it.
    """
    if place := hub_place(str(path)):
        return place.with_name(f"{place.name}{AUGMENTED}")
    path = Path(path).absolute() if is_special(Path(path)) else Path(path).resolve()
    if not path.name or is_special(path):
        raise DataError(f"{path} has nothing beside it: name a folder for what is made (--output)")
    return path.with_name(f"{path.name if os.path.isdir(path) else path.stem}{AUGMENTED}")


def lines(made: Mapping[str, Iterable[Augmented]], side: str) -> str:
    """One side of what was made as JSON lines.

    Args:
        made: By record, what was made of each of its items.
        side: A field of `Augmented`.
    """
    return "".join(
        json.dumps({**row(record), "of": of, "copy": copy}, ensure_ascii=False) + "\n"
        for of, parts in made.items()
        for part in parts
        for copy, record in enumerate(getattr(part, side))
    )


def write(folder: Path, made: Mapping[str, Iterable[Augmented]], report: Mapping[str, object]) -> None:
    """Write all files but the settings; a side of which there is nothing has none.

    Nothing is to be read while the files change, so the report, which says that they are there, goes first.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    with writing(folder):
        (folder / REPORT).unlink(missing_ok=True)
    for side, name in FILES.items():
        if text := lines(made, side):
            write_text(folder / name, text)
        else:
            with writing(folder):
                (folder / name).unlink(missing_ok=True)
    write_text(folder / REPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def read(
    folder: str | Path, records: Iterable[Record], *, paraphrases: int, wrong_answers: int
) -> tuple[dict[str, Augmented], list[DataFile]]:
    """What a folder holds for records.

    Args:
        folder: Of `uld augment`.
        records: To be forgotten; what the folder holds for others is left out.
        paraphrases: Most of each item.
        wrong_answers: Most of each item.

    Returns:
        By `uld.augment.items.digest`, and what the artefact says about the files.

    Raises:
        ULDError: it is no finished folder of `uld augment`, or was made of other records.
    """
    check_name(str(folder), "--augment")
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise ArtifactError(f"there is no folder {folder}: make it with uld augment, or use --augment rules")
    if not (folder / REPORT).is_file():
        what = (
            "is unfinished: run uld augment again" if (folder / CLAIM).is_file() else "was not written by uld augment"
        )
        raise ArtifactError(f"{folder} {what}, or use --augment rules")
    records = list(records)
    made = {digest(record): Augmented() for record in records}
    called = {name: digest(record) for record in records for name in digests(record)}
    least = {"paraphrases": paraphrases, "wrong": wrong_answers, "asked": 2**31}
    files: list[DataFile] = []
    found: set[str] = set()
    for side, name in FILES.items():
        path = folder / name
        if not path.is_file():
            continue
        file = File(path)
        rows = read_lines(file)
        files.append(DataFile(path=str(path), sha256=file.sha256, rows=len(rows)))
        for number, one in rows:
            source = f"{path}:{number}"
            record = parse_record(one, source)
            if not isinstance(one.get("of"), str) or type(one.get("copy")) is not int:
                raise DataError(f"{source}: has no 'of' and 'copy': it was not written by uld augment")
            if of := called.get(one["of"]):
                found.add(of)
                if one["copy"] < least[side]:
                    getattr(made[of], side).append(record)
    if files and not found:
        raise DataError(
            f"{folder} was made of other records: run uld augment on this forget file, or use --augment rules"
        )
    if len(found) < len(made):
        logger.warning("%s augments only %d of %d records to forget", folder, len(found), len(made))
    return made, files
