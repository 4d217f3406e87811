"""A thin transformers.Trainer around the objective of a method.

Losses are normalised over the whole optimiser step (all micro-batches, all processes), so the split of a batch over
processes and accumulation steps does not change them.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from uld.artifact import CHECKPOINTS, writing
from uld.config import TrainConfig
from uld.data.collate import FORGET, NO_LOSS, RETAIN, Collator, PlanLoader, PlanSampler, Rows
from uld.learners import load_weights, save_weights
from uld.methods.registry import own_options
from uld.objective import Objective
from uld.run_folder import seal


@dataclass(frozen=True)
class StepFacts:
    """What came of an optimiser step, over all processes.

    Attributes:
        forget: Mean forget loss, nats a token or a row, as the loss has it.
        retain: Mean retain loss, nats a token; 0 for a method without one.
        tokens: Tokens that went through the model, padding not counted.
        stop: Whether any process was asked to stop.
    """

    forget: float
    retain: float
    tokens: int
    stop: bool


class UnlearningTrainer(Trainer):
    """A thin Trainer: our batches, a loss normalised over the whole step, checkpoints of LoRA alone."""

    def __init__(self, objective: Objective, rows: Rows, config: TrainConfig, pad_token_id: int, **kwargs: Any) -> None:
        """Wire rows and losses into the Trainer."""
        super().__init__(model=objective, train_dataset=rows, **kwargs)
        self.objective = objective
        self.rows = rows
        self.config = config
        self.collator = Collator(pad_token_id)
        self.retain_weight = config.retain_weight  # some methods change it as they go
        self.model_accepts_loss_kwargs = True  # the loss is already scaled for gradient accumulation
        self.step_sums = torch.zeros(3)  # forget loss, retain loss, tokens of the step so far
        self.step_items = torch.ones(2)
        self.last_losses: dict[str, float] = {}

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

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """What the losses are divided by, in the whole optimiser step, over all processes: ``(2,)`` forget, retain."""
        per = [loss.per for loss in self.objective.method.losses] + ["position"]
        keys = ["kind" if one == "position" else "side" for one in per]
        counts = torch.stack(
            [
                torch.stack([(b[key] == side).sum() for key, side in zip(keys, (FORGET, RETAIN), strict=False)])
                for b in batch_samples
            ]
        )
        total: Any = self.accelerator.reduce(counts.sum(0).to(device), "sum")
        return total

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """``mean forget loss + β · mean retain loss`` of the optimiser step, this micro-batch's share of it."""
        assert num_items_in_batch is not None
        sums = model(**inputs)
        means = sums / num_items_in_batch.clamp_min(1)
        real = (inputs["kind"] != NO_LOSS).any()  # a process without a row left goes through one of padding
        tokens = (inputs["attention_mask"].sum() * real).reshape(1).float()
        self.step_sums = self.step_sums.to(sums.device) + torch.cat([sums.detach(), tokens])
        self.step_items = num_items_in_batch
        # DDP averages gradients over the processes, the loss is a sum over them.
        return (means[0] + self.retain_weight * means[1]) * self.args.world_size

    def take_step(self, stop: bool) -> StepFacts:
        """Facts of the step that just ended; every process calls it, and all get the same answer.

        Args:
            stop: Whether this process was asked to stop.
        """
        mine = torch.cat([self.step_sums, self.step_sums.new_tensor([float(stop)])])
        total: Any = self.accelerator.reduce(mine, "sum")
        self.step_sums = torch.zeros_like(self.step_sums)
        forget, retain = (total[:2] / self.step_items.clamp_min(1)).tolist()
        tokens, stopped = total[2:].tolist()
        self.last_losses = named_losses(self.objective.method.retain_name, forget, retain)
        self.reweigh(retain)
        return StepFacts(forget, retain, int(tokens), stopped > 0)

    def reweigh(self, retain: float) -> None:
        """Let the method change the retain weight after a step with this mean retain loss."""
        method = self.objective.method
        if method.reweigh is not None:
            self.retain_weight = method.reweigh(
                self.retain_weight, retain, **own_options(method.reweigh, self.objective.options)
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand both losses of the step to the experiment tracker, beside their weighted sum."""
        super().log({**logs, **self.last_losses}, start_time)

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


def named_losses(retain_name: str | None, forget: float, retain: float) -> dict[str, float]:
    """Both losses under the names that logs have for them."""
    return {"forget_loss": forget} | ({} if retain_name is None else {retain_name: retain})
