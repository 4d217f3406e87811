"""Documents: whatever a user names with ``--forget``, ``--retain`` or ``--file``, as records and digests.

A source is a file (its suffix chooses the reader), a folder of such files, or a data set of the Hub. `uld.data.record`
says what a row may hold; a text, PDF or HTML file is one record, a whole text. Every problem is reported with file and
line, row, page or byte.
"""

import csv
import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from uld.artifact import DataFile, file_digest, rows_digest
from uld.data.record import DataError, Record, decoded_text, parse_record, read_records

logger = logging.getLogger(__name__)

AUGMENTED = "-augmented"
"""What the name of a folder of `uld augment` ends in, unless the user gives it another."""
_AUGMENT_KEYS = {"forget", "paraphrases", "wrong_answers", "chunk_words", "by"}  # of the settings.json in such a folder
_COLUMNS = ("question", "answer", "prompt", "completion", "messages", "text", "alternative")
_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+|/.+?|\.{1,2}/.+?)(:(?P<config>[\w.-]+))?(@(?P<split>[^@/]+))?")
_EXTRA = 'pip install "uld-llm[documents]"'
_LONGEST_CELL = 2**31 - 1  # the csv module's own limit, 128 KiB, is less than a book


def read_sources(sources: Sequence[str]) -> tuple[list[Record], list[DataFile]]:
    """Read files, folders and Hub data sets, in order.

    Args:
        sources: A path each, or ``org/name``, ``org/name:config``, ``org/name@split``, ``org/name:config@split``.

    Returns:
        The records, and what the artefact says about every file.

    Raises:
        DataError: in one sentence, with file and line, row, page or byte.
    """
    records: list[Record] = []
    files: list[DataFile] = []
    for source in sources:
        path = Path(source)
        if os.path.isdir(path):  # unlike path.is_dir() it takes a name of any length
            paths = _folder(path)
        elif os.path.exists(path) or not (hub := _hub_parts(source)):
            paths = [path]
        else:
            some, file = _read_hub(source, *hub)
            records += some
            files.append(file)
            continue
        for one in paths:
            some = read_file(one)
            records += some
            files.append(DataFile(path=str(one), sha256=file_digest(one), rows=len(some)))
    return records, files


def read_file(path: Path) -> list[Record]:
    """Read one file by its suffix; without one it is JSON lines.

    Raises:
        DataError: with the place in the file.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None and not os.path.exists(path):
        raise DataError(f"{path}: there is no such file")
    if reader is None:
        raise DataError(
            f"{path}: cannot be read as documents: expected a folder, a Hub data set or a file of the type "
            f"{', '.join(suffix for suffix in READERS if suffix)}"
        )
    return reader(path)


def _folder(folder: Path) -> list[Path]:
    """Files below a folder that can be read, sorted by path; hidden ones are skipped, and what `uld augment` wrote."""
    try:
        found = sorted(path for path in folder.rglob("*") if path.is_file())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from error
    seen = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    augmented = {path.parent for path in seen if path.name == "settings.json" and _augments(path)}
    if folder in augmented:
        raise DataError(
            f"{folder}: was written by uld augment: give it with --augment, beside the documents themselves"
        )
    seen = [path for path in seen if path.parent not in augmented]  # it holds wrong answers beside paraphrases
    known = [path for path in seen if path.suffix and path.suffix.lower() in READERS]
    strange = Counter(path.suffix or path.name for path in seen if path not in set(known))
    if not known:
        what = f"only files of other types ({', '.join(sorted(strange))})" if strange else "no file"
        raise DataError(
            f"{folder}: the folder holds {what}: expected {', '.join(suffix for suffix in READERS if suffix)}"
        )
    if strange:
        listed = ", ".join(f"{count} {name}" for name, count in sorted(strange.items()))
        logger.warning("%s: %d files of unknown types are skipped: %s", folder, sum(strange.values()), listed)
    return known


def _augments(settings: Path) -> bool:
    """Whether a file is the settings of `uld augment`, whose folder may have any name."""
    try:
        found = json.loads(settings.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() >= _AUGMENT_KEYS


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _text(path: Path) -> str:
    """A file's text."""
    text = decoded_text(_bytes(path), str(path)).removeprefix("\ufeff")
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    return text


def _whole(path: Path) -> list[Record]:
    return [Record(text=_text(path), source=str(path))]


def _json(path: Path) -> list[Record]:
    """JSON lines, or one JSON array of records."""
    if not _bytes(path).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return read_records([path])
    try:
        rows = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not valid JSON ({error.msg} at column {error.colno}): expected one list of "
            "records, or JSON lines"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: this JSON cannot be a list of records") from error
    return _parsed(path, ((f"{path} record {i}", row) for i, row in enumerate(rows, 1)))


