"""One cell of a grid: train, evaluate, and write down what came of it. Each stage is resumable, none is done twice.

In the grid's folder ``cells/NAME.json`` is the result, small enough to be kept for good; ``answers/NAME.json`` holds
answers for the report; ``work/runs`` and ``work/eval`` hold what they were made from, under digests of all that decides
them, and can be deleted.
"""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from uld.artifact import EPOCHS, SETTINGS, Manifest, file_digest, is_run, library_versions, write_text, writing
from uld.assistant import load_config
from uld.compare.grid import Grid, Spec, config
from uld.config import TrainConfig
from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.data.tofu import load_tofu, uncovered
from uld.evaluation.metrics import model_utility
from uld.evaluation.scoring import Scorer
from uld.evaluation.tofu import evaluate
from uld.evaluation.tofu_log import FILE_NAME, TofuLog, read_log
from uld.evaluation.tofu_result import UTILITY_TASKS, aggregate
from uld.loading import load
from uld.report.cells import ANSWERS, CELLS, Cell
from uld.training import train

WORK = "work"
_EPOCHS = "epochs.json"
_FORMAT = 1  # raise it when the same inputs come to give other numbers
_HELD_OUT = 200  # retain rows that are scored for the figure of losses and for learning rates
_SHOWN = 3  # answers of each side that the report shows
_PLACES = ("target", "output", "data", "augmented", "forget", "retain", "small")


@dataclass(frozen=True)
class Workspace:
    """A grid and the folder that it is computed in."""

    grid: Grid
    folder: Path

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Digests of the target, of the retain-only models and of the data."""
        found = {"target": model_digest(self.grid.target)}
        found |= {split: model_digest(place) for split, place in self.grid.retain_only.items()}
        for name, place in (("data", self.grid.data), ("augmented", self.grid.augmented)):
            found[name] = _folder_digest(place, ("*.json", "*.jsonl")) if place is not None else ""
        return found

    def settings(self, spec: Spec) -> TrainConfig:
        """Training settings of a cell, its run folder among them."""
        return config(spec, self.grid, str(self.run_folder(spec)))

    def training_digest(self, spec: Spec) -> str:
        """Digest of everything that decides a training: settings that are not the default's, models and data."""
        plain = vars(TrainConfig())
        settings = {
            name: value
            for name, value in vars(config(spec, self.grid, "")).items()
            if value != plain[name] and name not in (*_PLACES, "keep_epochs", "save_steps")
        }
        inputs = {name: self.inputs[name] for name in ("target", "data", "augmented")}
        if (small := config(spec, self.grid, "").small) is not None:
            inputs["small"] = model_digest(small)
        if "augment" in settings and Path(settings["augment"]).is_dir():
            inputs["augment"] = _folder_digest(settings.pop("augment"), ("*.jsonl",))
        return _digest([_FORMAT, settings, inputs])

    def digest(self, spec: Spec) -> str:
        """Digest of everything that decides a cell."""
        own = self.training_digest(spec) if spec.method is not None else self.inputs["target"]
        parts = [_FORMAT, own, spec.role, spec.split, spec.keep_epochs, self.inputs.get(spec.split)]
        return _digest([*parts, self.inputs["data"], self.template, *([self.date] if self.date else [])])

    @property
    def template(self) -> str | None:
        """Prompt template of the whole grid, with which every model is asked."""
        return self.grid.settings.get("template")

    @property
    def date(self) -> str | None:
        """Day that a chat template with a clock writes for every model."""
        day = self.grid.settings.get("date")
        return str(day) if day is not None else None  # YAML reads a day as a date

    def run_folder(self, spec: Spec) -> Path:
        """Where a cell's training goes; cells that differ in their evaluation alone share it."""
        return (
            self.folder / WORK / "runs" / f"{spec.method}-{spec.split}-seed{spec.seed}-{self.training_digest(spec)[:8]}"
        )

    @contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a name for this process; the lock goes with it, however it ends.

        Args:
            name: What no two processes should do at once.
            wait: Whether to wait for another that holds it; else False is given where one does.
        """
        folder = self.folder / WORK / "locks"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(handle)

    def finished(self, spec: Spec) -> Cell | None:
        """A cell's result, if it was computed from the same inputs."""
        path = self.folder / CELLS / f"{spec.name}.json"
        cell = Cell.read(path) if path.exists() else None
        return cell if cell is not None and cell.digest == self.digest(spec) and cell.error is None else None

    def identity(self, spec: Spec) -> dict[str, Any]:
        """Fields of `uld.report.cells.Identity`."""
        return {
            "name": spec.name,
            "role": spec.role,
            "method": spec.method,
            "label": self.grid.labels.get(spec.method or ""),
            "variant": spec.variant,
            "group": list(spec.tables),
            "split": spec.split,
            "seed": spec.seed,
        }

    def write(self, spec: Spec, **found: Any) -> Cell:
        """Write a cell's result.

        Args:
            spec: The cell.
            found: Fields of `Cell` that are not the spec's own.
        """
        settings = {}
        if spec.method is not None:
            stored = vars(config(spec, self.grid, ""))
            settings = {k: list(v) if isinstance(v, tuple) else v for k, v in stored.items() if k not in _PLACES}
        cell = Cell.model_validate(
            {
                **self.identity(spec),
                "digest": self.digest(spec),
                "settings": settings,
                "versions": library_versions(),
                "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count() or 1},
                **found,
            }
        )
        cell.write(self.folder / CELLS / f"{spec.name}.json")
        return cell


