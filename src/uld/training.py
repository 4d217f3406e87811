"""Training: `train(config)` makes a run folder, on transformers' Trainer.

Only the target's first K layers are loaded. Forget and retain rows share one forward; logits are made only where a
loss falls, in chunks. Losses are normalised over the whole optimiser step (all micro-batches, all processes), so the
split of a batch over processes and accumulation steps does not change them.
"""

import json
import logging
import math
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments, set_seed

from uld.artifact import (
    ADAPTER,
    CHECKPOINTS,
    METRICS,
    SETTINGS,
    ArtifactError,
    CombinationSettings,
    DataFile,
    Manifest,
    file_digest,
    fingerprint,
    is_run,
    library_versions,
    locked,
    new_folder,
    write_text,
    writing,
)
from uld.assistant import add_lora, check_head, head_logits, load_sliced
from uld.config import ConfigError, TrainConfig
from uld.data.collate import FORGET, RETAIN, Collator, PlanLoader, PlanSampler, Rows
from uld.data.prompt import Encoded, PromptFormat
from uld.data.record import Record, read_records, refuse_equal
from uld.data.tofu import training_set
from uld.errors import ULDError
from uld.logits import Combination
from uld.losses import PositionLoss
from uld.methods.registry import Method, get_method
from uld.modeling import ULDConfig, load_tokenizer

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 128 * 2**20  # fp32 logits of one chunk
_POSITION_MULTIPLE = 64  # few shapes of the gathered positions: each costs a kernel build on a CPU


