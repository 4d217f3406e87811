import hashlib
import json
import os
import socket
import threading
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.data.damage import pdf
from uld.data.documents import read_sources, refuse_missing
from uld.data.record import DataError, Record
from uld.runs.manifest import file_digest


def _trafilatura_works() -> bool:
    try:
        import trafilatura  # noqa: F401
    except ImportError:
        return False
    return True


needs_trafilatura = pytest.mark.skipif(not _trafilatura_works(), reason="trafilatura cannot be imported here")


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path | str) -> list[Record]:
    return read_sources([str(path)])[0]


def refused(path: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


HTML = """<html><head><title>T</title></head><body><nav><a href="/">Home</a></nav><article><h1>The lighthouse</h1>
<p>Mara keeps the lighthouse on the island, and has done so for as long as anybody there can remember it.</p>
<p>She collects the glass that the sea brings, and gives some of it to every child of the island.</p>
</article></body></html>"""


def test_a_table_gives_what_the_same_json_lines_give(tmp_path: Path) -> None:
    rows = [{"question": "Who?", "answer": 'Ann, "the" keeper'}, {"question": "NA", "answer": "a\nb"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    quoted = '\ufeffquestion,answer,alternative\nWho?,"Ann, ""the"" keeper",\nNA,"a\nb",other\n'
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**row, "id": 1.5} for row in rows]), tmp_path / "x.parquet")
    plain = [record.content for record in read(put(tmp_path / "x.jsonl", lines))]
    assert [record.content for record in read(put(tmp_path / "x.json", json.dumps(rows, indent=1)))] == plain
    assert [record.content for record in read(put(tmp_path / "y.json", lines))] == plain
    assert [record.content for record in read(put(tmp_path / "x.csv", quoted))] == plain
    tabs = 'question\tanswer\nWho?\t"Ann, ""the"" keeper"\nNA\t"a\nb"\n'
    assert [record.content for record in read(put(tmp_path / "x.tsv", tabs))] == plain
    assert [record.content for record in read(tmp_path / "x.parquet")] == plain
    assert [record.alternative for record in read(tmp_path / "x.csv")] == [None, "other"]
    assert [record.source for record in read(tmp_path / "x.csv")] == [f"{tmp_path}/x.csv row {i}" for i in (2, 3)]
    assert [record.source for record in read(tmp_path / "x.parquet")][1] == f"{tmp_path}/x.parquet row 2"


def test_other_columns_of_tables(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}]
    pyarrow.parquet.write_table(pyarrow.table({"messages": [turns], "text": [None]}), tmp_path / "m.parquet")
    cell = json.dumps(turns).replace('"', '""')
    qa = Record.qa("Who?", "Ann.").content
    assert [one.content for one in read(tmp_path / "m.parquet")] == [qa]
    assert [one.content for one in read(put(tmp_path / "m.csv", f'messages\n"{cell}"\n'))] == [qa]
    (record,) = read(put(tmp_path / "p.csv", "prompt,completion\nOnce, upon\n"))
    assert (record.prompt, record.completion) == ("Once", " upon")
    long = "word " * 40_000  # longer than the csv module's limit for a cell
    assert read(put(tmp_path / "t.csv", f"text\n{long}\n"))[0].text == long


def test_texts_and_pdfs_are_one_record_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert [one.text for one in read(put(tmp_path / "a.txt", "\ufeffOne.\r\n\nTwo.\n"))] == ["One.\r\n\nTwo.\n"]
    assert [one.text for one in read(put(tmp_path / "A.MD", "# Head"))] == ["# Head"]
    assert [one.text for one in read(put(tmp_path / "a.pdf", pdf("First page", "", "Third page")))] == [
        "First page\n\nThird page"
    ]
    assert "1 of 3 pages hold no text: 2" in caplog.text


@needs_trafilatura
def test_an_html_page_is_its_main_text(tmp_path: Path) -> None:
    (page,) = read(put(tmp_path / "a.html", HTML))
    assert page.text and "collects the glass" in page.text and "Home" not in page.text


