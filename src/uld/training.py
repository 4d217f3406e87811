"""`train(config)`: reads what is given, trains, and writes the run folder.

The parts: `uld.inputs` (tokenizer and data), `uld.learners` (what is trained; for an assistant only the target's first
K layers are loaded), `uld.objective` (losses), `uld.trainer` (steps, checkpoints), `uld.journal` (metrics, progress,
Ctrl-C), `uld.run_folder` (who may write where, what to continue from), `uld.artifact` (what a finished run holds).
"""

import contextlib
import copy
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from transformers import TrainingArguments, set_seed
from transformers.integrations.integration_utils import get_available_reporting_integrations

from uld.artifact import (
    ADAPTER,
    CHECKPOINTS,
    EPOCHS,
    METRICS,
    SETTINGS,
    CombinationSettings,
    Manifest,
    library_versions,
    new_folder,
    peak_memory,
    save_adapter,
    save_model,
    write_text,
    writing,
)
from uld.assistant import load_config, load_target
from uld.config import ConfigError, TrainConfig
from uld.data.collate import FORGET
from uld.errors import ULDError
from uld.inputs import Inputs, read_inputs
from uld.journal import Journal, read_metrics, stop_on_interrupt
from uld.learners import bytes_needed, finish_weights, make_learner
from uld.logits import Combination
from uld.methods.registry import Method, get_method
from uld.modeling import ULDConfig
from uld.objective import Learner, Objective, frozen_log_likelihoods
from uld.run_folder import (
    check_output,
    drop_incomplete,
    held,
    last_checkpoint,
    refuse_busy,
    refuse_other_inputs,
    refuse_other_settings,
)
from uld.trainer import UnlearningTrainer

logger = logging.getLogger(__name__)


