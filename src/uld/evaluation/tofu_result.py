"""From per-sample logs to the numbers of a TOFU table (Maini et al. 2024, arXiv 2401.06121)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from uld.evaluation import metrics
from uld.evaluation.log_values import LogError
from uld.evaluation.result import Result
from uld.evaluation.task_log import TaskLog, TofuLog
from uld.evaluation.tofu_field import UTILITY_METRICS, UTILITY_TASKS, FieldResult, field_result, row_values
from uld.evaluation.tofu_reading import ReadingResult, read_log_answers
from uld.text.table import aligned


@dataclass(frozen=True, kw_only=True)
class TofuResult(Result):
    """The aggregates of one model. None where a log lacks what the number needs.

    All are shares in [0, 1] (the paper prints ROUGE-L in percent). `forget_quality` needs a retain-only model's log,
    every `rouge_l` needs generated answers, and `model_utility` needs all nine parts of retain, authors and facts.
    """

    forget_quality: float | None
    """p-value of the Kolmogorov-Smirnov test on forget rows, against the retain-only model; high = forgotten."""
    forget_truth_ratio: float | None
    """``mean(min(t, 1/t))``."""
    forget_prob: float | None
    forget_rouge_l: float | None
    model_utility: float | None
    """Harmonic mean of the nine parts below."""
    retain_prob: float | None
    retain_rouge_l: float | None
    retain_truth_ratio: float | None
    real_authors_prob: float | None
    real_authors_rouge_l: float | None
    real_authors_truth_ratio: float | None
    world_facts_prob: float | None
    world_facts_rouge_l: float | None
    world_facts_truth_ratio: float | None
    rows: dict[str, int]
    """Number of rows of every task in the log."""
    compared_rows: int | None
    """Forget rows that both models were compared on."""
    impossible_answers: int
    """Scored answers, right or wrong, of probability 0 (an infinite loss), as ``outside=mask`` makes some."""
    reading: ReadingResult | None = None
    """What people read in the answers to forget questions; None without generated answers."""
    field: FieldResult | None = None
    """What the field compares models by; None without forget rows."""

    def numbers(self) -> dict[str, float]:
        """Every number that was measured, by a name of its own."""
        read = {} if self.reading is None else vars(self.reading)
        flat = vars(self) | {f"reading_{name}": value for name, value in read.items()}
        flat |= {f"reading_leak@{k}": value for k, value in read.get("leak", {}).items()}
        if self.field is not None:
            flat |= {f"field_{name}": value for name, value in self.field.metrics.items()}
            for definition, scores in self.field.scores.items():
                flat |= {f"field_{name}_{definition}": value for name, value in scores.items()}
        return {name: value for name, value in flat.items() if isinstance(value, int | float)}

    def table(self) -> str:
        """Markdown tables: the paper's four columns (ROUGE-L in percent), every part, what people read, the field's."""
        head = ("F.Q.", "forget ROUGE-L (%)", "M.U.", "retain ROUGE-L (%)")
        first = (
            _show_quality(self.forget_quality),
            _show(self.forget_rouge_l, ".1f", 100.0),
            _show(self.model_utility, ".3f"),
            _show(self.retain_rouge_l, ".1f", 100.0),
        )
        lines = [*aligned(head, [first]), ""]
        body = []
        for task in ("forget", *UTILITY_TASKS):
            parts = (_show(getattr(self, f"{task}_{metric}"), ".4f") for metric in UTILITY_METRICS)
            body.append((task.replace("_", " "), str(self.rows.get(task, "-")), *parts))
        lines += aligned(("task", "rows", "Prob", "ROUGE-L", "truth ratio"), body)
        if self.reading is not None:
            lines += ["", *self.reading.table(self.forget_rouge_l).splitlines()]
        if self.field is not None:
            lines += ["", *self.field.table().splitlines()]
        if self.compared_rows is not None:
            lines += ["", f"F.Q. compares the {self.compared_rows} forget rows that both logs hold."]
        if self.impossible_answers:
            lines += [
                "",
                f"Scored answers of probability 0 (--outside mask forbids them): {self.impossible_answers}.",
            ]
        return "\n".join(lines) + "\n"


def aggregate(
    log: TofuLog, retain_log: TofuLog | None = None, target_log: TofuLog | None = None, *, from_losses: bool = False
) -> TofuResult:
    """Compute every number of a TOFU table from per-sample logs.

    Forget quality is always computed from losses, so that logs of both formats compare; rows are matched by their key.
    The other numbers take `stored_prob` and `stored_truth_ratio` where a log holds them, as the published aggregates of
    such logs do.

    Args:
        log: the model under test.
        retain_log: the model that never saw the forget rows; without it forget quality and Priv are None.
        target_log: the model before unlearning; without it Utility is None.
        from_losses: leave stored scores aside and derive everything but ROUGE from the losses (on published
            open-unlearning logs this differs by up to 2e-6 relative).

    Returns:
        The aggregates; None where a log lacks what they need.

    Raises:
        LogError: if the two logs have no forget row in common, or their answers show that their splits differ.
    """
    parts: dict[str, float | None] = {}
    for name in ("forget", *UTILITY_TASKS):
        rows = row_values(log[name], name, from_losses) if name in log else dict.fromkeys(UTILITY_METRICS)
        parts |= {f"{name}_{metric}": None if one is None else float(np.mean(one)) for metric, one in rows.items()}
    nine = [parts[f"{task}_{metric}"] for task in UTILITY_TASKS for metric in UTILITY_METRICS]
    known = [part for part in nine if part is not None]
    quality, compared = (None, None) if retain_log is None else _forget_quality(log, retain_log)
    return TofuResult(
        forget_quality=quality,
        compared_rows=compared,
        model_utility=metrics.model_utility(known) if len(known) == len(nine) else None,
        impossible_answers=sum(_impossible(name, task) for name, task in log.items()),
        rows={name: len(log[name]) for name in ("forget", *UTILITY_TASKS) if name in log},
        reading=read_log_answers(log, retain_log),
        field=field_result(log, target_log, retain_log),
        **parts,
    )


def _forget_quality(log: TofuLog, retain_log: TofuLog) -> tuple[float | None, int | None]:
    """Return the p-value and the number of rows compared; None for both where a log has no forget task."""
    if "forget" not in log or "forget" not in retain_log:
        return None, None
    ours, theirs = log["forget"], retain_log["forget"]
    where = {key: row for row, key in enumerate(theirs.keys)}
    pairs = [(row, where[key]) for row, key in enumerate(ours.keys) if key in where]
    if not pairs:
        raise LogError(
            f"{log.source} and {retain_log.source} have no forget row in common; "
            "evaluate both models on the same split."
        )
    _check_same_rows(log, retain_log, pairs)
    t = metrics.truth_ratio_statistic(ours.paraphrase_loss, ours.wrong_losses)
    t_retain = metrics.truth_ratio_statistic(theirs.paraphrase_loss, theirs.wrong_losses)
    rows, retain_rows = zip(*pairs, strict=True)
    return metrics.forget_quality(t[list(rows)], t_retain[list(retain_rows)]), len(pairs)


def _check_same_rows(log: TofuLog, retain_log: TofuLog, pairs: list[tuple[int, int]]) -> None:
    """Refuse logs whose true answers differ in most rows: the keys 0, 1, 2 … of every split look alike.

    Only letters and digits count, and a minority may differ, because the text went through each model's tokenizer.
    """
    ours, theirs = log["forget"].generated, retain_log["forget"].generated
    if ours is None or theirs is None:
        return
    different = sum(_letters(ours[row][2]) != _letters(theirs[other][2]) for row, other in pairs)
    if different > len(pairs) / 2:
        raise LogError(
            f"{log.source} and {retain_log.source} hold other true answers in {different} of {len(pairs)} forget rows; "
            "evaluate both models on the same split."
        )


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()


def _impossible(name: str, task: TaskLog) -> int:
    paraphrased = [task.paraphrase_loss] if name in ("forget", "retain") else []  # of others it is the answer's own
    return sum(int(np.isinf(one).sum()) for one in (task.avg_loss, *paraphrased, task.wrong_losses))


def comparison_table(results: Mapping[str, TofuResult]) -> str:
    """Return one Markdown table of several models: the paper's four columns and the forgotten answers' probability.

    Args:
        results: Aggregates by the name to show.
    """
    head = ("model", "F.Q.", "forget Prob", "forget ROUGE-L (%)", "M.U.", "retain ROUGE-L (%)")
    rows = [
        (
            name,
            _show_quality(result.forget_quality),
            _show(result.forget_prob, ".3f"),
            _show(result.forget_rouge_l, ".1f", 100.0),
            _show(result.model_utility, ".3f"),
            _show(result.retain_rouge_l, ".1f", 100.0),
        )
        for name, result in results.items()
    ]
    return "\n".join(aligned(head, rows)) + "\n"


def _show(value: float | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else format(value * factor, form)


def _show_quality(value: float | None) -> str:
    return _show(value, ".2e" if value is not None and value < 0.01 else ".2f")
