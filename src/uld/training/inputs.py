"""What a training reads before anything is written: the target's config, its tokenizer, and the data as rows."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from uld.augment.items import digest
from uld.augment.source import NONE, augmentation
from uld.data.alternatives import alternative_records
from uld.data.collate import LEARN, Row, Rows
from uld.data.documents import read_sources
from uld.data.other_names import OtherNames, with_other_names
from uld.data.prompt import Encoded, PromptFormat
from uld.data.record import Record, refuse_equal
from uld.data.tofu import check_split, split_records, training_set
from uld.data.words import words
from uld.errors import ConfigError
from uld.methods.registry import Method
from uld.model.assistant import refuse_more_layers, slice_config
from uld.model.causal_lm import load_config, refuse_revision
from uld.model.load import tokenizer_for
from uld.model.vocabulary import own_ids, refuse_foreign
from uld.runs.manifest import DataFile
from uld.training.config import FinetuneConfig, TrainConfig
from uld.training.key_tokens import common_among, remembering_key_words
from uld.training.retain_set import DrawnRetain, retain_set

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Everything that is read before anything is written.

    Attributes:
        tokenizer: As prompts and answers are made of it.
        rows: What is trained on.
        counts: What the artefact says of the rows.
        files: Where they came from.
        drawn: A retain set that was drawn from the target.
        records: What the rows were made of, by their side; those about people with other names are not among them.
    """

    tokenizer: PreTrainedTokenizerBase
    rows: Rows
    counts: dict[str, Any]
    files: dict[str, list[DataFile]]
    drawn: DrawnRetain | None = None
    records: Mapping[str, list[Record]] = field(default_factory=dict)


def read_inputs(config: TrainConfig, method: Method, *, resume: bool = False, progress: bool = False) -> Inputs:
    """Read and check tokenizer and data; a target that does not exist or is too small is refused before.

    Args:
        config: All settings.
        method: The method that they name.
        resume: Whether a run goes on: a retain set that it has drawn is taken from its folder.
        progress: Show how far the drawing of a retain set is.

    Raises:
        ULDError: what is missing or wrong.
    """
    remote = {"trust_remote_code": config.trust_remote_code}
    if config.retain and config.draw_retain is not None:
        raise ConfigError("--retain reads a retain set and --draw-retain makes one: give one or the other")
    refuse_revision(config.target, config.revision)
    target = load_config(config.target, revision=config.revision, **remote)
    text = slice_config(target, config.num_layers)
    refuse_more_layers(config.lora_layers, config.num_layers or target.get_text_config(decoder=True).num_hidden_layers)
    tokenizer = _tokenizer(config)
    refuse_foreign(own_ids(tokenizer), text.vocab_size, config.tokenizer or config.target)
    form = PromptFormat(tokenizer, config.template)
    if method.retain is None and config.retain and method.teacher is None:  # which reads them, or says so
        logger.warning("%s has no retain loss: the retain files are not read", method.name)
    forget, retain, files = _tofu(config, method, form) if config.split is not None else _files(config, method, form)
    drawn = None
    if method.retain is not None and (config.draw_retain is not None or not (config.retain or config.split)):
        drawn = retain_set(config, form, forget, resume=resume, progress=progress)
        retain = drawn.records + retain
        files["retain"] = [drawn.file]
    refuse_equal(forget, retain)
    others = alternative_records(forget, config.alternatives, config.seed) if method.alternatives else []
    if method.alternatives == "instead":
        forget, others = others, []
    sides = {"forget": forget, "retain": retain, "alternative": others}
    few = {"forget": config.chunks}
    encoded = {name: _encoded(form, name, some, config.max_length, few.get(name)) for name, some in sides.items()}
    renamed = _other_names(config, form, forget, retain) if config.other_names else None
    people = [] if renamed is None else renamed.records
    in_turn = [rows for some in people for rows in _in_turn(form, some, config.max_length)]
    ids = (max(row.ids) for side in (*encoded.values(), *in_turn) for row in side)
    refuse_foreign(ids, text.vocab_size, config.tokenizer or config.target)
    rows = Rows.of_sides(
        encoded["forget"],
        encoded["retain"],
        uniform_on=config.uniform_on,
        alternatives=encoded["alternative"] if others else None,
        in_turn=in_turn,
    )
    rows = Rows(remembered(config, rows.rows, tokenizer, sides))
    counts: dict[str, Any] = {
        "forget_rows": len(encoded["forget"]),
        "retain_rows": len(encoded["retain"]) + len(in_turn),
    }
    if drawn:
        counts["retain_drawn"] = drawn.facts
    if renamed is not None:
        counts["other_names"] = renamed.facts
        logger.info(
            "--other-names: %d rows, %d an epoch, for the questions to forget that name %s",
            *(renamed.facts["rows"], len(in_turn), ", ".join(renamed.names)),
        )
    return Inputs(tokenizer, rows, counts, files, drawn, sides)


