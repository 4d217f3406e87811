import json
import math

import pytest
from typer.testing import CliRunner

from uld.cli.main import app
from uld.errors import ULDError
from uld.evaluation.grid import evaluate_grid
from uld.evaluation.tofu import evaluate
from uld.evaluation.tofu_log import read_log
from uld.model.combine import Combination
from uld.model.load import load


def test_a_grid_gives_the_logs_of_its_settings_one_by_one(micro, tmp_path):
    model, tokenizer = load(micro.run)
    settings = [
        Combination(rule=rule, weight=weight, filter=filter)
        for rule, weight, filter in (("suppress", 0.5, 0.0), ("suppress", 1.5, 0.0), ("subtract", 1.5, 0.1))
    ]
    rows = evaluate_grid(model, tokenizer, "forget10", tmp_path / "grid", [*settings, settings[0]], data=micro.data)
    assert [row.combination for row in rows] == settings
    for row, name in zip(
        rows,
        ("suppress-weight-0.5", "suppress-weight-1.5", "subtract-weight-1.5-filter-0.1-keep"),
        strict=True,
    ):
        model.combination = row.combination
        alone = evaluate(model, tokenizer, "forget10", tmp_path / name, data=micro.data, generate=False, progress=False)
        log = read_log(tmp_path / "grid" / name)
        for task in alone:
            assert log[task].avg_loss == pytest.approx(alone[task].avg_loss, rel=1e-5)
            for one, other in zip(log[task].wrong_losses, alone[task].wrong_losses, strict=True):
                assert one == pytest.approx(other, rel=1e-5)
    assert len({row.forget_loss for row in rows}) == 3
    assert (tmp_path / "grid" / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_of_something_else_is_refused(micro, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    model, tokenizer = load(micro.run)
    with pytest.raises(ULDError, match="not a grid"):
        evaluate_grid(model, tokenizer, "forget10", tmp_path, [Combination()], data=micro.data)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_command_makes_a_grid_of_lists(micro, tmp_path):
    flags = ["eval", "tofu", "--model", str(micro.run), "--data", str(micro.data), "--output", str(tmp_path / "out")]
    grid = ["--rule", "suppress,subtract", "--weight", "0,1", "--filter", "0.01", "--quiet", "--json"]
    result = CliRunner().invoke(app, [*flags, *grid, "--retain-model", str(micro.retain_only)])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [(row["combination"]["rule"], row["combination"]["weight"]) for row in rows] == [
        ("suppress", 0.0), ("suppress", 1.0), ("subtract", 0.0), ("subtract", 1.0)
    ]  # fmt: skip
    same = [rows[0]["result"]["forget_quality"], rows[2]["result"]["forget_quality"]]
    assert same[0] == same[1] is not None
    assert rows[1]["forget_loss"] > rows[0]["forget_loss"]
    assert not math.isnan(rows[3]["retain_loss"])


def test_lists_need_a_run_and_numbers(micro, tmp_path):
    flags = ["eval", "tofu", "--data", str(micro.data), "--output", str(tmp_path / "out"), "--quiet"]
    plain = CliRunner().invoke(app, [*flags, "--model", str(micro.target), "--weight", "0.5,1"])
    assert plain.exit_code == 2
    assert "has no assistant" in plain.stderr
    wrong = CliRunner().invoke(app, [*flags, "--model", str(micro.run), "--weight", "0.5,one"])
    assert wrong.exit_code == 2
    assert "--weight must be a number" in wrong.stderr
    assert not (tmp_path / "out").exists()


def test_two_processes_write_the_files_of_one(micro, tmp_path, start_two):
    def command(folder):
        words = ["eval", "tofu", "--model", str(micro.run), "--data", str(micro.data), "--quiet", "--json"]
        return [*words, "--output", str(folder), "--max-new-tokens", "8"]

    one = CliRunner().invoke(app, command(tmp_path / "one"))
    assert one.exit_code == 0, one.output
    for process in start_two(command(tmp_path / "two"), errors=True):
        process.join()
        assert process.exitcode == 0, (tmp_path / "errors-0").read_text() + (tmp_path / "errors-1").read_text()
    assert json.loads(one.stdout) == json.loads((tmp_path / "log-0").read_text())
    assert (tmp_path / "log-1").read_text() == ""
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {path.name for path in (tmp_path / "two").iterdir()}
    for name in names - {"settings.json"}:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_of_several_processes_the_first_makes_a_grid(micro, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    flags = ["eval", "tofu", "--model", str(micro.run), "--data", str(micro.data), "--weight", "0.5,1"]
    done = CliRunner().invoke(app, [*flags, "--output", str(tmp_path / "out"), "--quiet"])
    assert (done.exit_code, done.stdout) == (0, "") and not (tmp_path / "out").exists()
