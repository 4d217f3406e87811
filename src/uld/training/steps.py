"""The steps of a training, from the last whole checkpoint on, and how they are stopped."""

from pathlib import Path

import transformers

from uld.errors import ULDError
from uld.runs.folder import last_checkpoint
from uld.runs.manifest import CHECKPOINTS
from uld.training.journal import Journal
from uld.training.trainer import UnlearningTrainer


class Interrupted(ULDError):
    """Training was stopped by the user and can be resumed."""


def run_steps(
    trainer: UnlearningTrainer, journal: Journal, folder: Path, *, resume: bool, again: str, of: str = ""
) -> None:
    """Train to the end, from the last complete checkpoint where there is one to resume.

    Args:
        trainer: With everything that it needs.
        journal: One of the trainer's callbacks.
        folder: Where its checkpoints are.
        resume: Whether to look for a checkpoint.
        again: The command that continues, for the message.
        of: What the steps are those of, for the message; nothing for all there are.

    Raises:
        Interrupted: the user stopped it.
    """
    trainer.remove_callback(transformers.PrinterCallback)
    journal.trainer = trainer
    trainer.accelerator.wait_for_everyone()  # all choose the same checkpoint
    start = last_checkpoint(folder / CHECKPOINTS) if resume else None
    try:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    finally:
        journal.close()
    if journal.interrupted and trainer.state.global_step < trainer.state.max_steps:
        raise Interrupted(
            f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}{of}: continue with {again}"
        )
