"""Whatever a command is stopped before, the same command again comes to what an undisturbed one comes to.

Every command is stopped before each of its changes in turn, as a kill does it; nothing of the stop is left behind.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from uld.augment.endpoint import Reply
from uld.augment.generate import Wanted
from uld.augment.output import read
from uld.augment.run import augment_by_model, augment_by_rules
from uld.compare.grid import read_grid
from uld.compare.work import _claim_folder
from uld.compare.workspace import Workspace
from uld.data.record import Record
from uld.errors import ULDError
from uld.evaluation.choosing import Point
from uld.evaluation.grid import evaluate_grid
from uld.evaluation.tofu import evaluate
from uld.evaluation.tuning import Grid, tune
from uld.model.combine import Combination
from uld.model.load import load
from uld.runs.files import claimed_file, new_folder, write_text
from uld.runs.folder import held
from uld.runs.manifest import Manifest
from uld.runs.rows import RowFile, claim
from uld.training.config import FinetuneConfig, TrainConfig
from uld.training.finetune import finetune
from uld.training.run import train
from uld.training.stored import stored_settings

ABOUT = {"model": "a", "weights": "sha256:1", "split": "forget10"}
ROWS = [{"question": f"Who wrote the book {name}?", "answer": f"Mara Quillon wrote {name} in 1983."} for name in "AB"]


def plain(value: Any) -> Any:
    """Without what no two undisturbed calls have in common."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items() if name not in ("seconds", "peak_rss_bytes")}
    return [plain(part) for part in value] if isinstance(value, list) else value


