"""One cell of a grid: train, evaluate, and write down what came of it. Each stage is resumable, none is done twice.

In the grid's folder ``cells/NAME.json`` is the result, small enough to be kept for good; ``answers/NAME.json`` holds
answers for the report; ``work/runs`` and ``work/eval`` hold what they were made from, under digests of all that decides
them, and can be deleted.
"""

import hashlib
import json
import math
import os
import platform
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from uld.compare.grid import Grid, Spec, config
from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.data.tofu import load_tofu, uncovered
from uld.errors import ArtifactError, ConfigError, ULDError
from uld.evaluation.metrics import model_utility
from uld.evaluation.scoring import Scorer
from uld.evaluation.tofu import evaluate
from uld.evaluation.tofu_log import FILE_NAME, LogError, TofuLog, read_log
from uld.evaluation.tofu_result import UTILITY_TASKS, aggregate
from uld.methods.registry import get_method
from uld.model.causal_lm import load_config
from uld.model.combine import MOST_MARGIN, STEADY_WEIGHT, USUAL_FLOOR
from uld.model.load import load
from uld.report.cells import ANSWERS, CELLS, Cell, Epoch
from uld.runs.files import remove_folder, sweep, write_text, writing
from uld.runs.folder import UnresumableError, needs_tidying, tidy, working_in
from uld.runs.locks import locked
from uld.runs.machine import library_versions
from uld.runs.manifest import EPOCHS, RUN_SETTINGS, Manifest, file_digest, is_run, place
from uld.training.config import TrainConfig
from uld.training.run import train
from uld.training.stored import stored_settings

WORK = "work"
LOCKS = "locks"  # in it
_EPOCHS = "epochs.json"
_FORMAT = 1  # raise it when the same inputs come to give other numbers
_HELD_OUT = 200  # retain rows that are scored for the figure of losses and for learning rates
_SHOWN = 3  # answers of each side that the report shows
FURTHER = (
    *("chat_template.jinja", "generation_config.json", "*.bin", "*.model", "vocab.*", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json"),
)
"""Files of a model's folder that decide what it writes, beside those of its first digest (`model_digest`)."""
_PLACES = ("target", "output", "data", "augmented", "forget", "retain", "small")


class OtherGridError(ArtifactError):
    """The folder holds results of another grid."""


@dataclass(frozen=True)
class Workspace:
    """A grid and the folder that it is computed in."""

    grid: Grid
    folder: Path

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Digests of the target, of the retain-only models and of the data."""
        trust = bool(self.grid.settings.get("trust_remote_code"))
        found = {"target": model_digest(self.grid.target, trust_remote_code=trust, **self.hub)}
        found |= {split: model_digest(model, trust_remote_code=trust) for split, model in self.grid.retain_only.items()}
        for name, folder in (("data", self.grid.data), ("augmented", self.grid.augmented)):
            found[name] = _folder_digest(folder, ("*.json", "*.jsonl")) if folder is not None else ""
        return found

    @cached_property
    def further_inputs(self) -> dict[str, str]:
        """Digests of what else decides the models in folders, which `inputs` leave out: see `FURTHER`."""
        places = {"target": self.grid.target, **self.grid.retain_only}
        return {name: _folder_digest(one, FURTHER) for name, one in places.items() if Path(one).is_dir()}

    def further(self, spec: Spec) -> str:
        """Digest of these for a cell; cells of earlier versions have none, and count as they are."""
        return _digest([self.further_inputs.get(name) for name in ("target", spec.split)])

    def settings(self, spec: Spec) -> TrainConfig:
        """Training settings of a cell, its run folder among them."""
        return config(spec, self.grid, str(self.run_folder(spec)))

    def training_digest(self, spec: Spec) -> str:
        """Digest of everything that decides a training: settings that are not the default's, models and data."""
        plain, own = vars(TrainConfig()), config(spec, self.grid, "")
        settings = {
            name: value
            for name, value in vars(own).items()
            if value != plain[name] and name not in (*_PLACES, "keep_epochs", "save_steps")
        }
        inputs = {name: self.inputs[name] for name in ("target", "data", "augmented")}
        if own.small is not None:
            inputs["small"] = model_digest(own.small)
        if own.untuned and get_method(own.method).trains == "assistant":
            inputs["combination"] = str([STEADY_WEIGHT, MOST_MARGIN, USUAL_FLOOR])  # of older cells α = 1.5
        if "augment" in settings and Path(settings["augment"]).is_dir():
            inputs["augment"] = _folder_digest(settings.pop("augment"), ("*.jsonl",))
        return _digest([_FORMAT, settings, inputs])

    def digest(self, spec: Spec) -> str:
        """Digest of everything that decides a cell."""
        own = self.training_digest(spec) if spec.method is not None else self.inputs["target"]
        parts = [_FORMAT, own, spec.role, spec.split, spec.keep_epochs, self.inputs.get(spec.split)]
        asked = [self.template, *([self.date] if self.date else []), *([self.hub] if self.hub else [])]
        return _digest([*parts, self.inputs["data"], *asked])

    @property
    def hub(self) -> dict[str, Any]:
        """Which of the target's revisions the whole grid takes; nothing where it names none."""
        revision = self.grid.settings.get("revision")
        return {} if revision is None else {"revision": revision}

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
            f"-{_digest(self.further_inputs.get('target'))[:8]}"
        )

    def evaluation(self, name: str, spec: Spec) -> str:
        """Name of the folder of an evaluation in the place of a cell."""
        return f"{name}-{self.digest(spec)[:8]}-{self.further(spec)[:8]}"

    @contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a name for this process; the lock goes with it, however it ends.

        Args:
            name: What no two processes should do at once.
            wait: Whether to wait for another that holds it; else False is given where one does.
        """
        folder = self.folder / WORK / LOCKS
        with ExitStack() as stack:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                mine = stack.enter_context(locked(folder / name, wait=math.inf if wait else 0))
            yield mine

    def finished(self, spec: Spec) -> Cell | None:
        """A cell's result, if it was computed from the same inputs."""
        path = self.folder / CELLS / f"{spec.name}.json"
        cell = Cell.read(path) if path.exists() else None
        if cell is None or cell.digest != self.digest(spec) or cell.error is not None:
            return None
        return cell if cell.further in (None, self.further(spec)) else None

    def refuse_other(self, spec: Spec) -> None:
        """Keep a result that was computed from other inputs.

        Raises:
            OtherGridError: there is one.
        """
        path = self.folder / CELLS / f"{spec.name}.json"
        if path.exists() and self.finished(spec) is None and Cell.read(path).error is None:
            raise OtherGridError(
                f"{self.folder} holds {spec.name} of another grid (other settings, models or data): name another "
                "folder with --output, or replace its results with --replace"
            )

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
                "further": self.further(spec),
                "settings": settings,
                "versions": library_versions(),
                "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count() or 1},
                **found,
            }
        )
        cell.write(self.folder / CELLS / f"{spec.name}.json")
        return cell


