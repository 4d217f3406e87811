"""A micro grid: right numbers, nothing done twice, and the same table whatever stops it on the way."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from uld.cli.main import app
from uld.compare import cell, rates
from uld.compare.cell import run_cell
from uld.compare.grid import Grid, rate_specs, read_grid, specs
from uld.compare.work import Progress, grid_plan, run_grid
from uld.compare.workspace import Workspace
from uld.data.tofu import uncovered
from uld.errors import ArtifactError, ULDError
from uld.evaluation.tofu import evaluate
from uld.evaluation.tofu_log import read_log
from uld.evaluation.tofu_result import aggregate
from uld.methods.registry import get_method
from uld.model.load import load
from uld.report.cells import Cell, Plan
from uld.runs.manifest import Manifest
from uld.training.config import TrainConfig
from uld.training.inputs import read_inputs
from uld.training.journal import read_metrics

NAMES = ["npo+kl-forget10-seed0", "retain-only-forget10", "target-forget10", "uld-forget10-seed0"]
VALUES: dict[str, Any] = {
    "settings": {"max_length": 128},
    "methods": {
        "uld": {"num_layers": 1, "lora_rank": 4, "epochs": 2, "retain_rows": 8, "learning_rate": 0.02},
        "npo+kl": {"epochs": 2, "batch_size": 8, "retain_rows": 4, "save_steps": 1},
    },
    "learning_rates": [{"candidates": [1e-3, 1e-2], "families": {"npo+kl": ["npo+kl"]}}],
    "cells": [
        {"tables": ["table2"], "methods": ["uld"], "splits": ["forget10"], "seeds": [0], "keep_epochs": True},
        {"tables": ["table2"], "methods": ["npo+kl"], "splits": ["forget10"], "seeds": [0]},
    ],
}


def grid_file(micro, folder: Path, **changes: Any) -> str:
    path = folder / "grid.yaml"
    places = {"target": str(micro.target), "retain_only": {"forget10": str(micro.retain_only)}, "data": str(micro.data)}
    path.write_text(yaml.safe_dump(VALUES | places | changes))
    return str(path)


def numbers(folder: Path) -> dict[str, Any]:
    """What a finished grid says, without what differs from run to run: seconds and memory."""
    found = {}
    for path in sorted((folder / "cells").glob("*.json")):
        cell = json.loads(path.read_text())
        for name in ("seconds", "peak_rss_bytes"):
            (cell["training"] or {}).pop(name, None)
        found[cell["name"]] = cell
    return found


@pytest.fixture(scope="module")
def micro(micro, shared_once) -> Any:
    """The same with models that end their answers after a few tokens."""
    folder = shared_once("brief", lambda folder: make_brief(micro, folder))
    return replace(micro, target=folder / "target", retain_only=folder / "retain_only")


def make_brief(micro, folder: Path) -> None:
    """Both models of `micro`."""
    places = {name: folder / name for name in ("target", "retain_only")}
    texts = [json.loads(line) for line in (micro.data / "full.json").read_text().splitlines()[:20]]
    for name, place in places.items():
        model, tokenizer = load(getattr(micro, name))
        rows = [tokenizer(f"{one['question']} {one['answer']}", return_tensors="pt").input_ids for one in texts]
        with torch.no_grad():
            usual = torch.cat([model.model(ids).last_hidden_state[0] for ids in rows]).mean(0)
            model.lm_head.weight[tokenizer.eos_token_id] += 2.5 * usual / (usual @ usual)
        for part in (model, tokenizer):
            part.save_pretrained(place)


@pytest.fixture(scope="module")
def finished(micro, shared_once) -> tuple[Path, Grid, list[Progress]]:
    """A folder that several processes look at: who would write into it takes `begun`."""
    folder = shared_once("grid", lambda folder: make_grid(micro, folder))
    told = [Progress(**one) for one in json.loads((folder / "told.json").read_text())]
    return folder / "out", read_grid(str(folder / "grid.yaml"), {}), told


def make_grid(micro, folder: Path) -> None:
    """What `finished` gives: planned, then computed."""
    grid = read_grid(grid_file(micro, folder), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uld.compare.plan.STEPS", 1)
        plan = grid_plan(grid, folder / "out")
    trials = ["npo+kl-lr0.001", "npo+kl-lr0.01"]
    assert sorted(plan.seconds) == sorted([*NAMES, *trials]) and list(plan.seconds)[:2] == trials
    assert all(seconds > 0 for seconds in plan.seconds.values())
    begun = {path.parent.name[:3]: read_metrics(path) for path in (folder / "out").rglob("metrics.jsonl")}
    assert {name: len(lines) for name, lines in begun.items()} == {"npo": 1, "uld": 1}  # the cells continue from there
    told: list[Progress] = []
    assert run_grid(grid, folder / "out", progress=told.append) == []
    (folder / "told.json").write_text(json.dumps([asdict(one) for one in told]))


def test_every_cell_holds_what_its_own_commands_give(finished, micro, tmp_path):
    folder, grid, told = finished
    assert sorted(path.stem for path in (folder / "cells").iterdir()) == NAMES
    assert [p.name for p in told][:2] == ["retain-only-forget10", "target-forget10"]
    assert {p.name for p in told} == {*NAMES, "npo+kl-lr0.001", "npo+kl-lr0.01"}
    assert (told[-1].done, told[-1].total, told[-1].left) == (6, 6, None)
    workspace = Workspace(grid, folder)
    rates = {p.stem: json.loads(p.read_text()) for p in (folder / "rates").iterdir()}
    assert sorted(rates) == Plan.read(folder / "plan.json").rates
    best = max(rates.values(), key=lambda rate: rate["score"])["learning_rate"]
    for rate in rates.values():
        expected = 2 * rate["forgotten"] * rate["kept"] / (rate["forgotten"] + rate["kept"])
        assert rate["score"] == pytest.approx(expected)
    for spec in specs(grid, {"npo+kl": best}):
        cell = Cell.read(folder / "cells" / f"{spec.name}.json")
        assert cell.error is None and cell.digest == workspace.digest(spec)
        if spec.method is None:
            continue
        run = workspace.run_folder(spec)
        model, tokenizer = load(run)
        log = evaluate(model, tokenizer, "forget10", tmp_path / spec.name, data=micro.data, progress=False)
        retain_only, target = (
            read_log(next((folder / "work" / "eval").glob(f"{role}-*"))) for role in ("retain-only", "target")
        )
        assert cell.model_dump()["result"] == aggregate(log, retain_only, target).to_dict()
        assert cell.model_dump()["training"]["steps"] == Manifest.read(run).training["steps"]
    npo = Cell.read(folder / "cells" / "npo+kl-forget10-seed0.json").model_dump()
    assert npo["settings"]["learning_rate"] == best and not {"target", "output", "data"} & npo["settings"].keys()


def test_every_cell_stands_beside_the_retain_only_model_and_the_target(finished, begun, monkeypatch):
    folder, grid = begun, finished[1]
    beside = []
    monkeypatch.setattr("uld.compare.cell.aggregate", lambda *logs: beside.append(logs) or aggregate(*logs))
    for spec in specs(grid, {"npo+kl": 1e-3}):
        if not spec.keep_epochs and spec.method is None:
            run_cell(Workspace(grid, folder), spec)
    logs = [read_log(next((folder / "work" / "eval").glob(f"{role}-*"))) for role in ("retain-only", "target")]
    assert beside == [(logs[0], *logs), (logs[1], *logs)]


def test_epochs_end_in_what_the_run_came_to(finished):
    folder, _, _ = finished
    cell = Cell.read(folder / "cells" / "uld-forget10-seed0.json").model_dump()
    assert [one["epoch"] for one in cell["epochs"]] == [1, 2]
    assert cell["epochs"][-1]["forget_quality"] == pytest.approx(cell["result"]["forget_quality"])
    assert cell["epochs"][0]["forget_loss"] != cell["epochs"][1]["forget_loss"]
    assert not list((folder / "work" / "runs").glob("uld-*/epochs"))  # they have served


def test_a_second_call_computes_nothing(finished, begun):
    folder, grid = begun, finished[1]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    told: list[Progress] = []
    assert run_grid(grid, folder, progress=told.append) == [] and told == []
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}


def test_a_finished_grid_takes_no_time(finished, begun):
    folder, grid = begun, finished[1]
    assert grid_plan(grid, folder).seconds == {}
    planned = compare(str(folder / "grid.yaml"), folder, "--plan", "--hours", "0.001")
    assert (
        planned.exit_code == 0 and planned.stdout == "in all: less than a minute in one process, give or take a half\n"
    )


def test_results_stand_without_the_work_that_they_were_made_from(finished, tmp_path):
    folder, grid, _ = finished
    for name in ("cells", "rates"):
        shutil.copytree(folder / name, tmp_path / "out" / name)
    told: list[Progress] = []
    assert run_grid(grid, tmp_path / "out", progress=told.append) == [] and told == []


def compare(grid: str, output: Path, *flags: str) -> Any:
    """``uld compare``, as a user runs it."""
    return CliRunner().invoke(app, ["compare", grid, "--output", str(output), *flags])


@pytest.fixture
def begun(finished, tmp_path) -> Path:
    """A folder of this test's own in which everything is computed."""
    return shutil.copytree(finished[0], tmp_path / "out")


