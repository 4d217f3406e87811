"""What is seen of a training run: ``metrics.jsonl``, the progress bar, and a clean stop on Ctrl-C."""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from uld.errors import ULDError
from uld.runs.files import write_text, writing
from uld.runs.folder import UnresumableError
from uld.runs.manifest import METRICS
from uld.text.progress import bar
from uld.training.trainer import UnlearningTrainer

_LOST = 600.0  # seconds of work that a crash may cost, where steps take so long that --save-steps would cost more
_SAVINGS = 20  # times as long as a checkpoint took are to lie before the next that nobody asked for
_STOPPING = b"\nstopping after this step; a second Ctrl-C stops at once\n"


class Journal(TrainerCallback):
    """Writes ``metrics.jsonl``, one line a step, shows progress, and stops after the step on request.

    A step that ends more than ten minutes after the last checkpoint is followed by one, whatever ``save_steps`` says.
    Where checkpoints take long, they come so seldom that they cost no more than a twentieth of the time.

    Attributes:
        trainer: To be set before training starts.
        interrupted: Set it to end training after the current step, with a checkpoint.
        most: Steps after which that is done; None for no such number.
        on_epoch: Called in the last step of each epoch with its number, from 1, before a checkpoint of that step is
            written: a run that is continued from one has all epochs before it.
    """

    trainer: UnlearningTrainer
    on_epoch: Callable[[int], None] | None = None

    def __init__(self, output: Path, progress: bool, most: int | None = None) -> None:
        """Choose the run folder, whether a bar is shown, and when to stop."""
        self.path = output / METRICS
        self.progress = progress
        self.interrupted = False
        self.most = most
        self.learning_rate = 0.0
        self.file: Any = None
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the lines up to the checkpoint that training continues from."""
        self.before = time.perf_counter()
        self.due = self.before + _LOST
        kept = [line for line in read_metrics(self.path) if line["step"] <= state.global_step]
        if [line["step"] for line in kept] != list(range(1, state.global_step + 1)):
            raise UnresumableError(f"{self.path} is damaged: start over with --overwrite")
        for line in kept:
            self.trainer.reweigh(line, line["epoch"])
        if not state.is_world_process_zero:
            return
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = self.path.open("a", buffering=1)
        self.bar = bar(state.max_steps, "", "step", done=state.global_step, shown=self.progress)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """From here on work can be lost again; large weights are not written all the time."""
        now = time.perf_counter()
        self.due = now + max(_LOST, _SAVINGS * (now - self.before))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the learning rate before the scheduler moves on."""
        self.learning_rate = self.trainer._get_learning_rate()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One line and one tick a step.

        Raises:
            ULDError: a loss is no longer a number, or the line cannot be written.
        """
        due = time.perf_counter() > self.due
        facts = self.trainer.take_step(self.interrupted or state.global_step == self.most, due)
        now = time.perf_counter()
        seconds, self.before = now - self.before, now
        if facts.save:
            control.should_save = True
        if facts.stop:
            self.interrupted = control.should_save = control.should_training_stop = True
        if not all(map(math.isfinite, facts.losses.values())):
            shown = " + ".join(f"{value:.3g}" for value in facts.losses.values())
            raise ULDError(f"training diverged at step {state.global_step} (loss {shown}): lower --learning-rate")
        if not state.is_world_process_zero:
            return
        line = {
            "step": state.global_step,
            "epoch": round(state.epoch, 6),
            **facts.losses,
            **facts.weights,
            "learning_rate": self.learning_rate,
            "tokens": facts.tokens,
            "learnt": facts.learnt,
            "seconds": round(seconds, 4),
        }
        with writing(self.path.parent):
            self.file.write(json.dumps(line) + "\n")
        if self.on_epoch is not None and state.epoch == int(state.epoch):
            self.on_epoch(int(state.epoch))
            self.before = time.perf_counter()  # what this takes is no step's
        shown = ", ".join(f"{name.removesuffix('_loss')} {value:.3f}" for name, value in facts.losses.items())
        self.bar.set_postfix_str(f"{shown}, {facts.tokens / seconds:,.0f} tok/s", refresh=False)
        self.bar.update()

    def close(self) -> None:
        """Close the file and the bar."""
        if self.file is not None:
            with suppress(OSError):  # a full disk has been reported by the line that did not fit
                self.file.close()
        if self.bar is not None:
            self.bar.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a ``metrics.jsonl`` up to the first that is none: a kill or a full disk cuts the last one short."""
    lines: list[dict[str, Any]] = []
    for text in path.read_bytes().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
            if not {"step", "epoch", "tokens", "seconds"} <= line.keys():
                break
        except (ValueError, RecursionError, AttributeError):
            break
        lines.append(line)
    return lines


def last_losses(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Each loss of the last step in which it was measured."""
    return {name: value for line in lines for name, value in line.items() if name == "loss" or name.endswith("_loss")}


@contextmanager
def stop_on_interrupt(journal: Journal) -> Iterator[None]:
    """First Ctrl-C: finish the step, write a checkpoint, stop. Second: stop at once."""

    def first(signum: int, frame: Any) -> None:
        journal.interrupted = True
        signal.signal(signal.SIGINT, previous)
        os.write(2, _STOPPING)  # print may not be entered twice, and a signal can come while it runs

    try:
        previous = signal.signal(signal.SIGINT, first)
    except ValueError:  # not the main thread: leave signals to whoever owns them
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
