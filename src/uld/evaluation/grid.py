"""TOFU under many settings of the combination for the price of one: a log for each, one table, one plot."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from uld.data.prompt import PromptFormat
from uld.errors import ArtifactError
from uld.evaluation.resume import describe
from uld.evaluation.tofu import score_grid
from uld.evaluation.tofu_log import FILE_NAME, TofuLog, write_log
from uld.evaluation.tofu_result import TofuResult, aggregate
from uld.evaluation.tofu_rows import TASKS, task_rows
from uld.model.combine import Combination
from uld.model.unlearned import ULDForCausalLM
from uld.runs.files import new_file, present, write_text
from uld.runs.manifest import rows_digest
from uld.runs.rows import CLAIM, claim
from uld.text.json_text import dumps

SUMMARY = "grid.json"
PLOT = "grid.png"


@dataclass(frozen=True)
class GridRow:
    """One setting and what came of it.

    Attributes:
        combination: The setting.
        result: Its aggregates (no ROUGE, because nothing is generated).
        forget_loss: Mean loss of the forget answers, nats a token.
        retain_loss: Mean loss of the retain answers, nats a token.
    """

    combination: Combination
    result: TofuResult
    forget_loss: float
    retain_loss: float

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        losses = {"forget_loss": self.forget_loss, "retain_loss": self.retain_loss}
        return {"combination": self.combination.to_dict(), **losses, "result": self.result.to_dict()}


def grid_name(how: Combination) -> str:
    """A setting as a folder name."""
    if how.rule == "rank":  # which knows no other difference between weights
        return f"rank-tokens-{how.rank_tokens if how.weight > 0 else 0}"
    name = f"{how.rule}-weight-{how.weight:g}"
    if how.rule == "suppress" and (how.margin or how.floor):
        name += f"-margin-{how.margin:g}-floor-{how.floor:g}"
    return f"{name}-filter-{how.filter:g}-{how.outside}" if how.filters else name


def evaluate_grid(
    model: ULDForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    output: str | Path,
    settings: Sequence[Combination],
    *,
    retain_log: TofuLog | None = None,
    data: str | Path | None = None,
    template: str | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> list[GridRow]:
    """Score a grid in one pass and write it.

    Args:
        model: A run.
        tokenizer: Its tokenizer.
        split: Forget split.
        output: Folder; gets a folder with a log for each setting, ``grid.json`` and ``grid.png``.
        settings: What to score; settings that are the same are scored once.
        retain_log: The retain-only model's, for forget quality.
        data: Folder of TOFU, or None for the Hub.
        template: Prompt template; None takes the tokenizer's chat template.
        limit: First rows of each task set only.
        progress: Show a progress bar.

    Returns:
        A row a setting.

    Raises:
        ULDError: missing data, or a folder that holds something else.
    """
    output = Path(output)
    if output.is_file() or (present(output) - {CLAIM} and not (output / SUMMARY).is_file()):
        raise ArtifactError(f"{output} holds something that is not a grid: name another folder with --output")
    if not (output / SUMMARY).is_file() or (output / CLAIM).is_file():  # grids of before do not say whose they are
        digest = rows_digest(row for task in TASKS for row in task_rows(task, split, data))
        about = describe(model, PromptFormat(tokenizer, template), split=split, limit=limit, data=digest)
        claim(output, {name: value for name, value in about.items() if not name.startswith("combination")})
    distinct = list({grid_name(how): how for how in settings}.values())
    how: dict[str, Any] = {"data": data, "template": template, "limit": limit, "progress": progress}
    logs = score_grid(model, tokenizer, split, distinct, tasks=TASKS, **how)
    rows = []
    for one, log in zip(distinct, logs, strict=True):
        losses = {task: statistics.fmean(log[task].avg_loss) for task in ("forget", "retain")}
        rows.append(GridRow(one, aggregate(log, retain_log), losses["forget"], losses["retain"]))
    write_text(output / SUMMARY, dumps([row.to_dict() for row in rows], indent=2) + "\n")
    for one, log in zip(distinct, logs, strict=True):
        write_log(log, output / grid_name(one) / FILE_NAME)
    plot_grid(rows, output / PLOT)
    return rows


def table(rows: Sequence[GridRow]) -> str:
    """The grid as a Markdown table."""
    lines = [
        "| rule | α | margin | floor | τ | outside | F.Q. | forget Prob | retain Prob | forget loss | retain loss |",
        f"|{'---|' * 11}",
    ]
    for row in rows:
        how, found = row.combination, row.result
        quality = "–" if found.forget_quality is None else f"{found.forget_quality:.2e}"
        filter, outside = (f"{how.filter:g}", how.outside) if how.filters else ("–", "–")
        margin, floor = (f"{how.margin:g}", f"{how.floor:g}") if how.rule == "suppress" else ("–", "–")
        rule = [f"rank {how.rank_tokens}", "–"] if how.rule == "rank" else [how.rule, f"{how.weight:g}"]
        cells = [*rule, margin, floor, filter, outside, quality]
        cells += [f"{found.forget_prob:.4f}", f"{found.retain_prob:.4f}"]
        lines.append(f"| {' | '.join([*cells, f'{row.forget_loss:.3f}', f'{row.retain_loss:.3f}'])} |")
    return "\n".join(lines) + "\n"


def plot_grid(rows: Sequence[GridRow], path: Path) -> None:
    """Forget quality, and forget and retain loss, against α; a line for each rule, τ and outside."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4))
    panels = figure.subplots(1, 3)
    for name in dict.fromkeys(_line(row.combination) for row in rows):
        line = sorted((row for row in rows if _line(row.combination) == name), key=lambda row: row.combination.weight)
        weights = [row.combination.weight for row in line]
        quality = [row.result.forget_quality for row in line]
        if None not in quality:
            panels[0].plot(weights, quality, marker="o", label=name)
        panels[1].plot(weights, [row.forget_loss for row in line], marker="o", label=name)
        panels[2].plot(weights, [row.retain_loss for row in line], marker="o", label=name)
    panels[0].set(yscale="log", title="forget quality (p-value)")
    panels[1].set(title="loss of forget answers (nats a token)")
    panels[2].set(title="loss of retain answers (nats a token)")
    for panel in panels:
        panel.set(xlabel="α")
        panel.grid(alpha=0.3)
    panels[1].legend(fontsize=8)
    figure.tight_layout()
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _line(how: Combination) -> str:
    if how.rule == "suppress" and (how.margin or how.floor):
        return f"{how.rule}, margin {how.margin:g}, floor {how.floor:g}"
    return f"{how.rule}, τ = {how.filter:g}, {how.outside}" if how.filters else how.rule
