"""Tables as records: CSV, Parquet, and the Arrow tables of a data set. A row is what the same line of JSON would be."""

import csv
import io
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from uld.data.files import File
from uld.data.formats import CONVERSATIONS, KNOWN, read_row
from uld.data.record import FORMS, Record, describes
from uld.data.rows import json_value
from uld.data.text import says_nothing, shown
from uld.errors import DataError

logger = logging.getLogger(__name__)

_LONGEST_CELL = 2**31 - 1  # the csv module's own limit, 128 KiB, is less than a book
_BATCH = 1000  # rows of a Parquet file that are held at a time


def read_csv(file: File) -> list[Record]:
    """A table with a header; row 1 is the header, as spreadsheets count.

    Raises:
        DataError: with file and row.
    """
    return records_of(file.name, _csv_rows(file, "\t" if file.suffix == ".tsv" else ","))


def _csv_rows(file: File, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    text = file.text()
    if says_nothing(text):
        raise DataError(f"{file.name}: the file is empty")
    before = csv.field_size_limit(_LONGEST_CELL)
    number = 1
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(reader)]
        _check_header(header, file.name, delimiter)
        number = 2
        for cells in reader:
            source = f"{file.name} row {number}"
            if any(cell.strip() for cell in cells) or (cells and len(cells) == len(header)):  # else a blank line
                yield source, _csv_row(header, cells, source)
            number += 1
    except csv.Error as error:
        raise DataError(f"{file.name} row {number}: not valid CSV ({error})") from error
    finally:
        csv.field_size_limit(before)


def _check_header(header: list[str], name: str, delimiter: str) -> None:
    if not any(header):
        raise DataError(f"{name} row 1: the header is empty: write the names of the columns into the first line")
    refuse_twice(_named(header), f"{name} row 1")
    if not set(KNOWN) & set(header):
        found = ", ".join(shown(column) for column in header[:5]) + (", …" if len(header) > 5 else "")
        between = "tabs" if delimiter == "\t" else "commas"
        raise DataError(
            f"{name} row 1: expected a header that names the columns of a record ({FORMS}), with {between} between "
            f"them, but found {found}"
        )


def _named(header: list[str]) -> list[str]:
    """Names of columns; one without a name is called by its place, so that what stands in it is not lost."""
    return [column or f"column {place}" for place, column in enumerate(header, 1)]


def _csv_row(header: list[str], cells: list[str], source: str) -> dict[str, Any]:
    while len(cells) > len(header) and not cells[-1].strip():
        cells = cells[:-1]
    if len(cells) > len(header):
        raise DataError(
            f"{source}: has {len(cells)} cells, but the header has {len(header)}: put quotes around cells that hold "
            "the separator"
        )
    row: dict[str, Any] = dict(zip(_named(header), cells, strict=False))
    if not header[0] and cells[0].strip().isdigit():  # pandas numbers the rows there
        row.pop(_named(header)[0])
    for key in CONVERSATIONS:
        if not says_nothing(row.get(key, "")):
            try:
                row[key] = json_value(row[key], source)
            except DataError as error:
                raise DataError(f"{source}: {key!r} must be a JSON list in a CSV cell") from error
    return row


def read_parquet(file: File) -> list[Record]:
    """A table of Parquet; what is wrong with a value is told with its row.

    Raises:
        DataError: with file and row.
    """
    import pyarrow
    import pyarrow.parquet

    data = file.read()
    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(data))
        refuse_twice(table.schema_arrow.names, file.name)
        return records_of(file.name, arrow_rows(file.name, table.iter_batches(_BATCH)))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = shown((str(error).splitlines() or [type(error).__name__])[0], 160)
        raise DataError(f"{file.name}: not a parquet file that can be read ({reason})") from error


def arrow_rows(name: str, tables: Iterable[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Numbered rows of Arrow tables or batches, from 1.

    Args:
        name: Of the whole, for messages.
        tables: Each with the same columns.
    """
    number = 0
    for table in tables:
        columns = {column: table.column(i) for i, column in enumerate(table.schema.names)}
        for i in range(table.num_rows):
            number += 1
            source = f"{name} row {number}"
            yield source, {column: _value(values[i], column, source) for column, values in columns.items()}


def _value(cell: Any, column: str, source: str) -> Any:
    """A cell as Python has it; Arrow holds bytes that are no text, and dates that Python has not."""
    try:
        return cell.as_py()
    except (ValueError, OverflowError, TypeError) as error:
        if describes(column):
            return None
        what = (
            "text that is not UTF-8"
            if isinstance(error, UnicodeDecodeError)
            else f"a value of {cell.type} out of range"
        )
        raise DataError(f"{source}: {shown(column)} holds {what}") from error


def refuse_twice(columns: list[str], source: str) -> None:
    """Refuse a table that names a column twice.

    Raises:
        DataError: names it.
    """
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise DataError(f"{source}: the column {shown(twice[0])} stands there twice: leave one of them, or rename it")


def records_of(name: str, rows: Iterable[tuple[str, Any]]) -> list[Record]:
    """Rows with their places as records.

    Raises:
        DataError: with the place; or there is none.
    """
    records: list[Record] = []
    left: Counter[str] = Counter()
    for source, row in rows:
        record, beside = read_row(row, source)
        records.append(record)
        left.update(beside)
    if not records:
        raise DataError(f"{name}: there is no row in it")
    if left:
        listed = ", ".join(f"{shown(key)} ({count} rows)" for key, count in sorted(left.items()))
        logger.info("%s: keys that only describe a row are not read: %s", name, listed)
    return records
