"""One cell of a grid: train, evaluate, and write down what came of it. Each stage is resumable, none is done twice.

In the grid's folder ``cells/NAME.json`` is the result, small enough to be kept for good; ``answers/NAME.json`` holds
answers for the report; ``work/runs`` and ``work/eval`` hold what they were made from, under digests of all that decides
them, and can be deleted.
"""

import json
import statistics
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from uld.compare.grid import Spec
from uld.compare.workspace import WORK, Workspace
from uld.data.prompt import PromptFormat, spread
from uld.data.record import Record
from uld.data.tofu import load_tofu, uncovered
from uld.errors import ConfigError, ULDError
from uld.evaluation.metrics import model_utility
from uld.evaluation.scoring import Scorer
from uld.evaluation.tofu import evaluate
from uld.evaluation.tofu_log import FILE_NAME, LogError, TofuLog, read_log
from uld.evaluation.tofu_result import UTILITY_TASKS, aggregate
from uld.methods.registry import get_method
from uld.model.load import load
from uld.report.cells import ANSWERS, Cell, Epoch
from uld.runs.files import remove_folder, sweep, write_text
from uld.runs.folder import UnresumableError, needs_tidying, tidy, working_in
from uld.runs.manifest import EPOCHS, RUN_SETTINGS, Manifest, is_run, place
from uld.training.config import TrainConfig
from uld.training.inputs import covered_rows
from uld.training.run import train
from uld.training.stored import stored_settings

_EPOCHS = "epochs.json"
_HELD_OUT = 200  # retain rows that are scored for the figure of losses and for learning rates
_SHOWN = 3  # answers of each side that the report shows


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
    rows, unseen = [], unseen_records(workspace, spec)
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
        held_out = answer_losses(workspace, str(folder), unseen)
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
    covered = covered_rows(settings, get_method(settings.method))
    rows = uncovered(spec.split, workspace.grid.data, covered)
    if not rows:
        raise ULDError(
            f"{spec.name}: every retain row of {spec.split} is trained on or evaluated, and some that are neither are "
            "to be measured (keep_epochs, learning_rates): lower retain_rows"
        )
    return spread(rows, _HELD_OUT)


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
