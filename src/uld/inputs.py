"""What a training reads before anything is written: the target's config, its tokenizer, and the data as rows."""

import gc
import hashlib
import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from uld.artifact import CHECKPOINTS, RETAIN_DRAWN, DataFile, write_text
from uld.assistant import load_config, load_target, slice_config
from uld.config import ConfigError, FinetuneConfig, TrainConfig
from uld.data.alternatives import alternative_records
from uld.data.collate import Rows
from uld.data.documents import read_sources
from uld.data.draw import LEAST_ROWS, draw
from uld.data.prompt import Encoded, PromptFormat
from uld.data.record import Record, parse_record, refuse_equal
from uld.data.tofu import split_records, training_set
from uld.loading import load_tokenizer
from uld.methods.registry import Method

logger = logging.getLogger(__name__)

DRAWN_FACTS = "drawn.json"  # beside the checkpoints: how the retain set was drawn, until ``uld.json`` says it


@dataclass(frozen=True)
class DrawnRetain:
    """A retain set that was drawn from the target: the text of ``retain_drawn.jsonl``, and how it was made."""

    text: str
    facts: dict[str, Any]

    @property
    def records(self) -> list[Record]:
        """The rows."""
        return [
            parse_record(json.loads(line), f"{RETAIN_DRAWN}:{i}")
            for i, line in enumerate(self.text.removesuffix("\n").split("\n"), 1)
        ]

    @property
    def file(self) -> DataFile:
        """What the artefact says about the file."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()
        return DataFile(path=RETAIN_DRAWN, sha256=digest, rows=self.text.count("\n"))

    def write(self, output: Path) -> None:
        """Write it into a run folder, so that a resumed training takes the very same rows."""
        write_text(output / RETAIN_DRAWN, self.text)
        write_text(output / CHECKPOINTS / DRAWN_FACTS, json.dumps(self.facts, indent=2) + "\n")


@dataclass(frozen=True)
class Inputs:
    """Everything that is read before anything is written."""

    tokenizer: PreTrainedTokenizerBase
    rows: Rows
    counts: dict[str, Any]
    files: dict[str, list[DataFile]]
    drawn: DrawnRetain | None = None


def read_inputs(config: TrainConfig, method: Method, *, resume: bool = False) -> Inputs:
    """Read and check tokenizer and data; a target that does not exist or is too small is refused before.

    Args:
        config: All settings.
        method: The method that they name.
        resume: Whether a run goes on: a retain set that it has drawn is taken from its folder.

    Raises:
        ULDError: what is missing or wrong.
    """
    remote = {"trust_remote_code": config.trust_remote_code}
    slice_config(load_config(config.target, revision=config.revision, **remote), config.num_layers)
    if config.tokenizer:
        tokenizer = load_tokenizer(config.tokenizer, **remote)
    else:
        tokenizer = load_tokenizer(config.target, revision=config.revision, **remote)
    form = PromptFormat(tokenizer, config.template)
    forget, retain, files = _tofu(config, method) if config.split is not None else _files(config, method)
    drawn = None
    if method.retain is not None and (config.draw_retain is not None or not retain):
        drawn = _stored_retain(config) if resume else None
        drawn = drawn or _drawn_retain(config, form, forget)
        retain = drawn.records + retain
        files["retain"] = [drawn.file]
    refuse_equal(forget, retain)
    others = alternative_records(forget, config.alternatives, config.seed) if method.alternatives else []
    if method.alternatives == "instead":
        forget, others = others, []
    sides = {"forget": forget, "retain": retain, "alternative": others}
    encoded = {name: _encoded(form, name, records, config.max_length) for name, records in sides.items()}
    rows = Rows(
        encoded["forget"],
        encoded["retain"],
        uniform_on=config.uniform_on,
        alternatives=encoded["alternative"] if others else None,
    )
    counts: dict[str, Any] = {"forget_rows": len(encoded["forget"]), "retain_rows": len(encoded["retain"])}
    if drawn:
        counts["retain_drawn"] = drawn.facts
    return Inputs(tokenizer, rows, counts, files, drawn)


def _stored_retain(config: TrainConfig) -> DrawnRetain | None:
    """The retain set that an unfinished run has drawn; None where it came to none."""
    rows, facts = Path(config.output) / RETAIN_DRAWN, Path(config.output) / CHECKPOINTS / DRAWN_FACTS
    try:
        return DrawnRetain(rows.read_text(encoding="utf-8"), json.loads(facts.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _drawn_retain(config: TrainConfig, form: PromptFormat, forget: list[Record]) -> DrawnRetain:
    """Draw a retain set from the whole target, which is freed again."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "several processes cannot draw one retain set: make it first with uld draw, and give it with --retain"
        )
    number = config.draw_retain or max(LEAST_ROWS, len(form.encode_all(forget, config.max_length)[0]))
    model: Any = load_target(config.target, revision=config.revision, trust_remote_code=config.trust_remote_code)
    size = sum(one.numel() * one.element_size() for one in model.parameters()) / 2**20
    logger.warning(
        "%s: %d rows are drawn from the target itself, which is loaded whole for it (%s MiB) and freed again; "
        "documents of your own (--retain) tell better what must survive",
        *("--draw-retain" if config.draw_retain else "no --retain", number, f"{size:,.0f}"),
    )
    if torch.cuda.is_available():
        model = model.cuda()
    drawn = draw(model, form, forget, number, seed=config.seed, max_length=config.max_length)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return DrawnRetain(drawn.to_jsonl(), drawn.facts)


