"""Documents: whatever a user names with ``--forget``, ``--retain`` or ``--file``, as records and digests.

A source is a file (its suffix chooses the reader), a folder of such files, or a data set of the Hub. `uld.data.record`
says what a row may hold; a text, PDF or HTML file is one record, a whole text. Every problem is reported with file and
line, row, page or byte. A file is read once, and its digest is that of what was read.
"""

import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from uld.data.files import File, check_name, decoded_page
from uld.data.formats import FOREIGN, KNOWN
from uld.data.record import KEYS, Record, parse_record
from uld.data.rows import read_lines, read_rows
from uld.data.tables import arrow_rows, read_csv, read_parquet, records_of, refuse_twice
from uld.data.text import shown, shown_name
from uld.errors import DataError
from uld.runs.manifest import DataFile, rows_digest

logger = logging.getLogger(__name__)

AUGMENTED = "-augmented"
"""What the name of a folder of `uld augment` ends in, unless the user gives it another."""
_AUGMENT_KEYS = {"forget", "paraphrases", "wrong_answers", "chunk_words", "by"}  # of the settings.json in such a folder
_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+|/.+?|\.{1,2}/.+?)(:(?P<config>[\w.-]+))?(@(?P<split>[^@/]+))?")
_PDF_END = 2048  # bytes in which a whole PDF says that it ends; pypdf reads what is left of others
_EXTRA = 'pip install -e ".[documents]" in the folder of uld'


Source = str | Path | Record


def listed(sources: Source | Sequence[Source]) -> list[Source]:
    """What was named, one thing or several, as a list.

    Raises:
        DataError: something else stands there.
    """
    found = list(sources) if isinstance(sources, Iterable) and not isinstance(sources, Source) else [sources]
    if odd := [one for one in found if not isinstance(one, Source)]:
        raise DataError(
            f"expected a file, a folder, a Hub data set or a record, or a list of them, not {shown(odd[0])} (a row "
            "becomes a record by uld.data.record.parse_record)"
        )
    return found  # type: ignore[return-value]


def read_records(sources: Source | Sequence[Source]) -> list[Record]:
    """Records as they are, and those of files, folders and Hub data sets.

    Raises:
        DataError: see `read_sources`.
    """
    return [
        one
        for source in listed(sources)
        for one in ([source] if isinstance(source, Record) else read_sources([str(source)])[0])
    ]


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
        check_name(source)
        path = Path(source)
        if os.path.isdir(path):  # unlike path.is_dir() it takes a name of any length
            paths = _folder(path)
        elif os.path.lexists(path) or not (hub := _hub_parts(source)):
            paths = [path]
        else:
            some, file = _read_hub(source, *hub)
            records += some
            files.append(file)
            continue
        for one in paths:
            some, file = read_file(one)
            records += some
            files.append(file)
    return records, files


def refuse_missing(sources: Iterable[str | None]) -> None:
    """Refuse paths of which nothing is there, before anything large is imported or loaded.

    Args:
        sources: As for `read_sources`; one that may be on the Hub is not looked for there.

    Raises:
        DataError: see `read_sources`.
    """
    for source in filter(None, sources):
        check_name(source)
        if not os.path.lexists(source) and not _hub_parts(source):
            read_file(Path(source))


def read_file(path: Path) -> tuple[list[Record], DataFile]:
    """Read one file by its suffix, once; without a suffix it is JSON lines.

    Returns:
        Its records, and what the artefact says about it.

    Raises:
        DataError: with the place in the file.
    """
    check_name(str(path))
    file = File(path)
    reader = READERS.get(file.suffix)
    if reader is None and not os.path.lexists(path):
        raise DataError(f"{file.name}: there is no such file")
    if reader is None:
        raise DataError(
            f"{file.name}: cannot be read as documents: expected a folder, a Hub data set or a file of the type "
            f"{', '.join(suffix for suffix in READERS if suffix)}"
        )
    records = reader(file)
    return records, DataFile(path=str(path), sha256=file.sha256, rows=len(records))