def _tokenizer(config: TrainConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that is named, or the target's."""
    how = {"revision": config.revision, "date": config.date, "trust_remote_code": config.trust_remote_code}
    return tokenizer_for(config.target, config.tokenizer, **how)


def remembered(
    config: TrainConfig, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, sides: Mapping[str, Sequence[Record]]
) -> Sequence[Row]:
    """Rows as ``--remember`` has them.

    Args:
        config: Settings.
        rows: Of a training.
        tokenizer: Made their tokens.
        sides: What is to be forgotten and what is not, as records.
    """
    if config.remember == "all":
        return rows
    before, behind = PromptFormat(tokenizer, config.template).question_frame()
    frame = [*words(str(tokenizer.decode(before, skip_special_tokens=True))), *words(behind)]
    return remembering_key_words(rows, tokenizer, common_among(sides["forget"], sides["retain"]), frame)


def _encoded(
    form: PromptFormat, name: str, records: list[Record], max_length: int, chunks: int | None = None
) -> list[Encoded]:
    """Rows of one side; those that were cut, and records that became several, are counted in the log."""
    made = [form.encode_all([record], max_length, chunks)[0] for record in records]
    rows = [row for some in made for row in some]
    if texts := [some for record, some in zip(records, made, strict=True) if record.text is not None]:
        total = sum(map(len, texts))
        logger.info("%d %s texts make %d rows of at most %d tokens", len(texts), name, total, max_length)
    if several := [some for record, some in zip(records, made, strict=True) if record.text is None and len(some) > 1]:
        logger.info(
            "%d %s conversations make %d rows, because the chat template rewrites earlier turns",
            *(len(several), name, sum(map(len, several))),
        )
    if shortened := sum(row.shortened for row in rows):
        logger.warning(
            "%d of %d %s rows learn only a part of their answers: the chat template leaves the rest out (reasoning, "
            "as a rule), or generation starts behind an empty block of reasoning",
            *(shortened, len(rows), name),
        )
    if cut := sum(row.cut > 0 for row in rows):
        logger.warning("%d of %d %s rows were cut to max_length %d", cut, len(rows), name, max_length)
    return rows


def _other_names(config: TrainConfig, form: PromptFormat, forget: list[Record], retain: list[Record]) -> OtherNames:
    """Rows about people with other names; those whose longer name leaves no room for the answer are left out."""
    found = with_other_names(forget, retain, config.other_names, config.seed)
    fitting = [[one for one in some if form.too_long(one, config.max_length) is None] for some in found.records]
    kept = [some for some in fitting if some]
    made = replace(found, records=kept, questions=len(kept))
    if left := found.facts["rows"] - made.facts["rows"]:
        logger.warning("--other-names: %d rows are left out: too long for max_length %d", left, config.max_length)
    return made


def _in_turn(form: PromptFormat, records: list[Record], max_length: int) -> list[list[Encoded]]:
    """Rows of records that stand for each other: of each place in the first, the one of every record."""
    return [list(rows) for rows in zip(*(form.encode_all([record], max_length)[0] for record in records), strict=False)]


def _tofu(
    config: TrainConfig, method: Method, form: PromptFormat | None
) -> tuple[list[Record], list[Record], dict[str, list[DataFile]]]:
    """TOFU's forget and retain records for a method, and the user's retain files beside them.

    The format is asked for room for what augmentation makes; without augmentation for nothing.
    """
    if config.forget:
        raise ConfigError("--split forgets a part of TOFU, --forget files: give one or the other")
    assert config.split is not None
    augmented, extra = config.augmented, _Augmented([], [], [])
    if config.augment != NONE:
        if augmented is not None:
            logger.warning("--augment %s is taken, and --augmented %s is not read", config.augment, augmented)
        check_split(config.split)
        source = str(Path(config.data) / f"{config.split}.json") if config.data is not None else config.split
        augmented, records = None, split_records(config.split, config.data)[0]
        assert form is not None
        extra = _augmented(config, method, form, {source: records})
    number = len(extra.forget) if config.retain_rows is None and extra.forget else config.retain_rows
    tofu = training_set(
        config.split,
        config.data,
        augmented,
        paraphrases=config.paraphrases,
        wrong_answers=config.wrong_answers if method.retain is not None else 0,
        retain_rows=number if method.retain is not None and config.draw_retain is None else 0,
        alternatives=method.alternatives is not None and config.alternatives == "given",
    )
    files = {"tofu": tofu.files} | ({"augment": extra.files} if extra.files else {})
    own: list[Record] = []
    if method.retain is not None and config.retain:
        own, files["retain"] = read_sources(config.retain)
    return extra.forget or tofu.forget, tofu.retain + own + extra.wrong, files


def covered_rows(config: TrainConfig, method: Method) -> int:
    """How many of TOFU's retain rows a training on a split takes, or would take with a retain loss.

    Args:
        config: All settings; with a split.
        method: The method that they name.

    Raises:
        ULDError: a split or its augmentation cannot be read.
    """
    if config.retain_rows is not None:
        return config.retain_rows
    form = PromptFormat(_tokenizer(config), config.template) if config.augment != NONE else None
    return len(_tofu(config, replace(method, retain=None), form)[0])  # as many as there are rows to forget


@dataclass(frozen=True)
class _Augmented:
    """Forget records with their paraphrases behind them, wrong answers, and where they came from."""

    forget: list[Record]
    wrong: list[Record]
    files: list[DataFile]


def _augmented(
    config: TrainConfig, method: Method, form: PromptFormat, sources: Mapping[str, Sequence[Record]]
) -> _Augmented:
    """Forget records by their file, augmented: paraphrases to forget, too, wrong answers to retain.

    What was made and leaves no room for its answer is left out; of the user's own rows training says so.

    Where the method takes given alternatives, a record without one takes its first wrong answer.
    """
    given = method.alternatives is not None and config.alternatives == "given"
    wanted = config.wrong_answers if method.retain is not None else 0
    number = {"paraphrases": config.paraphrases, "wrong_answers": max(wanted, int(given))}
    made, files = augmentation(
        config.augment,
        sources,
        **number,
        seed=config.seed,
        unusable=lambda record: form.too_long(record, config.max_length),
    )
    forget: list[Record] = []
    wrong: list[Record] = []
    told: list[Record] = []
    seen: set[str] = set()
    for record in (record for records in sources.values() for record in records):
        of = digest(record)
        own = made[of]
        lie = own.wrong[0] if own.wrong else None
        other = record.alternative or (lie and lie.answer)
        forget.append(replace(record, alternative=other))
        if of not in seen:  # a record that stands there twice is augmented once
            seen.add(of)
            told += [replace(one, alternative=other) for one in (*own.paraphrases, *own.asked)]
            wrong += own.wrong[:wanted]
    if any(one.paraphrases for one in made.values()):
        # A text has no other wordings; beside questions that have some it is read as often as these are.
        plain = [one for one in forget if one.text is not None and not made[digest(one)].paraphrases]
        told += plain * config.paraphrases
    texts = sum(record.text is not None for record in told)
    logger.info(
        "--augment %s: %d paraphrases, %d texts again and %d wrong answers",
        *(config.augment, len(told) - texts, texts, len(wrong)),
    )
    return _Augmented(forget + told, wrong, files)


def _files(
    config: TrainConfig, method: Method, form: PromptFormat
) -> tuple[list[Record], list[Record], dict[str, list[DataFile]]]:
    """The records of the user's files; a method without a retain loss reads no retain file."""
    if not config.forget:
        raise ConfigError("nothing to forget: name a file or a folder with --forget, or a TOFU split with --split")
    forget, forget_files = read_sources(config.forget)
    files = {"forget": forget_files}
    wrong: list[Record] = []
    if config.augment != NONE:
        rest = iter(forget)
        sources = {file.path: list(islice(rest, file.rows)) for file in forget_files}
        extra = _augmented(config, method, form, sources)
        forget, wrong, files["augment"] = extra.forget, extra.wrong, extra.files
    if method.retain is None:
        return forget, [], files
    if not config.retain:
        return forget, wrong, files
    retain, files["retain"] = read_sources(config.retain)
    return forget, retain + wrong, files


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
    return Rows([Row(row, LEARN) for row in rows])