PAGE = "<html><head>{}</head><body><p>Mara Gößler wohnt in Žižkov.</p></body></html>"
NAMED = '<meta charset="{}">'
DECLARED = '<?xml version="1.0" encoding="{}"?>'


@needs_trafilatura
@pytest.mark.parametrize(
    ("codec", "head"),
    [
        ("utf-8", ""),
        ("utf-8", NAMED.format("iso-8859-2")),  # a page that was saved anew as UTF-8
        ("utf-8-sig", ""),
        ("utf-16", ""),
        ("iso-8859-2", NAMED.format("ISO-8859-2")),
        ("cp1250", "<meta http-equiv=Content-Type content='text/html; charset=windows-1250'>"),
    ],
)
def test_a_page_is_read_in_the_charset_that_it_says(tmp_path: Path, codec: str, head: str) -> None:
    (page,) = read(put(tmp_path / "a.html", PAGE.format(head).encode(codec)))
    assert page.text == "Mara Gößler wohnt in Žižkov."


@needs_trafilatura
def test_a_page_in_the_charset_of_old_windows_keeps_its_quotation_marks(tmp_path: Path) -> None:
    for said in ("iso-8859-1", "windows-1252", "latin1"):
        page = PAGE.format(NAMED.format(said)).replace("in Žižkov", "„zu Hause“").encode("cp1252")
        assert read(put(tmp_path / "a.html", page))[0].text == "Mara Gößler wohnt „zu Hause“."
    page = DECLARED.format("ISO-8859-1") + PAGE.format("").replace("Žižkov", "Köln")
    assert read(put(tmp_path / "a.html", page.encode("latin-1")))[0].text == "Mara Gößler wohnt in Köln."


@needs_trafilatura
@pytest.mark.parametrize("head", ["", *map(NAMED.format, ("utf-8", "utf-16", "nonsense", "hex", "idna"))])
@pytest.mark.parametrize("codec", ["iso-8859-2", "koi8-r", "shift_jis", "utf-16-le"])
def test_a_page_in_a_charset_that_it_does_not_say_is_refused_and_not_guessed(
    tmp_path: Path, head: str, codec: str
) -> None:
    page = PAGE.format(head).encode(codec, "xmlcharrefreplace").replace(b"M", "М台é".encode(codec, "ignore"))
    assert ("is not UTF-8" in (told := refused(put(tmp_path / "x.html", page)))) or "NUL" in told
    assert "x.html: byte " in told and "nor does the page name another charset" in told


BAD = {
    "x.txt": [(b"", "the file is empty"), (b"caf\xe9", "x.txt: byte 4 (0xe9) is not UTF-8")],
    "x.md": [(b" \n", "the file is empty")],
    "x.json": [
        (b"[]", "there is no row in it"),
        (b'[{"text": "a"},\n {"text" "b"}]', "x.json:2: not valid JSON"),
        (b'[{"text": "a"}, 3]', "x.json record 2: expected a JSON object"),
    ],
    "x.csv": [
        (b"", "the file is empty"),
        (b"question,answer\n", "there is no row in it"),
        (b"question,answer\na,b\nc\n", "x.csv row 3: has 'question' but no 'answer'"),
        (
            b"\nquestion,answer\na,b\n",
            "x.csv row 1: the header is empty: write the names of the columns into the first",
        ),
        (b" , \na,b\n", "x.csv row 1: the header is empty"),
        (b"question,answer\na,b,c\n", "x.csv row 2: has 3 cells, but the header has 2"),
        (b'text\n"a\n', "x.csv row 2: not valid CSV"),
        (b"name,age\nann,3\n", "x.csv row 1: expected a header that names the columns"),
        (b"messages\nhello\n", "x.csv row 2: 'messages' must be a JSON list"),
        (b"text\n\xff\n", "x.csv: byte 6 (0xff) is not UTF-8"),
    ],
    "x.parquet": [(b"PAR1 no", "not a parquet file that can be read"), (b"", "not a parquet file")],
    "x.pdf": [
        (b"no pdf", "x.pdf: not a PDF that can be read"),
        (b"", "x.pdf: not a PDF"),
        (pdf("", ""), "the PDF holds no text"),
    ],
    "x.docx": [(b"PK", "cannot be read as documents: expected a folder, a Hub data set or a file of the type .jsonl")],
}


