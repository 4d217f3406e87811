"""The objective of a method, and a thin transformers.Trainer around it.

Forget and retain rows share one forward; logits are made only where a loss falls, in chunks. Losses are normalised
over the whole optimiser step (all micro-batches, all processes), so the split of a batch over processes and
accumulation steps does not change them.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Trainer

from uld.artifact import CHECKPOINTS, writing
from uld.assistant import head_logits
from uld.config import TrainConfig
from uld.data.collate import FORGET, NO_LOSS, RETAIN, Collator, PlanLoader, PlanSampler, Rows
from uld.losses import PositionLoss, cross_entropy
from uld.methods.registry import Method
from uld.run_folder import seal

_CHUNK_BYTES = 128 * 2**20  # fp32 logits of one chunk
_POSITION_MULTIPLE = 64  # few shapes of the gathered positions: each costs a kernel build on a CPU


class Objective(nn.Module):
    """The assistant and its two losses: tokens in, loss sums out, so that DDP sees one forward."""

    def __init__(self, model: PeftModel, method: Method) -> None:
        """Join a model and a method's losses."""
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, kind: Tensor) -> Tensor:
        """Sum the losses over the positions of each side.

        Args:
            input_ids: ``(batch, tokens)``.
            attention_mask: ``(batch, tokens)``.
            labels: ``(batch, tokens)``, the next token at each position.
            kind: ``(batch, tokens)``: no loss, forget, or retain.

        Returns:
            ``(2,)`` fp32: sum of the forget loss and sum of the retain loss, in nats.
        """
        base: Any = self.model.get_base_model()
        hidden = base.get_decoder()(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        hidden, labels, kind = hidden.flatten(0, 1), labels.flatten(), kind.flatten()
        sums = [
            self._sum(base, hidden, labels, (kind == side).nonzero().squeeze(1), loss)
            for side, loss in ((FORGET, self.method.forget), (RETAIN, self.method.retain))
        ]
        return torch.stack(sums)

    @staticmethod
    def _sum(base: Any, hidden: Tensor, labels: Tensor, index: Tensor, loss: PositionLoss) -> Tensor:
        """Loss summed over the given positions, head and loss in chunks that are recomputed in the backward pass."""
        count = len(index)
        padded = -(-max(count, 1) // _POSITION_MULTIPLE) * _POSITION_MULTIPLE
        index = torch.cat([index, index.new_zeros(padded - count)])
        valid = torch.arange(padded, device=index.device) < count
        if loss is cross_entropy and (fused := _fused_cross_entropy(base, hidden)) is not None:
            return fused(hidden[index], labels[index].masked_fill(~valid, -100))

        def part(h: Tensor, y: Tensor, w: Tensor) -> Tensor:
            return (loss(head_logits(base, h), y) * w).sum()

        vocab = base.config.get_text_config(decoder=True).vocab_size
        size = max(_POSITION_MULTIPLE, _CHUNK_BYTES // (4 * vocab) // _POSITION_MULTIPLE * _POSITION_MULTIPLE)
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, padded, size):
            piece = index[start : start + size]
            inputs = (hidden[piece], labels[piece], valid[start : start + size])
            total = total + (checkpoint(part, *inputs, use_reentrant=False) if padded > size else part(*inputs))
        return total


def _fused_cross_entropy(base: Any, hidden: Tensor) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Liger's kernel for head and cross-entropy in one, where it is installed and can serve; otherwise None.

    It takes ``(positions, hidden)`` and ``(positions,)`` labels, −100 where there is no loss, and returns the sum.
    """
    head = base.get_output_embeddings()
    config = base.config.get_text_config(decoder=True)
    scaled = any(getattr(config, name, None) is not None for name in ("logit_scale", "logits_scaling"))
    if not hidden.is_cuda or scaled or type(head) is not nn.Linear or find_spec("liger_kernel") is None:
        return None
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]

    loss = LigerFusedLinearCrossEntropyLoss(
        ignore_index=-100, reduction="sum", softcap=getattr(config, "final_logit_softcapping", None)
    )
    return lambda h, y: loss(head.weight, h.to(head.weight.dtype), y, head.bias)


@dataclass(frozen=True)
class StepFacts:
    """What came of an optimiser step, over all processes.

    Attributes:
        forget: Mean forget loss, nats a token.
        retain: Mean retain loss, nats a token.
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
        """Positions that carry a loss in the whole optimiser step, over all processes: ``(2,)`` forget, retain."""
        counts = torch.stack(
            [torch.stack([(b["kind"] == side).sum() for side in (FORGET, RETAIN)]) for b in batch_samples]
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
        return (means[0] + self.config.retain_weight * means[1]) * self.args.world_size

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
        self.last_losses = {"forget_loss": forget, self.objective.method.retain_name: retain}
        return StepFacts(forget, retain, int(tokens), stopped > 0)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand both losses of the step to the experiment tracker, beside their weighted sum."""
        super().log({**logs, **self.last_losses}, start_time)

    def _get_output_dir(self, trial: Any) -> str:
        """Checkpoints have a folder of their own in the run."""
        return str(Path(str(self.args.output_dir)) / CHECKPOINTS)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write LoRA alone."""
        assert output_dir is not None
        if self.args.should_save:
            self.objective.model.save_pretrained(output_dir, save_embedding_layers=False)

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
        """Read LoRA back."""
        weights = load_file(str(Path(resume_from_checkpoint) / "adapter_model.safetensors"))
        set_peft_model_state_dict(self.objective.model, weights)
