"""Inputs for the readers, good and bad, each with what is right: refused at a place, or exactly these records.

Rows are made first and then written in a format, so that one list of faults tries every format by the same rule. Every
generator gives the same cases for the same seed.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import pyarrow
import pyarrow.parquet

from uld.data.record import Record

Row = dict[str, Any]
WORDS = (
    "Mara",
    "keeps",
    "the",
    "lighthouse",
    "Skerrin",
    "café",
    "naïve",
    "東京",
    "1984",
    "sea?",
    "“w”,",
    "Ω",
    "it's—old",
)


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        what: A name of the fault, for messages.
        content: Of the file.
        place: What a refusal must name behind the file, such as ``:3: ``; None where it must be read.
        said: What else the refusal must say.
        records: What must be read.
    """

    what: str
    content: bytes
    place: str | None = None
    said: str = ""
    records: tuple[Any, ...] = ()


def says(record: Record) -> tuple[Any, ...]:
    """Everything of a record but its place."""
    return record.messages, record.prompt, record.completion, record.text, record.alternative


def expected(row: Row) -> tuple[Any, ...]:
    """The same of a good row, without the package."""
    full = {key: value for key, value in row.items() if value not in (None, "")}
    other = full.get("alternative")
    if "messages" in full:
        return tuple((m["role"], m["content"]) for m in full["messages"]), None, None, None, other
    if "question" in full:
        return (("user", full["question"]), ("assistant", full["answer"])), None, None, None, other
    return (), full.get("prompt"), full.get("completion"), full.get("text"), other


def sentence(rng: Random, least: int = 1) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(least, 6)))


def qa(rng: Random) -> Row:
    return {"question": sentence(rng), "answer": sentence(rng)}


def pair(rng: Random) -> Row:
    return {"prompt": sentence(rng), "completion": f" {sentence(rng)}"}


def whole(rng: Random) -> Row:
    return {"text": "\n".join(sentence(rng) for _ in range(rng.randint(1, 3)))}


def talk(rng: Random) -> Row:
    turns = [{"role": role, "content": sentence(rng)} for role in ("user", "assistant") * rng.randint(1, 2)]
    return {"messages": [{"role": "system", "content": "Be brief."}, *turns] if rng.random() < 0.3 else turns}


KINDS = (qa, pair, whole, talk)
NOTHING = ("", " ", " \n\t", "\u200b\u2060", "\x01\x02", "\u00a0\ufeff", "\u0301", "\u3164 \u200d", "\ue000")
LOST = (
    *("labels", "label", "gt", "context", "rationale", "response", "output", "input", "title", "summary", "target"),
    *(
        "option1",
        "paraphrased_answer",
        "hint",
        "chosen",
        "system",
        "Answer",
        "TEXT",
        "answers",
        "subject",
        "explanation",
    ),
)


def _with(kind: Callable[[Random], Row], change: Callable[[Row, Random], Any]) -> Callable[[Random], Any]:
    def make(rng: Random) -> Any:
        row = kind(rng)
        changed = change(row, rng)
        return row if changed is None else changed

    return make


def _turn(change: Callable[[Row], Any]) -> Callable[[Row, Random], None]:
    """Change the last message."""
    return lambda row, rng: change(row["messages"][-1])


Fault = tuple[str, Callable[[Random], Any], str]
"""Name, a bad row, and what the refusal says."""

FLAT: list[Fault] = [  # of texts alone: every format can write these rows
    *[
        (f"no {gone}", _with(kind, lambda row, rng, gone=gone: row.pop(gone) and None), f"'{gone}'")
        for kind, gone in ((qa, "answer"), (qa, "question"), (pair, "prompt"), (pair, "completion"))
    ],
    *[
        (
            f"{key} is {nothing!r}",
            _with(kind, lambda row, rng, k=key, n=nothing: row.update({k: n})),
            f"'{key}'",
        )
        for kind, key in ((qa, "answer"), (qa, "question"), (pair, "completion"), (whole, "text"))
        for nothing in (*NOTHING, None)
    ],
    *[
        (f"unread {key}", _with(kind, lambda row, rng, key=key: row.update({key: sentence(rng) + " so"})), f"'{key}'")
        for key in LOST
        for kind in KINDS
        if (key, kind) != ("labels", whole)  # a question and its answer, as KnowUnDo writes them
    ],
    ("a number beside a text", _with(whole, lambda row, rng: row.update({"label": "3"})), "'label'"),
    ("a passage as source", _with(qa, lambda row, rng: row.update({"source": sentence(rng) * 90})), "'source'"),
    ("lines as source", _with(whole, lambda row, rng: row.update({"source": "one\ntwo"})), "'source'"),
    ("two forms", _with(qa, lambda row, rng: row.update(whole(rng))), "'question' and 'text'"),
    ("two pairs", _with(qa, lambda row, rng: row.update(pair(rng))), "'question' and 'prompt'"),
    (
        "half of two",
        lambda rng: {"question": sentence(rng), "completion": sentence(rng)},
        "'question' and 'completion'",
    ),
    ("an alternative to a text", _with(whole, lambda row, rng: row.update({"alternative": "x"})), "'alternative'"),
    ("other names", lambda rng: {"instruct": sentence(rng), "reply": sentence(rng)}, ""),
]

