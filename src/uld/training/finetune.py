"""`finetune(config)`: makes the models that unlearning starts from (the target) and is measured against (retain-only).

The same trainer, checkpoints, locks and journal as `uld.training.run`. What is left is an ordinary Hugging Face model
folder, LoRA merged into its weights, with three files beside them: ``finetune.yaml`` (the resolved settings),
``metrics.jsonl``, and ``finetune.json`` (`Provenance`), which is written last and marks the folder as finished.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel
from pydantic import BaseModel, ValidationError
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from uld.data.clock import pinned_date
from uld.data.record import Record
from uld.errors import ArtifactError, ConfigError, flag
from uld.methods.registry import Loss, Method
from uld.methods.terms import remember
from uld.model.assistant import check_head
from uld.model.causal_lm import load_config, load_target
from uld.model.checkpoint import quiet_transformers
from uld.model.context import check_positions
from uld.model.load import load_tokenizer
from uld.model.vocabulary import embedding_rows, own_ids, refuse_foreign
from uld.model.weights import save_model
from uld.runs.files import write_text, writing
from uld.runs.folder import MODEL, Started, drop_incomplete, held, refuse_other_inputs, tidy, working_in
from uld.runs.machine import library_versions
from uld.runs.manifest import CHECKPOINTS, METRICS, DataFile, fingerprint, place
from uld.training.config import FinetuneConfig
from uld.training.inputs import learnt_rows, read_learnt
from uld.training.journal import Journal, read_metrics, stop_on_interrupt
from uld.training.learners import Learner, trainable
from uld.training.objective import Objective
from uld.training.probe import probe
from uld.training.run import RunResult, run_facts, run_steps
from uld.training.scratch import VOCAB_SIZE, check_sizes, llama_config, texts_of, train_tokenizer
from uld.training.settings import DTYPES, is_first_process
from uld.training.stored import refuse_taken
from uld.training.trainer import UnlearningTrainer, planned_steps, refuse_long_warmup, trainer_arguments, training_dtype

_LEARN = Method("finetune", "Cross-entropy on everything.", "", "target", Loss("finetune", remember))
_NAMES = ("loss", None)


@dataclass(frozen=True, kw_only=True)
class FinetuneResult(RunResult):
    """What a finetuning came to.

    Attributes:
        loss: Mean loss of the last epoch's tokens, nats a token.
    """

    loss: float


class Provenance(BaseModel):
    """``finetune.json``: where a model comes from.

    Attributes:
        format: Version of this layout.
        model: Folder or Hub id of the model that training started from; None: random weights.
        revision: Its Hub revision, if any.
        start_fingerprint: `uld.runs.manifest.fingerprint` of the weights that training started from.
        fingerprint: The same of the weights that it came to, as `uld train` will find them.
        tokenizer: Where the tokenizer comes from; None: it was trained on the same text.
        date: Day that its chat template is fixed to, if it has a clock.
        learn: Tokens that carried the loss: ``answers`` or ``all``.
        data: What was learnt, with digests.
        versions: Versions of the libraries that trained it.
        training: Rows, steps, seconds, the last loss and other facts.
    """

    format: Literal[1] = 1
    model: str | None
    revision: str | None
    start_fingerprint: str
    fingerprint: str
    tokenizer: str | None
    date: str | None = None
    learn: Literal["answers", "all"]
    data: dict[str, list[DataFile]]
    versions: dict[str, str]
    training: dict[str, Any]


@quiet_transformers()
def finetune(
    config: FinetuneConfig, *, resume: bool = False, overwrite: bool = False, progress: bool = True
) -> FinetuneResult:
    """Train a causal language model on records, and write it as an ordinary model folder.

    Under ``torchrun`` or ``accelerate launch`` every process calls it; the first writes.

    Args:
        config: All settings; ``model`` or ``scratch``, ``output`` and the data must be given.
        resume: Continue an unfinished training in ``output`` from its last checkpoint, bit-identically on one process.
        overwrite: Replace the finetuned model in ``output``.
        progress: Show a progress bar.

    Returns:
        Loss, steps, time and size.

    Raises:
        ULDError: bad input, with nothing written; or `uld.training.run.Interrupted`, with a checkpoint to resume from.
    """
    _check(config)
    output = Path(config.output)
    first = is_first_process()
    if first:
        refuse_taken(config, resume=resume, overwrite=overwrite)
    if resume and (output / MODEL.finished).is_file():
        if first:
            with working_in(output):
                tidy(output)
        return _result(output)
    records, files = read_learnt(config)
    tokenizer = _tokenizer(config, records)
    rows = learnt_rows(config, tokenizer, records)
    refuse_long_warmup(config, planned_steps(config, rows))
    dtype = training_dtype(config)
    arguments = trainer_arguments(config, dtype)
    set_seed(config.seed)
    model = _model(config, tokenizer, dtype)
    refuse_foreign((max(row.encoded.ids) for row in rows.rows), embedding_rows(model), config.tokenizer or config.model)
    start = fingerprint(model.named_parameters())
    longest = max(len(row.encoded.ids) for row in rows.rows)
    check_positions([model], longest, f"the longest row (--max-length {config.max_length})")
    learner = _learner(config, model)
    probe(learner, answers=False)
    journal = Journal(output, _NAMES, progress and first)
    holding = held(output, MODEL, resume=resume, overwrite=overwrite) if first else contextlib.nullcontext()
    with holding, stop_on_interrupt(journal):
        if first:
            write_text(output / MODEL.settings, config.to_yaml())
            refuse_other_inputs(output, Started(target=config.model, target_fingerprint=start, data=files))
            drop_incomplete(output / CHECKPOINTS)
        trainer = UnlearningTrainer(
            Objective(learner, _LEARN),
            rows,
            config,
            int(tokenizer.pad_token_id or 0),  # type: ignore[arg-type]
            names=_NAMES,
            schedule=config.schedule,
            floor=config.floor,
            args=arguments,
            callbacks=[journal],
        )
        run_steps(trainer, journal, output, resume=resume, command=MODEL.command)
        if first:
            provenance = Provenance(
                model=place(config.model) if config.model else None,
                revision=config.revision,
                start_fingerprint=start,
                fingerprint="",
                tokenizer=None if config.scratch and not config.tokenizer else place(config.tokenizer or config.model),
                date=pinned_date(tokenizer),
                learn=config.learn,
                data=files,
                versions=library_versions(),
                training={"rows": len(rows)},
            )
            _write(output, config, trainer, tokenizer, provenance)
            tidy(output)  # behind finetune.json: a kill in between loses no work
        trainer.accelerator.wait_for_everyone()
    return _result(output)


def _result(output: Path) -> FinetuneResult:
    """What ``finetune.json`` says of a finished model."""
    facts = read_provenance(output).training
    return FinetuneResult(
        output=output,
        steps=facts["steps"],
        seconds=facts["seconds"],
        weights_bytes=facts["weights_bytes"],
        loss=facts["loss"],
    )


def read_provenance(folder: str | Path) -> Provenance:
    """The ``finetune.json`` of a finished model folder.

    Raises:
        ArtifactError: it is damaged.
    """
    path = Path(folder) / MODEL.finished
    try:
        return Provenance.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(f"{path} is damaged: train the model again with --overwrite") from error


def _check(config: FinetuneConfig) -> None:
    """Refuse settings that do not go together."""
    if not config.output:
        raise ConfigError("no output folder: name one with --output")
    if config.scratch == bool(config.model):
        raise ConfigError(
            "--model starts from a model and --scratch from random weights: give one of them"
            if config.model
            else "nothing to start from: name a model with --model, or give --scratch for random weights"
        )
    if config.model and Path(config.model).is_dir() and Path(config.model).resolve() == Path(config.output).resolve():
        raise ConfigError(f"{config.output} is the model to start from: choose another folder (--output)")
    if config.scratch:
        if config.lora_rank is not None:
            raise ConfigError(
                "--lora-rank trains beside frozen weights, and those of --scratch are random: leave it out"
            )
        check_sizes(config)
    elif given := [name for name in config.SIZES if getattr(config, name) is not None]:
        raise ConfigError(f"{flag(given[0])} is for a model from scratch: leave it out, or give --scratch")


def _tokenizer(config: FinetuneConfig, records: list[Record]) -> PreTrainedTokenizerBase:
    """The tokenizer that was named, the model's own, or one trained on the records."""
    remote: dict[str, Any] = {"trust_remote_code": config.trust_remote_code, "date": config.date}
    if config.tokenizer:
        return load_tokenizer(config.tokenizer, **remote)
    if config.scratch:
        return train_tokenizer(texts_of(records), config.vocab_size or VOCAB_SIZE, config.max_length)
    return load_tokenizer(config.model, revision=config.revision, **remote)


