"""``uld ls runs``: every run below a folder in 80 columns or as JSON; the unfinished and the damaged are named."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from uld.cli.main import app
from uld.runs.listing import runs_below
from uld.runs.manifest import CombinationSettings, DataFile, Manifest


def made(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True)
    how = CombinationSettings(rule="suppress", weight=1.0, filter=0.0, min_tokens=0.0, outside="keep")
    files = {"forget": [DataFile(path="/some/where/letters.jsonl", sha256="01ab", rows=40)]}
    given = {"method": "uld", "target": "/models/llama", "target_fingerprint": "sha256:0", "num_layers": 2}
    Manifest.model_validate({**given, "combination": how, "data": files, **changes}).write(folder)
    return folder


def ls(*arguments: str):
    return CliRunner().invoke(app, ["ls", "runs", *arguments])


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    made(tmp_path / "runs/one")
    (tmp_path / "runs/one/check.json").write_text('{"passed": true}')
    made(tmp_path / "runs/one/epochs/1")
    made(tmp_path / "runs/deep/er/a-run-with-a-very-long-name-indeed", method="npo+kl", target="org/" + "m" * 40)
    (tmp_path / "runs/deep/er/a-run-with-a-very-long-name-indeed/check.json").write_text(
        '{"runs": [{"passed": false}]}'
    )
    made(tmp_path / "runs/.hidden/three")
    (tmp_path / "runs/begun").mkdir()
    (tmp_path / "runs/begun/train.yaml").write_text("method: uld\n")
    made(tmp_path / "runs/broken")
    (tmp_path / "runs/broken/uld.json").write_text('{"format": 1, ')
    return tmp_path / "runs"


def test_a_run_is_a_line_of_a_table_that_fits_a_terminal(runs: Path) -> None:
    done = ls(str(runs))
    assert done.exit_code == 0
    head, *lines = done.output.splitlines()
    assert head.split() == ["run", "method", "target", "data", "check", "date"]
    assert [line.split()[:3] for line in lines[1:2]] == [["one", "uld", "llama"]]
    assert "jsonl (40)" in lines[1] and " passed " in lines[1] and " failed " in lines[0]
    assert lines[0].startswith("…") and "-long-name-indeed" in lines[0]
    assert all(len(line) <= 80 for line in (head, *lines[:2]))
    assert len(lines) == 4 and "begun: unfinished" in lines[2] and "broken/uld.json is damaged" in lines[3]


def test_json_has_all_of_it(runs: Path) -> None:
    found = json.loads(ls(str(runs), "--json").output)
    assert found == [one.to_dict() for one in runs_below(runs)]
    names = [Path(one["run"]).name for one in found]
    assert names == ["begun", "broken", "a-run-with-a-very-long-name-indeed", "one"]  # an epoch is part of its run
    whole = found[2]
    assert (whole["method"], whole["target"], whole["check"]) == ("npo+kl", "org/" + "m" * 40, "failed")
    assert whole["data"] == "letters.jsonl (40)" and len(whole["date"]) == 10 and whole["problem"] is None
    assert found[0]["problem"] and found[1]["method"] is None


def test_a_run_itself_an_empty_folder_and_none(runs: Path, tmp_path: Path) -> None:
    assert str(runs / "one")[-10:] in ls(str(runs / "one")).output
    (tmp_path / "empty").mkdir()
    assert ls(str(tmp_path / "empty")).output == f"there is no run in {tmp_path / 'empty'}\n"
    done = ls(str(tmp_path / "nowhere"))
    assert (done.exit_code, done.stdout) == (2, "") and "there is no folder" in done.stderr
    other = CliRunner().invoke(app, ["ls", "methods", "--json"])
    assert other.exit_code == 2 and "are for uld ls runs" in other.stderr


def test_a_folder_is_named_alone_and_runs_are_looked_for_where_the_guides_put_them(runs, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = made(tmp_path / "other/two")
    whole = ls(str(runs)).stdout
    assert "one" in whole and elsewhere.name not in whole
    for words in (["ls", str(runs)], ["ls", "runs"]):
        assert CliRunner().invoke(app, words).stdout.splitlines()[1:3] == whole.splitlines()[1:3]
    assert elsewhere.name in CliRunner().invoke(app, ["ls", str(tmp_path)]).stdout
    unknown = CliRunner().invoke(app, ["ls", "nowhere"])
    assert unknown.exit_code == 2 and "there are no 'nowhere' to list" in unknown.stderr


def test_a_link_to_a_run_is_listed_and_nothing_twice(runs: Path, tmp_path: Path) -> None:
    elsewhere = made(tmp_path / "disk/big")
    (runs / "linked").symlink_to(elsewhere)
    (runs / "zz-again").symlink_to(runs)
    names = [Path(one.run).name for one in runs_below(runs)]
    assert names.count("linked") == 1 and len(names) == len(set(names)) == 5