class Interrupted(ULDError):
    """Training was stopped by the user and can be resumed."""


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        output: The run folder.
        steps: Optimiser steps.
        seconds: Wall-clock seconds of the training loop, over all resumed parts.
        forget_loss: Forget loss of the last step, nats a token or a row.
        retain_loss: Retain loss of the last step, the same; None for a method without one.
        weights_bytes: Size of the trained weights on disk.
    """

    output: Path
    steps: int
    seconds: float
    forget_loss: float
    retain_loss: float | None
    weights_bytes: int


def _dtype(config: TrainConfig) -> str:
    """``bf16``, ``fp32`` or ``auto`` (the checkpoint's own)."""
    if config.dtype == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        return "bf16"
    return config.dtype


def _arguments(config: TrainConfig, dtype: str) -> TrainingArguments:
    """The Trainer's arguments for our settings."""
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


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """While training, what is seen is the journal's bar and our own log."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


@_quiet_libraries()
def train(config: TrainConfig, *, resume: bool = False, overwrite: bool = False, progress: bool = True) -> TrainResult:
    """Train by the method of the settings and write the run folder.

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
    if resume and overwrite:
        raise ConfigError("--resume continues a run and --overwrite replaces it: give one or the other")
    output = Path(config.output)
    first = int(os.environ.get("RANK", "0")) == 0
    method = get_method(config.method)
    options = method.read_options(config.option)
    if (config.rule == "offset") != (method.trains == "offset") and config.rule is not None:
        raise ConfigError(f"--rule {config.rule} does not go with --method {method.name}: leave it out")
    changes = {name: getattr(config, name) for name in Combination.__dataclass_fields__}
    combination = Combination().override(**changes)
    if first:
        refuse_busy(output)
        check_output(output, resume=resume, overwrite=overwrite)
        if resume:
            refuse_other_settings(output, config)
    inputs = read_inputs(config, method)
    dtype = _dtype(config)
    arguments = _arguments(config, dtype)
    set_seed(config.seed)
    learner = make_learner(config, method, options, dtype)
    if first and method.trains != "assistant":
        logger.warning("%s", _memory_note(learner, method))
    manifest = _manifest(config, method, learner, combination, inputs)
    journal = Journal(output, method.retain_name, progress and first)
    holding = held(output, resume=resume, overwrite=overwrite) if first else contextlib.nullcontext()
    with holding, stop_on_interrupt(journal):
        if first:
            write_text(output / SETTINGS, config.to_yaml())
            refuse_other_inputs(output, manifest)
            drop_incomplete(output / CHECKPOINTS)
        trainer = UnlearningTrainer(
            Objective(learner, method, options),
            inputs.rows,
            config,
            int(inputs.tokenizer.pad_token_id or 0),  # type: ignore[arg-type]
            args=arguments,
            callbacks=[journal],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        journal.trainer = trainer
        if config.keep_epochs and first:
            journal.on_epoch = lambda number: _write(output / EPOCHS / str(number), trainer, manifest, inputs)
        trainer.accelerator.wait_for_everyone()  # all choose the same checkpoint
        _set_references(learner, method, inputs)
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
        if first:
            _write(output, trainer, manifest, inputs)
        trainer.accelerator.wait_for_everyone()
    facts = Manifest.read(output).training
    retain = None if method.retain_name is None else facts[method.retain_name]
    return TrainResult(output, facts["steps"], facts["seconds"], facts["forget_loss"], retain, facts["weights_bytes"])


def _memory_note(learner: Learner, method: Method) -> str:
    """What will be held in memory, in one sentence."""
    needed = bytes_needed(learner)
    parts = ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in needed.items())
    what = "the target itself" if method.trains == "target" else "a small model beside the target"
    return f"{method.name} trains {what}: {sum(needed.values()) / 2**20:,.0f} MiB besides activations ({parts})"


def _manifest(
    config: TrainConfig, method: Method, learner: Learner, combination: Combination, inputs: Inputs
) -> Manifest:
    """What ``uld.json`` says before training."""

    def place(model: str) -> str:
        return str(Path(model).absolute()) if Path(model).is_dir() else model

    return Manifest(
        method=method.name,
        trains=method.trains,
        target=place(config.target),
        target_revision=config.revision,
        target_fingerprint=learner.fingerprints["target"],
        small=place(config.small) if config.small is not None and method.trains == "offset" else None,
        small_fingerprint=learner.fingerprints.get("small"),
        num_layers=learner.base.config.get_text_config(decoder=True).num_hidden_layers,
        combination=CombinationSettings(**vars(combination)),
        data=inputs.files,
        versions=library_versions(),
    )


def _set_references(learner: Learner, method: Method, inputs: Inputs) -> None:
    """Compute, once, what the losses need of the model before training; no checkpoint has been read yet."""
    if not any(loss.reference for loss in method.losses):
        return
    pad = int(inputs.tokenizer.pad_token_id or 0)  # type: ignore[arg-type]
    rows = [row for row in inputs.rows.rows if row.kind == FORGET]
    forget = frozen_log_likelihoods(learner, [row.encoded for row in rows], pad)
    others = [row.alternative for row in rows if row.alternative is not None]
    inputs.rows.set_references(forget, frozen_log_likelihoods(learner, others, pad) if others else None)


def _write(output: Path, trainer: UnlearningTrainer, manifest: Manifest, inputs: Inputs) -> None:
    """Write everything that a finished run holds; ``uld.json`` comes last and marks it finished."""
    objective, config = trainer.objective, trainer.config
    model, method = objective.model, objective.method
    hub = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    if method.finish is not None:
        model = copy.deepcopy(model)
        before = None if isinstance(model, PeftModel) else load_target(config.target, **hub)
        finish_weights(model, before, method, objective.options)
    with writing(output):
        if isinstance(model, PeftModel):
            with new_folder(output / ADAPTER, replace=True) as folder:
                save_adapter(model, folder, manifest.small or manifest.target)
            size = (output / ADAPTER / "adapter_model.safetensors").stat().st_size
        else:
            size = save_model(model, output, load_config(config.target, **hub).dtype)
        if method.trains != "target":
            whole = load_config(manifest.target, **hub).get_text_config(decoder=True).to_dict()
            own = ULDConfig(target=manifest.target, target_config=whole, num_layers=manifest.num_layers)
            own.architectures = ["ULDForCausalLM"]
            own.save_pretrained(output)
        generation = objective.learner.base.generation_config
        if generation is not None:
            generation.save_pretrained(output)
        inputs.tokenizer.save_pretrained(output)
        root = Path(config.output)
        if output == root:
            shutil.rmtree(output / CHECKPOINTS)  # before uld.json: no finished run holds the pickles of a checkpoint
    lines = read_metrics(root / METRICS)
    losses = {key: value for key, value in lines[-1].items() if key.endswith("_loss")}
    facts = {
        **inputs.counts,
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0, 6),
        "seconds": round(sum(line["seconds"] for line in lines), 2),
        "tokens": sum(line["tokens"] for line in lines),
        **losses,
        "weights_bytes": size,
        "peak_rss_bytes": peak_memory(),
    }
    manifest.model_copy(update={"training": facts}).write(output)
