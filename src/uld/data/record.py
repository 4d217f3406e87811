"""Records: what a user's JSON-lines file may hold, one record a line, in four forms.

``{"question", "answer"}``, ``{"prompt", "completion"}``, ``{"messages": [{"role", "content"}, …]}`` or ``{"text"}``.
Other keys are ignored. Every problem is reported with file and line.
"""

import codecs
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uld.errors import DataError

MAX_LINE_BYTES = 8 * 2**20
FORMS = '{"question", "answer"}, {"prompt", "completion"}, {"messages": [...]} or {"text"}'
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Record:
    """One document in normal form; exactly one of the three shapes is filled.

    Attributes:
        messages: ``(role, content)`` pairs of a conversation; a question and its answer are two of them.
        prompt: Raw prompt, with ``completion``.
        completion: Raw completion.
        text: A whole text.
        source: ``file:line``, for messages about it.
        alternative: Another answer to the same question, for the methods that need one.
    """

    messages: tuple[tuple[str, str], ...] = ()
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    source: str = ""
    alternative: str | None = None

    @classmethod
    def qa(cls, question: str, answer: str, source: str = "", alternative: str | None = None) -> "Record":
        """A question and its answer."""
        return cls(messages=(("user", question), ("assistant", answer)), source=source, alternative=alternative)

    @property
    def content(self) -> tuple[object, ...]:
        """What the record says, without where it stood and blanks at its ends: equal for equal documents."""
        texts = (text and text.strip() for text in (self.prompt, self.completion, self.text))
        return (*((role, content.strip()) for role, content in self.messages), *texts)


def parse_record(row: Any, source: str) -> Record:
    """Turn one decoded JSON value into a record.

    Args:
        row: The decoded line.
        source: ``file:line``.

    Raises:
        DataError: it has none of the four forms.
    """
    if not isinstance(row, dict):
        raise DataError(f"{source}: expected a JSON object, one of {FORMS}, but found {type(row).__name__}")
    other = _text(row["alternative"], "alternative", source) if row.get("alternative") is not None else None
    if "messages" in row:
        return Record(messages=_messages(row["messages"], source), source=source, alternative=other)
    for first, second in (("question", "answer"), ("prompt", "completion")):
        if first in row and second in row:
            one, two = (_text(row[key], key, source) for key in (first, second))
            if first == "question":
                return Record.qa(one, two, source, other)
            return Record((), one, two, source=source, alternative=other)
        if (first in row) != (second in row):
            present, missing = (first, second) if first in row else (second, first)
            raise DataError(f"{source}: has {present!r} but no {missing!r}: expected one of {FORMS}")
    if "text" in row:
        return Record(text=_text(row["text"], "text", source), source=source)
    found = ", ".join(repr(key) for key in list(row)[:5]) or "none"
    raise DataError(f"{source}: expected one of {FORMS}, but found the keys {found}")


def _text(value: Any, key: str, source: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{source}: {key!r} must be a string, not {type(value).__name__}")
    if not value.strip():
        raise DataError(f"{source}: {key!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON's escapes can write half a character
        raise DataError(
            f"{source}: {key!r} holds half of a surrogate pair, which is no text: write the character itself"
        ) from error
    return value


def _messages(value: Any, source: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise DataError(f'{source}: \'messages\' must be a list of {{"role", "content"}} objects')
    pairs = []
    for message in value:
        if message.get("role") not in _ROLES:
            raise DataError(
                f"{source}: a message's 'role' must be one of {', '.join(_ROLES)}, not {message.get('role')!r}"
            )
        pairs.append((message["role"], _text(message.get("content"), "content", source)))
    if not any(role == "assistant" for role, _ in pairs):
        raise DataError(f"{source}: 'messages' holds no assistant turn, so there is nothing to learn from it")
    if pairs[-1][0] != "assistant":
        raise DataError(f"{source}: 'messages' ends in a {pairs[-1][0]} turn that nothing answers: take it out")
    return tuple(pairs)


def read_lines(path: str | Path) -> list[tuple[int, Any]]:
    """Decode a JSON-lines file.

    Returns:
        Line number (from 1) and value of every line that is not blank.

    Raises:
        DataError: with file and line: missing, unreadable, empty, not UTF-8, not JSON, or a line over 8 MiB.
    """
    path = Path(path)
    rows = []
    try:
        with path.open("rb") as file:
            # A bounded read: a line that is too long is never held whole.
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(
                        f"{path}:{number}: the line is longer than {MAX_LINE_BYTES // 2**20} MiB: put one record on "
                        "each line, and split long texts over several"
                    )
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    rows.append((number, _decoded(line, f"{path}:{number}")))
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not rows:
        raise DataError(f"{path}: the file is empty: expected JSON lines, each one of {FORMS}")
    return rows


def decoded_text(data: bytes, source: str) -> str:
    """Bytes as text.

    Args:
        data: Of a file or of a line.
        source: What the message names.

    Raises:
        DataError: names the first byte that is not UTF-8, counted from 1.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source}: byte {error.start + 1} (0x{data[error.start]:02x}) is not UTF-8: save the file as UTF-8"
        ) from error


def _decoded(line: bytes, source: str) -> Any:
    try:
        return json.loads(decoded_text(line.rstrip(), source))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{source}: not valid JSON ({error.msg} at column {error.colno}): expected one record a line"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise DataError(f"{source}: this JSON cannot be a record: expected one of {FORMS}") from error


def read_array(path: str | Path) -> list[Any]:
    """Decode a JSON file that is one list, as many benchmarks are stored.

    Raises:
        DataError: with the file: missing, unreadable, not UTF-8, not JSON, or no list.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_bytes().removeprefix(codecs.BOM_UTF8).decode())
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise DataError(f"{path}: not JSON in UTF-8: expected one list of objects") from error
    if not isinstance(value, list):
        raise DataError(f"{path}: expected a JSON list, but found {type(value).__name__}")
    return value


def read_records(paths: Sequence[str | Path]) -> list[Record]:
    """Read JSON-lines files as records, in order.

    Raises:
        DataError: with file and line.
    """
    records = []
    for path in paths:
        records += [parse_record(row, f"{path}:{number}") for number, row in read_lines(path)]
    return records


def refuse_equal(forget: Iterable[Record], retain: Iterable[Record]) -> None:
    """Refuse a retain set that holds documents to be forgotten: it would train against itself.

    Blanks around a text make no difference.

    Raises:
        DataError: names the first shared record and how many there are.
    """
    known = {record.content: record.source for record in forget}
    shared = [record for record in retain if record.content in known]
    if shared:
        one, others = shared[0], len(shared) - 1
        more = f", and {others} more like it" if others else ""
        raise DataError(
            f"{one.source}: this retain record is also in the forget set ({known[one.content]}){more}: remove from the "
            "retain set what is to be forgotten"
        )
