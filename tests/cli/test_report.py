from pathlib import Path

import pytest
from typer.testing import CliRunner

from uld.cli.main import app
from uld.evaluation.tofu_result import TofuResult
from uld.report.cells import Cell


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tasks, parts = ("forget", "retain", "real_authors", "world_facts"), ("prob", "rouge_l", "truth_ratio")
    names = [f"{task}_{part}" for task in tasks for part in parts]
    rest = {"rows": {}, "compared_rows": None, "impossible_answers": 0}
    result = TofuResult(forget_quality=0.5, model_utility=0.9, **dict.fromkeys(names, 0.5), **rest)
    Cell(name="npo", method="npo", split="forget10", result=result).write(tmp_path / "in" / "cells" / "npo.json")
    return tmp_path / "in"


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_the_files_are_written_and_named(folder: Path, tmp_path: Path):
    code, out, _ = run(folder, "--output", tmp_path / "out")
    assert code == 0
    assert out.split() == [
        str(tmp_path / "out" / name) for name in ("tables.md", "tables.csv", "tables.tex", "report.html")
    ]
    assert all(Path(name).is_file() for name in out.split())
    assert sorted(path.name for path in folder.iterdir()) == ["cells"]


def test_an_empty_folder_ends_with_code_2(tmp_path: Path):
    code, _, error = run(tmp_path)
    assert code == 2 and error.startswith("uld: ") and "has no cells" in error and error.count("\n") == 1


def test_a_damaged_cell_ends_with_code_2_and_writes_nothing(folder: Path):
    (folder / "cells" / "dpo.json").write_text('{"name": "dpo"')
    code, _, error = run(folder)
    assert code == 2 and "dpo.json is damaged" in error and error.count("\n") == 1
    assert not (folder / "report.html").exists()
