"""Where what is written may go: never over, into or around what is read; links and pipes stay what they are."""

import os
import threading
from pathlib import Path

import pytest

from uld.errors import ArtifactError, ConfigError
from uld.runs.files import claimed_file, put
from uld.runs.places import refuse_sources


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file and a link to it, and another folder."""
    (tmp_path / "docs/old").mkdir(parents=True)
    (tmp_path / "docs/a.jsonl").write_text("rows\n")
    (tmp_path / "link").symlink_to("docs/a.jsonl")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("output", "source", "message"),
    [
        ("docs/a.jsonl", "docs/a.jsonl", r"--output docs/a.jsonl is also what is read \(--forget\)"),
        ("link", "docs/a.jsonl", r"--output link is also what is read \(--forget\)"),
        ("docs", "docs", "--output docs is also what is read"),
        ("docs/new/run", "docs", r"--output docs/new/run lies in docs, which is read \(--forget\)"),
        ("docs/old/../x", "./docs", "lies in docs, which is read"),
    ],
)
def test_what_is_read_is_no_place_for_what_is_written(tree: Path, output: str, source: str, message: str):
    with pytest.raises(ConfigError, match=message):
        refuse_sources(output, {"--retain": [None], "--forget": [source]})


def test_what_is_read_may_lie_beside_or_where_nothing_is_emptied(tree: Path):
    for output, source in (("runs/x", "docs"), ("docs-x", "docs"), ("docs/b", "docs/a.jsonl"), ("docs", "org/rows")):
        refuse_sources(output, {"--forget": [source]})
    refuse_sources("docs", {"--forget": ["docs/a.jsonl"]})
    with pytest.raises(ConfigError, match=r"docs/a.jsonl \(--forget\) lies in docs, which --overwrite empties"):
        refuse_sources("docs", {"--forget": ["docs/a.jsonl"]}, clears=True)


def test_a_link_is_written_through(tree: Path):
    put(tree / "link", "new\n")
    assert (tree / "link").is_symlink() and (tree / "docs/a.jsonl").read_text() == "new\n"
    with claimed_file(tree / "link", overwrite=True) as write:
        write("newer\n")
    assert (tree / "link").is_symlink() and (tree / "docs/a.jsonl").read_text() == "newer\n"


@pytest.mark.parametrize("by", ["put", "claimed_file"])
def test_a_pipe_gets_the_text_and_stays_a_pipe(tmp_path: Path, by: str):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    if by == "put":
        put(pipe, "text\n")
    else:
        with claimed_file(pipe, overwrite=False) as write:
            write("text\n")
    reader.join(10)
    assert read == ["text\n"] and pipe.is_fifo() and [one.name for one in tmp_path.iterdir()] == ["pipe"]


def test_a_file_that_is_there_is_replaced_only_where_that_is_said(tree: Path):
    with pytest.raises(ArtifactError, match="--overwrite"), claimed_file(tree / "docs/a.jsonl", overwrite=False):
        pytest.fail("it was claimed")
    assert (tree / "docs/a.jsonl").read_text() == "rows\n"