def test_another_grid_in_the_same_folder_is_refused_and_a_larger_one_is_not(begun, micro, tmp_path):
    other = VALUES["methods"] | {"uld": VALUES["methods"]["uld"] | {"epochs": 1}}
    refused = compare(grid_file(micro, tmp_path, methods=other), begun)
    assert refused.exit_code == 2 and "holds uld-forget10-seed0 of another grid" in refused.stderr
    assert "replace its results with --replace" in refused.stderr
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "note.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="is not empty and holds no grid"):
        run_grid(read_grid(grid_file(micro, tmp_path), {}), tmp_path / "taken")
    more = [*VALUES["cells"], {"tables": ["table2"], "methods": ["uld"], "splits": ["forget10"], "seeds": [1]}]
    told: list[Progress] = []
    run_grid(read_grid(grid_file(micro, tmp_path, cells=more), {}), begun, progress=told.append)
    assert [p.name for p in told] == ["uld-forget10-seed1"]


def test_a_cell_that_fails_says_why_and_the_others_finish(begun, micro, tmp_path):
    """In the place of another grid's result, which may be replaced; the other cell is there but for its file."""
    methods = VALUES["methods"] | {"uld": VALUES["methods"]["uld"] | {"num_layers": 99}}
    (begun / "cells" / "npo+kl-forget10-seed0.json").unlink()
    done = compare(grid_file(micro, tmp_path, methods=methods), begun, "--replace")
    assert done.exit_code == 2 and "1 cells failed, the first is uld-forget10-seed0" in done.stderr
    failed = Cell.read(begun / "cells" / "uld-forget10-seed0.json")
    assert failed.error is not None and "num_layers (K) is 99" in failed.error and failed.result is None
    told = re.findall(r"^\[\d/6\] (\S+): (\S+)", done.stdout, re.MULTILINE)
    assert [name for name, _ in told] == ["uld-forget10-seed0", "npo+kl-forget10-seed0"]
    assert [outcome == "failed:" for _, outcome in told] == [True, False]
    assert "num_layers (K) is 99" in (begun / "report.html").read_text()
    assert Cell.read(begun / "cells" / "npo+kl-forget10-seed0.json").error is None


