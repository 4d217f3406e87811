"""How long the rest of a grid takes: measured on the first steps of its trainings and on a few rows of an evaluation.

What was measured is not lost: the trainings stop with a checkpoint, from which their cells continue.
"""

import statistics
import tempfile
import time
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uld.compare.cell import load_model, trained
from uld.compare.grid import Spec
from uld.compare.workspace import Workspace
from uld.errors import ConfigError
from uld.evaluation.tofu import TASKS, evaluate
from uld.evaluation.tofu_rows import task_rows
from uld.methods.registry import get_method
from uld.runs.files import remove_folder
from uld.runs.manifest import METRICS, is_run
from uld.text.progress import duration
from uld.training.config import TrainConfig
from uld.training.inputs import read_inputs
from uld.training.journal import read_metrics
from uld.training.trainer import Interrupted, planned_steps

STEPS = 20
_FIRST = 5  # steps in which kernels are made for new shapes
_ROWS = 4  # of each task set
_EPOCH = 0.2  # of an evaluation's time: an epoch's, which generates nothing


@dataclass(frozen=True)
class GridPlan:
    """An estimate.

    Attributes:
        seconds: What each cell and trial that is left will take in one process, by name, in the order of the grid.
    """

    seconds: dict[str, float]

    def total(self, jobs: int = 1) -> float:
        """Seconds of all, in so many processes side by side, each as fast as one alone."""
        return sum(self.seconds.values()) / jobs

    def within(self, hours: float, jobs: int = 1) -> int:
        """How many cells, from the first on, end within so many hours."""
        spent, number = 0.0, 0
        for seconds in self.seconds.values():
            spent += seconds / jobs
            number += spent <= hours * 3600
        return number

    def refuse_longer(self, hours: float, jobs: int = 1) -> None:
        """Refuse a grid that takes longer.

        Raises:
            ConfigError: says how long it takes, and how much of it does not.
        """
        if self.total(jobs) <= hours * 3600:
            return
        number, names = self.within(hours, jobs), list(self.seconds)
        fits = f"the first {number} of {len(names)} cells and trials, up to {names[number - 1]}," if number else "none"
        raise ConfigError(
            f"what is left of the grid takes {duration(self.total(jobs))}, and --hours is {hours:g}: {fits} would fit; "
            "take splits, seeds or methods out of the grid, from the end, or give more hours"
        )

    def __str__(self) -> str:
        """A line a cell."""
        width = max(map(len, self.seconds), default=0)
        lines = [f"{name:{width}}  {duration(seconds)}" for name, seconds in self.seconds.items()]
        return "\n".join([*lines, f"in all: {duration(self.total())} in one process, give or take a half"])


def plan(workspace: Workspace, left: Sequence[Spec], waiting: Container[str | None] = ()) -> GridPlan:
    """Measure and count.

    Args:
        workspace: The grid and its folder.
        left: Cells and trials that are not done, in order.
        waiting: Methods whose learning rate is not chosen yet: their cells may have any, and are not begun.

    Raises:
        ULDError: a cell that cannot be trained or a model that cannot be evaluated; what was measured before is kept.
    """
    evaluation: dict[str, float] = {}
    step: dict[tuple[Any, ...], float] = {}
    seconds: dict[str, float] = {}
    for spec in left:
        spent = 0.0
        if spec.role != "rate":
            if spec.split not in evaluation:
                evaluation[spec.split] = _evaluating(workspace, spec.split)
            spent += evaluation[spec.split]
        if spec.method is not None and not is_run(workspace.run_folder(spec)):
            config = workspace.settings(spec)
            depth = config.num_layers, config.lora_layers
            shape = config.method, depth, config.batch_size, config.batch_tokens, config.max_length
            if shape not in step:
                step[shape] = _step(workspace, spec)
                if spec.role != "rate" and spec.method in waiting:
                    remove_folder(workspace.run_folder(spec))
            done = len(read_metrics(Path(config.output) / METRICS))
            spent += step[shape] * max(0, _steps(config) - done)
            spent += evaluation.get(spec.split, 0.0) * _EPOCH * config.epochs * spec.keep_epochs
        seconds[spec.name] = spent
    return GridPlan(seconds)


def _step(workspace: Workspace, spec: Spec) -> float:
    """Seconds of a step of a cell's training, whose first are made."""
    folder = workspace.run_folder(spec)
    if len(read_metrics(folder / METRICS)) < STEPS:
        with suppress(Interrupted):
            trained(workspace, spec, stop_after=STEPS)
    found = [line["seconds"] for line in read_metrics(folder / METRICS)]
    return statistics.median(found[_FIRST:] or found)


def _steps(config: TrainConfig) -> int:
    """Steps of a whole training."""
    return planned_steps(config, read_inputs(config, get_method(config.method)).rows)


def _evaluating(workspace: Workspace, split: str) -> float:
    """Seconds of the target's evaluation on a split, counted up from a few rows."""
    model, tokenizer = load_model(workspace, workspace.grid.target)
    settings = {"data": workspace.grid.data, "template": workspace.template, "progress": False, "limit": _ROWS}
    rows = sum(len(task_rows(task, split, workspace.grid.data)) for task in TASKS)
    seconds = 0.0
    with tempfile.TemporaryDirectory(prefix="uld-plan-") as folder:
        for turn in ("first", "second"):  # in the first, kernels are made for new shapes
            began = time.monotonic()
            evaluate(model, tokenizer, split, Path(folder, turn), **settings)
            seconds = time.monotonic() - began
    return seconds * rows / (_ROWS * len(TASKS))