NESTED: list[Fault] = [  # with lists and objects: of all formats but CSV
    ("a list that is not read", _with(qa, lambda row, rng: row.update({"options": [sentence(rng)]})), "'options'"),
    ("a label list", _with(whole, lambda row, rng: row.update({"labels": [1, 2]})), "'labels'"),
    ("tools", _with(talk, lambda row, rng: row.update({"tools": [{"name": "f"}]})), "'tools'"),
    ("another role", _with(talk, _turn(lambda m: m.update(role="gpt"))), "one of system, user, assistant"),
    ("no role", _with(talk, _turn(lambda m: m.update(role=None))), "one of system, user, assistant"),
    ("no content", _with(talk, _turn(lambda m: m.update(content=None))), "'content'"),
    ("blank content", _with(talk, _turn(lambda m: m.update(content=" \u200b"))), "'content' is empty"),
    ("a name", _with(talk, _turn(lambda m: m.update(name="Mara"))), "'name'"),
    ("a call", _with(talk, _turn(lambda m: m.update(tool_calls=[{"f": "x"}]))), "'tool_calls'"),
    ("weight 0", _with(talk, _turn(lambda m: m.update(weight=0))), "'weight' 0"),
    ("ends in a question", _with(talk, lambda row, rng: row["messages"].append(dict(USER))), "ends in a user turn"),
    ("nobody answers", lambda rng: {"messages": [dict(USER)]}, "no assistant turn"),
    ("no message", lambda rng: {"messages": []}, "no assistant turn"),
]

USER = {"role": "user", "content": "And then?"}

UNTYPED: list[Fault] = [  # of JSON alone, where any value may stand anywhere
    *[
        (
            f"{key} is a {type(value).__name__}",
            _with(kind, lambda row, rng, k=key, v=value: row.update({k: v})),
            f"'{key}'",
        )
        for kind, key in ((qa, "answer"), (pair, "prompt"), (whole, "text"), (qa, "alternative"))
        for value in (3, 2.5, True, ["x"], {"a": "b"})
    ],
    *[
        (f"{value!r} as a row", lambda rng, value=value: value, "expected a JSON object")
        for value in ([], "x", 3, None)
    ],
    ("an empty object", lambda rng: {}, "found the keys none"),
    ("messages of texts", lambda rng: {"messages": [sentence(rng)]}, "'messages' must be a list"),
    ("messages as a text", lambda rng: {"messages": sentence(rng)}, "'messages' must be a list"),
    ("a picture", _with(talk, _turn(lambda m: m.update(content=[{"type": "image_url"}]))), "'content'"),
    ("NUL in a text", _with(whole, lambda row, rng: row.update(text="a\0b")), "'text' holds NUL"),
    ("NUL alone", _with(qa, lambda row, rng: row.update(answer="\0\0")), "'answer' holds NUL"),
    (
        "half a surrogate",
        _with(qa, lambda row, rng: row.update(answer="a\ud83d")),
        "'answer' holds half of a surrogate",
    ),
    ("a nested label", _with(whole, lambda row, rng: row.update(extra={"a": {"b": ["deep text"]}})), "'extra'"),
]

HARMLESS: list[Callable[[Row, Random], Any]] = [  # every format reads the row as if nothing had happened
    lambda row, rng: None,
    lambda row, rng: row.update({"id": f"row-{rng.random()}", "url": "https://example.org/a?b=c"}),
    lambda row, rng: row.update(dict.fromkeys(("question", "answer", "text", "prompt", "hint"), None) | row),
    lambda row, rng: row.update({"labels": "", "context": None}),
    lambda row, rng: row.update({"doc_id": "x-1", "metadata": "whatever\nstands here " * 40}),
]


def rows_with(rng: Random, bad: Callable[[Random], Any] | None) -> tuple[list[Any], int]:
    """A few good rows, and the place from 1 of the bad one among them."""
    rows: list[Any] = [rng.choice(KINDS)(rng) for _ in range(rng.randint(1, 4))]
    place = rng.randint(1, len(rows) + 1)
    if bad is not None:
        rows.insert(place - 1, bad(rng))
    return rows, place