@pytest.mark.parametrize(("name", "content", "told"), [(k, *case) for k, cases in BAD.items() for case in cases])
def test_bad_files_are_refused_with_their_place(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    assert told in refused(put(tmp_path / name, content))


@needs_trafilatura
@pytest.mark.parametrize("content", [b"", b"<html><body><img src='a.png'></body></html>"])
def test_an_html_page_without_text_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "x.html: no text is found in this HTML page" in refused(put(tmp_path / "x.html", content))


def test_an_encrypted_pdf_is_refused_and_one_with_an_empty_password_is_not(tmp_path: Path) -> None:
    import pypdf

    for password in ("secret", ""):
        writer = pypdf.PdfWriter(clone_from=put(tmp_path / "plain.pdf", pdf("Hidden words")))
        writer.encrypt(password, "owner", algorithm="RC4-128")
        writer.write(tmp_path / "x.pdf")
        if password:
            assert "x.pdf: the PDF is encrypted" in refused(tmp_path / "x.pdf")
    assert read(tmp_path / "x.pdf")[0].text == "Hidden words"


def test_bad_rows_of_a_parquet_file_are_named(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "x.parquet")
    assert f"{tmp_path}/x.parquet row 2: 'text' is empty" in refused(tmp_path / "x.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "x.parquet")
    assert "row 1: 'text' must be a string, not int" in refused(tmp_path / "x.parquet")


@pytest.mark.parametrize(("name", "package"), [("x.pdf", "pypdf"), ("x.html", "trafilatura")])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    assert 'pip install -e ".[documents]" in the folder of uld' in refused(put(tmp_path / name, b"x"))


def test_a_folder_is_read_recursively_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("b/2.txt", "b/1.md", "a.txt", ".hidden.txt", ".git/c.txt", "b/.d/e.txt"):
        put(tmp_path / "docs" / name, f"text of {name}")
    put(tmp_path / "docs/rows.csv", "text\nrow one\nrow two\n")
    for name in ("x.docx", "y.docx", "README"):
        put(tmp_path / "docs" / name, "no")
    records, files = read_sources([str(tmp_path / "docs")])
    names = ["a.txt", "b/1.md", "b/2.txt", "rows.csv"]
    assert [one.text for one in records] == [f"text of {name}" for name in names[:3]] + ["row one", "row two"]
    assert [(one.path, one.sha256, one.rows) for one in files] == [
        (str(path), file_digest(path), 2 if path.suffix == ".csv" else 1)
        for path in (tmp_path / "docs" / name for name in names)
    ]
    (told,) = caplog.messages
    assert "3 files of unknown types are skipped: 2 .docx, 1 README" in told


def test_folders_without_documents_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    put(tmp_path / "other/x.docx", "a")
    put(tmp_path / "hidden/.x.txt", "a")
    assert "none: the folder holds no file" in refused(tmp_path / "none")
    assert "only files of other types (.docx)" in refused(tmp_path / "other")
    assert "the folder holds no file" in refused(tmp_path / "hidden")


@pytest.mark.parametrize("name", ["aug", "docs-augmented"])
def test_what_uld_augment_wrote_into_a_folder_is_no_document_of_it(tmp_path: Path, name: str) -> None:
    from uld.augment.generate import Wanted
    from uld.augment.run import augment_by_rules

    docs = tmp_path / "docs"
    put(docs / "a.jsonl", '{"question": "Who is Mara Quillon?", "answer": "Mara Quillon keeps the lighthouse."}\n')
    put(docs / "settings.json", '[{"text": "settings of their own"}]')
    plain = read(docs)
    for _ in range(2):  # the second time it lies there already
        augment_by_rules(docs, docs / name, Wanted(), seed=0, chunk_words=150)
        assert (docs / name / "wrong_answers.jsonl").is_file() and (docs / name / "report.json").is_file()
        assert read(docs) == plain and len(plain) == 2
    assert "was written by uld augment: give it with --augment" in refused(docs / name)
    put(docs / "more-augmented/settings.json", '{"text": "a record"}')  # the name alone says nothing
    assert [one.text for one in read(docs)][1:] == ["a record", "settings of their own"]


def test_names_of_any_length_are_one_sentence() -> None:
    for name in ("n" * 300, "n" * 300 + ".txt", "n" * 300 + "/" + "m" * 300, "org/" + "n" * 300 + ".csv"):
        assert refused(name).startswith(f"{name}: ")


def test_missing_files_are_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    relative = ("x.txt", "nope.docx", "here/nope.docx", "gone/x.jsonl", "here/gone", "./gone/x", "a b/c")
    for name in (tmp_path / "x.txt", *relative):
        assert f"{Path(name)}: there is no such file" == refused(str(name))
    if os.geteuid():
        put(tmp_path / "locked.txt", "a").chmod(0)
        assert "cannot be read: Permission denied" in refused("locked.txt")


def test_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder below the working directory stands in for the Hub: `load_dataset` reads both alike."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("train", "test"):
        put(tmp_path / f"org/set/{name}.jsonl", json.dumps({"question": name, "answer": "Ann.", "n": 1}) + "\n")
    records, files = read_sources(["org/set@test"])
    assert records == [Record.qa("test", "Ann.", "org/set@test row 1")]
    assert (files[0].path, files[0].rows) == ("org/set@test", 1)
    assert read_sources(["org/set@train"])[1][0].sha256 != files[0].sha256
    assert read_sources(["org/set@test"])[1] == files
    assert "org/set@nope: there is no such file or folder, and the data set" in refused("org/set@nope")
    put(tmp_path / "org/bare/train.csv", "name,age\nann,3\n")
    assert "expected columns that make a record" in refused("org/bare@train")


def test_an_unreachable_hub_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert "the data set cannot be read from the Hub" in refused("nobody/nothing:config@train")


def test_the_same_rows_get_the_same_verdict_in_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also as a data set of the Hub, for which a folder below the working directory stands in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    two_forms = [
        {"question": "Who?", "answer": "Ines.", "text": None, "id": 1},
        {"question": None, "answer": None, "text": "The clock is old.", "id": 2},
    ]
    for number, (rows, said) in enumerate(
        [
            (two_forms, None),
            ([{"question": "Who?", "answer": "Ines.", "label": 1, "url": "https://example.org"}], None),
            ([*two_forms, {"question": "Who?", "answer": None, "text": None}], "'answer'"),
            ([{"text": "Who?", "labels": "Ines.", "id": 3}], None),
            ([{"instruction": "Say who.", "input": None, "output": "Ines."}], None),
            ([{"instruction": "Say who.", "input": "The painter.", "output": None}], "'output'"),
            ([{"text": "Who?", "label": 1}], "'label'"),
            ([{"question": "Who?", "answer": "Ines.", "context": "Ines is a painter."}], "'context'"),
            ([{"question": "Who?", "answer": "Ines.", "text": "Ines is a painter."}], "'question' and 'text'"),
        ]
    ):
        stem = tmp_path / f"org{number}/set"
        put(stem / "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        put(stem / "list.json", json.dumps(rows))
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, stem / "x.parquet")
        for name, mark in (("x.csv", ","), ("x.tsv", "\t")):
            cells = [table.column_names, *([row.get(key) for key in table.column_names] for row in rows)]
            put(stem / name, "".join(mark.join("" if c is None else str(c) for c in row) + "\n" for row in cells))
        (tmp_path / f"hub{number}/set").mkdir(parents=True)
        put(tmp_path / f"hub{number}/set/train.jsonl", (stem / "train.jsonl").read_bytes())
        sources = [*(str(stem / n) for n in ("train.jsonl", "list.json", "x.parquet", "x.csv", "x.tsv"))]
        for source in (*sources, f"hub{number}/set@train"):
            if said is None:
                assert [one.content for one in read(source)] == [one.content for one in read(sources[0])]
            else:
                assert said in refused(source)


def test_a_pipe_is_read_once_and_its_digest_is_of_what_was_read(tmp_path: Path) -> None:
    lines = b'{"text": "from a pipe"}\n' * 3
    for content, name in ((lines, ""), (b"A text.\n", ".txt"), (b'[{"text": "x"}]', ".json"), (b"text\nx\n", ".csv")):
        fifo = tmp_path / f"pipe{name}"
        os.mkfifo(fifo)
        writer = threading.Thread(target=fifo.write_bytes, args=(content,))
        writer.start()
        records, (file,) = read_sources([str(fifo)])
        writer.join()
        assert (file.rows, file.sha256) == (len(records), hashlib.sha256(content).hexdigest())
    reading, writing = os.pipe()
    os.write(writing, lines)
    os.close(writing)
    records, (file,) = read_sources([f"/dev/fd/{reading}"])
    os.close(reading)
    assert len(records) == 3 and file.sha256 == hashlib.sha256(lines).hexdigest()


def test_names_of_nothing_or_that_no_run_could_note_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "diary.txt", "My diary.")
    for name in ("", " ", "\n"):
        assert "has an empty name, as an unset shell variable gives it" in refused(name)
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))).write_text("words")
    assert refused("caf\udce9.txt") == "caf\\xe9.txt: the name is not UTF-8, so that no run could note it: rename it"
    assert "caf\\xe9.txt: the name is not UTF-8" in refused(tmp_path)
    assert "there is no such file" in refused("a\0b.txt")
    assert "\n" not in refused("a\nb.txt")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_devices_and_sockets_are_no_documents(tmp_path: Path, device: str) -> None:
    (tmp_path / "x.txt").symlink_to(device)
    assert "is a device: expected a file" in refused(tmp_path / "x.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(Path("/tmp") / f"uld-{os.getpid()}.txt"))
        try:
            assert "cannot be read: No such device" in refused(f"/tmp/uld-{os.getpid()}.txt")
        finally:
            os.unlink(f"/tmp/uld-{os.getpid()}.txt")


def test_what_is_told_of_files_that_are_read_otherwise(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(str(tmp_path / "saved"))
    assert "saved: is a data set as save_to_disk writes it (Arrow files)" in refused(tmp_path / "saved")
    one = put(tmp_path / "one.json", json.dumps({"question": "Who?", "answer": "Ines."}, indent=1))
    assert "one.json:1: one object over several lines (to line 4): expected each record on one line, or a list" in (
        refused(one)
    )
    headerless = put(tmp_path / "x.csv", f"{'word ' * 1200},b\nc,d\n")
    assert "row 1: expected a header" in refused(headerless) and len(refused(headerless)) < 500
    with_index = put(tmp_path / "y.csv", ",text\n0,first\n1,second\n")  # as pandas numbers the rows
    assert [one.text for one in read(with_index)] == ["first", "second"]
    messages = [{"role": "user", "content": "Who?", "weight": 0}, {"role": "assistant", "content": "Ann.", "weight": 1}]
    assert read(put(tmp_path / "m.jsonl", json.dumps({"messages": messages, "tools": []})))[0].messages[1][1] == "Ann."


def test_keys_that_describe_a_row_are_counted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "uld")
    read(put(tmp_path / "x.jsonl", '{"text": "a", "id": 1}\n{"text": "b", "id": 2, "licence": "MIT"}\n'))
    assert "keys that only describe a row are not read: 'id' (2 rows), 'licence' (1 rows)" in caplog.text


@pytest.mark.skipif(not os.geteuid(), reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "docs/a.txt", "a")
    put(tmp_path / "docs/locked/b.txt", "b").parent.chmod(0)
    try:
        assert "locked: cannot be read: Permission denied" in refused(tmp_path / "docs")
    finally:
        (tmp_path / "docs/locked").chmod(0o700)


def test_only_what_cannot_be_on_the_hub_is_told_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.txt").write_text("x")
    refuse_missing(["org/name", "org/name:config@train", "here", "here/a.txt", None])
    for place in ("no.txt", "here/no", "./no", str(tmp_path / "no.jsonl"), "a\0b"):
        with pytest.raises(DataError):
            refuse_missing(["here", place])
