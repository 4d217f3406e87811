"""The way through a grid: who computes which cell, when it is done, and what is left after a stop.

Any number of processes, on any number of machines, may work on one folder: a cell is claimed by a lock on a file that
goes with the process that computes it. A cell that fails is written down with its reason, and the others go on.
"""

import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml

from uld.compare import rates
from uld.compare.cell import run_cell, unseen_records
from uld.compare.grid import Grid, Spec, families, rate_specs, specs
from uld.compare.plan import GridPlan, plan
from uld.compare.workspace import LOCKS, WORK, OtherGridError, Workspace
from uld.errors import ArtifactError, DiskFullError, ULDError
from uld.report.cells import ANSWERS, CELLS, PLAN, RATES, Identity, Plan
from uld.runs.files import present, sweep, write_text, writing
from uld.runs.locks import LOCK, locked
from uld.text.faults import report, told

GRID = "grid.yaml"
_WAIT = 5.0  # seconds between looks at what other processes are computing
_FULL, _OTHER, _TAKEN, _STOPPED, _WRONG = 28, 5, 4, 3, 2  # exit codes of a cell's process


@dataclass(frozen=True)
class Progress:
    """What is told after each cell.

    Attributes:
        done: Cells that are finished.
        total: Cells of the grid, trainings for learning rates included.
        name: The cell.
        seconds: What it took.
        left: Seconds that the rest will take, about; None while nothing can be said.
        error: Why it failed, if it did.
    """

    done: int
    total: int
    name: str
    seconds: float
    left: float | None
    error: str | None


def run_grid(
    grid: Grid, folder: str | Path, *, replace: bool = False, progress: Callable[[Progress], None] | None = None
) -> list[str]:
    """Compute every cell of a grid that is not there yet, side by side with other processes in the same folder.

    Args:
        grid: The grid.
        folder: Where everything goes; made if it is missing.
        replace: Whether results that were computed from other inputs may be replaced.
        progress: Told of every cell that this process finishes.

    Returns:
        Names of the cells that failed; their files say why.

    Raises:
        ULDError: the folder holds another grid, or the disk is full.
        KeyboardInterrupt: Ctrl-C; what is done stays, and the next call goes on.
    """
    workspace = Workspace(grid, Path(folder))
    _claim_folder(workspace, replace)
    began, finished_here = time.monotonic(), 0
    failed: set[str] = set()
    total = len(rate_specs(grid)) + len(specs(grid, dict.fromkeys(families(grid), 0.5)))
    while True:
        todo, left = _todo(workspace, failed)
        if not left:
            return sorted(failed)
        for spec in todo:
            started = time.monotonic()
            try:
                error = _without_rate(workspace, spec, replace) or _isolated(workspace, spec, replace)
            except _TakenError:
                continue
            if error is not None:
                failed.add(spec.name)
            finished_here, left = finished_here + 1, left - 1
            if progress is not None:
                now = time.monotonic()
                rest = (now - began) / finished_here * left if left else None
                progress(Progress(total - left, total, spec.name, now - started, rest, error))
            break  # look again: a learning rate may be known now, or others may have finished
        else:
            time.sleep(_WAIT)  # all that is left is being computed by others


def _todo(workspace: Workspace, failed: set[str]) -> tuple[list[Spec], int]:
    """Cells that can be computed now and are not done, in order, and the number of all that are not done."""
    trials = rate_specs(workspace.grid)
    chosen = rates.chosen(workspace)
    cells = specs(workspace.grid, dict.fromkeys(families(workspace.grid), 0.5) | chosen)
    waiting = {name for first, names in families(workspace.grid).items() if first not in chosen for name in names}
    untried = {spec.method for spec in trials if spec.name not in failed}
    for first in rates.hopeless(workspace) - untried:  # their cells are told that they have no rate
        waiting -= set(families(workspace.grid)[first])
    left = [spec for spec in [*trials, *cells] if spec.name not in failed and not _is_done(workspace, spec)]
    now = [spec for spec in left if spec.role != "method" or spec.method not in waiting]
    return sorted(now, key=lambda spec: ("retain-only", "target", "rate", "method").index(spec.role)), len(left)


def overview(grid: Grid, folder: str | Path) -> str:
    """What a grid comes to and what is left of it, one line a cell."""
    workspace = Workspace(grid, Path(folder))
    chosen = rates.chosen(workspace)
    every = [*rate_specs(grid), *specs(grid, dict.fromkeys(families(grid), 0.5) | chosen)]
    lines = [f"{'done' if _is_done(workspace, spec) else 'to do':6} {spec.name}" for spec in every]
    left = sum(line.startswith("to do") for line in lines)
    return "\n".join([*lines, f"{len(every)} cells and trials, {left} to do"])