def run_cell(workspace: Workspace, spec: Spec) -> Cell:
    """Compute a cell, going on where an earlier attempt was stopped.

    Raises:
        ULDError: what is wrong with it; or `uld.training.Interrupted`.
    """
    retain_only = _retain_only_log(workspace, spec.split)
    if spec.role == "retain-only":
        return workspace.write(spec, result=aggregate(retain_only, retain_only).to_dict())
    training, epochs, model = None, [], workspace.grid.target
    if spec.method is not None:
        run = workspace.run_folder(spec)
        trained(workspace, spec)
        training, model = Manifest.read(run).training, str(run)
    log = _evaluated(workspace, model, spec.split, f"{spec.name}-{workspace.digest(spec)[:8]}")
    if spec.keep_epochs and spec.method is not None:
        epochs = _epochs(workspace, spec, retain_only)
    _write_answers(workspace, spec, log)
    return workspace.write(spec, training=training, result=aggregate(log, retain_only).to_dict(), epochs=epochs)


def trained(workspace: Workspace, spec: Spec) -> None:
    """Train a cell's run unless it is there; one that was trained without its epochs is trained again."""
    settings = workspace.settings(spec)
    run = Path(settings.output)
    with workspace.locked(f"run-{run.name}"):
        if is_run(run) and (not spec.keep_epochs or (run / EPOCHS).is_dir() or _epochs_file(workspace, spec).exists()):
            return
        started = not is_run(run) and (run / SETTINGS).exists()
        train(settings, resume=started, overwrite=is_run(run), progress=False)


def _evaluated(workspace: Workspace, model: str, split: str, name: str, **options: Any) -> TofuLog:
    """Log of a model; finished ones are read, unfinished ones go on."""
    folder = workspace.folder / WORK / "eval" / name
    if (folder / FILE_NAME).exists():
        return read_log(folder)
    loaded, tokenizer = load(model, date=workspace.date)
    settings = {"data": workspace.grid.data, "template": workspace.template, "progress": False}
    return evaluate(loaded, tokenizer, split, folder, **settings, **options)


def _retain_only_log(workspace: Workspace, split: str) -> TofuLog:
    name = f"retain-only-{split}-{workspace.digest(Spec('', 'retain-only', None, split))[:8]}"
    with workspace.locked(name):  # every cell of the split needs it, so two may come to make it at once
        return _evaluated(workspace, workspace.grid.retain_only[split], split, name)


