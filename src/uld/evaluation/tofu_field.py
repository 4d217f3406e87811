"""The field's scores of a model on TOFU, from per-sample logs: Mem, Priv, Utility and Agg, each with an interval.

The formulas are in `uld.evaluation.open_unlearning`. An interval is a percentile bootstrap over rows: every model is
looked at on the same draws of the same rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from uld.evaluation import membership, metrics
from uld.evaluation.open_unlearning import harmonic_mean, score_draws
from uld.evaluation.reading import interval, resamples
from uld.evaluation.task_log import MIA, TaskLog, TofuLog
from uld.evaluation.tofu_reading import readings
from uld.text.table import aligned

UTILITY_TASKS = ("retain", "real_authors", "world_facts")
UTILITY_METRICS = ("prob", "rouge_l", "truth_ratio")
SCORES = ("mem", "priv", "utility", "agg")
TRUTH_RATIOS = {"prob_mean": "correct / (correct + wrong)", "closer_to_1_better": "min(t, 1/t)"}
"""Both definitions of the forget truth ratio: OpenUnlearning's paper's, and the one of Divergence Decoding's code."""

_HEADS = {
    "extraction_strength": "ES",
    "exact_memorization": "EM",
    "paraphrase_prob": "para Prob",
    "paraphrase_rouge_l": "para ROUGE-L",
    "truth_ratio_prob_mean": "TR c/(c+w)",
    "truth_ratio_closer_to_1_better": "TR min(t, 1/t)",
    "mia_loss": "AUC loss",
    "mia_zlib": "AUC zlib",
    "mia_min_k": "AUC min-k",
    "mia_min_k_plus_plus": "AUC min-k++",
}
_NEEDS = {
    "mem": "Mem needs ES and EM, which older logs and grids do not hold.",
    "priv": "Priv needs non-members (--non-members), scored by this model and by a retain-only model.",
    "utility": "Utility needs answers (--generate) and the log of a target that has some utility (--target-log).",
}
_FLUENCY = {"classifier": "a classifier", "proxy": "our proxy: answers that are not degenerate"}

Array = NDArray[np.float64]
Weights = Callable[[str, int], Array]


@dataclass(frozen=True, kw_only=True)
class FieldResult:
    """What the field compares models by.

    Attributes:
        metrics: Those that were measured, in [0, 1]: ``extraction_strength``, ``exact_memorization``,
            ``paraphrase_prob``, ``paraphrase_rouge_l``, ``fluency``, the AUC of each attack, and
            ``truth_ratio_NAME`` for both `TRUTH_RATIOS`.
        scores: For each definition of the truth ratio the four scores; None where a metric of any model is missing.
        intervals: Their 99 % bootstrap intervals, of 1,000 draws.
        fluency_by: Whether a classifier or our proxy said which answers are fluent.
    """

    metrics: dict[str, float]
    scores: dict[str, dict[str, float | None]]
    intervals: dict[str, dict[str, tuple[float, float] | None]]
    fluency_by: Literal["classifier", "proxy"] | None

    def table(self) -> str:
        """Two tables of Markdown: the scores by definition of the truth ratio, and the metrics that were measured."""
        rows = []
        for name, words in TRUTH_RATIOS.items():
            cells = (_with_interval(self.scores[name][one], self.intervals[name][one]) for one in SCORES)
            rows.append([words, *cells])
        lines = aligned(("truth ratio as", *(score.capitalize() for score in SCORES)), rows)
        shown = [name for name in self.metrics]
        values = [f"{self.metrics[name]:.3f}" for name in shown]
        lines += ["", *aligned([_HEADS.get(name, name) for name in shown], [values])]
        lacking = [text for name, text in _NEEDS.items() if self.scores["prob_mean"][name] is None]
        lines += ["", *([f"Fluency is said by {_FLUENCY[self.fluency_by]}."] if self.fluency_by else []), *lacking]
        return "\n".join(lines) + "\n"


def field_result(log: TofuLog, target: TofuLog | None = None, retain: TofuLog | None = None) -> FieldResult | None:
    """The field's scores of a model.

    Args:
        log: Of the model.
        target: Of the model before unlearning, for Utility.
        retain: Of a retain-only model, for Priv.

    Returns:
        None for a log without forget rows.
    """
    if "forget" not in log:
        return None
    judged = [one for one in (log, target) if one is not None and "forget" in one]
    classified = all(one["forget"].clean is not None for one in judged)
    logs: dict[str, TofuLog | None] = {"own": log, "target": target, "retain": retain}
    draws = _Draws()
    both = {name: _metrics(one, classified, _once, draws) for name, one in logs.items() if one is not None}
    point, drawn = ({name: found[i] for name, found in both.items()} for i in (0, 1))
    scores, intervals = {}, {}
    for definition in TRUTH_RATIOS:
        own, many = (
            score_draws(*(_summary(found.get(name, {}), definition) for name in logs)) for found in (point, drawn)
        )
        scores[definition] = {name: _finite(own[name]) for name in SCORES}
        intervals[definition] = {
            name: None if scores[definition][name] is None else _interval(many[name]) for name in SCORES
        }
    found = {name: float(value[0]) for name, value in point["own"].items() if name != "model_utility"}
    by = None if "fluency" not in found else "classifier" if classified else "proxy"
    return FieldResult(metrics=found, scores=scores, intervals=intervals, fluency_by=by)


