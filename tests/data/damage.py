"""Files that are damaged as a whole, beside those with a bad row of `tests.data.generators`."""

import io
import json
import zlib
from collections.abc import Iterator
from random import Random

import pyarrow
import pyarrow.parquet

from tests.data.generators import WORDS, Case, as_csv, as_lines, as_list, qa, rows_with, sentence

TWICE = '{"question": "a", "question": "b", "answer": "c"}'
BAD_JSON = (  # of one record, and what is said of it
    ("{'text': 'x'}", "not valid JSON"),
    ('{"text": "x",}', "not valid JSON"),
    ('{"text": "x"', "not valid JSON"),
    ('{"text" "x"}', "not valid JSON"),
    ('{"text": "a\tb"}', "not valid JSON"),
    ("text", "not valid JSON"),
    ("// a comment", "not valid JSON"),
    ('{"text": NaN}', "NaN is no JSON"),
    ('{"question": "a", "answer": "b", "score": -Infinity}', "-Infinity is no JSON"),
    (TWICE, "the key 'question' stands twice"),
    ('{"messages": [{"role": "user", "role": "assistant", "content": "x"}]}', "the key 'role' stands twice"),
    ('{"text": ' + "9" * 5000 + "}", "this JSON cannot be a record"),
    # more brackets than any Python follows
    ("[" * 20_000, "this JSON cannot be a record"),
    ('{"a":' * 20_000, "this JSON cannot be a record"),
)


def wrong_bytes(rng: Random, text: str) -> tuple[bytes, int, str]:
    """A text with bytes that none has: where, from 1, and what is said of them."""
    data = text.encode()
    at = rng.choice([i for i in range(len(data) + 1) if i == len(data) or data[i] & 0xC0 != 0x80])
    bad, said = rng.choice(
        ((b"\xff", "(0xff) is not UTF-8"), (b"\xe9 ", "(0xe9) is not UTF-8"), (b"\0", "is NUL (0x00)"))
    )
    return data[:at] + bad + data[at:], at + 1, said


def damaged_lines(seed: int, number: int) -> Iterator[Case]:
    """JSON lines with a line that is none."""
    rng = Random(seed)
    for i in range(number):
        rows, _ = rows_with(rng, None)
        good = as_lines(rows, rng).decode().removeprefix("\ufeff").splitlines()
        at = rng.randint(1, len(good) + 1)
        if i % 4 == 0:
            line, place, said = wrong_bytes(rng, '{"text": "plain"}')
            content = b"\n".join(
                [*(one.encode() for one in good[: at - 1]), line, *(one.encode() for one in good[at - 1 :])]
            )
            yield Case("bytes", content, f":{at}: byte {place} ", said)
            continue
        text, said = BAD_JSON[i % len(BAD_JSON)]
        if i % 11 == 1:
            text, said = json.dumps(qa(rng), indent=1), "one object over several lines"
        elif i % 11 == 2:
            text, said = f"{json.dumps(qa(rng))} {json.dumps(qa(rng))}", "not valid JSON (Extra data"
        elif i % 11 == 3:
            text, said, at = json.dumps([qa(rng), qa(rng)], indent=2), "one list over several lines", len(good) + 1
        good.insert(at - 1, text)
        yield Case("a bad line", "\n".join(good).encode(), f":{at}: ", said)
    for content in (b"", b"\n \n", b"\xef\xbb\xbf\r\n"):
        yield Case("empty", content, ": ", "the file is empty")
    for rows in ([qa(rng)], [qa(rng), qa(rng)]):
        yield Case(
            "utf-16", as_lines(rows, rng).decode().removeprefix("\ufeff").encode("utf-16"), ":1: byte 1 ", "UTF-16"
        )
        yield Case("cut off", as_lines(rows, rng).rstrip()[:-2], f":{len(rows)}: ", "not valid JSON")


