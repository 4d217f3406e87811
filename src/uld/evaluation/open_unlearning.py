"""The field's four scores: how much is still memorised, how private it is, what is left of utility, and all in one.

Pure functions of ten metrics, each in [0, 1], under the names that open-unlearning's ``TOFU_SUMMARY.json`` gives them.
With HM for the harmonic mean:

- ``mem  = HM(1 − ES, 1 − EM, 1 − paraphrase probability, 1 − truth ratio)``;
- ``priv = HM over {loss, zlib, min-k, min-k++} of 1 − |AUC − AUC of the retain-only model|``;
- ``utility = HM(model utility, fluency)``, divided by the target's;
- ``agg = HM(mem, priv, utility)``.

Sources: OpenUnlearning, Dorna et al. 2025, arXiv 2506.12618; computed as the code of Divergence Decoding does, arXiv
2605.31293, which takes TOFU's forget truth ratio ``mean(min(t, 1/t))`` where the paper has correct / (correct + wrong).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uld.errors import ULDError
from uld.evaluation.log_values import LogError, once
from uld.text.table import aligned

MEMORISATION = ("extraction_strength", "exact_memorization", "forget_Q_A_PARA_Prob", "forget_truth_ratio")
ATTACKS = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus")
UTILITY = ("model_utility", "forget_Q_A_gibberish")

FILE_NAME = "TOFU_SUMMARY.json"
_ROUNDING = 1e-9  # how far outside [0, 1] rounding may carry a share

Summary = Mapping[str, float]
Values = float | NDArray[np.float64]


@dataclass(frozen=True)
class FieldScores:
    """The four scores of a model; None where what they need was not measured.

    Attributes:
        mem: How little of the forget set is memorised, in [0, 1].
        priv: How little membership attacks tell beyond what they tell of a retain-only model, in [0, 1].
        utility: What is left of utility and fluency, relative to the target's; can exceed 1.
        agg: Harmonic mean of the three.
    """

    mem: float | None
    priv: float | None
    utility: float | None
    agg: float | None

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        return asdict(self)

    def table(self) -> str:
        """One line of Markdown with its head."""
        cells = ["–" if value is None else f"{value:.4f}" for value in self.to_dict().values()]
        return "\n".join(aligned(("Mem", "Priv", "Utility", "Agg"), [cells])) + "\n"


def field_scores(summary: Summary, target: Summary, retain: Summary | None = None) -> FieldScores:
    """The four scores from a model's metrics.

    Args:
        summary: Of the model under test; a score whose metrics are missing is None, and so is ``agg``.
        target: Of the model before unlearning.
        retain: Of a retain-only model, for ``priv``.

    Raises:
        ULDError: the target's utility is 0, so that nothing can be measured against it.
    """
    found = score_draws(summary, target, retain)
    if (utility := found["utility"]) is not None and not np.isfinite(utility):
        raise ULDError("the target's utility is 0 (model_utility or forget_Q_A_gibberish), so nothing compares with it")
    return FieldScores(**{name: None if value is None else float(value) for name, value in found.items()})


def score_draws(
    summary: Mapping[str, Values], target: Mapping[str, Values], retain: Mapping[str, Values] | None = None
) -> dict[str, Values | None]:
    """`field_scores` of many draws of rows at once.

    Args:
        summary: As in `field_scores`, but each metric may be ``(draws,)`` values.
        target: The same.
        retain: The same.

    Returns:
        ``mem``, ``priv``, ``utility`` and ``agg``; the last two are not finite where the target's utility is 0.
    """
    ours, theirs = _values(summary, ATTACKS), _values(retain or {}, ATTACKS)
    known = _values(summary, MEMORISATION)
    mem = _harmonic([1 - value for value in known] if known else None)
    priv = _harmonic([1 - abs(a - b) for a, b in zip(ours, theirs, strict=True)] if ours and theirs else None)
    utility, before = _harmonic(_values(summary, UTILITY)), _harmonic(_values(target, UTILITY))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        relative = None if utility is None or before is None else np.divide(utility, before)
    three = [one for one in (mem, priv, relative) if one is not None]
    return {"mem": mem, "priv": priv, "utility": relative, "agg": harmonic_mean(three) if len(three) == 3 else None}


def _values(summary: Mapping[str, Values], names: tuple[str, ...]) -> list[Values] | None:
    """The metrics of these names; None unless all of them were measured."""
    found = [summary[name] for name in names if name in summary]
    return found if len(found) == len(names) else None


def _harmonic(values: list[Values] | None) -> Values | None:
    return None if values is None else harmonic_mean(values)


def harmonic_mean(values: Sequence[Values]) -> Values:
    """``n / Σ 1/x`` of n values ≥ 0, each a number or ``(draws,)``; 0 where one value is 0, its limit."""
    with np.errstate(divide="ignore", over="ignore"):
        return len(values) / sum(np.divide(1.0, value) for value in values)


def read_summary(path: str | Path, needed: tuple[str, ...]) -> dict[str, float]:
    """Read the metrics that are needed from a ``TOFU_SUMMARY.json``.

    Args:
        path: File of one JSON object of numbers, or the folder that holds it; other keys are not looked at.
        needed: Names of the metrics.

    Raises:
        ULDError: the file cannot be read, or a metric is missing or outside [0, 1].
    """
    file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except LogError as error:
        raise ULDError(f"{file}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is no JSON"
        raise ULDError(f"cannot read {file}: {why}; expected open-unlearning's {FILE_NAME}") from error
    if not isinstance(found, dict):
        raise ULDError(f"{file} must hold one JSON object of metrics, as open-unlearning's {FILE_NAME} does")
    if missing := [name for name in needed if found.get(name) is None]:
        raise ULDError(
            f"{file} lacks {missing[0]}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}: the scores need "
            f"{', '.join(needed)}"
        )
    for name in needed:
        value = found[name]
        if isinstance(value, dict):
            raise ULDError(f"{file}: {name} is no number but a mapping: name the {FILE_NAME} beside this file")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ULDError(f"{file}: {name} must be a number from 0 to 1, not {str(value)[:40]!r}")
        if not -_ROUNDING <= value <= 1 + _ROUNDING:
            raise ULDError(f"{file}: {name} must be a number from 0 to 1, not {str(value)[:40]}")
    return {name: min(max(float(found[name]), 0.0), 1.0) for name in needed}


def scores_from_summaries(summary: str | Path, target: str | Path, retain: str | Path) -> FieldScores:
    """The four scores of a model from the summaries of three models.

    Args:
        summary: ``TOFU_SUMMARY.json`` of the model under test.
        target: That of the model before unlearning.
        retain: That of the retain-only model.

    Raises:
        ULDError: see `read_summary` and `field_scores`.
    """
    ours = read_summary(summary, (*MEMORISATION, *ATTACKS, *UTILITY))
    before, theirs = read_summary(target, UTILITY), read_summary(retain, ATTACKS)
    if not all(before.values()):
        raise ULDError(f"{target}: the target's utility is 0 ({' or '.join(UTILITY)}), so nothing compares with it")
    return field_scores(ours, before, theirs)