def grid_plan(grid: Grid, folder: str | Path, *, replace: bool = False) -> GridPlan:
    """How long what is left of a grid takes; the first steps of its trainings are made for it, and kept.

    Args:
        grid: The grid.
        folder: See `run_grid`.
        replace: See `run_grid`.

    Raises:
        ULDError: the folder holds another grid, or a training or an evaluation fails.
    """
    workspace = Workspace(grid, Path(folder))
    _claim_folder(workspace, replace)
    chosen = rates.chosen(workspace)
    any_rate = {first: min(one.candidates) for one in grid.learning_rates for first in one.families}
    every = [*rate_specs(grid), *specs(grid, any_rate | chosen)]
    left = [spec for spec in every if not _is_done(workspace, spec)]
    return plan(
        workspace, left, {name for first, some in families(grid).items() if first not in chosen for name in some}
    )


def _is_done(workspace: Workspace, spec: Spec) -> bool:
    """Whether a cell or a trial has a result; one that failed has none, and the next call tries it again."""
    if spec.role != "rate":
        return workspace.finished(spec) is not None
    found = rates.stored(workspace, spec)
    return found is not None and found.error is None


class _TakenError(Exception):
    """Another process computes the cell, or has just finished it."""


def _isolated(workspace: Workspace, spec: Spec, replace: bool) -> str | None:
    """Compute a cell in a process of its own, so that whatever ends it ends nothing else; the reason if it failed.

    Raises:
        DiskFullError: nothing else would fare better.
        OtherGridError: the folder has come to hold a cell of this name that may not be replaced.
        KeyboardInterrupt: the cell was stopped.
        _TakenError: another process has it.
    """
    context = multiprocessing.get_context("forkserver")
    # Imported once, and not again for every cell; ROUGE's library takes as long as many a small cell.
    context.set_forkserver_preload(["uld.compare.cell", "rouge_score.rouge_scorer"])
    reader, writer = context.Pipe(duplex=False)
    watched, alive = context.Pipe(duplex=False)  # closes with us, which ends the cell's process, too
    task = (workspace.grid, workspace.folder, spec, replace)
    process = context.Process(target=_cell_process, args=(*task, writer, watched))
    process.start()
    writer.close()
    watched.close()
    try:
        process.join()
    except KeyboardInterrupt:
        process.join()  # the terminal has told it, too: it finishes its step and leaves a checkpoint
        raise
    finally:
        alive.close()
    try:
        message = reader.recv()
    except EOFError:  # it had nothing to say
        message = None
    if process.exitcode == _TAKEN:
        raise _TakenError
    if process.exitcode == _STOPPED:
        raise KeyboardInterrupt
    if process.exitcode == _FULL:
        raise DiskFullError(message)
    if process.exitcode == _OTHER:
        raise OtherGridError(message)
    if process.exitcode == 0:
        return None
    return _failed(workspace, spec, message or f"its process ended with {_ending(process.exitcode)}")


def _without_rate(workspace: Workspace, spec: Spec, replace: bool) -> str | None:
    """Write down that a cell fails because all candidates for its learning rate did; None where they did not.

    Raises:
        OtherGridError: there is a result of another grid, which may not be replaced.
        _TakenError: another process has the cell.
    """
    without = {name for first in rates.hopeless(workspace) for name in families(workspace.grid)[first]}
    if spec.role != "method" or spec.method not in without or not _is_given_its_rate(workspace.grid, spec):
        return None
    if not replace:
        workspace.refuse_other(spec)
    error = "every candidate for its learning rate failed (rates/*.json say why): name others under learning_rates"
    return _failed(workspace, spec, error, settings={})  # nobody knows them


def _is_given_its_rate(grid: Grid, spec: Spec) -> bool:
    """Whether a cell has its learning rate from its family, and none of its own."""
    one, other = (
        next(cell for cell in specs(grid, dict.fromkeys(families(grid), rate)) if cell.name == spec.name)
        for rate in (0.25, 0.5)
    )
    return dict(one.settings) != dict(other.settings)


