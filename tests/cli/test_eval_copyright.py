"""``uld eval copyright``: a run on a book from the command line, resumed, and bad input in one sentence."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from uld.cli.main import app

TEXT = "the cat sat on the mat and the dog lay by the door. a bird sang in the tree: who is it? it is the wind. " * 2
SIZES = ("--chunk-tokens", 40, "--prompt-tokens", 12, "--request", "", "-q")


def evaluate(*arguments: object):
    return CliRunner().invoke(app, ["eval", "copyright", *map(str, arguments)])


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("copyright"), "llama")


@pytest.fixture
def book(tmp_path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path


def test_a_run_and_what_is_kept(run, book, tmp_path):
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"question": "who sat?", "answer": "the cat"}\n')
    arguments = ("--model", run, "--text", book, *SIZES, "--kept", book, "--kept", facts)
    done = evaluate(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["chunks"] == 6 and 0 <= found["exact_memorization"] <= 1
    assert set(found["kept"][str(book)]) == {"token", "word", "byte"} and set(found["kept"][str(facts)]) == {"token"}
    folder = run / "eval" / "copyright-book-chunk_tokens-40-prompt_tokens-12"
    assert json.loads((folder / "result.json").read_text()) == found
    lines = (folder / "chunks.jsonl").read_bytes()
    again = evaluate(*arguments)
    assert again.exit_code == 0 and "extraction strength" in again.stdout and "facts.jsonl" in again.stdout
    assert (folder / "chunks.jsonl").read_bytes() == lines
    more = evaluate("--model", run, "--text", book, *SIZES, "--weight", "0", "--json")
    assert json.loads(more.stdout)["perplexity"] != found["perplexity"]


def test_kept_questions_are_asked_as_the_run_was_trained(run, make_run, book, tmp_path):
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"question": "who sat?", "answer": "the cat"}\n')
    other = make_run(tmp_path / "other", "llama")
    manifest = json.loads((other / "uld.json").read_text())
    (other / "uld.json").write_text(json.dumps(manifest | {"template": "plain"}))

    def kept(model, *more):
        done = evaluate("--model", model, "--text", book, *SIZES, "--kept", facts, "--json", *more)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)["kept"][str(facts)]

    by_run, by_chat = kept(other), kept(run)
    assert by_run != by_chat
    assert kept(run, "--template", "plain") == by_run
    name = "copyright-book-chunk_tokens-40-prompt_tokens-12"
    for folder in (other / "eval" / name, run / "eval" / name.replace("book", "book-template-plain")):
        assert json.loads((folder / "settings.json").read_text())["template"] == "plain"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--text": "nowhere.txt"}, "nowhere.txt: there is no such file"),
        ({"--kept": "nowhere.txt"}, "nowhere.txt: there is no such file"),
        ({"--kept": "n" * 300}, f"{'n' * 300}: there is no such file"),
        ({"--prompt-tokens": 60}, "no chunk of it is longer than the 60 tokens of the prompt"),
        ({"--chunk-tokens": 0}, "--chunk-tokens"),
        ({"--chunks": 0}, "--chunks"),
        ({"--model": "no/where/at/all"}, "--model takes a folder or a Hub id"),
    ],
)
def test_bad_input(run, book, tmp_path, change, message):
    given = {"--model": run, "--text": book, "--chunk-tokens": 40, "--output": tmp_path / "out", **change}
    done = evaluate(*(part for pair in given.items() for part in pair))
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
