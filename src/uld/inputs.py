"""What a training run reads before anything is written: the target's config, its tokenizer, and the data as rows."""

import logging
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from uld.artifact import DataFile, file_digest
from uld.assistant import load_config, slice_config
from uld.config import ConfigError, TrainConfig
from uld.data.collate import Rows
from uld.data.prompt import Encoded, PromptFormat
from uld.data.record import Record, read_records, refuse_equal
from uld.data.tofu import training_set
from uld.modeling import load_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Everything that is read before anything is written."""

    tokenizer: PreTrainedTokenizerBase
    rows: Rows
    counts: dict[str, int]
    files: dict[str, list[DataFile]]


def read_inputs(config: TrainConfig) -> Inputs:
    """Read and check tokenizer and data; a target that does not exist or is too small is refused before.

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
        (forget, forget_files), (retain, retain_files) = _read_files(config, "forget"), _read_files(config, "retain")
        files = {"forget": forget_files, "retain": retain_files}
    refuse_equal(forget, retain)
    encoded: list[list[Encoded]] = []
    for name, records in (("forget", forget), ("retain", retain)):
        rows, cut = form.encode_all(records, config.max_length)
        if cut:
            logger.warning("%d of %d %s rows were cut to max_length %d", cut, len(rows), name, config.max_length)
        encoded.append(rows)
    rows = Rows(*encoded, uniform_on=config.uniform_on)
    return Inputs(tokenizer, rows, {"forget_rows": len(encoded[0]), "retain_rows": len(encoded[1])}, files)


def _read_files(config: TrainConfig, side: str) -> tuple[list[Record], list[DataFile]]:
    """Records of one side's files, and what the artefact says about the files."""
    paths = getattr(config, side)
    if not paths:
        raise ConfigError(f"nothing to {side}: name a JSON-lines file with --{side}, or a TOFU split with --split")
    records, files = [], []
    for path in paths:
        found = read_records([path])
        records += found
        files.append(DataFile(path=str(path), sha256=file_digest(path), rows=len(found)))
    return records, files