def test_a_trial_that_fails_is_never_chosen_and_tried_again_by_the_next_call(begun, micro, tmp_path):
    candidates = [{"candidates": [1e-3], "families": {"npo+kl": ["npo+kl"]}}]
    cells = VALUES["cells"][1:]
    broken = VALUES["methods"] | {"npo+kl": VALUES["methods"]["npo+kl"] | {"num_layers": 1}}
    grid = read_grid(grid_file(micro, tmp_path, methods=broken, learning_rates=candidates, cells=cells), {})
    for name in ("npo+kl-forget10-seed0", "uld-forget10-seed0"):
        (begun / "cells" / f"{name}.json").unlink()
    shutil.rmtree(begun / "rates")
    assert run_grid(grid, begun) == ["npo+kl-forget10-seed0", "npo+kl-lr0.001"]
    trial = json.loads((begun / "rates" / "npo+kl-lr0.001.json").read_text())
    assert "--num-layers is for an assistant" in trial["error"] and trial["score"] < 0
    told: list[Progress] = []
    run_grid(grid, begun, progress=told.append)
    assert {p.name for p in told} == {"npo+kl-forget10-seed0", "npo+kl-lr0.001"} and all(p.error for p in told)
    cell = Cell.read(begun / "cells" / "npo+kl-forget10-seed0.json")
    assert "every candidate for its learning rate failed" in str(cell.error) and cell.settings == {}


