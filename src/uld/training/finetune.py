"""`finetune(config)`: makes the models that unlearning starts from (the target) and is measured against (retain-only).

By the way of every training, `uld.training.run.carry_out`. What is left is an ordinary Hugging Face model
folder, LoRA merged into its weights, with three files beside them: ``finetune.yaml`` (the resolved settings),
``metrics.jsonl``, and ``finetune.json`` (`Provenance`), which is written last and marks the folder as finished.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel
from pydantic import BaseModel, ValidationError
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from uld.data.clock import pinned_date
from uld.data.collate import LEARN
from uld.data.record import Record
from uld.errors import ArtifactError, ConfigError, flag
from uld.methods.losses import cross_entropy
from uld.model.assistant import check_head
from uld.model.causal_lm import load_config, load_target, refuse_revision
from uld.model.device import DTYPES
from uld.model.generate import end_ids, name_ends
from uld.model.load import tokenizer_for
from uld.model.vocabulary import embedding_rows, own_ids, refuse_foreign
from uld.model.weights import save_model
from uld.runs.files import write_text, writing
from uld.runs.folder import MODEL, Started
from uld.runs.machine import library_versions
from uld.runs.manifest import METRICS, DataFile, fingerprint, place
from uld.training.config import FinetuneConfig
from uld.training.inputs import Inputs, learnt_rows, read_learnt
from uld.training.journal import read_metrics
from uld.training.kind import RunResult, Training, result_of, run_facts
from uld.training.learner import Learner
from uld.training.learners import trainable
from uld.training.objective import Objective, Term
from uld.training.run import carry_out
from uld.training.scratch import VOCAB_SIZE, check_sizes, llama_config, texts_of, train_tokenizer
from uld.training.trainer import UnlearningTrainer

_LOSS = Term("loss", LEARN, lambda side: side.total(cross_entropy))


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
    return carry_out(Finetuning(config), resume=resume, overwrite=overwrite, progress=progress)


class Finetuning(Training[FinetuneResult]):
    """Cross-entropy on everything that is learnt."""

    takes = FinetuneConfig
    config: FinetuneConfig
    start: str

    def __init__(self, config: FinetuneConfig) -> None:
        """Take the settings.

        Raises:
            ConfigError: they do not go together.
        """
        super().__init__(config)
        _check(config)
        self.fall = {"schedule": config.schedule, "floor": config.floor}

    def read(self, *, resume: bool) -> Inputs:
        """Read, or train, the tokenizer, and the data."""
        records, files = read_learnt(self.config)
        tokenizer = _tokenizer(self.config, records)
        rows = learnt_rows(self.config, tokenizer, records)
        return Inputs(tokenizer, rows, {"rows": len(rows)}, files)

    def load(self, inputs: Inputs, dtype: str) -> Learner:
        """Load or make the model, with LoRA if asked for."""
        config = self.config
        model = _model(config, inputs.tokenizer, dtype)
        ids = (max(row.encoded.ids) for row in inputs.rows.rows)
        refuse_foreign(ids, embedding_rows(model), config.tokenizer or config.model)
        prints = {"target": fingerprint(model.named_parameters())}
        check_head(model)
        return Learner(trainable(model, config, lora=config.lora_rank is not None), fingerprints=prints)

    def begin(self, learner: Learner, inputs: Inputs) -> Started:
        """Note the weights that training starts from."""
        self.start = learner.fingerprints["target"]
        return Started(target=self.config.model, target_fingerprint=self.start, data=inputs.files)

    def objective(self, learner: Learner, dtype: str, progress: bool) -> Objective:
        """One loss."""
        return Objective(learner, [_LOSS])

    def write(self, folder: Path, trainer: UnlearningTrainer, inputs: Inputs) -> None:
        """Write the model folder; ``finetune.json`` comes last and marks it finished."""
        config, model = self.config, trainer.objective.model
        if isinstance(model, PeftModel):
            model = model.merge_and_unload()
        name_ends(model, end_ids(model, inputs.tokenizer) | _ends(inputs))  # where it started from may end otherwise
        hub = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
        with writing(folder):
            size = save_model(model, folder, load_config(config.model, **hub).dtype if config.model else None)
            inputs.tokenizer.save_pretrained(folder)
        lines = read_metrics(folder / METRICS)
        last = [line for line in lines if line["epoch"] > lines[-1]["epoch"] - 1]
        weighed = [(line, line.get("learnt") or line["tokens"]) for line in last]  # steps of earlier versions have none
        facts = {
            "loss": sum(line["loss"] * learnt for line, learnt in weighed) / sum(learnt for _, learnt in weighed),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
        provenance = Provenance(
            model=place(config.model) if config.model else None,
            revision=config.revision,
            start_fingerprint=self.start,
            fingerprint=fingerprint(model.named_parameters()),
            tokenizer=None if config.scratch and not config.tokenizer else place(config.tokenizer or config.model),
            date=pinned_date(inputs.tokenizer),
            learn=config.learn,
            data=inputs.files,
            versions=library_versions(),
            training=inputs.counts | run_facts(trainer, lines, size) | facts,
        )
        write_text(folder / MODEL.finished, provenance.model_dump_json(indent=2) + "\n")

    def result(self) -> FinetuneResult:
        """What ``finetune.json`` says of a finished model."""
        facts = read_provenance(self.config.output).training
        return FinetuneResult(**result_of(self.config.output, facts), loss=facts["loss"])


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


def _ends(inputs: Inputs) -> set[int]:
    """Special tokens that rows which were not cut end in, as those of a chat template do."""
    tokenizer: Any = inputs.tokenizer
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    rows = [row.encoded for row in inputs.rows.rows]
    return {row.ids[-1] for row in rows if row.learn[-1] and not row.cut} & special


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
    refuse_revision(config.model, config.revision)
    if config.scratch and not config.tokenizer:
        return train_tokenizer(texts_of(records), config.vocab_size or VOCAB_SIZE, config.max_length)
    return tokenizer_for(config.model, config.tokenizer, revision=config.revision, **remote)


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