def damaged_lists(seed: int, number: int) -> Iterator[Case]:
    """JSON lists that are none, or hold an item that is none."""
    rng = Random(seed)
    for i in range(number):
        rows, _ = rows_with(rng, None)
        at = rng.randint(1, len(rows) + 1)
        items = [json.dumps(row) for row in rows]
        text, said = BAD_JSON[i % len(BAD_JSON)]
        if said == "not valid JSON":  # each item begins a line, so that the line tells which
            content = "[" + ",\n".join([*items[: at - 1], text, *items[at - 1 :]]) + "\n]"
            last = at == len(items) + 1 and text == '{"text": "x"'
            yield Case(
                "a bad item",
                content.encode(),
                f":{at + 1 if last or (text.endswith(chr(34) + 'x' + chr(34))) else at}: ",
                said,
            )
        else:
            content = "[" + rng.choice((", ", ",\n\n")).join([*items[: at - 1], text, *items[at - 1 :]]) + "]"
            yield Case("an unclear item", content.encode(), f" record {at}: ", said)
    for i in range(number // 3):
        rows, _ = rows_with(rng, None)
        good = as_list(rows, rng).decode()
        data, place, said = wrong_bytes(rng, "[" + good[1:])
        ends = {
            "bytes": (data, f": byte {place} ", said),
            "no end": (good[:-1].encode(), ":", "not valid JSON"),
            "more": (f"{good} {{}}".encode(), ":", "not valid JSON (Extra data"),
            "a comma": (f"{good[:-1]},]".encode(), ":", "not valid JSON"),
            "no comma": (json.dumps([qa(rng), qa(rng)]).replace("}, {", "} {").encode(), ":1: ", "not valid JSON"),
            "nothing": (rng.choice((b"[]", b" [ ]\n")), ": ", "there is no row in it"),
        }
        what = list(ends)[i % len(ends)]
        if what != "bytes" or data[:1] == b"[":
            yield Case(what, *ends[what])


def damaged_csv(seed: int, number: int) -> Iterator[Case]:
    """CSV files whose header or cells cannot be told apart."""
    rng = Random(seed)
    for i in range(number):
        rows = [qa(rng) for _ in range(rng.randint(1, 4))]
        lines = [",".join(f'"{cell}"' for cell in row.values()) for row in rows]
        at = rng.randint(0, len(lines))
        words = sentence(rng, 2).replace(",", "")
        data, place, said = wrong_bytes(rng, "question,answer\n" + "\n".join(lines))
        kinds: dict[str, tuple[bytes | str, str, str]] = {
            "more cells": ([f"{words},{words},so", f" row {at + 2}: ", "has 3 cells, but the header has 2"]),  # type: ignore[dict-item]
            "no header": ("\n".join(lines), " row 1: ", "expected a header"),
            "other header": ("\n".join(["Question,Answer", *lines]), " row 1: ", "expected a header"),
            "semicolons": ("\n".join(["question;answer", *lines]), " row 1: ", "expected a header"),
            "a column twice": (
                "\n".join(["question,answer,answer", *lines]),
                " row 1: ",
                "'answer' stands there twice",
            ),
            "empty header": ("\n".join([" , ", *lines]), " row 1: ", "the header is empty"),
            "a column without a name": (f'question,answer,\n"{words}","b","lost words"\n', " row 2: ", "'column 3'"),
            "an open quote": (
                "\n".join(["question,answer", *lines, f'"{words},b']),
                f" row {len(lines) + 2}: ",
                "not valid CSV",
            ),
            "a quote inside": ("\n".join(["question,answer", f'"a"b,{words}', *lines]), " row 2: ", "not valid CSV"),
            "no rows": (f"question,answer\n{' ' * (i % 2)}\n", ": ", "there is no row in it"),
            "bytes": (data, f": byte {place} ", said),
            "utf-16": ("question,answer\na,b".encode(rng.choice(("utf-16", "utf-16-le"))), ": byte ", "UTF-16"),
            "messages": (f"messages\n{words}\n", " row 2: ", "'messages' must be a JSON list"),
            "a short row": (
                "\n".join(["question,answer", *lines, words]),
                f" row {len(lines) + 2}: ",
                "has 'question' but no",
            ),
            "empty": (rng.choice(("", "\n\n", "\ufeff")), ": ", "the file is empty"),
        }
        what = list(kinds)[i % len(kinds)]
        content, where, says = kinds[what]
        if what == "more cells":
            content = "\n".join(["question,answer", *lines[:at], str(content), *lines[at:]])
        yield Case(what, content if isinstance(content, bytes) else content.encode(), where, says)


def _parquet(table: pyarrow.Table) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out)
    return out.getvalue()