def _csv(path: Path) -> list[Record]:
    """A table with a header; row 1 is the header, as spreadsheets count."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    return _parsed(path, _csv_rows(path, delimiter))


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    before = csv.field_size_limit(_LONGEST_CELL)
    number = 1
    try:
        reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(reader)]
        if not any(header):
            raise DataError(f"{path} row 1: the header is empty: write the names of the columns into the first line")
        for number, cells in enumerate(reader, 2):
            source = f"{path} row {number}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(header):
                raise DataError(
                    f"{source}: has {len(cells)} cells, but the header has {len(header)}: put quotes around cells that "
                    "hold the separator"
                )
            row: dict[str, Any] = dict(zip(header, cells, strict=False))
            if row.get("messages"):
                row["messages"] = _cell_json(row["messages"], source)
            yield source, row
    except csv.Error as error:
        raise DataError(f"{path} row {number}: not valid CSV ({error})") from error
    finally:
        csv.field_size_limit(before)


def _cell_json(cell: str, source: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: 'messages' must be a JSON list in a CSV cell") from error


def _parquet(path: Path) -> list[Record]:
    """A table; only the columns that a record may have are read."""
    import pyarrow
    import pyarrow.parquet

    data = _bytes(path)
    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(data))
        names = file.schema_arrow.names
        rows = file.read(columns=[name for name in names if name in _COLUMNS] or None).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file that can be read ({str(error).splitlines()[0]})") from error
    return _parsed(path, ((f"{path} row {i}", row) for i, row in enumerate(rows, 1)))


def _parsed(place: object, rows: Iterable[tuple[str, Any]]) -> list[Record]:
    """Rows of a table as records; a cell without a value is as good as none."""
    records = []
    for source, row in rows:
        full = {k: v for k, v in row.items() if v is not None and v != ""} if isinstance(row, dict) else row
        records.append(parse_record(full, source))
    if not records:
        raise DataError(f"{place}: there is no row in it")
    return records


def _pdf(path: Path) -> list[Record]:
    """The text of all pages; a page without text is counted in the log."""
    try:
        import pypdf
        from pypdf.errors import DependencyError
    except ImportError as error:
        raise DataError(f"{path}: reading PDFs needs another package: {_EXTRA}") from error
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    data, pages = _bytes(path), None
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError(f"{path}: the PDF is encrypted: save it without a password")
        pages = []
        for page in reader.pages:
            pages.append(page.extract_text().strip())
    except DependencyError as error:
        raise DataError(f"{path}: the PDF is encrypted: save it without a password") from error
    except DataError:
        raise
    except Exception as error:  # a damaged PDF fails in a dozen ways
        where = str(path) if pages is None else f"{path} page {len(pages) + 1}"
        raise DataError(f"{where}: not a PDF that can be read ({type(error).__name__})") from error
    empty = [str(i) for i, text in enumerate(pages, 1) if not text]
    if len(empty) == len(pages):
        raise DataError(f"{path}: the PDF holds no text, only images perhaps: run text recognition (OCR) over it first")
    if empty:
        logger.warning("%s: %d of %d pages hold no text: %s", path, len(empty), len(pages), ", ".join(empty[:10]))
    text = "\n\n".join(text for text in pages if text)
    return [parse_record({"text": text}, str(path))]


def _html(path: Path) -> list[Record]:
    """The main text of a page, without menus and the like."""
    try:
        import trafilatura
    except ImportError as error:
        raise DataError(f"{path}: reading HTML needs another package: {_EXTRA}") from error
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    data = _bytes(path)
    text = trafilatura.extract(data, favor_recall=True, include_comments=False) if data.strip() else None
    if not (text and text.strip()):
        raise DataError(f"{path}: no text is found in this HTML page: save its text as a .txt file")
    return [parse_record({"text": text}, str(path))]


READERS: dict[str, Callable[[Path], list[Record]]] = {
    "": lambda path: read_records([path]),
    ".jsonl": lambda path: read_records([path]),
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".txt": _whole,
    ".md": _whole,
    ".pdf": _pdf,
    ".html": _html,
    ".htm": _html,
}
"""A reader of each type of file, by its suffix in small letters."""


def _hub_parts(source: str) -> tuple[str, str | None, str | None] | None:
    """Name, configuration and split of a data set; None where the source can only be a mistyped path."""
    found = _HUB.fullmatch(source)
    if found is None:
        return None
    name, config, split = found["name"], found["config"], found["split"]
    path = Path(name)
    local = os.path.isdir(path) and (config or split)
    mistyped = (path.suffix and path.suffix.lower() in READERS) or path.is_absolute() or name.startswith(".")
    if not local and (mistyped or os.path.isdir(path.parent)):
        return None
    return name, config, split


def _read_hub(source: str, name: str, config: str | None, split: str | None) -> tuple[list[Record], DataFile]:
    """Records of a data set; without a split its only one, or ``train``."""
    import datasets

    datasets.disable_progress_bars()
    try:
        found: Any = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # datasets raises a dozen kinds: no network, no such set, configuration or split
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(
            f"{source}: there is no such file or folder, and the data set cannot be read from the Hub ({reason})"
        ) from error
    if isinstance(found, dict):
        chosen = "train" if "train" in found else next(iter(found)) if len(found) == 1 else None
        if chosen is None:
            raise DataError(f"{source}: has the splits {', '.join(found)}: choose one with {name}@SPLIT")
        found = found[chosen]
    rows = [dict(row) for row in found.select_columns([one for one in found.column_names if one in _COLUMNS])]
    if not rows or not rows[0]:
        raise DataError(
            f"{source}: expected columns that make a record ({', '.join(_COLUMNS)}), but found "
            f"{', '.join(found.column_names)}"
        )
    records = _parsed(source, ((f"{source} row {i}", row) for i, row in enumerate(rows, 1)))
    return records, DataFile(path=source, sha256=rows_digest(rows), rows=len(records))
