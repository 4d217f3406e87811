"""``uld compare --jobs``: the helpers that it starts, and that they work on the same grid in the same way."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from uld.cli.main import app

GRID = {
    "retain_only": {"forget10": "R90"},
    "settings": {"max_length": 64},
    "cells": [{"tables": ["table2"], "methods": ["uld"], "splits": ["forget10"], "seeds": [0]}],
}


class Started:
    """A process that is only written down."""

    all: list["Started"]

    def __init__(self, words: list[str], env: dict[str, str], **_: Any) -> None:
        self.words, self.env = words, env
        self.waited = self.terminated = False
        self.all.append(self)

    def wait(self) -> int:
        self.waited = True
        return 0

    def terminate(self) -> None:
        self.terminated = True


@pytest.fixture
def started(monkeypatch) -> list[Started]:
    """Processes that the command has started."""
    Started.all = []
    monkeypatch.setattr(subprocess, "Popen", Started)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the command changes both for its own process
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    return Started.all


@pytest.fixture
def computed(monkeypatch) -> list[tuple[Any, Any, bool]]:
    """Grid, folder and ``replace`` of every call that computes cells."""
    calls: list[tuple[Any, Any, bool]] = []

    def run_grid(grid: Any, folder: Any, *, replace: bool = False, progress: Any = None) -> list[str]:
        calls.append((grid, str(folder), replace))
        return []

    monkeypatch.setattr("uld.compare.work.run_grid", run_grid)
    return calls


@pytest.fixture
def reports(monkeypatch) -> list[Path]:
    """Folders of which a report was made."""
    made: list[Path] = []
    monkeypatch.setattr("uld.report.build.build", lambda folder, *_: made.append(folder))
    return made


@pytest.mark.parametrize("flags", [(), ("--replace",)])
def test_every_helper_computes_the_same_grid_in_the_same_way(started, computed, reports, tmp_path, monkeypatch, flags):
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(GRID))
    words = [str(tmp_path / "grid.yaml"), "--output", str(tmp_path / "out"), "--target", "T", "--data", "D", "-q"]
    words += ["--retain-only", "forget10=OTHER", "--retain-only", "forget01=R99", *flags]
    done = CliRunner().invoke(app, ["compare", *words, "--jobs", "3"])
    assert done.exit_code == 0, done.output
    assert len(started) == 2 and all(one.waited and not one.terminated for one in started)
    assert reports == [tmp_path / "out"]
    for helper in started:
        assert helper.env["OMP_NUM_THREADS"] == str(8 // 3)
        for name, value in helper.env.items():
            monkeypatch.setenv(name, value)
        again = CliRunner().invoke(app, helper.words[helper.words.index("compare") :])
        assert again.exit_code == 0, again.output
    assert len(started) == 2  # helpers start none
    assert len(reports) == 1  # and leave the report to the first
    assert len(computed) == 3 and all(call == computed[0] for call in computed)
    grid, folder, replace = computed[0]
    assert (grid.target, grid.data, grid.retain_only) == ("T", "D", {"forget10": "OTHER", "forget01": "R99"})
    assert (folder, replace) == (str(tmp_path / "out"), bool(flags))


def test_helpers_end_with_a_command_that_fails(started, tmp_path, monkeypatch):
    from uld.errors import ArtifactError

    def run_grid(*_: Any, **__: Any) -> list[str]:
        raise ArtifactError("the folder is another grid's")

    monkeypatch.setattr("uld.compare.work.run_grid", run_grid)
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(GRID | {"target": "T"}))
    done = CliRunner().invoke(app, ["compare", str(tmp_path / "grid.yaml"), "--output", "out", "--jobs", "2"])
    assert done.exit_code == 2 and "another grid's" in done.stderr
    assert [(one.terminated, one.waited) for one in started] == [(True, True)]
