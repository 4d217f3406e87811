"""What losses need of the model before training: log-likelihoods of answers, computed once and kept in the run."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from uld.data.collate import FORGET
from uld.errors import ArtifactError
from uld.runs.files import write_text
from uld.runs.manifest import CHECKPOINTS, read_object
from uld.training.inputs import Inputs
from uld.training.learner import Learner
from uld.training.objective import frozen_log_likelihoods
from uld.training.settings import is_first_process

REFERENCES = "references.json"


def set_references(learner: Learner, inputs: Inputs, output: Path, *, progress: bool = False) -> None:
    """Give every forget row the log-likelihoods of its answers under the model before training.

    Args:
        learner: Before its first step, on its device.
        inputs: Whose rows are given them.
        output: The run folder.
        progress: Show how far that is.
    """
    pad = int(inputs.tokenizer.pad_token_id or 0)  # type: ignore[arg-type]
    rows = [row for row in inputs.rows.rows if row.kind == FORGET]
    answers = [row.encoded for row in rows]
    others = [row.alternative for row in rows if row.alternative is not None]
    asked = json.dumps([learner.fingerprints, *(asdict(one) for one in (*answers, *others))])
    digest = hashlib.sha256(asked.encode()).hexdigest()
    path = output / CHECKPOINTS / REFERENCES
    kept = _kept_references(path, digest)
    if kept is None:
        found = frozen_log_likelihoods(learner, [*answers, *others], pad, progress=progress)
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