def _model(config: FinetuneConfig, tokenizer: PreTrainedTokenizerBase, dtype: str) -> PreTrainedModel:
    """The model to train: fp32, or for LoRA in the dtype of the arithmetic."""
    if config.scratch:
        return LlamaForCausalLM(llama_config(config, tokenizer))
    wanted = DTYPES[dtype if config.lora_rank is not None else "fp32"]
    model = load_target(
        config.model, dtype=wanted, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    refuse_foreign(own_ids(tokenizer), embedding_rows(model), config.tokenizer or config.model)
    return model


def _learner(config: FinetuneConfig, model: PreTrainedModel) -> Learner:
    """The model as what is trained, with LoRA if asked for."""
    check_head(model)
    return Learner(trainable(model, config, lora=config.lora_rank is not None))


def _write(
    output: Path,
    config: FinetuneConfig,
    trainer: UnlearningTrainer,
    tokenizer: PreTrainedTokenizerBase,
    provenance: Provenance,
) -> None:
    """Write the model folder; ``finetune.json`` comes last and marks it finished."""
    model = trainer.objective.model
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    hub = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    with writing(output):
        size = save_model(model, output, load_config(config.model, **hub).dtype if config.model else None)
        tokenizer.save_pretrained(output)
    lines = read_metrics(output / METRICS)
    last = [line for line in lines if line["epoch"] > lines[-1]["epoch"] - 1]
    facts = run_facts(trainer, lines, size) | {
        "loss": sum(line["loss"] * line["tokens"] for line in last) / sum(line["tokens"] for line in last),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    changes = {"fingerprint": fingerprint(model.named_parameters()), "training": provenance.training | facts}
    write_text(output / MODEL.finished, provenance.model_copy(update=changes).model_dump_json(indent=2) + "\n")
