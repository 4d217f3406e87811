"""Learning rates, chosen on the training side by one rule for all methods.

For every candidate a run is trained; measured are the probability of the forget answers that it was trained on, and
that of retain answers that it was neither trained nor will be evaluated on, both as shares of the target's. The rate
with the highest harmonic mean of what was forgotten (1 − share) and what was kept (share) is taken. Forget quality,
utility and evaluated rows are never looked at.
"""

import math
import statistics
from pathlib import Path
from typing import Any

from uld.compare.cell import answer_losses, forget_records, trained, unseen_records
from uld.compare.grid import Spec, rate_specs
from uld.compare.workspace import Workspace
from uld.data.record import Record
from uld.errors import ULDError
from uld.report.cells import RATES, Rate, best_rate


def result_path(workspace: Workspace, spec: Spec) -> Path:
    """Where the measures of one candidate are kept."""
    return workspace.folder / RATES / f"{spec.name}.json"


def stored(workspace: Workspace, spec: Spec) -> Rate | None:
    """The measures of a candidate, if they were made from the same inputs."""
    path = result_path(workspace, spec)
    found = Rate.read(path) if path.exists() else None
    if found is None or found.digest != workspace.training_digest(spec):
        return None
    return found if found.further in (None, workspace.further(spec)) else None


def measure(workspace: Workspace, spec: Spec) -> Rate:
    """Train with one candidate and measure what was forgotten and what was kept.

    Raises:
        ULDError: the training fails, or leaves a model that gives NaN.
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


def write(workspace: Workspace, spec: Spec, **found: Any) -> Rate:
    """Keep the measures of a candidate, or the ``error`` of one that failed."""
    own = {"method": str(spec.method), "learning_rate": spec.settings["learning_rate"]}
    rate = Rate(**own, digest=workspace.training_digest(spec), further=workspace.further(spec), **found)
    rate.write(result_path(workspace, spec))
    return rate


def chosen(workspace: Workspace) -> dict[str, float]:
    """The learning rate of each family's first method, where all candidates have been tried and one has not failed."""
    best = {method: best_rate(rates) for method, rates in _tried(workspace).items()}
    return {method: rate.learning_rate for method, rate in best.items() if rate is not None}


def hopeless(workspace: Workspace) -> set[str]:
    """The first methods of families whose candidates have all failed."""
    return _tried(workspace).keys() - chosen(workspace).keys()


def _tried(workspace: Workspace) -> dict[str, list[Rate]]:
    """The candidates of each family's first method, for those of which all have been tried."""
    found: dict[str, list[Rate | None]] = {}
    for spec in rate_specs(workspace.grid):
        found.setdefault(str(spec.method), []).append(stored(workspace, spec))
    return {method: [one for one in rates if one] for method, rates in found.items() if None not in rates}


def _probability(workspace: Workspace, model: str, records: list[Record]) -> float:
    losses = answer_losses(workspace, model, records)
    if any(map(math.isnan, losses)):
        raise ULDError(
            f"{model} gives NaN as the probability of an answer, so nothing can be measured: if it was trained here, "
            "take this rate out of the candidates (learning_rates)"
        )
    return statistics.fmean(math.exp(-loss) for loss in losses)