def _folder(folder: Path) -> list[Path]:
    """Files below a folder that can be read, sorted by path; hidden ones are skipped, and what `uld augment` wrote."""
    name = shown_name(folder)
    seen = sorted(_files(folder))
    augmented = {path.parent for path in seen if path.name == "settings.json" and _augments(path)}
    if folder in augmented:
        raise DataError(f"{name}: was written by uld augment: give it with --augment, beside the documents themselves")
    seen = [path for path in seen if path.parent not in augmented]  # it holds wrong answers beside paraphrases
    _refuse_saved(seen)
    known = [path for path in seen if path.suffix and path.suffix.lower() in READERS and _is_file(path)]
    strange = Counter(shown_name(path.suffix or path.name) for path in seen if path not in set(known))
    if not known:
        what = f"only files of other types ({', '.join(sorted(strange))})" if strange else "no file"
        raise DataError(
            f"{name}: the folder holds {what}: expected {', '.join(suffix for suffix in READERS if suffix)}"
        )
    if strange:
        listed = ", ".join(f"{count} {name}" for name, count in sorted(strange.items()))
        logger.warning("%s: %d files of unknown types are skipped: %s", name, sum(strange.values()), listed)
    return known


def _files(folder: Path) -> list[Path]:
    """Everything below a folder that is neither hidden nor a folder; links to folders are followed, each folder once.

    Raises:
        DataError: a folder below it that cannot be read: its documents would be missing.
    """

    def fail(error: OSError) -> None:
        raise DataError(f"{shown_name(error.filename)}: cannot be read: {error.strerror or error}") from error

    found: list[Path] = []
    done: set[tuple[int, int]] = set()
    left = [str(folder)]
    while left:
        links: list[str] = []
        for parent, folders, names in os.walk(left.pop(0), onerror=fail):
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in done:
                folders.clear()
                continue
            done.add((status.st_dev, status.st_ino))
            folders[:] = [name for name in sorted(folders) if not name.startswith(".")]
            links += [one for name in folders if os.path.islink(one := os.path.join(parent, name))]
            found += [Path(parent, name) for name in names if not name.startswith(".")]
        left += links
    return found


def _is_file(path: Path) -> bool:
    """Whether it is an ordinary file; a link to nothing is one that cannot be read, and no pipe is waited for."""
    return os.path.isfile(path) or os.path.islink(path)


def _refuse_saved(paths: Sequence[Path]) -> None:
    """Refuse what `Dataset.save_to_disk` wrote, whose JSON files only describe it."""
    tables = {path.parent for path in paths if path.suffix.lower() == ".arrow"}
    for path in paths:
        if path.name == "dataset_dict.json" or (path.name == "state.json" and path.parent in tables):
            raise DataError(
                f"{shown_name(path.parent)}: is a data set as save_to_disk writes it (Arrow files), which is not read: "
                "write it with to_json or to_parquet, and give that file"
            )


