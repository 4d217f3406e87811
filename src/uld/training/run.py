"""`train(config)`: reads what is given, trains, and writes the run folder.

The parts: `uld.training.inputs` (tokenizer and data), `uld.training.learners` (what is trained; for an assistant only
the target's first K layers are loaded), `uld.training.objective` (losses), `uld.training.trainer` (steps, checkpoints),
`uld.training.journal` (metrics, progress, Ctrl-C), `uld.runs.folder` (who may write where, what to continue from),
`uld.runs.manifest` (what a finished run holds).
"""

import contextlib
import copy
import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import transformers
from accelerate import PartialState
from transformers import set_seed

from uld.data.clock import pinned_date
from uld.data.collate import FORGET
from uld.errors import ArtifactError, ConfigError, ULDError
from uld.methods.registry import Method, get_method
from uld.model.causal_lm import load_config, load_target
from uld.model.checkpoint import quiet_transformers
from uld.model.combine import Combination
from uld.model.context import check_positions
from uld.model.unlearned import ULDConfig, ULDForCausalLM
from uld.model.weights import adapters_of, save_adapter, save_model
from uld.runs.digests import weights_digests, weights_files
from uld.runs.files import new_folder, write_text, writing
from uld.runs.folder import Started, drop_incomplete, held, last_checkpoint, refuse_other_inputs, tidy, working_in
from uld.runs.machine import library_versions, peak_memory
from uld.runs.manifest import (
    ADAPTER,
    CHECKPOINTS,
    EPOCHS,
    METRICS,
    SETTINGS,
    CombinationSettings,
    DataFile,
    Manifest,
    is_run,
    place,
    read_object,
)
from uld.training.config import TrainConfig
from uld.training.inputs import Inputs, read_inputs
from uld.training.journal import Journal, last_losses, read_metrics, stop_on_interrupt
from uld.training.learners import Learner, bytes_needed, finish_weights, make_learner
from uld.training.objective import Objective, frozen_log_likelihoods
from uld.training.probe import probe
from uld.training.settings import DTYPES, is_first_process
from uld.training.stored import refuse_taken
from uld.training.teaching import teaching_settings
from uld.training.trainer import (
    UnlearningTrainer,
    loss_names,
    planned_steps,
    refuse_long_warmup,
    trainer_arguments,
    training_dtype,
)

logger = logging.getLogger(__name__)

REFERENCES = "references.json"  # beside the checkpoints: log-likelihoods under the model before training


class Interrupted(ULDError):
    """Training was stopped by the user and can be resumed."""


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


@dataclass(frozen=True, kw_only=True)
class TrainResult(RunResult):
    """What an unlearning came to.

    Attributes:
        forget_loss: Forget loss of the last step that had forget rows, nats a token or a row.
        retain_loss: Retain loss, the same; None for a method without one.
    """

    forget_loss: float | None
    retain_loss: float | None


