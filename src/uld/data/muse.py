"""MUSE: news articles or books to forget, as texts and as questions, from the Hub or from a folder.

Source: Shi et al. 2024, arXiv 2407.06460. A folder may lack parts: what is there is read, and the rest is named.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uld.data.files import File, folder_of
from uld.data.record import text_of
from uld.data.rows import read_rows
from uld.errors import DataError

HUB_IDS = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
_QA, _PASSAGE, _TEXT = ("question", "answer"), ("prompt", "gt"), ("text",)


@dataclass(frozen=True)
class _Part:
    """Where a part lies: subset and split on the Hub, files in a folder (the first that exists), and its columns."""

    subset: str
    split: str
    files: tuple[str, ...]
    columns: tuple[str, ...]


def _part(subset: str, split: str, columns: tuple[str, ...], *others: str) -> _Part:
    files = [f"{folder}{name}.json" for name in (split, *others) for folder in (f"{subset}/", "")]
    return _Part(subset, split, tuple(files), columns)


PARTS = {
    "forget_qa": _part("knowmem", "forget_qa", _QA),
    "forget_qa_icl": _part("knowmem", "forget_qa_icl", _QA),
    "retain_qa": _part("knowmem", "retain_qa", _QA, "retain2_qa"),
    "retain_qa_icl": _part("knowmem", "retain_qa_icl", _QA, "retain2_qa_icl"),
    "verbmem": _Part("verbmem", "forget", ("verbmem/forget.json", "verbmem.json"), _PASSAGE),
    "forget": _Part("privleak", "forget", ("privleak/forget.json", "forget.json"), _TEXT),
    "holdout": _Part("privleak", "holdout", ("privleak/holdout.json", "holdout.json"), _TEXT),
}
"""Parts of the benchmark by name."""


def load_muse(corpus: str | None = None, data: str | Path | None = None) -> dict[str, list[dict[str, str]]]:
    """Read what there is of the benchmark.

    Args:
        corpus: ``news`` or ``books``, to be read from the Hub; not with ``data``.
        data: Folder with JSON lists, laid out like MUSE's ``data/news`` or with the same files side by side. A passage
            is ``{"prompt", "gt"}`` or a whole text, a text an object with ``text`` or just a string.

    Returns:
        For each of `PARTS` that is there, its rows.

    Raises:
        DataError: no such corpus, folder or network, no part at all, or a row that lacks a column.
    """
    if (corpus is None) == (data is None):
        raise DataError(f"give either --corpus ({' or '.join(HUB_IDS)}, from the Hub) or --data (a folder)")
    parts = _from_folder(folder_of(data)) if data is not None else _from_hub(str(corpus))
    found = {}
    for name, rows in parts.items():
        found[name] = [_checked(row, PARTS[name].columns, source) for source, row in rows]
    return found


def _from_folder(folder: Path) -> dict[str, list[tuple[str, Any]]]:
    found = {}
    for name, part in PARTS.items():
        if present := [folder / file for file in part.files if os.path.lexists(folder / file)]:
            found[name] = read_rows(File(present[0]))
    if not found:
        raise DataError(
            f"{folder} holds no part of MUSE: --data must name a folder with files such as "
            f"{', '.join(part.files[0] for part in PARTS.values())}"
        )
    return found


def _from_hub(corpus: str) -> dict[str, list[tuple[str, Any]]]:
    if corpus not in HUB_IDS:
        raise DataError(f"MUSE has no corpus {corpus!r}: choose one of {', '.join(HUB_IDS)} (--corpus)")
    from datasets import load_dataset

    hub_id, found = HUB_IDS[corpus], {}
    for name, part in PARTS.items():
        try:
            rows = [dict(row) for row in load_dataset(hub_id, part.subset, split=part.split)]
        except Exception as error:  # datasets raises a dozen kinds for an unreachable Hub
            raise DataError(
                f"cannot read {part.subset}/{part.split} of {hub_id} from the Hub ({type(error).__name__}): name a "
                "folder with --data"
            ) from error
        if not rows:
            raise DataError(f"{hub_id} {part.subset}/{part.split}: there is no row in it")
        found[name] = [(f"{hub_id} {part.subset}/{part.split} row {i}", row) for i, row in enumerate(rows, 1)]
    return found


def _checked(row: Any, columns: tuple[str, ...], source: str) -> dict[str, str]:
    """A row that has the columns, as texts with something in them; a string is a text."""
    if isinstance(row, str):
        row = {"text": row}
    if columns == _PASSAGE and isinstance(row, Mapping) and "text" in row:
        if row.keys() & set(_PASSAGE):
            raise DataError(f"{source}: has 'text' beside {' or '.join(_PASSAGE)}: expected a whole text, or a passage")
        columns = _TEXT
    if not isinstance(row, Mapping) or not set(columns) <= row.keys():
        raise DataError(f"{source}: expected an object with {' and '.join(columns)}, each a text that is not empty")
    return {name: text_of(row[name], name, source) for name in columns}