def row_values(task: TaskLog, name: str, from_losses: bool = False) -> dict[str, Array | None]:
    """What every row adds to Prob, ROUGE-L and truth ratio of a task, which are the means; ROUGE-L may be None.

    Args:
        task: Its log.
        name: The task.
        from_losses: Leave scores aside that the log itself states.
    """
    if task.stored_prob is not None and not from_losses:
        prob = np.asarray(task.stored_prob)
    elif name in ("forget", "retain"):
        prob = metrics.probability(task.avg_loss)
    else:
        prob = metrics.normalised_probability(task.avg_loss, task.wrong_losses)
    ratio = metrics.truth_ratio_rows(
        _statistic(task, from_losses), "closer_to_1_better" if name == "forget" else "true_better"
    )
    return {"prob": prob, "rouge_l": None if task.rougeL is None else np.asarray(task.rougeL), "truth_ratio": ratio}


def _statistic(task: TaskLog, from_losses: bool = False) -> Array:
    """T of every row."""
    if task.stored_truth_ratio is not None and not from_losses:
        with np.errstate(divide="ignore"):
            return 1.0 / np.asarray(task.stored_truth_ratio)
    return metrics.truth_ratio_statistic(task.paraphrase_loss, task.wrong_losses)


def _metrics(log: TofuLog, classified: bool, *several: Weights) -> list[dict[str, Array]]:
    """Metrics of a model that were measured, under several weights of the rows: ``(draws,)`` each."""
    forget = log.get("forget")
    rows = {} if forget is None else _forget_rows(log, forget, classified)
    nine = [
        (name, values)
        for name in UTILITY_TASKS
        if name in log
        for values in row_values(log[name], name).values()
        if values is not None
    ]
    results = []
    for weights in several:
        found = {name: _mean(values, weights("forget", len(values))) for name, values in rows.items()}
        for attack in MIA if forget is not None else ():
            members, others = getattr(forget, attack), (log.non_members or {}).get(attack)
            if members is not None and others is not None:
                chosen = (weights("forget", len(members)), weights("non_members", len(others)))
                found[attack] = _auc(members, others, *chosen)
        if len(nine) == len(UTILITY_TASKS) * len(UTILITY_METRICS):
            found["model_utility"] = np.asarray(
                harmonic_mean([_mean(values, weights(name, len(values))) for name, values in nine])
            )
        results.append(found)
    return results


def _forget_rows(log: TofuLog, forget: TaskLog, classified: bool) -> dict[str, Array]:
    """What every forget row adds to the metrics that are means."""
    t = _statistic(forget)
    rows: dict[str, Any] = {
        "extraction_strength": forget.extraction_strength,
        "exact_memorization": forget.exact_memorization,
        "paraphrase_prob": metrics.probability(forget.paraphrase_loss),
        "paraphrase_rouge_l": forget.paraphrase_rougeL,
        **{f"truth_ratio_{name}": metrics.truth_ratio_rows(t, name) for name in TRUTH_RATIOS},
        "fluency": forget.clean if classified else None,
    }
    if not classified and (found := readings(log)) is not None:
        rows["fluency"] = [not one.degenerate for one in found]
    return {name: np.asarray(values, dtype=np.float64) for name, values in rows.items() if values is not None}


def _summary(found: Mapping[str, Array], definition: str) -> dict[str, Array]:
    """Metrics by the names of open-unlearning's summaries."""
    names = {
        "paraphrase_prob": "forget_Q_A_PARA_Prob",
        "fluency": "forget_Q_A_gibberish",
        f"truth_ratio_{definition}": "forget_truth_ratio",
    }
    return {names.get(name, name): value for name, value in found.items()}


def _once(_: str, rows: int) -> Array:
    """Every row once: the point estimate."""
    return np.ones((1, rows))


class _Draws(dict[tuple[str, int], Array]):
    """How often each row of a task stands in each draw: the same for every model with as many rows."""

    def __call__(self, name: str, rows: int) -> Array:
        seed = (*UTILITY_TASKS, "forget", "non_members").index(name)
        if (name, rows) not in self:
            self[name, rows] = resamples(rows, seed=seed)
        return self[name, rows]


def _mean(values: Array, weights: Array) -> Array:
    return weights @ values / len(values)


def _auc(members: list[float], others: list[float], weights: Array, other_weights: Array) -> Array:
    """`membership.auc` of every draw; of the rows as they are where there is but one."""
    if len(weights) == 1:
        return np.array([membership.auc(members, others)])
    lower = np.asarray(members)[:, None] < np.asarray(others)
    wins = lower + 0.5 * (np.asarray(members)[:, None] == np.asarray(others))
    return ((weights @ wins) * other_weights).sum(1) / (len(members) * len(others))


def _finite(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value).all() else float(np.ravel(value)[0])


def _interval(values: Any) -> tuple[float, float] | None:
    finite = values[np.isfinite(values)]
    return interval(finite) if finite.size else None


def _with_interval(value: float | None, ends: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if ends is None else f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"