def test_a_candidate_that_leaves_nan_is_a_failed_one(micro, tmp_path, monkeypatch):
    candidates = [{"candidates": [1e-3, 1e-2], "families": {"npo+kl": ["npo+kl"]}}]
    grid = read_grid(grid_file(micro, tmp_path, learning_rates=candidates, cells=VALUES["cells"][1:]), {})
    workspace, (low, high) = Workspace(grid, tmp_path / "out"), rate_specs(grid)
    monkeypatch.setattr(rates, "trained", lambda *_: None)
    monkeypatch.setattr(rates, "answer_losses", lambda _, model, __: [0.1 if model == grid.target else math.nan] * 3)
    with pytest.raises(ULDError, match="gives NaN as the probability of an answer"):
        rates.measure(workspace, low)
    rates.write(workspace, low, error="diverged")
    assert rates.chosen(workspace) == {} and rates.hopeless(workspace) == set()
    rates.write(workspace, high, error="diverged")
    assert rates.chosen(workspace) == {} and rates.hopeless(workspace) == {"npo+kl"}
    rates.write(workspace, high, forgotten=0.0, kept=1.0, score=0.0)
    assert rates.chosen(workspace) == {"npo+kl": 1e-2}


def test_what_models_are_asked_with_decides_every_cell(micro, tmp_path):
    plain, other = (
        Workspace(read_grid(grid_file(micro, tmp_path, settings={"max_length": 128} | more), {}), tmp_path)
        for more in ({}, {"template": "plain"})
    )
    for spec in specs(plain.grid, {"npo+kl": 1e-3}):
        assert plain.digest(spec) != other.digest(spec)


@pytest.mark.parametrize("name", ["generation_config.json", "chat_template.jinja", "pytorch_model.bin", "merges.txt"])
def test_every_file_of_a_model_decides_its_cells(finished, micro, tmp_path, name):
    folder, grid, _ = finished
    target = Path(shutil.copytree(grid.target, tmp_path / "target"))
    same = Workspace(grid.model_copy(update={"target": str(target)}), folder)
    found = {spec.name: same.finished(spec) for spec in specs(same.grid, {"npo+kl": 1e-3}) if spec.role == "target"}
    assert all(found.values()) and found
    (target / name).write_text("{} ")
    other = Workspace(same.grid, folder)
    for spec in specs(other.grid, {"npo+kl": 1e-3}):
        assert other.finished(spec) is None
        assert other.evaluation(spec.name, spec) != same.evaluation(spec.name, spec)
        assert spec.method is None or other.run_folder(spec) != same.run_folder(spec)
    old = Path(shutil.copytree(folder / "cells", tmp_path / "out" / "cells"))
    for path in old.iterdir():  # as an earlier version wrote them
        path.write_text(json.dumps(json.loads(path.read_text()) | {"further": None}))
    (spec,) = (one for one in specs(other.grid, {"npo+kl": 1e-3}) if one.role == "target")
    assert Workspace(other.grid, tmp_path / "out").finished(spec) is not None


def test_the_target_is_evaluated_in_the_revision_that_is_trained(micro, tmp_path, monkeypatch):
    plain, other = (
        Workspace(read_grid(grid_file(micro, tmp_path, settings={"max_length": 128} | more), {}), tmp_path)
        for more in ({}, {"revision": "v2", "trust_remote_code": True})
    )
    for spec in specs(plain.grid, {"npo+kl": 1e-3}):
        assert plain.digest(spec) != other.digest(spec)
    loaded = {}
    monkeypatch.setattr(cell, "load", lambda place, **how: loaded.setdefault(place, how))
    for place in (str(micro.target), str(micro.retain_only)):
        cell.load_model(other, place)
    both = {"date": None, "trust_remote_code": True}
    assert loaded == {str(micro.target): both | {"revision": "v2"}, str(micro.retain_only): both}


def test_an_augmentation_counts_by_what_it_holds_and_not_by_where_it_is(micro, tmp_path):
    rows = {"one": "a", "same": "a", "other": "b"}
    for name, text in rows.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "paraphrases.jsonl").write_text(text)
    digests = {}
    for name in rows:
        grid = read_grid(grid_file(micro, tmp_path, settings={"augment": str(tmp_path / name)}), {})
        (spec,) = [one for one in specs(grid, {"npo+kl": 1e-3}) if one.method == "npo+kl"][:1]
        digests[name] = Workspace(grid, tmp_path).training_digest(spec)
    assert digests["one"] == digests["same"] != digests["other"]


