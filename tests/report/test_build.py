import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from uld.cli.main import app
from uld.errors import ArtifactError
from uld.report.build import NAMES, build
from uld.report.cells import Cell


def test_the_same_files_give_the_same_bytes_in_another_process_and_a_report_changes_nothing(comparison: Path):
    places = build(comparison)
    assert [path.name for path in places] == list(NAMES)
    first = [path.read_bytes() for path in places]
    code = f"from uld.report.build import build; build({str(comparison)!r}, {str(comparison / 'again')!r})\n"
    code += "import sys; assert 'torch' not in sys.modules, 'a report needs no torch'"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert [(comparison / "again" / name).read_bytes() for name in NAMES] == first


def test_answers_can_be_left_out(comparison: Path):
    done = CliRunner().invoke(app, ["report", str(comparison), "--no-answers", "--output", str(comparison / "out")])
    assert done.exit_code == 0, done.output
    assert "Who kept it?" in (build(comparison)[-1]).read_text()
    for name in NAMES:
        assert "Who kept it?" not in (comparison / "out" / name).read_text()


def test_one_cell_alone_is_a_report(write_folder: Callable[..., Path], make_cell: Callable[..., Cell]):
    folder = write_folder([make_cell("npo", result=None, error="no memory")])
    build(folder)
    assert "npo, forget10 failed: no memory." in (folder / "tables.md").read_text()
    assert "no memory" in (folder / "report.html").read_text()


def test_a_comparison_that_has_just_begun_shows_the_target(
    write_folder: Callable[..., Path], make_cell: Callable[..., Cell]
):
    folder = write_folder([make_cell("target", fq=1e-20)])
    build(folder)
    assert "| target | 1e-20 | 25.0 | 0.900 | 75.0 |" in (folder / "tables.md").read_text()
    assert "no method has a result yet" in (folder / "report.html").read_text()


def test_an_output_that_is_a_file_is_one_sentence(comparison: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write"):
        build(comparison, tmp_path / "file")
