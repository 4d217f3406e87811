"""Learning rates, chosen on the training side by one rule for all methods.

For every candidate a run is trained; measured are the probability of the forget answers that it was trained on, and
that of retain answers that it was neither trained nor will be evaluated on, both as shares of the target's. The rate
with the highest harmonic mean of what was forgotten (1 − share) and what was kept (share) is taken. Forget quality,
utility and evaluated rows are never looked at.
"""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uld.artifact import write_text
from uld.compare.cell import Workspace, answer_losses, forget_records, trained, unseen_records
from uld.compare.grid import Spec, rate_specs
from uld.data.record import Record

FOLDER = "rates"


def result_path(workspace: Workspace, spec: Spec) -> Path:
    """Where the measures of one candidate are kept."""
    return workspace.folder / FOLDER / f"{spec.name}.json"


def stored(workspace: Workspace, spec: Spec) -> dict[str, Any] | None:
    """The measures of a candidate, if they were made from the same inputs."""
    path = result_path(workspace, spec)
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found if found is not None and found["digest"] == workspace.training_digest(spec) else None


def measure(workspace: Workspace, spec: Spec) -> dict[str, Any]:
    """Train with one candidate and measure what was forgotten and what was kept.

    Raises:
        ULDError: the training fails.
    """
    trained(workspace, spec)
    run = str(workspace.run_folder(spec))
    sides = {"forget": forget_records(workspace, spec.split), "retain": unseen_records(workspace, spec)}
    share = {}
    for name, records in sides.items():
        now, before = (_probability(workspace, model, records) for model in (run, workspace.grid.target))
        share[name] = now / before
    forgotten, kept = max(0.0, 1 - share["forget"]), min(1.0, share["retain"])
    score = 2 * forgotten * kept / (forgotten + kept) if forgotten + kept > 0 else 0.0
    return write(workspace, spec, forgotten=forgotten, kept=kept, score=score)


def write(workspace: Workspace, spec: Spec, **found: Any) -> dict[str, Any]:
    """Keep the measures of a candidate, or the ``error`` of one that failed, which is never chosen."""
    rate = {"method": spec.method, "learning_rate": spec.settings["learning_rate"], "score": -1.0, **found}
    rate["digest"] = workspace.training_digest(spec)
    write_text(result_path(workspace, spec), json.dumps(rate, indent=1) + "\n")
    return rate


def chosen(workspace: Workspace) -> dict[str, float]:
    """The learning rate of each family's first method, for those whose candidates have all been measured."""
    found: dict[str, list[dict[str, Any] | None]] = {}
    for spec in rate_specs(workspace.grid):
        found.setdefault(str(spec.method), []).append(stored(workspace, spec))
    return {method: best(rows) for method, rows in found.items() if all(rows)}  # type: ignore[arg-type]


def best(rows: Sequence[dict[str, Any]]) -> float:
    """The candidate with the highest score; of equal ones the smallest."""
    return min(rows, key=lambda row: (-row["score"], row["learning_rate"]))["learning_rate"]


def _probability(workspace: Workspace, model: str, records: list[Record]) -> float:
    return statistics.fmean(math.exp(-loss) for loss in answer_losses(workspace, model, records))
