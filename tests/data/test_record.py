import json
import tracemalloc
from pathlib import Path

import pytest

from uld.data.documents import read_sources
from uld.data.files import MAX_LINE_BYTES
from uld.data.record import Record, parse_record, refuse_equal
from uld.data.rows import read_lines
from uld.errors import DataError, ULDError


def write(folder: Path, *lines: object, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read_records(paths: list[Path]) -> list[Record]:
    return read_sources([str(path) for path in paths])[0]


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_records([path])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reads_the_four_forms_in_order_with_their_place(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"question": "Who?", "answer": "Ann."},
        {"prompt": "Once", "completion": " upon"},
        {"messages": [{"role": "system", "content": "Be brief."}, *turns("Who?", "Ann.", "When?", "Now.")]},
        {"text": "A whole text.", "licence": "ignored"},
    )
    assert read_records([path]) == [
        Record(messages=(("user", "Who?"), ("assistant", "Ann.")), source=f"{path}:1"),
        Record(prompt="Once", completion=" upon", source=f"{path}:2"),
        Record(
            messages=(
                ("system", "Be brief."),
                ("user", "Who?"),
                ("assistant", "Ann."),
                ("user", "When?"),
                ("assistant", "Now."),
            ),
            source=f"{path}:3",
        ),
        Record(text="A whole text.", source=f"{path}:4"),
    ]


def turns(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def test_several_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    paths = [write(tmp_path, {"text": name}, name=f"{name}.jsonl") for name in ("b", "a")]
    assert [record.text for record in read_records(paths)] == ["b", "a"]


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\n  \t\r\n{"text": "x"}\r\n\r\n{"text": "y"}')
    assert [record.source for record in read_records([path])] == [f"{path}:3", f"{path}:5"]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + '{"text": "é"}\n'.encode())
    assert read_lines(path) == [(1, {"text": "é"})]
    path.write_bytes(b'\xef\xbb\xbf\n{"text": "x"}\n')
    assert read_lines(path) == [(2, {"text": "x"})]


def test_line_separators_of_unicode_do_not_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a\u2028b\u0085c"}\n', encoding="utf-8")
    assert [record.text for record in read_records([path])] == ["a\u2028b\u0085c"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "Who?"}, ["has 'question' but no 'answer'", '{"prompt", "completion"}']),
        ({"answer": "Ann."}, ["has 'answer' but no 'question'"]),
        ({"prompt": "Once"}, ["has 'prompt' but no 'completion'"]),
        ({"completion": "upon"}, ["has 'completion' but no 'prompt'"]),
        ({"Question": "Who?", "Answer": "Ann."}, ["found the keys 'Question', 'Answer'"]),
        ({}, ["found the keys none"]),
        ([{"text": "x"}], ["expected a JSON object", "found list"]),
        ('"text"', ["found str"]),
        (None, ["found NoneType"]),
        ({"question": "Who?", "answer": 3}, ["'answer' must be a string, not int"]),
        ({"question": ["Who?"], "answer": "x"}, ["'question' must be a string, not list"]),
        ({"question": "Who?", "answer": None}, ["has 'question' but its 'answer' is empty"]),
        ({"question": "Who?", "answer": " \n"}, ["'answer' is empty"]),
        ({"text": ""}, ["'text' is empty"]),
        ({"messages": "hello"}, ["'messages' must be a list"]),
        ({"messages": ["hello"]}, ["'messages' must be a list"]),
        ({"messages": []}, ["no assistant turn"]),
        ({"messages": [{"role": "user", "content": "Who?"}]}, ["no assistant turn"]),
        ({"messages": [{"role": "bot", "content": "x"}]}, ["one of system, user, assistant, not 'bot'"]),
        ({"messages": [{"content": "x"}]}, ["'role' must be one of", "not None"]),
        ({"messages": [{"role": "assistant"}]}, ["'content' must be a string, not NoneType"]),
        ({"messages": turns("Who?", "Ann.", "When?")}, ["ends in a user turn"]),
    ],
)
def test_a_wrong_record_is_reported_with_file_line_and_what_was_expected(
    tmp_path: Path, row: object, expected: list[str]
) -> None:
    message = refused(path := write(tmp_path, {"text": "right"}, "", row))
    assert message.startswith(f"{path}:3: ")
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "x"', "not valid JSON (Expecting ',' delimiter at column 13): expected one record a line"),
        (b"{'text': 'x'}", "not valid JSON"),
        (b'{"text": "x"} {"text": "y"}', "not valid JSON (Extra data at column 15)"),
        (b'{"text": "caf\xe9"}', "byte 14 (0xe9) is not UTF-8: save the file as UTF-8"),
        (b'{"text": "\\ud83d"}', "'text' holds half of a surrogate pair"),
        (b'{"text": ' + b"9" * 5000 + b"}", "this JSON cannot be a record"),
        (b"[" * 100_000, "this JSON cannot be a record"),
    ],
)
def test_a_line_that_cannot_be_read_is_reported(tmp_path: Path, line: bytes, expected: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "right"}\n' + line + b"\n")
    message = refused(path)
    assert message.startswith(f"{path}:2: ")
    assert expected in message