@quiet_transformers()
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
    output = Path(config.output)
    first = is_first_process()
    method = get_method(config.method)
    options = method.read_options(config.option)
    teaching = teaching_settings(config, method, options)
    takes_small = (method if teaching is None else get_method(teaching.method)).trains in ("offset", "pair")
    if config.small is not None and not takes_small:
        raise ConfigError(f"--small is for offset-… and dd…, and --method is {method.name}: leave it out")
    if config.gate and method.trains != "assistant":
        raise ConfigError(f"--gate is for an assistant, and --method {method.name} trains none: leave it out")
    if config.retain_rows is not None and config.split is None:
        logger.warning("--retain-rows chooses among TOFU's rows (--split): files are taken whole")
    changes = {name: getattr(config, name) for name in Combination.__dataclass_fields__}
    combination = Combination().override(**changes)
    if config.rule is not None and combination.paired != (method.trains in ("offset", "pair")):
        raise ConfigError(f"--rule {config.rule} does not go with --method {method.name}: leave it out")
    if first:
        refuse_taken(config, resume=resume, overwrite=overwrite)
    if resume and is_run(output):
        if first:
            with working_in(output):
                tidy(output)
        return _result(output, method)
    inputs = read_inputs(config, method, resume=resume)
    refuse_long_warmup(config, planned_steps(config, inputs.rows))
    dtype = training_dtype(config)
    arguments = trainer_arguments(config, dtype)
    set_seed(config.seed)
    learner = make_learner(config, method, options, dtype)
    longest = max(len(row.encoded.ids) for row in inputs.rows.rows)
    check_positions(
        [learner.base, *learner.frozen_models], longest, f"the longest row (--max-length {config.max_length})"
    )
    probe(learner, answers=method.trains != "target")
    manifest = _manifest(config, method, learner, combination, inputs)
    journal = Journal(output, loss_names(method), progress and first)
    holding = held(output, resume=resume, overwrite=overwrite) if first else contextlib.nullcontext()
    with holding, stop_on_interrupt(journal):
        if first:
            write_text(output / SETTINGS, config.to_yaml())
            refuse_other_inputs(output, Started.model_validate(manifest, from_attributes=True))
            if inputs.drawn:
                inputs.drawn.write(output)
            drop_incomplete(output / CHECKPOINTS)
        if teaching is not None:
            manifest = manifest.model_copy(
                update={"data": _learn_from(teaching, learner, dtype, progress) | manifest.data}
            )
        if first and method.trains != "assistant":
            logger.warning("%s", _memory_note(learner, method))
        trainer = UnlearningTrainer(
            Objective(learner, method, options),
            inputs.rows,
            config,
            int(inputs.tokenizer.pad_token_id or 0),  # type: ignore[arg-type]
            retain_weight=config.retain_weight,
            args=arguments,
            callbacks=[journal],
        )
        if config.keep_epochs and first:
            journal.on_epoch = lambda number: _write_epoch(number, config, trainer, manifest, inputs)
        trainer.accelerator.wait_for_everyone()  # the first has the folder ready
        _set_references(learner, method, inputs, output)
        run_steps(trainer, journal, output, resume=resume, command="uld train")
        if first:
            _write(output, config, trainer, manifest, inputs)
            tidy(output)  # behind uld.json: a kill in between loses no work
        trainer.accelerator.wait_for_everyone()
    return _result(output, method)


def _learn_from(teaching: TrainConfig, learner: Learner, dtype: str, progress: bool) -> dict[str, list[DataFile]]:
    """Train the run that a learner learns from, from where it was stopped; gives the files that it was trained on.

    Raises:
        ULDError: bad input; or `Interrupted`.
    """
    folder = Path(teaching.output)
    finished, begun = is_run(folder), (folder / SETTINGS).is_file()
    PartialState().wait_for_everyone()  # all have looked before the first writes
    if not finished:
        logger.info("a run of %s is trained first, in %s", teaching.method, folder)
        try:
            train(teaching, resume=begun, progress=progress)
        except Interrupted as error:
            output = folder.parent.parent
            raise Interrupted(
                f"stopped while its teacher was trained: continue with uld train --output {output} --resume"
            ) from error
    hub = {"trust_remote_code": teaching.trust_remote_code}
    learner.learn_from(ULDForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], **hub))
    return Manifest.read(folder).data


def _result(output: Path, method: Method) -> TrainResult:
    """What ``uld.json`` says of a finished run."""
    facts = Manifest.read(output).training
    return TrainResult(
        output=output,
        steps=facts["steps"],
        seconds=facts["seconds"],
        weights_bytes=facts["weights_bytes"],
        forget_loss=facts.get("forget_loss"),
        retain_loss=facts.get(method.retain_name or ""),
    )


def run_steps(trainer: UnlearningTrainer, journal: Journal, output: Path, *, resume: bool, command: str) -> None:
    """Train to the end, from the last complete checkpoint where there is one to resume.

    Args:
        trainer: With everything that it needs.
        journal: One of the trainer's callbacks.
        output: The run folder.
        resume: Whether to look for a checkpoint.
        command: As users type it, for the message.

    Raises:
        Interrupted: the user stopped it.
    """
    trainer.remove_callback(transformers.PrinterCallback)
    journal.trainer = trainer
    trainer.accelerator.wait_for_everyone()  # all choose the same checkpoint
    start = last_checkpoint(output / CHECKPOINTS) if resume else None
    try:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    finally:
        journal.close()
    if journal.interrupted and trainer.state.global_step < trainer.state.max_steps:
        raise Interrupted(
            f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}: "
            f"continue with {command} --output {output} --resume"
        )


