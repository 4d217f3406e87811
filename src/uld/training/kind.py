"""What one kind of training does in its own way, beside the way that all have (`uld.training.run.carry_out`)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from uld.errors import ConfigError
from uld.runs.folder import Started
from uld.runs.machine import peak_memory
from uld.runs.values import shown
from uld.training.config import RunConfig
from uld.training.inputs import Inputs
from uld.training.journal import Journal
from uld.training.learner import Learner
from uld.training.objective import Objective
from uld.training.trainer import UnlearningTrainer

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What any training came to.

    Attributes:
        output: The run folder.
        steps: Optimiser steps.
        seconds: Wall-clock seconds of the training loop, over all resumed parts.
        weights_bytes: Size of the trained weights on disk.
    """

    output: Path
    steps: int
    seconds: float
    weights_bytes: int


class Training(ABC, Generic[Result]):
    """What one kind of training does in its own way; `uld.training.run.carry_out` does the rest.

    Attributes:
        takes: Kind of the settings.
        config: All settings.
        answers: Whether what is trained has to answer beside its target.
        progress: Whether what takes long shows how far it is, also before the first step.
        fall: How the learning rate falls, see `uld.training.trainer.rate_share`.
    """

    takes: ClassVar[type[RunConfig]] = RunConfig
    answers: bool = False
    progress: bool = False
    fall: Mapping[str, Any] = {}

    def __init__(self, config: RunConfig) -> None:
        """Take the settings.

        Raises:
            ConfigError: they are those of another training, or none.
        """
        if not isinstance(config, self.takes):
            raise ConfigError(f"the settings must be a uld.{self.takes.__name__}, not {shown(config)}")
        self.config = config

    @abstractmethod
    def read(self, *, resume: bool) -> Inputs:
        """Read tokenizer and data."""

    @abstractmethod
    def load(self, inputs: Inputs, dtype: str) -> Learner:
        """Load what is trained."""

    @abstractmethod
    def begin(self, learner: Learner, inputs: Inputs) -> Started:
        """Say what training starts on, before anything is written and before a step changes the model."""

    @abstractmethod
    def objective(self, learner: Learner, dtype: str, progress: bool) -> Objective:
        """Say what is minimised."""

    def before_steps(self, trainer: UnlearningTrainer, inputs: Inputs, journal: Journal) -> None:
        """Do what has to be done on the device, and in the folder, before the first step."""

    def restore(self, trainer: UnlearningTrainer) -> bool:
        """Take what was trained before, in a finished run that is continued; whether there is such."""
        return False

    def after_steps(self, trainer: UnlearningTrainer, inputs: Inputs, journal: Journal, *, progress: bool) -> None:
        """Do what follows the last step, before anything is written."""

    @abstractmethod
    def write(self, folder: Path, trainer: UnlearningTrainer, inputs: Inputs) -> None:
        """Write what a finished folder holds; the file that marks it as finished comes last."""

    @abstractmethod
    def result(self) -> Result:
        """Say what came of it, from a finished folder."""


def run_facts(trainer: UnlearningTrainer, lines: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """What an artefact says about any training.

    Args:
        trainer: When it has ended.
        lines: The run's ``metrics.jsonl``.
        size: Bytes of the weights on disk.
    """
    return {
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0, 6),
        "seconds": round(sum(line["seconds"] for line in lines), 2),
        "tokens": sum(line["tokens"] for line in lines),
        "weights_bytes": size,
        "peak_rss_bytes": peak_memory(),
    }


def result_of(output: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `RunResult`, from a finished folder and the facts that `run_facts` left there."""
    return {"output": Path(output)} | {name: facts[name] for name in ("steps", "seconds", "weights_bytes")}