def _not_utf8(rng: Random, rows: int, bad: int) -> pyarrow.Array:
    """A column of texts, one of which is bytes that are none, as only Arrow can hold them."""
    cells = [b"caf\xe9" if i == bad else sentence(rng).encode() for i in range(rows)]
    ends = [sum(map(len, cells[:i])) for i in range(rows + 1)]
    offsets = pyarrow.py_buffer(b"".join(end.to_bytes(4, "little") for end in ends))
    return pyarrow.Array.from_buffers(pyarrow.string(), rows, [None, offsets, pyarrow.py_buffer(b"".join(cells))])


def damaged_parquet(seed: int, number: int) -> Iterator[Case]:
    """Parquet files that are cut, of other types, or hold what Python cannot."""
    rng = Random(seed)
    for i in range(number):
        rows = rng.randint(1, 5)
        bad = rng.randrange(rows)
        texts = [sentence(rng) for _ in range(rows)]
        whole = _parquet(pyarrow.table({"text": texts}))
        dates = pyarrow.array([2**62 if k == bad else None for k in range(rows)], pyarrow.timestamp("us"))
        place = f" row {bad + 1}: "
        kinds = {
            "cut": (whole[: rng.randrange(len(whole))], ": ", ""),
            "front": (whole[rng.randint(1, 8) :], ": ", ""),
            "bytes": (
                _parquet(pyarrow.table({"text": _not_utf8(rng, rows, bad)})),
                place,
                "'text' holds text that is not",
            ),
            "dates": (_parquet(pyarrow.table({"question": texts, "answer": dates})), " row 1: ", ""),
            "lost dates": (
                _parquet(pyarrow.table({"text": texts, "born": dates})),
                place,
                "'born' holds a value of timestamp",
            ),
            "numbers": (
                _parquet(pyarrow.table({"text": list(range(rows))})),
                " row 1: ",
                "'text' must be a string, not int",
            ),
            "blobs": (
                _parquet(pyarrow.table({"text": [b"x"] * rows})),
                " row 1: ",
                "'text' must be a string, not bytes",
            ),
            "lists": (
                _parquet(pyarrow.table({"text": [["x"]] * rows})),
                " row 1: ",
                "'text' must be a string, not list",
            ),
            "other": (_parquet(pyarrow.table({"content": texts})), " row 1: ", "found the keys 'content'"),
            "twice": (
                _parquet(pyarrow.Table.from_arrays([pyarrow.array(texts)] * 2, names=["text", "text"])),
                *(": ", "the column 'text' stands there twice"),
            ),
            "none": (
                _parquet(pyarrow.table({"text": pyarrow.array([], pyarrow.string())})),
                ": ",
                "there is no row in it",
            ),
            "csv": (as_csv([qa(rng)], rng), ": ", "not a parquet file"),
        }
        what = list(kinds)[i % len(kinds)]
        if what != "dates" or bad == 0:
            yield Case(what, *kinds[what])