def run_cell(workspace: Workspace, spec: Spec) -> Cell:
    """Compute a cell, from where an earlier attempt was stopped.

    Raises:
        ULDError: what is wrong with it; or `uld.training.run.Interrupted`.
    """
    retain_only, target = (_reference_log(workspace, role, spec.split) for role in ("retain-only", "target"))
    if spec.method is None:
        log = retain_only if spec.role == "retain-only" else target
        if spec.role == "target":
            _write_answers(workspace, spec, log)
        return workspace.write(spec, result=aggregate(log, retain_only, target).to_dict())
    run, epochs = workspace.run_folder(spec), []
    trained(workspace, spec)
    log = _evaluated(workspace, str(run), spec.split, workspace.evaluation(spec.name, spec))
    if spec.keep_epochs:
        epochs = _epochs(workspace, spec, retain_only)
    _write_answers(workspace, spec, log)
    result = aggregate(log, retain_only, target).to_dict()
    return workspace.write(spec, training=Manifest.read(run).training, result=result, epochs=epochs)


def trained(workspace: Workspace, spec: Spec, stop_after: int | None = None) -> None:
    """Train a cell's run unless it is there; one that was trained without its epochs is trained again.

    Args:
        workspace: Where.
        spec: The cell.
        stop_after: See `uld.training.run.train`.
    """
    settings = workspace.settings(spec)
    run = Path(settings.output)
    how: dict[str, Any] = {"progress": False, "stop_after": stop_after}
    with workspace.locked(f"run-{run.name}"):
        if is_run(run):
            if not _has_epochs(workspace, spec, settings):
                train(settings, overwrite=True, **how)
            elif needs_tidying(run):
                with working_in(run):
                    tidy(run)
        elif (run / RUN_SETTINGS).exists():
            try:
                train(_continued(run, settings), resume=True, **how)
            except (UnresumableError, ConfigError):  # a run that is ours alone: nothing is lost but time
                train(settings, overwrite=True, **how)
        else:
            train(settings, **how)


def _has_epochs(workspace: Workspace, spec: Spec, settings: TrainConfig) -> bool:
    """Whether a finished run has its epochs, as far as they are still to be measured."""
    if not spec.keep_epochs or _stored_epochs(_epochs_file(workspace, spec)) is not None:
        return True
    return all(is_run(Path(settings.output) / EPOCHS / str(n + 1)) for n in range(settings.epochs))


def _continued(run: Path, settings: TrainConfig) -> TrainConfig:
    """Settings to continue a stopped run with, written down in it.

    What may differ from those that it was started with decides nothing of what it comes to, or its folder would have
    another name: places, how often it is saved, whether its epochs are kept.

    Raises:
        UnresumableError: its epochs are wanted, and were not kept so far.
    """
    kept = stored_settings(run).keep_epochs
    if settings.keep_epochs and not kept:
        raise UnresumableError(f"{run} was started without its epochs")
    settings = replace(settings, keep_epochs=kept)  # another cell may want them
    write_text(run / RUN_SETTINGS, settings.to_yaml())
    return settings


