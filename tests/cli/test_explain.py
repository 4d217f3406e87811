"""``uld explain``: what Python gives is what is printed and written; bad input leaves nothing."""

import json
import shutil

import pytest
from typer.testing import CliRunner

import uld
from uld.cli.main import app
from uld.report.explained import page, terminal_lines
from uld.runs.manifest import Manifest

QUESTION = "who is ada?"
SHORT = ("--max-new-tokens", "5")


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("explained"), num_layers=2)


def explained(*arguments: object):
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


def test_the_answers_token_by_token(run):
    expected = uld.explain(*uld.load(run), QUESTION, max_new_tokens=5)
    done = explained(run, QUESTION, *SHORT)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == "".join(f"{line.plain}\n" for line in terminal_lines(expected))
    as_json = explained(run, QUESTION, *SHORT, "--json")
    assert json.loads(as_json.stdout) == json.loads(json.dumps(expected.to_dict()))


def test_a_given_answer_under_another_setting_as_a_page(run, tmp_path):
    file = tmp_path / "deep" / "heat.html"
    done = explained(run, QUESTION, "--answer", "bob", "--weight", 4, "--html", file)
    assert done.exit_code == 0, done.output
    model, tokenizer = uld.load(run, weight=4.0)
    assert file.read_text() == page(uld.explain(model, tokenizer, QUESTION, "bob"))
    assert str(file) in done.stdout and "α 4" in done.stdout
    assert [path.name for path in file.parent.iterdir()] == ["heat.html"]


def test_a_file_is_replaced_only_if_that_is_said(run, tmp_path):
    file = tmp_path / "heat.html"
    file.write_text("mine")
    done = explained(run, QUESTION, "--answer", "bob", "--html", file)
    assert done.exit_code == 2 and "or replace it with --overwrite" in done.stderr and done.stdout == ""
    assert file.read_text() == "mine"
    assert explained(run, QUESTION, "--answer", "bob", "--html", file, "--overwrite").exit_code == 0
    assert file.read_text().startswith("<!doctype html>")


def test_colours_are_for_terminals_that_want_them(run, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = explained(run, QUESTION, *SHORT)
    assert "\x1b[" in coloured.stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in explained(run, QUESTION, *SHORT).stdout


def test_a_run_that_trained_the_target_takes_nothing_from_answers(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "run")
    Manifest.read(other).model_copy(update={"trains": "target", "method": "npo"}).write(other)
    done = explained(other, QUESTION)
    assert done.exit_code == 2 and "holds a target that npo has trained, with no assistant" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("NOWHERE", QUESTION), "is not a finished run, and only a run takes anything from answers"),
        (("TARGET", QUESTION), "is not a finished run, and only a run takes anything from answers"),
        (("RUN", "  "), "QUESTION is empty"),
        (("RUN", "a" * 200), "the model takes fewer than 128"),
        (("RUN", "caf\udce9"), "half of a surrogate pair"),
        (("RUN", QUESTION, "--answer", " "), "--answer is empty"),
        (("RUN", QUESTION, "--weight", "-1"), "weight (α) must lie between 0 and 1,000,000 or be inf, not -1.0"),
        (("RUN", QUESTION, "--html", "FOLDER"), "exists already"),
    ],
)
def test_bad_input_is_one_sentence(run, tmp_path, arguments, message):
    places = {"RUN": run, "TARGET": run.parent / "target", "NOWHERE": tmp_path / "none", "FOLDER": tmp_path}
    done = explained(*(places.get(word, word) for word in arguments))
    assert done.exit_code == 2 and message in done.stderr, done.output
    assert done.stderr.count("\n") == 1 and done.stdout == "" and list(tmp_path.iterdir()) == []
