"""`train(config)`: reads what is given, trains, and writes the run folder.

`carry_out` is the way of every training. What a kind of training does in its own way is a `uld.training.kind.Training`:
`Unlearning` here, `uld.training.finetune.Finetuning` there.

The parts: `uld.training.inputs` (tokenizer and data), `uld.training.learners` (what is trained; for an assistant only
the target's first K layers are loaded), `uld.training.objective` (losses), `uld.training.trainer` (steps, checkpoints),
`uld.training.journal` (metrics, progress, Ctrl-C), `uld.runs.folder` (who may write where, what to continue from),
`uld.runs.manifest` (what a finished run holds).
"""

import copy
import logging
import os
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import set_seed

from uld.data.clock import pinned_date
from uld.data.prompt import PromptFormat
from uld.errors import ConfigError, flag
from uld.methods.registry import get_method
from uld.methods.uld import UNIFORM
from uld.model.causal_lm import load_config, load_target
from uld.model.checkpoint import quiet_transformers
from uld.model.combine import Combination
from uld.model.context import check_positions
from uld.model.unlearned import ULDConfig
from uld.model.weights import adapters_of, load_weights, save_adapter, save_model
from uld.runs.card import write_card
from uld.runs.digests import weights_digests, weights_files
from uld.runs.files import new_folder, write_text, writing
from uld.runs.folder import BEFORE, Started, drop_incomplete, held, refuse_other_inputs, tidy, working_in
from uld.runs.machine import library_versions
from uld.runs.manifest import (
    ADAPTER,
    CHECKPOINTS,
    EPOCHS,
    MANIFEST,
    METRICS,
    CombinationSettings,
    Manifest,
    place,
    refuse_changed,
)
from uld.training.config import TrainConfig
from uld.training.inputs import Inputs, read_inputs
from uld.training.journal import Journal, last_losses, read_metrics, stop_on_interrupt
from uld.training.kind import Result, RunResult, Training, result_of, run_facts
from uld.training.learner import Learner
from uld.training.learners import finish_weights, make_learner, memory_note
from uld.training.objective import Objective, terms_of
from uld.training.on_policy import Question, questions_of
from uld.training.probe import probe
from uld.training.references import set_references
from uld.training.rounds import Rounds, with_rounds
from uld.training.settings import is_first_process
from uld.training.stored import finished_before, layout_of, note_before, refuse_taken
from uld.training.teaching import learn_from_run, teaching_settings
from uld.training.trainer import (
    Interrupted,
    UnlearningTrainer,
    planned_steps,
    refuse_long_warmup,
    run_steps,
    trainer_arguments,
    training_dtype,
)

logger = logging.getLogger(__name__)


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
def carry_out(
    training: Training[Result], *, resume: bool, overwrite: bool, progress: bool, stop_after: int | None = None
) -> Result:
    """Check the folder, read, load and try, train, write: what every training does, in every process.

    Args:
        training: What is trained, on what.
        resume: Continue an unfinished run in the output folder from its last checkpoint.
        overwrite: Replace what is in the output folder.
        progress: Show a progress bar.
        stop_after: See `train`.

    Raises:
        ULDError: bad input, with nothing written; or `Interrupted`, with a checkpoint to resume from.
    """
    config = training.config
    output, layout, first = Path(config.output), layout_of(config), is_first_process()
    if first:
        refuse_taken(config, resume=resume, overwrite=overwrite)
    more = resume and finished_before(config) is not None
    if resume and not more and os.path.isfile(output / layout.finished):
        if first:
            with working_in(output):
                tidy(output)
        return training.result()
    training.progress = progress and first
    inputs = training.read(resume=resume)
    refuse_long_warmup(config, planned_steps(config, inputs.rows))
    dtype = training_dtype(config)
    arguments = trainer_arguments(config, dtype)
    set_seed(config.seed)
    learner = training.load(inputs, dtype)
    longest = max(row.tokens for row in inputs.rows.rows)
    check_positions(
        [learner.base, *learner.frozen_models], longest, f"the longest row (--max-length {config.max_length})"
    )
    probe(learner, answers=training.answers)
    started = training.begin(learner, inputs)
    journal = Journal(output, progress and first, stop_after)
    holding = held(output, layout, resume=resume, overwrite=overwrite, more=more) if first else nullcontext()
    with holding, stop_on_interrupt(journal):
        if first:
            if more:
                note_before(output)
            write_text(output / layout.settings, config.to_yaml())
            refuse_other_inputs(output, started)
            if inputs.drawn:
                inputs.drawn.write(output)
            drop_incomplete(output / CHECKPOINTS)
        trainer = UnlearningTrainer(
            training.objective(learner, dtype, progress),
            inputs.rows,
            config,
            int(inputs.tokenizer.pad_token_id or 0),  # type: ignore[arg-type]
            **training.fall,
            args=arguments,
            callbacks=[journal],
        )
        trainer.accelerator.wait_for_everyone()  # the first has the folder ready
        training.before_steps(trainer, inputs, journal)
        if not training.restore(trainer):
            again = f"{layout.command} --output {output} --resume"
            run_steps(trainer, journal, output, resume=resume, again=again)
        training.after_steps(trainer, inputs, journal, progress=progress)
        if first:
            training.write(output, trainer, inputs)
            tidy(output)  # behind what marks the folder as finished: a kill in between loses no work
        trainer.accelerator.wait_for_everyone()
    return training.result()


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    stop_after: int | None = None,
) -> TrainResult:
    """Train by the method of the settings and write the run folder.

    Under ``torchrun`` or ``accelerate launch`` every process calls it; the first writes.

    Args:
        config: All settings; ``target``, ``output`` and the data must be given.
        resume: Continue an unfinished run in ``output`` from its last checkpoint, bit-identically on one process.
        overwrite: Replace what is in ``output``.
        progress: Show a progress bar.
        stop_after: Stop after this step, unless it is the last, as Ctrl-C would: with a checkpoint to resume from.

    Returns:
        Losses, steps, time and size.

    Raises:
        ULDError: bad input, with nothing written; or `Interrupted`, with a checkpoint to resume from.
    """
    return carry_out(Unlearning(config), resume=resume, overwrite=overwrite, progress=progress, stop_after=stop_after)


