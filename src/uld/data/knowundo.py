"""KnowUnDo: questions whose answers a model must forget, and questions about the same subjects that it must keep.

Source: Tian et al. 2024, arXiv 2407.01920.
"""

import os
from pathlib import Path
from typing import Any

from uld.data.files import File, folder_of
from uld.data.record import Record, text_of
from uld.data.rows import read_rows
from uld.errors import DataError

SETS = ("unlearn", "retention")
PARTS = ("val", "train")


def load_knowundo(data: str | Path, part: str = "val") -> dict[str, list[Record]]:
    """Read the questions to forget and those to keep.

    Args:
        data: Folder with ``unlearn_val.json``, ``retention_val.json`` and, for training, the same with ``train``: lists
            of ``{"text", "labels"}``, a question and its answer.
        part: One of `PARTS`; the paper evaluates on ``val``.

    Returns:
        For each of `SETS` its records.

    Raises:
        DataError: no such part, folder or file, or a row without question and answer.
    """
    if part not in PARTS:
        raise DataError(f"KnowUnDo has no part {part!r}: choose one of {', '.join(PARTS)} (--part)")
    found = {}
    for name in SETS:
        path = folder_of(data) / f"{name}_{part}.json"
        if not os.path.lexists(path):
            raise DataError(
                f"{data} has no {path.name}: --data must name a folder laid out like KnowUnDo's privacy data"
            )
        found[name] = [_record(row, source) for source, row in read_rows(File(path))]
    return found


def _record(row: Any, source: str) -> Record:
    if not isinstance(row, dict) or not {"text", "labels"} <= row.keys():
        raise DataError(f"{source}: expected an object with text and labels, a question and its answer")
    return Record.qa(text_of(row["text"], "text", source), text_of(row["labels"], "labels", source), source)
