"""``uld check`` from the command line: exit codes, what it prints, and bad input in one sentence."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

import uld
from uld.cli.main import app
from uld.data.record import Record
from uld.errors import ULDError
from uld.runs.card import check_of


@pytest.fixture(scope="module")
def files(micro, tmp_path_factory) -> dict[str, Path]:
    """Questions about the micro world, and limits that anything is within."""
    folder = tmp_path_factory.mktemp("questions")
    found = {}
    for name, source, rows in (("forget", "retain90", 4), ("retain", "retain90", 8)):
        lines = (micro.data / f"{source}.json").read_text().splitlines()
        lines = lines[:rows] if name == "forget" else lines[-rows:]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        found[name] = folder / f"{name}.jsonl"
    (folder / "lax.yaml").write_text("retain_degenerate: '<= 1'\nforget_longest_run: '<= 1000'\n")
    (folder / "strict.yaml").write_text("retain_same: '>= 1 * target'\nforget_loss: '>= 1000'\n")
    return found | {"lax": folder / "lax.yaml", "strict": folder / "strict.yaml"}


@pytest.fixture
def check(files, monkeypatch):
    """The command; every answer counts as known, as these models are barely trained."""
    monkeypatch.setattr("uld.checking.asked.is_known", lambda *_: True)

    def run(*arguments: object, **changes: object):
        given = {"forget": files["forget"], "retain": files["retain"], "max_new_tokens": 8} | changes
        flags = [part for name, one in given.items() for part in (f"--{name.replace('_', '-')}", str(one))]
        return CliRunner().invoke(app, ["check", *map(str, arguments), *flags])

    return run


def test_a_gate_says_with_its_exit_code_whether_it_was_passed(micro, check, files, tmp_path):
    run = Path(shutil.copytree(micro.run, tmp_path / "run"))
    done = check(run, thresholds=files["lax"], junit=tmp_path / "check.xml")
    assert done.exit_code == 0, done.output
    folder = run / "eval" / "check-forget"
    assert f"{run}: PASS, all 2 thresholds" in done.stdout and f"Report: {folder / 'report.html'}" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if line.startswith("|")) <= 80
    assert f"2 of 2: {run}" in done.stderr
    assert ElementTree.parse(tmp_path / "check.xml").getroot().get("failures") == "0"
    assert "**passed**" in (run / "README.md").read_text()
    rows = (folder / "target" / "forget.jsonl").read_bytes()
    strict = check(run, "--json", "-q", thresholds=files["strict"])
    assert strict.exit_code == 1, strict.output
    assert check_of(run) == {"passed": False, "sentence": "FAIL, 2 of 2 thresholds."}
    found = json.loads(strict.stdout)
    assert found["passed"] is False and {one["name"] for one in found["runs"][0]["verdicts"]} == {
        "retain_same",
        "forget_loss",
    }
    assert (folder / "target" / "forget.jsonl").read_bytes() == rows
    assert json.loads((folder / "result.json").read_text()) == found


def test_several_runs_become_one_table(micro, check, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    how = {"thresholds": files["lax"], "retain_model": micro.retain_only, "target": micro.target}
    done = check(micro.run, micro.retain_only, "-q", **how)
    assert done.exit_code == 0, done.output
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|")]
    assert rows[2:4] == ["target", "retain-only"] and len(rows) == 6
    assert (tmp_path / "eval" / "check-forget" / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"retain": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
        ({"thresholds": "nowhere.yaml"}, "nowhere.yaml: there is no such file (--thresholds)"),
        ({"retain_model": "no/where/at/all"}, "--retain-model takes a folder or a Hub id"),
        ({"target": "no/where/at/all"}, "--target takes a folder or a Hub id"),
        ({"dtype": "fp8"}, "--dtype must be one of"),
        ({"limit": 0}, "--limit"),
    ],
)
def test_bad_input_is_one_sentence(micro, check, tmp_path, arguments, sentence):
    done = check(micro.run, output=tmp_path / "out", **arguments)
    assert done.exit_code == 2 and sentence in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("junit", "sentence"),
    [
        ("forget", "is also what is read (--forget)"),
        ("run/uld.json", "run/uld.json exists already and holds no JUnit XML: name another file"),
        ("run", "run is a folder: name a file in it"),
    ],
)
def test_nothing_but_junit_is_replaced_by_it(micro, check, files, tmp_path, monkeypatch, junit, sentence):
    run = Path(shutil.copytree(micro.run, tmp_path / "run"))
    before = {path: path.read_bytes() for path in (files["forget"], run / "uld.json")}
    monkeypatch.setattr("uld.checking.run.carry_out", lambda *_, **__: pytest.fail("the check began"))
    done = check(run, junit=files.get(junit, tmp_path / junit))
    assert done.exit_code == 2 and sentence in done.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_a_check_that_is_refused_at_its_first_model_does_not_hold_its_folder(micro, check, tmp_path):
    assert check(micro.run, output=tmp_path / "a/b", tokenizer=tmp_path).exit_code == 2
    assert not (tmp_path / "a").exists()


def test_numbers_from_python_are_held_to_their_ranges(micro, files, tmp_path):
    for given in ({"limit": 0}, {"limit": -1}, {"max_new_tokens": 0}, {"max_new_tokens": 2.5}):
        (name,) = given
        with pytest.raises(ULDError, match=f"^{name} must be "):
            uld.check(micro.run, forget=files["forget"], retain=files["retain"], output=tmp_path / "x", **given)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"weight": -1.0}, "weight (α) must lie between 0 and"),
        ({"rule": "supress"}, "rule must be one of suppress"),
        ({"rule": "offset", "weight": 1.0}, "the rule offset does not go with it"),
        ({"floor": 2.0}, "floor must lie between 0 and 1"),
    ],
)
def test_settings_of_a_run_are_looked_at_before_the_target_is_asked(
    micro, check, files, tmp_path, monkeypatch, changed, sentence
):
    monkeypatch.setattr("uld.checking.run.carry_out", lambda *_, **__: pytest.fail("the check began"))
    done = check(micro.run, output=tmp_path / "out", **changed)
    assert done.exit_code == 2 and sentence in done.stderr
    with pytest.raises(ULDError) as error:
        uld.check(micro.run, forget=files["forget"], retain=files["retain"], output=tmp_path / "out", **changed)
    assert sentence in str(error.value) and not (tmp_path / "out").exists()


ROW = Record.qa("who?", "me")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"runs": None}, "runs must be a text"),
        ({"runs": [3]}, "runs must be a text"),
        ({"forget": None}, "the forget set is empty"),
        ({"retain": None}, "the retain set is empty"),
        ({"forget": 3}, "expected a file, a folder, a Hub data set or a record, or a list of them, not 3"),
        ({"retain": [{"question": "who?"}]}, "a row becomes a record by uld.data.record.parse_record"),
        ({"held_out": [ROW, 1.5]}, "or a list of them, not 1.5"),
        ({"thresholds": 3}, "thresholds must be a file, or texts by the names of measures, not 3"),
        ({"retain_model": "no/where/at/all"}, "cannot load a model from 'no/where/at/all'"),
    ],
    ids=str,
)
def test_what_python_hands_over_is_looked_at_before_any_model_is_loaded(
    micro, files, tmp_path, monkeypatch, changed, sentence
):
    monkeypatch.setattr("uld.checking.run.load", lambda *_, **__: pytest.fail("a model was loaded"))
    usual = {"runs": micro.run, "forget": files["forget"], "retain": files["retain"], "output": tmp_path / "out"}
    with pytest.raises(ULDError) as error:
        uld.check(**(usual | changed))
    assert sentence in str(error.value) and not (tmp_path / "out").exists()


def test_what_the_target_does_not_know_is_nothing_to_forget(micro, files, tmp_path):
    (tmp_path / "strange.jsonl").write_text('{"question": "Who is Zzyzx?", "answer": "Zzyzx is Qwerty of Uiop."}\n')
    given = ["--forget", tmp_path / "strange.jsonl", "--retain", files["retain"], "--max-new-tokens", 8]
    (tmp_path / "mine").mkdir()
    done = CliRunner().invoke(app, ["check", *map(str, [micro.run, "--output", tmp_path / "mine/a/b", *given])])
    assert done.exit_code == 2 and "uld: nothing to forget: the target" in done.stderr
    assert (tmp_path / "mine").is_dir() and not list((tmp_path / "mine").iterdir())


def test_a_stop_says_how_to_continue(micro, check, tmp_path, monkeypatch):
    def stops(*_: object, **__: object):
        raise KeyboardInterrupt

    monkeypatch.setattr("uld.evaluation.benchmark.generate_ids", stops)
    done = check(micro.run, output=tmp_path / "out")
    assert done.exit_code == 2 and "holds what is done, and the same command continues from there" in done.stderr
