"""A thin transformers.Trainer around an objective, and the arguments that our settings give it.

Losses are normalised over the whole optimiser step (all micro-batches, all processes), so the split of a batch over
processes and accumulation steps does not change them.
"""

import functools
import logging
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations

from uld.data.collate import NO_LOSS, Collator, PlanLoader, PlanSampler, Rows
from uld.errors import ConfigError, ULDError
from uld.model.weights import load_weights, save_weights
from uld.runs.files import writing
from uld.runs.folder import last_checkpoint, seal
from uld.runs.manifest import CHECKPOINTS
from uld.training.config import RunConfig
from uld.training.objective import Objective

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepFacts:
    """What came of an optimiser step, over all processes.

    Attributes:
        losses: Mean of each loss that was measured, by its name, nats a token or a row, as the loss has it.
        tokens: Tokens that went through the model, padding not counted.
        stop: Whether any process was asked to stop.
        save: Whether any process asks for a checkpoint.
        weights: Weights of losses in this step, by their names, where they change.
        learnt: Tokens (or rows, of a loss a row) that the losses are means of, over all of them.
    """

    losses: dict[str, float]
    tokens: int
    stop: bool
    save: bool = False
    weights: dict[str, float] = field(default_factory=dict)
    learnt: int = 0


class UnlearningTrainer(Trainer):
    """A thin Trainer: our batches, a loss normalised over the whole step, checkpoints of what is trained alone."""

    def __init__(
        self,
        objective: Objective,
        rows: Rows,
        config: RunConfig,
        pad_token_id: int,
        *,
        schedule: str = "linear",
        floor: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """Wire rows and losses into the Trainer.

        Args:
            objective: What is trained and what is minimised.
            rows: All rows of an epoch.
            config: Batch size, seed and output folder are read from it.
            pad_token_id: Fills short rows.
            schedule: How the learning rate falls, see `rate_share`.
            floor: The share of it that is left at the end.
            kwargs: For the Trainer.
        """
        super().__init__(model=objective, train_dataset=rows, **kwargs)
        self.objective = objective
        self.rows = rows
        self.config = config
        self.collator = Collator(pad_token_id)
        self.terms = objective.terms
        self.weights = [term.weight for term in self.terms]  # some methods change them as they go
        self.fall = {"schedule": schedule, "floor": floor}
        self.model_accepts_loss_kwargs = True  # the loss is already scaled for gradient accumulation
        self.step_sums = torch.zeros(len(self.terms) + 1)  # each loss, and tokens, of the step so far
        self.step_items = torch.ones(len(self.terms))
        self.last_losses: dict[str, float] = {}
        if config.epochs > 1:
            again = [one for row in rows.rows if not row.later for one in (row.encoded, row.alternative) if one]
            objective.learner.keep_lower(one.ids for one in again)

    def get_train_dataloader(self) -> PlanLoader:  # type: ignore[override]
        """Micro-batches of this process; the plan is shared by all."""
        sampler = PlanSampler(
            self.rows,
            self.config.batch_size,
            seed=self.config.seed,
            rank=self.args.process_index,
            world=self.args.world_size,
            accumulation=self.args.gradient_accumulation_steps,
            batch_tokens=self.config.batch_tokens,
        )
        return PlanLoader(self.rows, batch_sampler=sampler, collate_fn=self.collator)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the learning rate follow `rate_share`."""
        if self.lr_scheduler is None:
            total = num_training_steps
            # A share of a single step is rounded up to all of it, and it would change nothing at a rate of 0.
            warmup = self.args.get_warmup_steps(total) if total > 1 else 0
            share = functools.partial(rate_share, warmup=warmup, total=total, **self.fall)
            chosen: Any = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, share)
        return self.lr_scheduler

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """What the losses are divided by, in the whole optimiser step, over all processes: ``(terms,)``."""
        keys = [("kind" if term.per == "position" else "side", term.side) for term in self.terms]
        counts = torch.stack([torch.stack([(b[key] == side).sum() for key, side in keys]) for b in batch_samples])
        total: Any = self.accelerator.reduce(counts.sum(0).to(device), "sum")
        return total

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """``Σ weight · mean loss`` of the optimiser step, this micro-batch's share of it."""
        assert num_items_in_batch is not None
        sums = model(**inputs)
        means = sums / num_items_in_batch.clamp_min(1)
        real = (inputs["kind"] != NO_LOSS).any()  # a process without a row left goes through one of padding
        tokens = (inputs["attention_mask"].sum() * real).reshape(1).float()
        self.step_sums = self.step_sums.to(sums.device) + torch.cat([sums.detach(), tokens])
        self.step_items = num_items_in_batch
        # DDP averages gradients over the processes, the loss is a sum over them.
        loss: Any = sum(weight * mean for weight, mean in zip(self.weights, means, strict=True))
        return loss * self.args.world_size

    def take_step(self, stop: bool, save: bool = False) -> StepFacts:
        """Facts of the step that just ended; every process calls it, and all get the same answer.

        Args:
            stop: Whether this process was asked to stop.
            save: Whether this process asks for a checkpoint.
        """
        mine = torch.cat([self.step_sums, self.step_sums.new_tensor([float(stop), float(save)])])
        total: Any = self.accelerator.reduce(mine, "sum")
        self.step_sums = torch.zeros_like(self.step_sums)
        *sums, tokens, stopped, saved = total.tolist()
        items = self.step_items.tolist()
        self.last_losses = {
            term.name: one / number for term, one, number in zip(self.terms, sums, items, strict=True) if number
        }
        weights = {
            term.weight_name: weight
            for term, weight in zip(self.terms, self.weights, strict=True)
            if term.reweigh is not None
        }
        self.reweigh(self.last_losses, self.state.epoch or 0.0)
        return StepFacts(self.last_losses, int(tokens), stopped > 0, saved > 0, weights, int(sum(items)))

    def reweigh(self, losses: Mapping[str, float], epoch: float) -> None:
        """Let weights follow the mean losses of a step, by their names, after so many epochs."""
        for number, term in enumerate(self.terms):
            if term.reweigh is not None and term.name in losses:
                self.weights[number] = term.reweigh(self.weights[number], losses[term.name], epoch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand the losses of the step to the experiment tracker, beside their weighted sum."""
        super().log({**self.last_losses, **logs}, start_time)

    def _get_output_dir(self, trial: Any) -> str:
        """Checkpoints have a folder of their own in the run."""
        return str(Path(str(self.args.output_dir)) / CHECKPOINTS)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write what is trained, and nothing else."""
        assert output_dir is not None
        if self.args.should_save:
            save_weights(self.objective.model, Path(output_dir))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint; a failed one leaves nothing behind."""
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        with writing(self.config.output):
            try:
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()  # each process has written its random state
                if self.args.should_save:
                    seal(folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read what is trained back."""
        load_weights(self.objective.model, Path(resume_from_checkpoint))


class Interrupted(ULDError):
    """Training was stopped by the user and can be resumed."""


class Stopping(Protocol):
    """What `run_steps` asks of a journal: whether the user wants to stop, and an end of its line."""

    trainer: UnlearningTrainer
    interrupted: bool

    def close(self) -> None:
        """Leave the line as it is."""


def run_steps(
    trainer: UnlearningTrainer, journal: Stopping, folder: Path, *, resume: bool, again: str, of: str = ""
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
    trainer.remove_callback(PrinterCallback)
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


def training_dtype(config: RunConfig) -> str:
    """``bf16``, ``fp32`` or ``auto`` (the checkpoint's own)."""
    if config.dtype == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        return "bf16"
    return config.dtype


def rate_share(step: int, warmup: int, total: int, schedule: str = "linear", floor: float = 0.0) -> float:
    """Share of the peak learning rate in a step: a linear rise, then a fall to a floor, linear or along a cosine.

    Args:
        step: Counted from 0.
        warmup: Steps of the rise.
        total: All steps.
        schedule: ``linear`` or ``cosine``.
        floor: Share that is reached behind the last step.
    """
    if step < warmup:
        return step / warmup
    left = max(0.0, (total - step) / max(1, total - warmup))
    if schedule == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    return floor + (1 - floor) * left


def planned_steps(config: RunConfig, rows: Rows) -> int:
    """Optimiser steps of the whole training."""
    plan = PlanSampler(rows, config.batch_size, seed=config.seed, batch_tokens=config.batch_tokens)
    return config.epochs * len(plan)


def refuse_long_warmup(config: RunConfig, total: int) -> None:
    """Refuse a warm-up of more steps than the training has: its learning rate would never come near its peak.

    A default that is too long for a small training is only told of.

    Raises:
        ConfigError: says how many steps there are.
    """
    if config.warmup < max(1, total) or total == 1:
        return
    steps = f"{config.warmup:.0f}"
    said = f"--warmup {steps}: the learning rate rises for {steps} steps, and the whole training has {total}"
    if config.warmup != config.under(vars(config))[1].get("warmup"):
        raise ConfigError(f"{said}: give fewer steps, or a share below 1 (0.1: the first tenth of all steps)")
    logger.warning("%s, so it never comes to its peak", said)


def trainer_arguments(config: RunConfig, dtype: str) -> TrainingArguments:
    """The Trainer's arguments for our settings.

    Args:
        config: The settings.
        dtype: From `training_dtype`.

    Raises:
        ConfigError: the batch cannot be split as asked, or there is no such tracker.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if config.batch_size % world:
        raise ConfigError(f"--batch-size {config.batch_size} cannot be shared by {world} processes")
    share = config.batch_size // world
    micro = min(config.micro_batch_size or share, share)
    if share % micro:
        raise ConfigError(f"--micro-batch-size {micro} does not divide a process's {share} rows of --batch-size")
    if config.report_to != "none" and config.report_to not in (found := get_available_reporting_integrations()):
        raise ConfigError(
            f"--report-to {config.report_to}: no such tracker is installed; there is {', '.join(['none', *found])}"
        )
    arguments = TrainingArguments(
        output_dir=config.output,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        max_grad_norm=config.max_grad_norm,
        bf16=dtype == "bf16",
        use_cpu=not torch.cuda.is_available() and not torch.backends.mps.is_available(),
        seed=config.seed,
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=2,
        logging_strategy="no" if config.report_to == "none" else "steps",
        logging_steps=10,
        report_to=[] if config.report_to == "none" else [config.report_to],
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        ddp_backend=None if torch.cuda.is_available() or world == 1 else "gloo",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process, one device: several GPUs go through torchrun
    return arguments