def load_model(workspace: Workspace, model: str) -> tuple[Any, Any]:
    """Load a model or a run, whose target may have moved since; the target itself as the trainings load it."""
    target = place(workspace.grid.target)
    moved = is_run(model) and Manifest.read(model).target != target
    how: dict[str, Any] = {"target": target} if moved else {}
    if model == workspace.grid.target:
        how |= workspace.hub
    if workspace.grid.settings.get("trust_remote_code"):
        how["trust_remote_code"] = True
    return load(model, date=workspace.date, **how)


def _evaluated(workspace: Workspace, model: str, split: str, name: str, **options: Any) -> TofuLog:
    """Log of a model; finished ones are read, unfinished ones are continued."""
    folder = workspace.folder / WORK / "eval" / name
    if (folder / FILE_NAME).exists():
        with suppress(LogError):  # a damaged one is made again, of the rows beside it
            return read_log(folder / FILE_NAME)
    loaded, tokenizer = load_model(workspace, model)
    settings = {"data": workspace.grid.data, "template": workspace.template, "progress": False}
    return evaluate(loaded, tokenizer, split, folder, **settings, **options)


def _reference_log(workspace: Workspace, role: str, split: str) -> TofuLog:
    """Log of the retain-only model of a split, or of the target on it."""
    name = workspace.evaluation(f"{role}-{split}", Spec("", role, None, split))
    model = workspace.grid.target if role == "target" else workspace.grid.retain_only[split]
    with workspace.locked(name):  # every cell of the split needs it, so two may come to make it at once
        return _evaluated(workspace, model, split, name)


def _epochs(workspace: Workspace, spec: Spec, retain_only: TofuLog) -> list[dict[str, Any]]:
    """Every epoch of a run: F.Q., M.U. without ROUGE, and the losses of Figure 3; nothing is generated."""
    run, path = workspace.run_folder(spec), _epochs_file(workspace, spec)
    rows = _stored_epochs(path)
    if rows is None:
        rows = _measured_epochs(workspace, spec, retain_only)
        write_text(path, json.dumps(rows, indent=1) + "\n")
    remove_folder(run / EPOCHS)
    sweep(run)
    return rows


def _stored_epochs(path: Path) -> list[dict[str, Any]] | None:
    """What was measured of every epoch, if it was."""
    try:
        rows = json.loads(path.read_bytes())
        return rows if [Epoch.model_validate(row) for row in rows] else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _measured_epochs(workspace: Workspace, spec: Spec, retain_only: TofuLog) -> list[dict[str, Any]]:
    """`_epochs` that have not been measured yet."""
    run, path = workspace.run_folder(spec), _epochs_file(workspace, spec)
    rows = []
    for folder in sorted((run / EPOCHS).glob("[0-9]*"), key=lambda one: int(one.name)):
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
    return rows


def _epochs_file(workspace: Workspace, spec: Spec) -> Path:
    """Where a cell's epochs are kept as they were measured: beside its log, as the retain-only model counts, too."""
    return workspace.folder / WORK / "eval" / workspace.evaluation(spec.name, spec) / _EPOCHS


def unseen_records(workspace: Workspace, spec: Spec) -> list[Record]:
    """Retain rows that a run was neither trained nor is evaluated on, evenly spaced."""
    settings = workspace.settings(spec)
    rows = uncovered(spec.split, workspace.grid.data, settings.retain_rows)
    if not rows:
        raise ULDError(
            f"{spec.name}: every retain row of {spec.split} is trained on or evaluated, and some that are neither are "
            "to be measured (keep_epochs, learning_rates): lower retain_rows"
        )
    return rows[:: max(1, len(rows) // _HELD_OUT)][:_HELD_OUT]


def answer_losses(workspace: Workspace, model: str, records: list[Record]) -> list[float]:
    """Mean loss a token of each record's answer under a model, nats."""
    loaded, tokenizer = load_model(workspace, model)
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


def model_digest(place: str, **hub: Any) -> str:
    """Digest of a model folder's weights, config and tokenizer; of a Hub model its name and commit.

    Args:
        place: Folder or Hub id.
        hub: Revision and the like.
    """
    if Path(place).is_dir():
        return _folder_digest(place, ("*.safetensors", "config.json", "tokenizer*.json", "uld.json"))
    commit = getattr(load_config(place, **hub), "_commit_hash", None)
    return _digest([place, commit])


def _folder_digest(folder: str, patterns: tuple[str, ...]) -> str:
    paths = sorted(path for pattern in patterns for path in Path(folder).rglob(pattern))
    return _digest([[path.relative_to(folder).as_posix(), file_digest(path)] for path in paths])


def _digest(value: Any) -> str:
    """Sixteen hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()[:16]
