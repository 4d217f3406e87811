"""A retain set that a run draws from its target because the user has none, kept in the run's folder."""

import gc
import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uld.data.prompt import PromptFormat
from uld.data.record import Record, parse_record
from uld.errors import ConfigError, ULDError
from uld.model.causal_lm import load_target
from uld.runs.files import write_text
from uld.runs.manifest import CHECKPOINTS, RETAIN_DRAWN, DataFile, read_object
from uld.training.config import TrainConfig
from uld.training.draw import LEAST_ROWS, draw_rows
from uld.training.stored import finished_before

logger = logging.getLogger(__name__)

_DIGEST = "sha256"  # in it: of the rows
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
        facts = {**self.facts, _DIGEST: self.file.sha256}
        write_text(output / CHECKPOINTS / DRAWN_FACTS, json.dumps(facts, indent=2) + "\n")


def retain_set(
    config: TrainConfig, form: PromptFormat, forget: list[Record], *, resume: bool, progress: bool = False
) -> DrawnRetain:
    """The retain set that an unfinished run has drawn, or a new one.

    Args:
        config: All settings.
        form: Makes tokens.
        forget: What no drawn row may repeat.
        resume: Whether the run goes on.
        progress: Show how far the drawing is.

    Raises:
        ULDError: the target cannot be loaded or gives nothing to keep, or there are several processes.
    """
    return (_stored(config) if resume else None) or _drawn(config, form, forget, progress)


def _stored(config: TrainConfig) -> DrawnRetain | None:
    """The retain set that an unfinished run has drawn; None where it came to none, or not to what it noted."""
    rows, facts = Path(config.output) / RETAIN_DRAWN, Path(config.output) / CHECKPOINTS / DRAWN_FACTS
    try:
        before = finished_before(config)  # which has no checkpoints any more
        noted = dict(before.training["retain_drawn"]) if before is not None else read_object(facts, "")
        digest = noted.pop(_DIGEST, None)
        found = DrawnRetain(rows.read_text(encoding="utf-8"), noted)
        return found if found.records and digest in (None, found.file.sha256) else None
    except (OSError, KeyError, ValueError, RecursionError, ULDError):  # the same seed draws the same rows again
        return None


def _drawn(config: TrainConfig, form: PromptFormat, forget: list[Record], progress: bool) -> DrawnRetain:
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
    drawn = draw_rows(model, form, forget, number, seed=config.seed, max_length=config.max_length, progress=progress)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return DrawnRetain(drawn.to_jsonl(), drawn.facts)