def _memory_note(learner: Learner, method: Method) -> str:
    """What will be held in memory, in one sentence."""
    needed = bytes_needed(learner)
    parts = ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in needed.items())
    names = {"target": "the target itself", "pair": "two small models beside the target"}
    what = names.get(method.trains, "a small model beside the target")
    return f"{method.name} trains {what}: {sum(needed.values()) / 2**20:,.0f} MiB besides activations ({parts})"


def _manifest(
    config: TrainConfig, method: Method, learner: Learner, combination: Combination, inputs: Inputs
) -> Manifest:
    """What ``uld.json`` says before training."""
    return Manifest(
        method=method.name,
        trains=method.trains,
        target=place(config.target),
        target_revision=config.revision,
        target_fingerprint=learner.fingerprints["target"],
        small=place(config.small) if config.small is not None and "small" in learner.fingerprints else None,
        small_fingerprint=learner.fingerprints.get("small"),
        num_layers=learner.base.config.get_text_config(decoder=True).num_hidden_layers,
        combination=CombinationSettings(**combination.to_dict()),
        template=config.template,
        date=pinned_date(inputs.tokenizer),
        data=inputs.files,
        versions=library_versions(),
    )


def _set_references(learner: Learner, method: Method, inputs: Inputs, output: Path) -> None:
    """Compute what the losses need of the model before training, once: the run keeps it beside its checkpoints."""
    if not any(loss.reference for loss in method.losses):
        return
    pad = int(inputs.tokenizer.pad_token_id or 0)  # type: ignore[arg-type]
    rows = [row for row in inputs.rows.rows if row.kind == FORGET]
    answers = [row.encoded for row in rows]
    others = [row.alternative for row in rows if row.alternative is not None]
    asked = json.dumps([learner.fingerprints, *(asdict(one) for one in (*answers, *others))])
    digest = hashlib.sha256(asked.encode()).hexdigest()
    path = output / CHECKPOINTS / REFERENCES
    kept = _kept_references(path, digest)
    if kept is None:
        found = frozen_log_likelihoods(learner, [*answers, *others], pad)
        kept = {"digest": digest, "forget": found[: len(answers)], "alternatives": found[len(answers) :] or None}
        if is_first_process():
            write_text(path, json.dumps(kept))
    inputs.rows.set_references(kept["forget"], kept["alternatives"])


def _kept_references(path: Path, digest: str) -> dict[str, Any] | None:
    """References that were computed before, of the same rows and models; None where there are none."""
    try:
        kept = read_object(path, "")
        return kept if kept["digest"] == digest and {"forget", "alternatives"} <= kept.keys() else None
    except (ArtifactError, KeyError):
        return None


def _write_epoch(
    number: int, config: TrainConfig, trainer: UnlearningTrainer, manifest: Manifest, inputs: Inputs
) -> None:
    """Keep what was trained so far as a run of its own, all of it or nothing."""
    with new_folder(Path(config.output) / EPOCHS / str(number), replace=True) as folder:
        _write(folder, config, trainer, manifest, inputs)


def _write(output: Path, config: TrainConfig, trainer: UnlearningTrainer, manifest: Manifest, inputs: Inputs) -> None:
    """Write everything that a finished run holds; ``uld.json`` comes last and marks it finished."""
    objective = trainer.objective
    model, method = objective.model, objective.method
    hub = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    adapters = adapters_of(model)
    if method.finish is not None:
        model = copy.deepcopy(model)
        before = None if adapters else load_target(config.target, **hub)
        finish_weights(model, before, method, objective.options)
    with writing(output):
        if adapters:
            with new_folder(output / ADAPTER, replace=True) as folder:
                for name, part in adapters_of(model).items():
                    save_adapter(part, folder / name, manifest.small or manifest.target)
            size = sum(path.stat().st_size for path in weights_files(output) if path.suffix == ".safetensors")
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
    lines = read_metrics(Path(config.output) / METRICS)
    facts = inputs.counts | run_facts(trainer, lines, size) | last_losses(lines)
    manifest.model_copy(update={"training": facts, "weights": weights_digests(output)}).write(output)


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
