"""Rows of JSON: one value a line, or one list; with the place of each, for messages.

Python's own decoder takes an object that names a key twice, and numbers that are none (NaN). Here both are refused:
what the first key said would be lost.
"""

import codecs
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from uld.data.files import MAX_LINE_BYTES, File, bounded_lines, decoded_text
from uld.data.text import shown
from uld.errors import DataError

_BLANKS = re.compile(r"[ \t\n\r]*")
_LISTS = "expected one list of records, or JSON lines"


class _UnclearError(ValueError):
    """JSON that Python would read, though it says two things or none."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _UnclearError(f"the key {shown(twice)} stands twice in one object: leave one of them")
    return found


def _constant(name: str) -> Any:
    raise _UnclearError(f"{name} is no JSON: write null where there is no value")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def read_lines(file: File | str | Path) -> list[tuple[int, Any]]:
    """Decode a JSON-lines file.

    Args:
        file: Or its path, where its digest is not wanted.

    Returns:
        Line number (from 1) and value of every line that is not blank.

    Raises:
        DataError: with file and line: missing, unreadable, empty, not UTF-8, not JSON, or a line over 8 MiB.
    """
    file = file if isinstance(file, File) else File(file)
    return list(_values(file.lines(), file.name))


def read_rows(file: File) -> list[tuple[str, Any]]:
    """Decode a JSON file that is one list, or JSON lines.

    Returns:
        Place, for messages, and value of every row.

    Raises:
        DataError: as for `read_lines`; or an empty list.
    """
    data = file.read().removeprefix(codecs.BOM_UTF8)
    if not data.lstrip().startswith(b"["):
        lines = _values(bounded_lines(io.BytesIO(data), file.name), file.name)
        return [(f"{file.name}:{number}", value) for number, value in lines]
    rows = [
        (f"{file.name} record {i}", value) for i, value in enumerate(_items(decoded_text(data, file.name), file), 1)
    ]
    if not rows:
        raise DataError(f"{file.name}: there is no row in it: the list is empty")
    return rows


def json_value(text: str, source: str) -> Any:
    """Decode one JSON value.

    Raises:
        DataError: it is none.
    """
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: {_problem(error)}") from error


def _values(lines: Iterable[tuple[int, bytes]], name: str) -> Iterator[tuple[int, Any]]:
    """Values of lines that are not blank."""
    lines = iter(lines)
    empty = True
    for number, line in lines:
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not line.strip():
            continue
        text = decoded_text(line.rstrip(), f"{name}:{number}")
        try:
            value = _DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            spread = isinstance(error, json.JSONDecodeError) and _spread(text, number, lines)
            raise DataError(f"{name}:{number}: {spread or _problem(error)}") from error
        empty = False
        yield number, value
    if empty:
        raise DataError(f"{name}: the file is empty: expected JSON lines, each one a record")


def _spread(text: str, number: int, rest: Iterator[tuple[int, bytes]]) -> str | None:
    """What to say where a value that begins on a line ends on a later one, as JSON does that was indented."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    several, size = [text], len(text)
    for _, line in rest:
        size += len(line)
        if size > MAX_LINE_BYTES:
            return None
        several.append(line.decode("utf-8", "replace").rstrip("\r\n"))
    whole = "\n".join(several)
    start = len(whole) - len(whole.lstrip())
    try:
        value, end = json.JSONDecoder().raw_decode(whole, start)
    except (ValueError, RecursionError):
        return None
    last = number + whole.count("\n", 0, end)
    if last == number:
        return None
    if isinstance(value, list):
        return f"one list over several lines (to line {last}): a list of records is read from a file named .json"
    return f"one object over several lines (to line {last}): expected each record on one line, or a list of records"


def _items(text: str, file: File) -> Iterator[Any]:
    """The items of one list."""
    at, number = _behind_blanks(text, text.index("[") + 1), 0
    more = text[at : at + 1] != "]"
    while more:
        number += 1
        try:
            value, at = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{file.name}:{error.lineno}: not valid JSON ({error.msg} at column {error.colno}): {_LISTS}"
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file.name} record {number}: {_problem(error)}") from error
        yield value
        at = _behind_blanks(text, at)
        more = text[at : at + 1] == ","
        if more:
            at = _behind_blanks(text, at + 1)
        elif text[at : at + 1] != "]":
            raise DataError(f"{file.name}:{_where(text, at, 'Expecting , or ]')}: {_LISTS}")
    if text[at + 1 :].strip():
        raise DataError(f"{file.name}:{_where(text, _behind_blanks(text, at + 1), 'Extra data')}: {_LISTS}")


def _behind_blanks(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _where(text: str, at: int, what: str) -> str:
    error = json.JSONDecodeError(what, text, at)
    return f"{error.lineno}: not valid JSON ({what} at column {error.colno})"


def _problem(error: Exception) -> str:
    """What is wrong with a piece of JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON ({error.msg} at column {error.colno}): expected one record a line"
    if isinstance(error, _UnclearError):
        return str(error)
    return "this JSON cannot be a record: it holds a number of thousands of digits, or thousands of brackets"