def damaged_texts(seed: int, number: int) -> Iterator[Case]:
    """Texts that are none, and texts that are read as they stand."""
    rng = Random(seed)
    silent = "\u200b\u2060\ufeff\x01\x02\x1b \t\n\r\u00a0\u3000\u2028\u0301\u3164\ue000"
    for i in range(number):
        plain = "\n".join(sentence(rng) for _ in range(rng.randint(1, 9)))
        data, place, said = wrong_bytes(rng, plain)
        kinds = {
            "bytes": (data, f": byte {place} ", said),
            "utf-16": (plain.encode(rng.choice(("utf-16", "utf-32"))), ": byte 1 ", "is not UTF-8"),
            "utf-16-le": ("plain words".encode(rng.choice(("utf-16-le", "utf-16-be"))), ": byte ", "is NUL"),
            "silent": ("".join(rng.choices(silent, k=rng.randint(1, 40))).encode(), ": ", "is empty"),
            "lines": (as_lines([qa(rng), qa(rng)], rng), ": ", "holds JSON"),
            "list": (as_list([qa(rng)], rng), ": ", "holds JSON"),
            "nul": (b"\0" * rng.randint(1, 99), ": byte 1 ", "is NUL"),
        }
        what = list(kinds)[i % len(kinds)]
        yield Case(what, *kinds[what])
    for i in range(number // 5):
        plain = rng.choice(("\n", "\r\n", "\n\n")).join(sentence(rng) for _ in range(rng.randint(1, 9)))
        text = (
            rng.choice(("", "[1] ", "{x} ", "# ", "  ", "\x0c", "< b > ", "GIF8 is ", "BZh "))
            + plain
            + rng.choice(("", "\n", "\u200b"))
        )
        yield Case("a text", (b"\xef\xbb\xbf" * (i % 2)) + text.encode(), records=(((), None, None, text, None),))


def damaged_pages(seed: int, number: int) -> Iterator[Case]:
    """HTML without a text, and pages whose paragraphs are read."""
    rng = Random(seed)
    for i in range(number):
        inside = rng.choice(
            ("", "<img src='%d.png'>", "<script>let a = %d</script>", "<style>p {left: %dpx}</style>", " \n")
        )
        body = inside % rng.getrandbits(20) if "%" in inside else inside
        shell = (
            "<html><body>{}</body></html>",
            "<!DOCTYPE html><html><head></head><body>{}</body></html>",
            "{}",
            "<html>{}",
        )
        yield Case("no text", shell[i % 4].format(body).encode(), ": ", "no text is found in this HTML page")


def pdf(*pages: str) -> bytes:
    """A PDF by hand: a page for each text, an empty one for none."""
    count = len(pages)
    bodies = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {count} /Kids [{' '.join(f'{4 + 2 * i} 0 R' for i in range(count))}] >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET" if text else ""
        bodies += [
            f"<< /Type /Page /Parent 2 0 R /Contents {5 + 2 * i} 0 R /MediaBox [0 0 600 800] "
            "/Resources << /Font << /F1 3 0 R >> >> >>",
            f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        ]
    out, places = "%PDF-1.4\n", []
    for number, body in enumerate(bodies, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size = len(bodies) + 1
    out += f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n"
    return f"{out}{out.index('xref')}\n%%EOF\n".encode()


def damaged_pdfs(seed: int, number: int) -> Iterator[Case]:
    """PDFs that are cut off, hold no text, or are none; and whole ones."""
    rng = Random(seed)
    plain = [word for word in WORDS if word.isascii() and word.isalnum()]
    for i in range(number):
        pages = [" ".join(rng.choices(plain, k=4)) for _ in range(rng.randint(1, 4))]
        whole = pdf(*pages)
        kinds = {
            "cut off": (whole[: rng.randrange(9, len(whole) - 6)], ": ", "is cut off"),
            "no text": (pdf(*[""] * rng.randint(1, 4)), ": ", "the PDF holds no text"),
            "none": (sentence(rng).encode(), ": ", "not a PDF that can be read"),
            "noise": (zlib.compress(rng.randbytes(90)), ": ", "not a PDF that can be read"),
            "no pages": (b"%PDF-1.4\n" + sentence(rng).encode() + b"\n%%EOF\n", ": ", "not a PDF that can be read"),
        }
        what = list(kinds)[i % len(kinds)]
        yield Case(what, *kinds[what])
        if i % 10 == 0:
            yield Case("whole", whole, records=(((), None, None, "\n\n".join(pages), None),))