def _failed(workspace: Workspace, spec: Spec, error: str, **found: Any) -> str:
    """Write down why a cell or a trial failed.

    Raises:
        _TakenError: another process has it.
    """
    with workspace.locked(spec.name, wait=False) as mine:
        if not mine or _is_done(workspace, spec):  # another process was there at once, and may do better
            raise _TakenError
        if spec.role == "rate":
            rates.write(workspace, spec, error=error)
        else:
            workspace.write(spec, error=error, **found)
    return error


def _ending(code: int | None) -> str:
    """An exit code in words."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"{name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
    return f"exit code {code}"


def _cell_process(grid: Grid, folder: Path, spec: Spec, replace: bool, writer: Connection, watched: Connection) -> None:
    """What a cell's own process does; it holds the cell's lock, so that the lock lives as long as the workspace."""
    import transformers

    from uld.training.run import Interrupted

    threading.Thread(target=_end_with_parent, args=(watched,), daemon=True).start()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("uld").setLevel(logging.ERROR)
    workspace = Workspace(grid, folder)
    try:
        with workspace.locked(spec.name, wait=False) as mine:
            if not mine or _is_done(workspace, spec):
                sys.exit(_TAKEN)
            if spec.role != "rate" and not replace:
                workspace.refuse_other(spec)
            rates.measure(workspace, spec) if spec.role == "rate" else run_cell(workspace, spec)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(_STOPPED)
    except DiskFullError as error:
        writer.send(str(error))
        sys.exit(_FULL)
    except OtherGridError as error:
        writer.send(str(error))
        sys.exit(_OTHER)
    except ULDError as error:
        writer.send(str(error))
        sys.exit(_WRONG)
    except Exception as error:
        writer.send((told(error) or report(error)).sentence)
        sys.exit(_WRONG)


def _end_with_parent(watched: Connection) -> None:
    """Wait until the process that started this one is gone, and go, too."""
    with suppress(EOFError, OSError):
        watched.recv()
    os._exit(_STOPPED)


def _claim_folder(workspace: Workspace, replace: bool) -> None:
    """Take a folder for a grid, or find it taken by the same one or a smaller one.

    Raises:
        ArtifactError: it holds something else, or cells of the same names that were computed from other inputs.
    """
    folder = workspace.folder
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file: name another folder with --output")
    _ = workspace.inputs  # takes long for large models, and others wait for the lock
    _refuse_all_seen(workspace)
    with ExitStack() as stack:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / LOCK, wait=math.inf))
        _take_folder(workspace, replace)


def _refuse_all_seen(workspace: Workspace) -> None:
    """Refuse a grid without retain rows to measure by that no run has seen, before anything is trained.

    Raises:
        ULDError: names the cell.
    """
    grid = workspace.grid
    cells = [spec for spec in specs(grid, dict.fromkeys(families(grid), 0.5)) if spec.keep_epochs]
    deciding = ("split", "retain_rows", "paraphrases", "augment", "seed")  # how many retain rows are trained on
    each = [(one, workspace.settings(one)) for one in (*rate_specs(grid), *cells)]
    for spec in {tuple(getattr(own, name) for name in deciding): one for one, own in each}.values():
        unseen_records(workspace, spec)


def _take_folder(workspace: Workspace, replace: bool) -> None:
    """`_claim_folder`, while the folder is held."""
    folder, path = workspace.folder, workspace.folder / GRID
    names = present(folder)
    if names - {PLAN} and not names & {GRID, CELLS, WORK}:  # a kill may have left the plan alone
        raise ArtifactError(f"{folder} is not empty and holds no grid: name another folder with --output")
    for one in (folder, folder / CELLS, folder / ANSWERS, folder / RATES):
        sweep(one)
    for lock in (folder / WORK / LOCKS).glob("*"):
        with locked(lock):  # one that a kill has left goes, one that is held stays
            pass
    if not replace:
        chosen = rates.chosen(workspace)
        unknown = {name for first, names in families(workspace.grid).items() if first not in chosen for name in names}
        for spec in specs(workspace.grid, dict.fromkeys(families(workspace.grid), 0.5) | chosen):
            if spec.method not in unknown:
                workspace.refuse_other(spec)
    text = yaml.safe_dump(workspace.grid.model_dump(), sort_keys=False, allow_unicode=True)
    if not path.exists() or path.read_bytes() != text.encode():
        every = specs(workspace.grid, dict.fromkeys(families(workspace.grid), 0.5))
        cells = [Identity(**workspace.identity(spec)) for spec in every]
        trials = [spec.name for spec in rate_specs(workspace.grid)]
        Plan(cells=cells, notes=workspace.grid.notes, rates=trials).write(folder / PLAN)
        write_text(path, text)