def tree(folder: Path) -> dict[str, str]:
    """Everything below a folder, hidden files as well."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = b"" if path.is_dir() else path.read_bytes()
        if path.suffix in (".json", ".jsonl") and path.is_file():
            lines = content.splitlines() if path.suffix == ".jsonl" else [content]
            content = json.dumps([plain(json.loads(line)) for line in lines]).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def survives(stopped: Callable[..., bool], folder: Path, task: Callable[[], Any], start: Path | None = None) -> int:
    """Stop a task before each of its changes and give it again; the number of changes."""

    def fresh() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if start is not None:
            shutil.copytree(start, folder)

    fresh()
    task()
    whole = tree(folder)
    for number in itertools.count(1):
        fresh()
        if not stopped(task, number):
            return number - 1
        task()
        assert tree(folder) == whole, f"stopped before change {number}"
    raise AssertionError


def test_files_and_folders_are_the_old_or_the_new(stopped, tmp_path):
    path, folder = tmp_path / "x.txt", tmp_path / "y" / "made"
    for number in itertools.count(1):
        write_text(path, "old")
        if not stopped(lambda: write_text(path, "new"), number):
            break
        assert path.read_text() == "old"
    assert number > 2

    def replace() -> None:
        with new_folder(folder, replace=True) as made:
            for name in ("a", "b"):
                (made / name).write_text("new")

    gaps = 0
    for number in itertools.count(1):
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("a", "b"):
            (folder / name).write_text("old")
        if not stopped(replace, number):
            break
        gaps += not folder.exists()
        assert not folder.exists() or {one.read_text() for one in folder.iterdir()} in ({"old"}, {"new"})
        assert not folder.exists() or len(list(folder.iterdir())) == 2
    assert gaps == 1  # between two renames


def test_a_folder_that_cannot_be_put_into_its_place_leaves_the_old_one(stopped, tmp_path):
    folder = tmp_path / "made"

    def replace() -> None:
        with new_folder(folder, replace=True) as made:
            (made / "a").write_text("new")

    for number in itertools.count(1):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "a").write_text("old")
        if not stopped(replace, number, OSError(5, "Input/output error")):
            break
        assert (folder / "a").read_text() in ("old", "new")


def test_the_folder_of_an_evaluation(stopped, tmp_path):
    def task() -> None:
        claim(tmp_path / "x" / "eval", ABOUT)
        with RowFile.of(tmp_path / "x" / "eval", "forget") as file:
            for row in {0, 1, 2} - file.rows.keys():
                file.add(row, {"score": row})
            file.add(0, {"score": 0})
            file.merge([0, 1, 2])

    assert survives(stopped, tmp_path / "x", task) > 5


def test_augmentation_by_rules(stopped, tmp_path):
    forget = tmp_path / "forget.jsonl"
    forget.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def task() -> None:
        augment_by_rules(forget, tmp_path / "x", Wanted(1, 1, 0), seed=0, chunk_words=50)

    survives(stopped, tmp_path / "x", task)
    once = tree(tmp_path / "x")
    records = [Record.qa(row["question"], row["answer"]) for row in ROWS]
    for number in itertools.count(1):  # what is written over is not read meanwhile
        if not stopped(task, number):
            break
        try:
            read(tmp_path / "x", records, paraphrases=1, wrong_answers=1)
        except ULDError as error:
            assert "is unfinished: run uld augment again" in str(error)
        else:
            assert tree(tmp_path / "x").items() >= once.items()
        task()


@pytest.mark.parametrize("answers", [True, False])
def test_augmentation_by_a_model(stopped, tmp_path, answers):
    forget = tmp_path / "forget.jsonl"
    forget.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def ask_all(left: Any, done: Any) -> None:
        if not answers:
            raise ULDError("the endpoint is down")
        for number, _ in left:
            done(number, Reply(json.dumps({"items": ["one answer", "another"]}), 3, 2))

    def task() -> None:
        try:
            augment_by_model(
                forget, tmp_path / "x", Wanted(1, 1, 0), ask_all, by={"by": "stub"}, chunk_words=50, tries=1
            )
        except ULDError as error:
            assert "the endpoint is down" in str(error)

    survives(stopped, tmp_path / "x", task)
    assert (tmp_path / "x").exists() == answers  # a folder of which nothing came is given up


def test_a_file_that_is_drawn(stopped, tmp_path):
    path = tmp_path / "x" / "drawn.jsonl"

    def task() -> None:
        there = path.exists()
        try:
            with claimed_file(path, overwrite=False) as write:
                write('{"text": "a"}\n')
        except ULDError as error:
            assert there and "exists already" in str(error)  # so it is finished

    survives(stopped, tmp_path / "x", task)
    assert [one.name for one in tmp_path.iterdir()] == ["x"]


def test_a_file_is_drawn_by_one_command_at_a_time(tmp_path):
    path = tmp_path / "x" / "drawn.jsonl"
    with claimed_file(path, overwrite=False) as write:
        with pytest.raises(ULDError, match="is being written by another command"), claimed_file(path, overwrite=True):
            pass
        path.write_text("somebody else was faster")
        with pytest.raises(ULDError, match="exists already"):
            write("row")
    assert path.read_text() == "somebody else was faster" and not list(tmp_path.rglob(".*"))
    with (
        pytest.raises(ULDError, match="no target"),
        claimed_file(tmp_path / "y" / "z" / "drawn.jsonl", overwrite=False),
    ):
        raise ULDError("no target")
    assert [one.name for one in tmp_path.iterdir()] == ["x"]


@pytest.fixture
def grid(micro, tmp_path) -> Callable[..., Workspace]:
    """A grid of one cell in the folder ``x``: ``grid(keep_epochs=True, target=…)``."""

    def make(**changes: Any) -> Workspace:
        settings = {"max_length": 128, "epochs": 2, "retain_rows": 4, "batch_size": 16, "num_layers": 1, "lora_rank": 4}
        cell = {"tables": ["table2"], "methods": ["uld"], "splits": ["forget10"], "seeds": [0]}
        for name in ("keep_epochs",):
            cell |= {name: changes.pop(name)} if name in changes else {}
        places = {"target": str(micro.target), "retain_only": {"forget10": str(micro.retain_only)}}
        places |= {name: changes.pop(name) for name in ("target", "data") if name in changes}
        values = {
            "data": str(micro.data),
            **places,
            "settings": settings | {"save_steps": 1} | changes,
            "cells": [cell],
        }
        (tmp_path / "grid.yaml").write_text(yaml.safe_dump(values))
        return Workspace(read_grid(str(tmp_path / "grid.yaml"), {}), tmp_path / "x")

    return make


def test_the_folder_of_a_comparison(stopped, grid, tmp_path):
    workspace = grid()
    assert survives(stopped, tmp_path / "x", lambda: _claim_folder(workspace, False)) > 5


def test_a_lock_that_a_kill_has_left_goes_and_one_that_is_held_stays(grid, tmp_path):
    workspace = grid()
    with workspace.locked("held"):
        left, held = (tmp_path / "x" / "work" / "locks" / name for name in ("left", "held"))
        left.touch()
        (tmp_path / "x" / "grid.yaml").touch()
        _claim_folder(workspace, False)
        assert held.exists() and not left.exists()
    assert not held.exists()


@pytest.fixture
def quick_plots(monkeypatch) -> None:
    """Plots are files without a picture."""

    def save(self: Any, path: Path, **kwargs: Any) -> None:
        Path(path).write_bytes(b"a plot")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save)
    monkeypatch.setattr("matplotlib.figure.Figure.tight_layout", lambda *_, **__: None)


def test_tuning(stopped, micro, tmp_path, monkeypatch, quick_plots):
    points = [Point(0.0, 0.01, 1.0, 1.0), Point(0.5, 0.01, -1.0, 1.0)]
    monkeypatch.setattr("uld.evaluation.tuning.measure", lambda *_, **__: points)

    model, tokenizer = load(micro.run)

    def task() -> None:
        model.manifests = [Manifest.read(tmp_path / "x")]  # as it would be loaded
        tune(tmp_path / "x", model, tokenizer, [], [], grid=Grid(weights=[0.5]), aim="indistinct")  # type: ignore[arg-type]

    survives(stopped, tmp_path / "x", task, start=micro.run)
    assert Manifest.read(tmp_path / "x").combination.weight == 0.5


def test_a_run_that_changed_while_it_was_tuned_is_left_alone(micro, tmp_path):
    run = shutil.copytree(micro.run, tmp_path / "x")
    model, tokenizer = load(run)
    manifest = Manifest.read(run)
    manifest.model_copy(update={"training": manifest.training | {"seconds": manifest.training["seconds"] + 1}}).write(
        run
    )
    before = tree(run)
    with pytest.raises(ULDError, match="has changed since it was loaded"):
        tune(run, model, tokenizer, [], [])  # type: ignore[arg-type]
    assert tree(run) == before


def test_a_model_that_is_saved_over_a_run(stopped, micro, tmp_path):
    model, _ = load(micro.run, weight=3.0)

    def task() -> None:
        model.save_pretrained(tmp_path / "x")

    adapter = tree(micro.run / "adapter")
    for number in itertools.count(1):
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        shutil.copytree(micro.run, tmp_path / "x")
        if not stopped(task, number):
            break
        if (tmp_path / "x" / "uld.json").exists():  # then it is one or the other, whole
            assert tree(tmp_path / "x" / "adapter") == adapter
            assert Manifest.read(tmp_path / "x").combination.weight in (20.0, 3.0)
        task()
    assert Manifest.read(tmp_path / "x").combination.weight == 3.0


def test_an_evaluation_and_a_grid(stopped, micro, tmp_path, monkeypatch, quick_plots):
    model, tokenizer = load(micro.run)
    kept = tmp_path / "kept"
    options: dict[str, Any] = {"data": micro.data, "limit": 1}
    log = evaluate(model, tokenizer, "forget10", kept, generate=False, progress=False, **options)
    for path in kept.glob("eval_log*"):
        path.unlink()

    def one() -> None:
        evaluate(model, tokenizer, "forget10", tmp_path / "x", generate=False, progress=False, **options)

    survives(stopped, tmp_path / "x", one, start=kept)  # the rows are there, and have been made with stops above
    monkeypatch.setattr("uld.evaluation.grid.score_grid", lambda *args, **_: [log for _ in args[3]])

    def grid() -> None:
        evaluate_grid(model, tokenizer, "forget10", tmp_path / "x", [Combination(weight=1.0)], **options)

    survives(stopped, tmp_path / "x", grid)


def settings(task, output: Path, **changes: Any) -> TrainConfig:
    small = {"epochs": 2, "batch_size": 24, "save_steps": 1, "keep_epochs": True, "num_layers": 1}
    return TrainConfig(**task.settings(output, **small | changes))


def resumed(config: Any, run: Callable[..., Any], marker: str) -> None:
    """The command as its users give it: plain where nothing has begun, else with --resume; again until it has ended."""
    output = Path(config.output)
    if (output / marker).exists() and not ((output / "checkpoints").exists() or (output / ".lock").exists()):
        return
    begun = (output / ("finetune.yaml" if marker == "finetune.json" else "train.yaml")).exists()
    run(config, resume=begun, progress=False)


def chosen(stopped: Callable[..., bool], folder: Path, task: Callable[[], None], names: tuple[str, ...]) -> None:
    """Stop a training before the last change of some files and folders, and give it again."""
    import os

    changes: list[str] = []
    real = {
        name: getattr(os, name) for name in ("open", "replace", "rename", "link", "unlink", "remove", "mkdir", "rmdir")
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, function in real.items():

            def told(*args: Any, name: str = name, function: Any = function, **kwargs: Any) -> Any:
                if name != "open" or args[1] & (os.O_CREAT | os.O_TRUNC):
                    changes.append(str(args[-1] if name in ("replace", "rename") else args[0]))
                return function(*args, **kwargs)

            patch.setattr(os, name, told)
        shutil.rmtree(folder, ignore_errors=True)
        changes.clear()
        task()
    whole = tree(folder)
    for name in names:
        numbers = [number for number, path in enumerate(changes, 1) if path.endswith(name)]
        assert numbers, (name, changes)
        shutil.rmtree(folder, ignore_errors=True)
        assert stopped(task, numbers[-1]), name
        task()
        assert tree(folder) == whole, f"stopped before {name}"


def test_a_training_stopped_between_its_records(stopped, task, tmp_path):
    config = settings(task, tmp_path / "x")
    names = ("epochs/1", "checkpoint-1/complete.json", "epochs/2", "x/uld.json", "started.json")
    chosen(stopped, tmp_path / "x", lambda: resumed(config, train, "uld.json"), names)
    assert not (tmp_path / "x" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["uld", "npo+kl"])
def test_a_training_stopped_before_any_change(stopped, task, tmp_path, method):
    config = settings(task, tmp_path / "x", method=method, num_layers=1 if method == "uld" else None)
    survives(stopped, tmp_path / "x", lambda: resumed(config, train, "uld.json"))


@pytest.mark.slow
def test_a_finetuning_stopped_before_any_change(stopped, task, tmp_path):
    files = {"file": (str(task.forget),), "model": str(task.target), "output": str(tmp_path / "x")}
    config = FinetuneConfig(**files, epochs=2, batch_size=16, save_steps=1, max_length=64)  # type: ignore[arg-type]
    survives(stopped, tmp_path / "x", lambda: resumed(config, finetune, "finetune.json"))


def test_an_overwritten_run_is_the_old_or_none_or_the_new(stopped, task, tmp_path):
    """What is replaced is marked as unfinished first, and its settings go last."""
    run = tmp_path / "x"
    for name in ("train.yaml", "uld.json", "metrics.jsonl", "adapter/a", "checkpoints/started.json", "eval/log.json"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("{}")

    def clear() -> None:
        with held(run, overwrite=True):
            pass

    whole = tree(run)
    for number in itertools.count(1):
        if not stopped(clear, number):
            break
        present = tree(run)
        assert "uld.json" not in present or present.items() >= whole.items()
        assert "train.yaml" in present or not any(not name.startswith(".") for name in present)
    assert tree(run) == {}


def test_ctrl_c_in_the_last_step_of_an_epoch_keeps_the_epoch(task, tmp_path, monkeypatch):
    from uld.training.journal import Journal
    from uld.training.run import Interrupted

    step = Journal.on_step_end

    def interrupted(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.interrupted = state.global_step == 1
        step(self, args, state, control, **kwargs)

    config = settings(task, tmp_path / "x", save_steps=100)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Journal, "on_step_end", interrupted)
        train(config, progress=False)
    assert sorted(path.name for path in (tmp_path / "x/checkpoints").glob("checkpoint-*")) == ["checkpoint-1"]
    train(config, resume=True, progress=False)
    for number in (1, 2):
        assert Manifest.read(tmp_path / "x" / "epochs" / str(number)).training["steps"] == number


@pytest.fixture(scope="module")
def at_the_end(task, tmp_path_factory) -> Path:
    """A run with a drawn retain set and references, killed before its ``uld.json``."""
    output = tmp_path_factory.mktemp("end") / "x"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uld.training.run.tidy", lambda folder: None)
        config = settings(task, output, retain=(), draw_retain=4, method="npo+kl", keep_epochs=False, num_layers=None)
        train(config, progress=False)
    (output / "uld.json").rename(output.parent / "uld.json")
    return output


DAMAGES = {"a list": b"[]", "cut short": b'{"a": ', "deep": b"[" * 100_000, "binary": b"\xff\x00", "a number": b"1"}
LOST = {"started.json": ("a list", "deep", "binary"), "metrics.jsonl": ("cut short", "binary", "a number")}
"""Without these nothing can be continued."""

CACHES = [
    ("references.json", "a list"),
    ("drawn.json", "a list"),
    ("retain_drawn.jsonl", "deep"),
    ("complete.json", "a list"),
]


@pytest.mark.parametrize(("name", "damage"), [*((name, one) for name in LOST for one in LOST[name]), *CACHES])
def test_damaged_records_of_a_stopped_run(at_the_end, tmp_path, monkeypatch, name, damage):
    run = shutil.copytree(at_the_end, tmp_path / "x")
    files = list(run.rglob(name))
    assert files
    for path in files:
        path.write_bytes(DAMAGES[damage])
    config = replace(stored_settings(run), output=str(run))
    if name in LOST:
        with pytest.raises(ULDError, match=f"{name} is damaged: start over with --overwrite"):
            train(config, resume=True, progress=False)
        return
    train(config, resume=True, progress=False)
    expected, found = Manifest.read(at_the_end.parent), Manifest.read(run)
    assert plain(found.model_dump()) == plain(expected.model_dump())


def test_a_finished_run_that_was_not_tidied(at_the_end, tmp_path):
    run = shutil.copytree(at_the_end, tmp_path / "x")
    shutil.copy(at_the_end.parent / "uld.json", run)
    config = replace(stored_settings(run), output=str(run))
    before = (run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    result = train(config, resume=True, progress=False)
    assert result.steps == 2 and not (run / "checkpoints").exists()
    assert (
        run / "adapter" / "adapter_model.safetensors"
    ).stat().st_mtime_ns == before  # nothing was trained or written again
    with pytest.raises(ULDError, match="nothing to resume"):
        train(config, resume=True, progress=False)


@pytest.mark.parametrize("change", ["keep_epochs", "save_steps", "target"])
def test_a_cell_is_continued_whatever_changed_outside_its_digest(grid, micro, tmp_path, monkeypatch, change):
    from uld.compare import cell as cells
    from uld.compare.cell import trained
    from uld.compare.grid import specs

    moved = shutil.copytree(micro.target, tmp_path / "moved")
    changes = {"keep_epochs": {"keep_epochs": True}, "save_steps": {"save_steps": 2}, "target": {"target": str(moved)}}
    workspace = grid()
    spec = next(spec for spec in specs(workspace.grid, {}) if spec.method)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(
            "uld.training.run.Unlearning.write", lambda *_: 1 / 0
        )  # everything is trained, nothing is written
        trained(workspace, spec)
    run = workspace.run_folder(spec)
    assert (run / "checkpoints").exists() and not (run / "uld.json").exists()
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(cells, "train", lambda config, **how: asked.append(how) or train(config, **how))
    workspace = grid(**changes.get(change, {}))
    spec = next(spec for spec in specs(workspace.grid, {}) if spec.method)
    assert workspace.run_folder(spec) == run
    trained(workspace, spec)
    assert Manifest.read(run).training["epochs"] == 2
    if change == "keep_epochs":  # those that have passed are lost, so it starts over
        assert asked[-1]["overwrite"] and all(Manifest.read(run / "epochs" / str(n)) for n in (1, 2))
    else:
        assert [how.get("resume") for how in asked] == [True]
    shutil.rmtree(moved) if change != "target" else None
    model, _ = cells.load_model(workspace, str(run))
    assert model.config.target == workspace.grid.target


def test_a_result_of_another_grid_is_kept(grid, tmp_path):
    from uld.compare.grid import specs
    from uld.compare.workspace import OtherGridError

    workspace, other = grid(), grid(epochs=3)
    spec, changed = (next(spec for spec in specs(one.grid, {}) if spec.method) for one in (workspace, other))
    workspace.write(spec, error="it failed")
    other.refuse_other(changed)  # nothing to keep
    path = tmp_path / "x" / "cells" / f"{spec.name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"error": None}))
    workspace.refuse_other(spec)
    with pytest.raises(OtherGridError, match=r"of another grid .* replace its results with --replace"):
        other.refuse_other(changed)