class Unlearning(Training[TrainResult]):
    """A method's losses on forget and retain rows."""

    takes = TrainConfig
    config: TrainConfig
    manifest: Manifest
    before: Manifest | None = None  # of a finished run that gets more rounds
    questions: list[Question]
    dtype: str

    def __init__(self, config: TrainConfig) -> None:
        """Take the settings.

        Raises:
            ULDError: they do not go together.
        """
        super().__init__(config)
        if not config.target or not config.output:
            raise ConfigError(
                f"no {'target' if not config.target else 'output folder'}: name one with --target / --output"
            )
        self.method = method = get_method(config.method)
        self.options = method.read_options(config.option)
        self.teaching = teaching_settings(config, method, self.options)
        learning = method if self.teaching is None else get_method(self.teaching.method)
        if config.small is not None and learning.trains not in ("offset", "pair"):
            raise ConfigError(f"--small is for offset-… and dd…, and --method is {method.name}: leave it out")
        for name in ("gate", "rounds", "other_names", "lora_layers"):
            if getattr(config, name) and method.trains != "assistant":
                raise ConfigError(
                    f"{flag(name)} is for an assistant, and --method {method.name} trains none: leave it out"
                )
        if config.remember != "all" and method.retain is not UNIFORM:
            raise ConfigError(
                f"--remember {config.remember} needs an assistant that is uniform on the rest, and --method "
                f"{method.name} trains none: leave it out"
            )
        if config.rounds and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                "several processes cannot play --rounds: train without, and give them to the finished run in one "
                "process (--resume --rounds N)"
            )
        self.rounds: list[dict[str, Any]] = []
        if config.retain_rows is not None and config.split is None:
            logger.warning("--retain-rows chooses among TOFU's rows (--split): files are taken whole")
        changes = {name: getattr(config, name) for name in Combination.__dataclass_fields__}
        self.combination = Combination().override(**changes)
        if config.rule is not None and self.combination.paired != (method.trains in ("offset", "pair")):
            raise ConfigError(f"--rule {config.rule} does not go with --method {method.name}: leave it out")
        self.answers = method.trains != "target"
        self.hub = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}

    def read(self, *, resume: bool) -> Inputs:
        """Read tokenizer, forget rows and retain rows."""
        config = self.config
        self.before = finished_before(config) if resume else None
        inputs = read_inputs(config, self.method, resume=resume, progress=self.progress)
        if config.rounds:
            form = PromptFormat(inputs.tokenizer, config.template)
            self.questions = questions_of(inputs.records["forget"], inputs.records["retain"], form, config.max_length)
        return inputs

    def load(self, inputs: Inputs, dtype: str) -> Learner:
        """Load what the method trains."""
        self.dtype = dtype
        return make_learner(self.config, self.method, self.options, dtype)

    def begin(self, learner: Learner, inputs: Inputs) -> Started:
        """Note what ``uld.json`` will say."""
        config, method = self.config, self.method
        text = learner.base.config.get_text_config(decoder=True)
        self.manifest = Manifest(
            method=method.name,
            trains=method.trains,
            target=place(config.target),
            target_revision=config.revision,
            target_fingerprint=learner.fingerprints["target"],
            small=place(config.small) if config.small is not None and "small" in learner.fingerprints else None,
            small_fingerprint=learner.fingerprints.get("small"),
            num_layers=text.num_hidden_layers,
            combination=self.before.combination
            if self.before is not None
            else CombinationSettings(**self._combination(text.vocab_size).to_dict()),
            template=config.template,
            date=pinned_date(inputs.tokenizer),
            data=inputs.files,
            description=config.describe,
            versions=library_versions(),
        )
        return Started.model_validate(self.manifest, from_attributes=True)

    def _combination(self, vocabulary: int) -> Combination:
        """What is asked for; an assistant of whose α, margin and floor nothing is said gets those of `steady`."""
        if self.method.trains != "assistant" or not self.config.untuned:
            return self.combination
        steady = Combination.steady(vocabulary)
        return self.combination.override(weight=steady.weight, margin=steady.margin, floor=steady.floor)

    def objective(self, learner: Learner, dtype: str, progress: bool) -> Objective:
        """The method's losses; a run that it learns from is trained first."""
        if self.teaching is not None:
            data = learn_from_run(self.teaching, learner, dtype, partial(train, progress=progress)) | self.manifest.data
            self.manifest = self.manifest.model_copy(update={"data": data})
        if is_first_process() and self.method.trains != "assistant":
            logger.warning("%s", memory_note(learner, self.method))
        return Objective(learner, terms_of(self.method, self.options, self.config.retain_weight))

    def before_steps(self, trainer: UnlearningTrainer, inputs: Inputs, journal: Journal) -> None:
        """Compute what losses need of the model before training, and ask for the epochs to be kept."""
        if self.config.keep_epochs and is_first_process():
            journal.on_epoch = lambda number: self._write_epoch(number, trainer, inputs)
        if any(loss.reference for loss in self.method.losses):
            set_references(trainer.objective.learner, inputs, Path(self.config.output), progress=self.progress)

    def _write_epoch(self, number: int, trainer: UnlearningTrainer, inputs: Inputs) -> None:
        """Keep what was trained so far as a run of its own, all of it or nothing."""
        with new_folder(Path(self.config.output) / EPOCHS / str(number), replace=True) as folder:
            self.write(folder, trainer, inputs)

    def restore(self, trainer: UnlearningTrainer) -> bool:
        """Take the adapter of a finished run that gets more rounds."""
        if self.before is None:
            return False
        kept = Path(self.config.output) / CHECKPOINTS / BEFORE  # also there while the run itself is written again
        refuse_changed(kept, self.before)
        load_weights(trainer.objective.model, kept / ADAPTER)
        return True

    def after_steps(self, trainer: UnlearningTrainer, inputs: Inputs, journal: Journal, *, progress: bool) -> None:
        """Play the rounds."""
        if not self.config.rounds:
            return
        if journal.interrupted:
            again = f"uld train --output {self.config.output} --resume"
            raise Interrupted(f"stopped before the first round: continue with {again}")
        played = len(self.before.training.get("rounds", ())) if self.before else 0
        rounds = Rounds(
            self.config,
            self.dtype,
            inputs,
            self.questions,
            trainer,
            lambda folder: self.write(folder, trainer, inputs),
            self.rounds,
        )
        rounds.play(played + 1, progress=progress)

    def write(self, folder: Path, trainer: UnlearningTrainer, inputs: Inputs) -> None:
        """Write everything that a finished run holds; ``uld.json`` comes last and marks it finished."""
        objective, manifest, target = trainer.objective, self.manifest, self.config.target
        model = objective.model
        adapters = adapters_of(model)
        if self.method.finish is not None:
            model = copy.deepcopy(model)
            before = None if adapters else load_target(target, **self.hub)
            finish_weights(model, before, self.method, self.options)
        with writing(folder):
            (folder / MANIFEST).unlink(missing_ok=True)  # of a run that got more rounds: it names another adapter
            if adapters:
                with new_folder(folder / ADAPTER, replace=True) as adapter:
                    for name, part in adapters_of(model).items():
                        save_adapter(part, adapter / name, manifest.small or manifest.target)
                size = sum(path.stat().st_size for path in weights_files(folder) if path.suffix == ".safetensors")
            else:
                size = save_model(model, folder, load_config(target, **self.hub).dtype)
            if self.method.trains != "target":
                whole = load_config(manifest.target, **self.hub).get_text_config(decoder=True).to_dict()
                own = ULDConfig(target=manifest.target, target_config=whole, num_layers=manifest.num_layers)
                own.architectures = ["ULDForCausalLM"]
                own.save_pretrained(folder)
            generation = objective.learner.base.generation_config
            if generation is not None:
                generation.save_pretrained(folder)
            inputs.tokenizer.save_pretrained(folder)
        lines = read_metrics(Path(self.config.output) / METRICS)
        facts = inputs.counts | run_facts(trainer, lines, size) | last_losses(lines)
        if self.config.lora_layers is not None:
            facts["lora_layers"] = self.config.lora_layers
        facts = with_rounds(self.before.training if self.before is not None else facts, self.rounds)
        manifest = manifest.model_copy(update={"training": facts, "weights": weights_digests(folder)})
        write_card(folder, manifest)
        manifest.write(folder)

    def result(self) -> TrainResult:
        """What ``uld.json`` says of a finished run."""
        facts = Manifest.read(self.config.output).training
        return TrainResult(
            **result_of(self.config.output, facts),
            forget_loss=facts.get("forget_loss"),
            retain_loss=facts.get(self.method.retain_name or ""),
        )