def _augments(settings: Path) -> bool:
    """Whether a file is the settings of `uld augment`, whose folder may have any name."""
    try:
        found = json.loads(settings.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() >= _AUGMENT_KEYS


def _whole(file: File) -> list[Record]:
    """A text. JSON is none: its braces would be learnt, and its records not told apart."""
    text = file.text()
    if not text.strip():
        raise DataError(f"{file.name}: the file is empty")
    if text.lstrip()[0] in "{[" and any(_is_json(one) for one in (text.lstrip().split("\n", 1)[0], text)):
        raise DataError(
            f"{file.name}: holds JSON, which would be learnt with its brackets and keys: name the file .jsonl (a "
            "record a line) or .json"
        )
    return [parse_record({"text": text}, file.name)]


def _is_json(text: str) -> bool:
    """Whether a text is an object of JSON, or a list of them."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) or (isinstance(found, list) and any(isinstance(one, dict) for one in found))


def _lines(file: File) -> list[Record]:
    return records_of(file.name, ((f"{file.name}:{number}", value) for number, value in read_lines(file)))


def _rows(file: File) -> list[Record]:
    rows = read_rows(file)
    if all(isinstance(value, str) for _, value in rows):  # MUSE writes its texts so
        rows = [(source, {"text": value}) for source, value in rows]
    return records_of(file.name, rows)


def _pdf(file: File) -> list[Record]:
    """The text of all pages; a page without text is counted in the log."""
    try:
        import pypdf
        from pypdf.errors import DependencyError
    except ImportError as error:
        raise DataError(f"{file.name}: reading PDFs needs another package: {_EXTRA}") from error
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    data, pages = file.read(), None
    if data.startswith(b"%PDF-") and b"%%EOF" not in data[-_PDF_END:]:
        raise DataError(f"{file.name}: the PDF is cut off: it does not end as one does: fetch it again")
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DataError(f"{file.name}: the PDF is encrypted: save it without a password")
        pages = []
        for page in reader.pages:
            pages.append(page.extract_text().strip())
    except DependencyError as error:
        raise DataError(f"{file.name}: the PDF is encrypted: save it without a password") from error
    except DataError:
        raise
    except Exception as error:  # a damaged PDF fails in a dozen ways
        where = file.name if pages is None else f"{file.name} page {len(pages) + 1}"
        raise DataError(f"{where}: not a PDF that can be read ({type(error).__name__})") from error
    empty = [str(i) for i, text in enumerate(pages, 1) if not text]
    if len(empty) == len(pages):
        raise DataError(
            f"{file.name}: the PDF holds no text, only images perhaps: run text recognition (OCR) over it first"
        )
    if empty:
        logger.warning("%s: %d of %d pages hold no text: %s", file.name, len(empty), len(pages), ", ".join(empty[:10]))
    text = "\n\n".join(text for text in pages if text)
    return [parse_record({"text": text}, file.name)]


def _html(file: File) -> list[Record]:
    """The main text of a page, without menus and the like."""
    try:
        import trafilatura
    except ImportError as error:
        raise DataError(f"{file.name}: reading HTML needs another package: {_EXTRA}") from error
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    page = decoded_page(file.read(), file.name)
    try:
        text = trafilatura.extract(page, favor_recall=True, include_comments=False) if page.strip() else None
    except Exception as error:  # of lxml and of decoders
        raise DataError(f"{file.name}: not an HTML page that can be read ({type(error).__name__})") from error
    if not (text and text.strip()):
        raise DataError(f"{file.name}: no text is found in this HTML page: save its text as a .txt file")
    return [parse_record({"text": text}, file.name)]


READERS: dict[str, Callable[[File], list[Record]]] = {
    "": _lines,
    ".jsonl": _lines,
    ".json": _rows,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
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


def hub_place(source: str) -> Path | None:
    """Where what is made of a data set belongs, None for a path: in the working folder, under the data set's own name.

    A folder that is called like the owner of a data set would shut it out: its name would be taken for a path.
    """
    found = None if os.path.lexists(source) else _hub_parts(source)
    if found is None:
        return None
    name, *part = found
    place = Path(name) if os.path.isdir(name) else Path(Path(name).name)
    return place.absolute().with_name("-".join([place.name, *filter(None, part)]))


def _is_read(key: str, value: Any) -> bool:
    """Whether a value is part of what a data set says; a number under another tool's key, as a label, is not."""
    return key in KEYS or (key in FOREIGN and isinstance(value, str | list))


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
    refuse_twice(found.column_names, source)
    if not set(KNOWN) & set(found.column_names):
        raise DataError(
            f"{source}: expected columns that make a record ({', '.join(KEYS)}), but found "
            f"{', '.join(map(shown, found.column_names[:20]))}"
        )
    tables = found.with_format("arrow").iter(1000)
    rows = list(arrow_rows(source, tables))
    records = records_of(source, rows)
    digest = rows_digest({key: row[key] for key in found.column_names if _is_read(key, row[key])} for _, row in rows)
    return records, DataFile(path=source, sha256=digest, rows=len(records))
