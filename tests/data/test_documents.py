import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from uld.artifact import file_digest
from uld.data.documents import read_sources
from uld.data.record import DataError, Record


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
    assert 'pip install "uld-llm[documents]"' in refused(put(tmp_path / name, b"x"))


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