def _encoded(form: PromptFormat, name: str, records: list[Record], max_length: int) -> list[Encoded]:
    """Rows of one side; those that were cut, and texts that became several, are counted in the log."""
    rows, cut = form.encode_all(records, max_length)
    texts = sum(record.text is not None for record in records)
    if texts:
        chunks = len(rows) - len(records) + texts
        logger.info("%d %s texts make %d rows of at most %d tokens", texts, name, chunks, max_length)
    if cut:
        logger.warning("%d of %d %s rows were cut to max_length %d", cut, len(rows), name, max_length)
    return rows


def _tofu(config: TrainConfig, method: Method) -> tuple[list[Record], list[Record], dict[str, list[DataFile]]]:
    """TOFU's forget and retain records for a method."""
    if config.forget or config.retain:
        raise ConfigError("--split trains on TOFU, --forget and --retain on files: give one or the other")
    assert config.split is not None
    tofu = training_set(
        config.split,
        config.data,
        config.augmented,
        paraphrases=config.paraphrases,
        wrong_answers=config.wrong_answers if method.retain is not None else 0,
        retain_rows=config.retain_rows if method.retain is not None and config.draw_retain is None else 0,
        alternatives=method.alternatives is not None and config.alternatives == "given",
    )
    return tofu.forget, tofu.retain, {"tofu": tofu.files}


def _files(config: TrainConfig, method: Method) -> tuple[list[Record], list[Record], dict[str, list[DataFile]]]:
    """The records of the user's files; a method without a retain loss reads no retain file."""
    if not config.forget:
        raise ConfigError("nothing to forget: name a file or a folder with --forget, or a TOFU split with --split")
    forget, forget_files = read_sources(config.forget)
    if method.retain is None:
        if config.retain:
            logger.warning("%s has no retain loss: the retain files are not read", method.name)
        return forget, [], {"forget": forget_files}
    if not config.retain:
        return forget, [], {"forget": forget_files}
    if config.draw_retain is not None:
        raise ConfigError("--retain reads a retain set and --draw-retain makes one: give one or the other")
    retain, retain_files = read_sources(config.retain)
    return forget, retain, {"forget": forget_files, "retain": retain_files}


def read_learnt(config: FinetuneConfig) -> tuple[list[Record], dict[str, list[DataFile]]]:
    """What a finetuning learns: TOFU splits, then files.

    Returns:
        The records, and what the artefact says about where they came from.

    Raises:
        ULDError: there is nothing to learn, or a split or a file cannot be read.
    """
    if not config.splits and not config.file:
        raise ConfigError("nothing to learn: name TOFU splits with --split, or a file or folder with --file")
    found: dict[str, list[DataFile]] = {}
    records: list[Record] = []
    for name in config.splits:
        some, file = split_records(name, config.data)
        records += some
        found.setdefault("tofu", []).append(file)
    if config.file:
        some, found["file"] = read_sources(config.file)
        records += some
    return records, found


def learnt_rows(config: FinetuneConfig, tokenizer: PreTrainedTokenizerBase, records: list[Record]) -> Rows:
    """Records as rows whose loss falls on the answers, or on every token.

    Raises:
        ULDError: a record cannot be formatted or leaves no room for its answer.
    """
    rows = _encoded(PromptFormat(tokenizer, config.template), "training", records, config.max_length)
    if config.learn == "all":
        rows = [replace(row, learn=[True] * len(row.ids)) for row in rows]
    return Rows(rows, [])