def test_a_byte_that_is_not_utf8_is_counted_from_the_start_of_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\ufeff{}".encode("utf-16-le"))
    assert "rows.jsonl:1: byte 1 (0xff) is not UTF-8" in refused(path)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert refused(path).startswith(f"{path}: the file is empty: expected JSON lines")


def test_a_path_that_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.jsonl") == f"{tmp_path}/none.jsonl: there is no such file"
    with pytest.raises(DataError, match=f"^{tmp_path}: cannot be read: Is a directory$"):
        read_lines(tmp_path)


def test_a_line_over_the_limit_is_refused_without_being_held_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "x"}\n')
        file.truncate(8 * MAX_LINE_BYTES)
    tracemalloc.start()
    try:
        message = refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message.startswith(f"{path}:2: the line is longer than 8 MiB: ")
    assert peak < 3 * MAX_LINE_BYTES


def test_ten_megabytes_on_one_line_are_refused_and_eight_are_read(tmp_path: Path) -> None:
    row = {"text": "x" * (MAX_LINE_BYTES - len(json.dumps({"text": ""})) - 1)}
    assert read_records([write(tmp_path, row)])[0].text == row["text"]
    assert "is longer than 8 MiB" in refused(write(tmp_path, {"text": "x" * 10_000_000}))


def test_errors_of_data_are_the_users() -> None:
    with pytest.raises(ULDError):
        parse_record({}, "file:1")


def test_a_retain_set_that_holds_a_document_to_forget_is_refused() -> None:
    forget = [Record.qa("Who?", "Ann.", "f:1"), Record(text="A text", source="f:2")]
    refuse_equal(forget, [Record.qa("Who?", "Bob.", "r:1"), Record(prompt="Who?", completion="Ann.", source="r:2")])
    same = Record(messages=(("user", " Who?"), ("assistant", "Ann.\n")), source="r:3")
    with pytest.raises(DataError, match=r"^r:3: this retain record is also in the forget set \(f:1\): remove"):
        refuse_equal(forget, [Record.qa("Why?", "So.", "r:1"), same])
    with pytest.raises(DataError, match=r"\(f:1\), and 1 more like it: remove"):
        refuse_equal(forget, forget)


def test_records_are_equal_only_when_every_part_is() -> None:
    records = [
        Record.qa("a", "b"),
        Record.qa("b", "a"),
        Record(messages=(("system", "a"), ("assistant", "b"))),
        Record(prompt="a", completion="b"),
        Record(prompt="b", completion="a"),
        Record(text="a"),
        Record(text="b"),
    ]
    assert len({record.content for record in records}) == len(records)