def test_a_cell_of_the_default_before_margins_is_not_taken_for_one_of_todays(micro, tmp_path, monkeypatch):
    def digest(**settings: float) -> str:
        grid = read_grid(grid_file(micro, tmp_path, methods={"uld": settings}), {})
        (spec,) = [one for one in specs(grid, {"npo+kl": 1e-3}) if one.method == "uld"][:1]
        return Workspace(grid, tmp_path).training_digest(spec)

    now, said = digest(), digest(weight=1.5)
    monkeypatch.setattr(TrainConfig, "untuned", False)  # as before there was such a default
    assert digest() != now and digest(weight=1.5) == said


@pytest.mark.slow
def test_a_sigterm_ends_the_helpers_too(micro, tmp_path):
    """The terminal tells every process of Ctrl-C; a scheduler tells the first one alone."""
    grid, out = grid_file(micro, tmp_path), tmp_path / "out"
    words = ["compare", grid, "--output", str(out), "--jobs", "2", "-q"]
    process = subprocess.Popen(
        [sys.executable, "-m", "uld", *words], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    try:
        until(lambda: len(members(process.pid)) > 3 and any((out / "work").rglob("*.jsonl")))
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
        until(lambda: not members(process.pid))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert "ended by SIGTERM" in process.stderr.read()


def members(group: int) -> list[str]:
    """Processes of a group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            found += [stat.parent.name] if int(its_group) == group and state != "Z" else []
    return found


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_killed_at_any_moment_and_shared_by_two_it_gives_the_same_table(finished, micro, tmp_path, start_uld):
    folder, _, _ = finished
    grid = grid_file(micro, tmp_path)
    command = ["compare", grid, "--output", str(tmp_path / "out")]
    draw = random.Random(time.time_ns())
    for _ in range(3):
        process = start_uld(command, tmp_path / "log")
        process.join(draw.uniform(0.5, 6))
        process.kill()
        process.join()
    together = [start_uld(command, tmp_path / f"log{i}") for i in range(2)]
    for process in together:
        process.join(300)
    logs = "".join((tmp_path / f"log{i}").read_text() for i in range(2))
    assert [process.exitcode for process in together] == [0, 0], logs
    names = re.findall(r"^\[\d+/\d+\] (\S+):", logs, re.MULTILINE)
    assert len(names) == len(set(names))  # no cell twice
    assert numbers(tmp_path / "out") == numbers(folder)


def test_a_grid_that_leaves_no_unseen_retain_row_is_refused_before_any_training(micro, tmp_path):
    rows = sum(1 for _ in (micro.data / "retain90.json").open())
    methods = {"uld": VALUES["methods"]["uld"] | {"retain_rows": rows}, "npo+kl": VALUES["methods"]["npo+kl"]}
    grid = read_grid(grid_file(micro, tmp_path, methods=methods), {})
    with pytest.raises(ULDError, match=r"uld-forget10-seed0: every retain row of forget10 is trained on or evaluated"):
        run_grid(grid, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("own", [{}, {"paraphrases": 1}, {"augment": "rules"}, {"retain_rows": 4}, {"method": "dd"}])
def test_no_training_takes_a_row_that_counts_as_unseen(micro, tmp_path, own):
    """As many retain rows as there are forget rows, paraphrases among them, are trained on where nothing is said."""
    method, small = own.get("method", "uld"), {"num_layers": 1, "lora_rank": 4, "epochs": 1, "paraphrases": 2}
    settings = small | {name: value for name, value in own.items() if name != "method"}
    places = {"augmented": str(micro.data), "methods": {method: settings}, "learning_rates": []}
    groups = [VALUES["cells"][0] | {"methods": [method]}]
    workspace = Workspace(read_grid(grid_file(micro, tmp_path, cells=groups, **places), {}), tmp_path / "out")
    (spec,) = [one for one in specs(workspace.grid, {}) if one.method]
    taken = {one.same for one in read_inputs(workspace.settings(spec), get_method(method)).records["retain"]}
    unseen = {one.same for one in cell.unseen_records(workspace, spec)}
    assert unseen and not unseen & taken
    pool = [one.same for one in uncovered("forget10", micro.data, 0)]
    assert len(pool) == len(taken.intersection(pool)) + len(unseen) < cell._HELD_OUT