def _epochs(workspace: Workspace, spec: Spec, retain_only: TofuLog) -> list[dict[str, Any]]:
    """Every epoch of a run: F.Q., M.U. without ROUGE, and the losses of Figure 3; nothing is generated."""
    run, path = workspace.run_folder(spec), _epochs_file(workspace, spec)
    if path.exists():
        return json.loads(path.read_text())
    rows = []
    for folder in sorted((run / EPOCHS).iterdir(), key=lambda one: int(one.name)):
        log = _evaluated(
            workspace,
            str(folder),
            spec.split,
            f"{path.parent.name}-epoch{folder.name}",
            generate=False,
        )
        found = aggregate(log, retain_only)
        parts = [getattr(found, f"{task}_{metric}") for task in UTILITY_TASKS for metric in ("prob", "truth_ratio")]
        held_out = answer_losses(workspace, str(folder), unseen_records(workspace, spec))
        rows.append(
            {
                "epoch": int(folder.name),
                "forget_quality": found.forget_quality,
                "utility_without_rouge": model_utility(parts),
                "forget_loss": statistics.fmean(log["forget"].avg_loss),
                "held_out_loss": statistics.fmean(held_out),
            }
        )
    write_text(path, json.dumps(rows, indent=1) + "\n")
    shutil.rmtree(run / EPOCHS)
    return rows


def _epochs_file(workspace: Workspace, spec: Spec) -> Path:
    """Where the measures of a cell's epochs are kept, beside its log: forget quality hangs on the retain-only model."""
    return workspace.folder / WORK / "eval" / f"{spec.name}-{workspace.digest(spec)[:8]}" / _EPOCHS


def unseen_records(workspace: Workspace, spec: Spec) -> list[Record]:
    """Retain rows that a run was neither trained nor is evaluated on, evenly spaced."""
    settings = workspace.settings(spec)
    rows = uncovered(spec.split, workspace.grid.data, settings.retain_rows)
    return rows[:: max(1, len(rows) // _HELD_OUT)][:_HELD_OUT]


def answer_losses(workspace: Workspace, model: str, records: list[Record]) -> list[float]:
    """Mean loss a token of each record's answer under a model, nats."""
    loaded, tokenizer = load(model, date=workspace.date)
    form = PromptFormat(tokenizer, workspace.template)
    rows = [form.encode(record, 2**31) for record in records]
    return [score.avg_loss for score in Scorer.of(loaded, tokenizer).score(rows)[0]]


def forget_records(workspace: Workspace, split: str) -> list[Record]:
    """The forget rows as they stand, without paraphrases."""
    return [Record.qa(row["question"], row["answer"]) for row in load_tofu(split, workspace.grid.data)]


def _write_answers(workspace: Workspace, spec: Spec, log: TofuLog) -> None:
    """Some answers of both sides, for the report; they quote the benchmark, so they are no part of the result."""
    shown: dict[str, list[dict[str, str]]] = {}
    for task in ("forget", "retain"):
        rows = log[task].generated or []
        step = max(1, len(rows) // _SHOWN)
        shown[task] = [
            {"question": question, "truth": truth, "answer": answer}
            for question, answer, truth in rows[::step][:_SHOWN]
        ]
    write_text(workspace.folder / ANSWERS / f"{spec.name}.json", json.dumps(shown, indent=1, ensure_ascii=False) + "\n")


def model_digest(place: str) -> str:
    """Digest of a model folder's weights, config and tokenizer; of a Hub model its name and commit."""
    if Path(place).is_dir():
        return _folder_digest(place, ("*.safetensors", "config.json", "tokenizer*.json", "uld.json"))
    commit = getattr(load_config(place), "_commit_hash", None)
    return _digest([place, commit])


def _folder_digest(folder: str, patterns: tuple[str, ...]) -> str:
    paths = sorted(path for pattern in patterns for path in Path(folder).rglob(pattern))
    return _digest([[path.relative_to(folder).as_posix(), file_digest(path)] for path in paths])


def _digest(value: Any) -> str:
    """Sixteen hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()[:16]
