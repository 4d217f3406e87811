"""KnowUnDo: questions whose answers a model must forget, and questions about the same subjects that it must keep.

Source: Tian et al. 2024, arXiv 2407.01920.
"""

from pathlib import Path
from typing import Any

from uld.data.record import DataError, Record, read_array

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
        path = Path(data) / f"{name}_{part}.json"
        if not path.is_file():
            raise DataError(
                f"{data} has no {path.name}: --data must name a folder laid out like KnowUnDo's privacy data"
            )
        rows = read_array(path)
        if not rows:
            raise DataError(f"{path}: the list is empty")
        found[name] = [_record(row, f"{path}:{i}") for i, row in enumerate(rows, 1)]
    return found


def _record(row: Any, source: str) -> Record:
    texts = [row.get(key) if isinstance(row, dict) else None for key in ("text", "labels")]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{source}: expected an object with text and labels, each a text that is not empty")
    question, answer = texts
    return Record.qa(str(question), str(answer), source)