class Interrupted(ULDError):
    """Training was stopped by the user and can be resumed."""


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

    def get_train_dataloader(self) -> PlanLoader:  # type: ignore[override]
        """Micro-batches of this process; the plan is shared by all."""
        sampler = PlanSampler(
            self.rows,
            self.config.batch_size,
            seed=self.config.seed,
            rank=self.args.process_index,
            world=self.args.world_size,
            accumulation=self.args.gradient_accumulation_steps,
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
        tokens = inputs["attention_mask"].sum().reshape(1).float()
        self.step_sums = self.step_sums.to(sums.device) + torch.cat([sums.detach(), tokens])
        self.step_items = num_items_in_batch
        # DDP averages gradients over the processes, the loss is a sum over them.
        return (means[0] + self.config.retain_weight * means[1]) * self.args.world_size

    def take_step_losses(self) -> tuple[float, float, int]:
        """Mean forget loss, mean retain loss and tokens of the step that just ended, over all processes."""
        sums: Any = self.accelerator.reduce(self.step_sums, "sum")
        forget, retain = (sums[:2] / self.step_items.clamp_min(1)).tolist()
        self.step_sums = torch.zeros_like(self.step_sums)
        return forget, retain, int(sums[2].item())

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write LoRA alone."""
        assert output_dir is not None
        if self.args.should_save:
            self.objective.model.save_pretrained(output_dir, save_embedding_layers=False)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint; a failed one leaves nothing behind."""
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        with writing(self.config.output):
            try:
                super()._save_checkpoint(model, trial)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read LoRA back."""
        weights = load_file(str(Path(resume_from_checkpoint) / "adapter_model.safetensors"))
        set_peft_model_state_dict(self.objective.model, weights)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; one that a kill cut short is passed over."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text())  # the Trainer writes it last
            return path
        except (OSError, ValueError):
            continue
    return None


class _Journal(TrainerCallback):
    """Writes ``metrics.jsonl``, one line a step, shows progress, and stops cleanly on Ctrl-C."""

    def __init__(self, output: Path, retain_name: str, progress: bool) -> None:
        self.path = output / METRICS
        self.retain_name = retain_name
        self.progress = progress
        self.trainer: UnlearningTrainer
        self.interrupted = False
        self.last: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the lines up to the checkpoint that training continues from."""
        self.before = time.perf_counter()
        if not state.is_world_process_zero:
            return
        lines = self.path.read_text().splitlines() if state.global_step and self.path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
        write_text(self.path, "".join(line + "\n" for line in kept))
        self.file = self.path.open("a", buffering=1)
        from tqdm import tqdm

        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            disable=not self.progress,
            unit="step",
            desc="training",
            mininterval=0.1 if sys.stderr.isatty() else 30,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One line and one tick a step."""
        forget, retain, tokens = self.trainer.take_step_losses()
        now = time.perf_counter()
        seconds, self.before = now - self.before, now
        if self.interrupted:
            control.should_save = control.should_training_stop = True
        if not math.isfinite(forget + retain):
            raise ULDError(
                f"training diverged at step {state.global_step} (loss {forget:.3g} + {retain:.3g}): "
                "lower --learning-rate"
            )
        self.last = {"forget_loss": forget, self.retain_name: retain}
        if not state.is_world_process_zero:
            return
        line = {
            "step": state.global_step,
            "epoch": round(state.epoch, 6),
            **self.last,
            "learning_rate": self.trainer._get_learning_rate(),
            "tokens": tokens,
            "seconds": round(seconds, 4),
        }
        with writing(self.path.parent):
            self.file.write(json.dumps(line) + "\n")
        shown = {"forget": f"{forget:.3f}", self.retain_name.removesuffix("_loss"): f"{retain:.3f}"}
        self.bar.set_postfix({**shown, "tok/s": f"{tokens / seconds:,.0f}"}, refresh=False)
        self.bar.update()

    def close(self) -> None:
        """Close the file and the bar."""
        if hasattr(self, "file"):
            self.file.close()
            self.bar.close()


@contextmanager
def _stop_on_interrupt(journal: _Journal) -> Iterator[None]:
    """First Ctrl-C: finish the step, write a checkpoint, stop. Second: stop at once."""

    def first(signum: int, frame: Any) -> None:
        journal.interrupted = True
        signal.signal(signal.SIGINT, previous)
        print("\nstopping after this step; a second Ctrl-C stops at once", file=sys.stderr)

    try:
        previous = signal.signal(signal.SIGINT, first)
    except ValueError:  # not the main thread: leave signals to whoever owns them
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        output: The run folder.
        steps: Optimiser steps.
        seconds: Wall-clock seconds of the training loop, over all resumed parts.
        forget_loss: Forget loss of the last step, nats a token.
        retain_loss: Retain loss of the last step, nats a token.
        adapter_bytes: Size of the adapter's weights on disk.
    """

    output: Path
    steps: int
    seconds: float
    forget_loss: float
    retain_loss: float
    adapter_bytes: int


@dataclass(frozen=True)
class _Inputs:
    """Everything that is read before anything is written."""

    tokenizer: PreTrainedTokenizerBase
    rows: Rows
    counts: dict[str, int]
    files: dict[str, list[DataFile]]


def _read_inputs(config: TrainConfig) -> _Inputs:
    """Read and check tokenizer and data.

    Raises:
        ULDError: what is missing or wrong.
    """
    tokenizer = load_tokenizer(config.tokenizer or config.target, trust_remote_code=config.trust_remote_code)
    form = PromptFormat(tokenizer, config.template)
    files: dict[str, list[DataFile]]
    forget: list[Record]
    if config.split is not None:
        if config.forget or config.retain:
            raise ConfigError("--split trains on TOFU, --forget and --retain on files: give one or the other")
        tofu = training_set(
            config.split,
            config.data,
            config.augmented,
            paraphrases=config.paraphrases,
            wrong_answers=config.wrong_answers,
            retain_rows=config.retain_rows,
        )
        forget, retain, files = tofu.forget, tofu.retain, {"tofu": tofu.files}
    else:
        for name in ("forget", "retain"):
            if not getattr(config, name):
                raise ConfigError(
                    f"nothing to {name}: name a JSON-lines file with --{name}, or a TOFU split with --split"
                )
        forget, retain = read_records(config.forget), read_records(config.retain)
        files = {
            name: [
                DataFile(path=str(p), sha256=file_digest(p), rows=len(read_records([p]))) for p in getattr(config, name)
            ]
            for name in ("forget", "retain")
        }
    refuse_equal(forget, retain)
    encoded: list[list[Encoded]] = []
    for name, records in (("forget", forget), ("retain", retain)):
        rows, cut = form.encode_all(records, config.max_length)
        if cut:
            logger.warning("%d of %d %s rows were cut to max_length %d", cut, len(rows), name, config.max_length)
        encoded.append(rows)
    rows = Rows(*encoded, uniform_on=config.uniform_on)
    return _Inputs(tokenizer, rows, {"forget_rows": len(encoded[0]), "retain_rows": len(encoded[1])}, files)


def _dtype(config: TrainConfig) -> str:
    """``bf16``, ``fp32`` or ``auto`` (the checkpoint's own)."""
    if config.dtype == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        return "bf16"
    return config.dtype


def _arguments(config: TrainConfig, dtype: str) -> TrainingArguments:
    """The Trainer's arguments for our settings."""
    import os

    world = int(os.environ.get("WORLD_SIZE", "1"))
    if config.batch_size % world:
        raise ConfigError(f"--batch-size {config.batch_size} cannot be shared by {world} processes")
    share = config.batch_size // world
    micro = min(config.micro_batch_size or share, share)
    if share % micro:
        raise ConfigError(f"--micro-batch-size {micro} does not divide a process's {share} rows of --batch-size")
    arguments = TrainingArguments(
        output_dir=str(Path(config.output) / CHECKPOINTS),
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


def train(config: TrainConfig, *, resume: bool = False, overwrite: bool = False, progress: bool = True) -> TrainResult:
    """Train an assistant and write its run folder.

    Under ``torchrun`` or ``accelerate launch`` every process calls it; the first writes.

    Args:
        config: All settings; ``target``, ``output`` and the data must be given.
        resume: Continue an unfinished run in ``output`` from its last checkpoint, bit-identically on one process.
        overwrite: Replace what is in ``output``.
        progress: Show a progress bar.

    Returns:
        Losses, steps, time and size.

    Raises:
        ULDError: bad input, with nothing written; or `Interrupted`, with a checkpoint to resume from.
    """
    if not config.target or not config.output:
        raise ConfigError(f"no {'target' if not config.target else 'output folder'}: name one with --target / --output")
    output = Path(config.output)
    method = get_method(config.method)
    changes = {name: getattr(config, name) for name in Combination.__dataclass_fields__}
    combination = Combination().override(**changes)
    _check_output(output, config, resume, overwrite)
    transformers.utils.logging.set_verbosity_error()
    inputs = _read_inputs(config)
    dtype = _dtype(config)
    set_seed(config.seed)
    load_as = {"bf16": "bfloat16", "fp32": "float32"}.get(dtype, "auto")
    sliced = load_sliced(
        config.target,
        config.num_layers,
        dtype=load_as,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )
    check_head(sliced)
    manifest = Manifest(
        method=method.name,
        target=config.target,
        target_revision=config.revision,
        target_fingerprint=fingerprint(sliced.named_parameters()),
        num_layers=sliced.config.num_hidden_layers,
        combination=CombinationSettings(**vars(combination)),
        data=inputs.files,
        versions=library_versions(),
    )
    if config.gradient_checkpointing:
        sliced.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        sliced.enable_input_require_grads()  # without it no gradient reaches LoRA through checkpointed layers
    peft = add_lora(sliced, rank=config.lora_rank, alpha=config.lora_alpha, dropout=config.lora_dropout)
    arguments = _arguments(config, dtype)
    journal = _Journal(output, method.retain_name, progress and arguments.process_index == 0)
    with _held(output, arguments.process_index), _stop_on_interrupt(journal):
        if arguments.process_index == 0:
            if overwrite:
                _clear(output)
            write_text(output / SETTINGS, config.to_yaml())
        trainer = UnlearningTrainer(
            Objective(peft, method),
            inputs.rows,
            config,
            int(inputs.tokenizer.pad_token_id or 0),  # type: ignore[arg-type]
            args=arguments,
            callbacks=[journal],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        journal.trainer = trainer
        start = last_checkpoint(output / CHECKPOINTS) if resume else None
        try:
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        finally:
            journal.close()
        if journal.interrupted and trainer.state.global_step < trainer.state.max_steps:
            raise Interrupted(
                f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}: "
                f"continue with uld train --output {output} --resume"
            )
        if arguments.process_index == 0:
            _finish(output, peft, manifest, inputs, trainer)
        trainer.accelerator.wait_for_everyone()
    finished = Manifest.read(output)
    return TrainResult(
        output,
        finished.training["steps"],
        finished.training["seconds"],
        finished.training["forget_loss"],
        finished.training[method.retain_name],
        finished.training["adapter_bytes"],
    )


@contextmanager
def _held(output: Path, process: int) -> Iterator[None]:
    """Hold the run folder (first process only); leave none behind where nothing came to be written."""
    if process:
        yield
        return
    existed = output.exists()
    with locked(output):
        try:
            yield
        except BaseException:
            left = {path.name for path in output.iterdir()}
            if (
                not existed
                and not last_checkpoint(output / CHECKPOINTS)
                and left <= {".lock", SETTINGS, METRICS, CHECKPOINTS}
            ):
                shutil.rmtree(output, ignore_errors=True)
            raise
    (output / ".lock").unlink(missing_ok=True)


def _check_output(output: Path, config: TrainConfig, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds something else, or a resumption under other settings."""
    import os

    if int(os.environ.get("RANK", "0")):
        return
    if output.exists() and not output.is_dir():
        raise ArtifactError(f"{output} is a file: choose another folder (--output)")
    stored = output / SETTINGS
    if resume:
        if is_run(output):
            raise ArtifactError(f"{output} holds a finished run: there is nothing to resume")
        if not stored.is_file():
            raise ArtifactError(f"{output} holds no run to resume: leave out --resume")
        return
    if overwrite:
        if output.exists() and not is_run(output) and not stored.is_file() and any(output.iterdir()):
            raise ArtifactError(f"{output} holds something that is not an uld run: choose another folder (--output)")
        return
    if is_run(output):
        raise ArtifactError(f"{output} holds a finished run: choose another folder, or replace it with --overwrite")
    if stored.is_file():
        raise ArtifactError(
            f"{output} holds an unfinished run: continue it with --resume, or start over with --overwrite"
        )
    if output.exists() and any(path.name != ".lock" for path in output.iterdir()):
        raise ArtifactError(f"{output} is not empty and holds no uld run: choose another folder (--output)")


def _clear(output: Path) -> None:
    """Remove a run's files; ``uld.json`` first, so that a kill leaves an unfinished run and not a broken one."""
    (output / "uld.json").unlink(missing_ok=True)
    for path in output.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _finish(output: Path, peft: PeftModel, manifest: Manifest, inputs: _Inputs, trainer: UnlearningTrainer) -> None:
    """Write the artefact; ``uld.json`` comes last and marks it finished."""
    with writing(output):
        with new_folder(output / ADAPTER, replace=True) as folder:
            save_adapter(peft, folder, manifest.target)
        base: Any = peft.get_base_model()
        config = ULDConfig(target=manifest.target, target_config=base.config.to_dict(), num_layers=manifest.num_layers)
        config.architectures = ["ULDForCausalLM"]
        config.save_pretrained(output)
        if base.generation_config is not None:
            base.generation_config.save_pretrained(output)
        inputs.tokenizer.save_pretrained(output)
    lines = [json.loads(line) for line in (output / METRICS).read_text().splitlines()]
    losses = {key: value for key, value in lines[-1].items() if key.endswith("_loss")}
    facts = {
        **inputs.counts,
        "steps": trainer.state.global_step,
        "epochs": trainer.config.epochs,
        "seconds": round(sum(line["seconds"] for line in lines), 2),
        "tokens": sum(line["tokens"] for line in lines),
        **losses,
        "adapter_bytes": (output / ADAPTER / "adapter_model.safetensors").stat().st_size,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    manifest.model_copy(update={"training": facts}).write(output)
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)


def save_adapter(peft: PeftModel, folder: Path, target: str) -> None:
    """Write an adapter in PEFT's own format, naming the target as its base."""
    peft.peft_config["default"].base_model_name_or_path = target
    peft.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model-card form, all of it to be filled in