def table_cases(
    write: Callable[[list[Any], Random], bytes],
    place: Callable[[int], str],
    faults: list[Fault],
    seed: int,
    number: int,
) -> Iterator[Case]:
    """Files with one bad row each, every fault in turn, and files with none."""
    rng = Random(seed)
    for i in range(number):
        what, bad, said = faults[i % len(faults)]
        rows, at = rows_with(rng, bad)
        yield Case(what, write(rows, rng), place(at), said)
    for i in range(number // 6):
        rows, _ = rows_with(rng, None)
        for row in rows:
            HARMLESS[i % len(HARMLESS)](row, rng)
        yield Case(f"harmless {i % len(HARMLESS)}", write(rows, rng), records=tuple(map(expected, rows)))


def as_lines(rows: list[Any], rng: Random) -> bytes:
    end = rng.choice(("\n", "\r\n"))
    text = "".join(
        json.dumps(row, ensure_ascii=rng.random() < 0.5 or "\\ud83d" in json.dumps(row)) + end for row in rows
    )
    return (b"\xef\xbb\xbf" if rng.random() < 0.2 else b"") + text.encode()


def as_list(rows: list[Any], rng: Random) -> bytes:
    return json.dumps(rows, indent=rng.choice((None, 1, "\t")), separators=rng.choice((None, (",", ":")))).encode()


def as_csv(rows: list[Any], rng: Random) -> bytes:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO(newline="")
    writer = csv.writer(
        out, quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)), lineterminator=rng.choice(("\n", "\r\n"))
    )
    writer.writerow(columns)
    for row in rows:
        cells = [row.get(column) for column in columns]
        writer.writerow([json.dumps(cell) if isinstance(cell, list) else cell for cell in cells])
    return (b"\xef\xbb\xbf" if rng.random() < 0.2 else b"") + out.getvalue().encode()


def as_parquet(rows: list[Any], rng: Random) -> bytes:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = pyarrow.table({column: pyarrow.array([row.get(column) for row in rows]) for column in columns})
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out, row_group_size=rng.choice((1, 2, 100)))
    return out.getvalue()


POINTERS = (
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:%064x\nsize 12\n", "a pointer of Git LFS"),
    (b"/annex/objects/SHA256E-s12--%064x.txt\n", "a pointer of git-annex"),
    (b"../../.git/annex/objects/aa/bb/MD5-s1--%032x", "a pointer of git-annex"),
)
PAGES = (
    b"<!DOCTYPE html><html><body><h1>404 Not Found %d</h1></body></html>",
    b"\n  <html lang='en'><head><title>Sign in %d</title></head></html>",
    b"<!-- cached %d --><!-- by us -->\n<!doctype HTML>\n<p>Rate limit</p>",
    b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code><RequestId>%d</RequestId></Error>',
)
ARCHIVES = (
    *((b"PK\x03\x04", "zip"), (b"\x1f\x8b\x08", "gzip"), (b"BZh91AY&SY", "bzip2"), (b"\xfd7zXZ\x00", "xz")),
    *(
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"Rar!\x1a\x07\x01", "RAR"),
        (b"{\\rtf1\\ansi ", "Rich"),
    ),
    *((b"SQLite format 3\x00", "SQLite"), (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Word"), (b"\x89PNG\r\n", "image")),
    *(
        (b"%!PS-Adobe-3.0\n", "PostScript"),
        (b"ARROW1\0\0", "Arrow"),
        (b"a.txt".ljust(257, b"\0") + b"ustar\x0000", "tar"),
    ),
)


def impostors(rng: Random, number: int, *own: bytes) -> Iterator[Case]:
    """What only bears the name of a document: pointers, error pages, archives.

    Args:
        rng: Decides the bytes.
        number: How many.
        own: Signs of what the reader reads.
    """
    kinds: list[tuple[bytes, str, bool]] = [(body, said, False) for body, said in POINTERS]
    kinds += [(body, "is an HTML page", False) for body in PAGES if b"<" not in own]
    kinds += [
        (sign, said, True) for sign, said in (*ARCHIVES, (b"%PDF-1.7", "PDF"), (b"PAR1", "Parquet")) if sign not in own
    ]
    for i in range(number):
        body, said, binary = kinds[i % len(kinds)]
        content = (
            body + rng.randbytes(rng.randint(0, 400))
            if binary
            else body % rng.getrandbits(60)
            if b"%" in body
            else body
        )
        yield Case(f"impostor: {said}", content, ": ", said)
