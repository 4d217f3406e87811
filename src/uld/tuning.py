"""Choosing α for a finished run, without a retain-only model and without any benchmark's rows.

Two things are measured for every α from one pass, because the logits of target and assistant do not depend on it:
how much likelier the unlearned model finds a right answer about the forget set than wrong ones (on paraphrases that
were not trained on), and how much of the target's probability it keeps on retain answers that were not trained on. The
choice is the smallest α at which right answers are no likelier than wrong ones, within a budget of lost utility.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from uld.artifact import SETTINGS, CombinationSettings, Manifest, new_file, sweep, write_text
from uld.data.documents import read_sources
from uld.data.prompt import PromptFormat
from uld.data.record import Record, parse_record, refuse_unread
from uld.data.rows import read_lines
from uld.data.tofu import held_out
from uld.errors import DataError, ULDError
from uld.evaluation.scoring import Scorer
from uld.logits import Combination
from uld.modeling import ULDForCausalLM
from uld.run_folder import stored_settings, working_in

WEIGHTS = tuple(step / 4 for step in range(1, 13))
Aim = Literal["indistinct", "budget"]
AIMS = get_args(Aim)
_WHOLE = 2**31


@dataclass(frozen=True)
class Probe:
    """A question about the forget set with its right answer and wrong ones."""

    right: Record
    wrong: tuple[Record, ...]


@dataclass(frozen=True)
class Point:
    """What one setting does.

    Attributes:
        weight: α.
        filter: τ.
        advantage: Mean over probes of ``loss of the wrong answers − loss of the right one``, nats a token; 0 or less:
            the right answer is no likelier than the wrong ones.
        kept: Mean probability of held-out retain answers, as a share of the target's.
    """

    weight: float
    filter: float
    advantage: float
    kept: float


@dataclass(frozen=True)
class Choice:
    """What was chosen and why.

    Attributes:
        point: The setting.
        reason: One sentence.
        points: All that were measured, by τ, then α; the first is α = 0, the target.
        probes: Number of questions.
        retain: Number of retain answers.
        aim: What was asked for.
        budget: Share of the retain probability that may be lost.
    """

    point: Point
    reason: str
    points: list[Point]
    probes: int
    retain: int
    aim: Aim
    budget: float

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        return dataclasses.asdict(self)


def tofu_probes(run: str | Path) -> tuple[list[Probe], list[Record]]:
    """Held-out probes and retain rows of a run on TOFU: what its settings left out of training and no benchmark uses.

    Raises:
        ULDError: the run was not trained on TOFU, or nothing was left out.
    """
    if not (Path(run) / SETTINGS).is_file():
        raise ULDError(
            f"{run} has no {SETTINGS} that says what it was trained on: name rows with --forget and --retain"
        )
    config = stored_settings(Path(run))
    if config.split is None:
        raise ULDError(f"{run} was trained on files: name held-out rows with --forget and --retain")
    if config.augmented is None:
        raise ULDError(f"{run} was trained without --augmented: name held-out rows with --forget and --retain")
    rows, retain = held_out(
        config.split,
        config.data,
        config.augmented,
        paraphrases=config.paraphrases,
        wrong_answers=config.wrong_answers,
        retain_rows=config.retain_rows,
    )
    return [
        Probe(Record.qa(question, right), tuple(Record.qa(question, one) for one in wrong))
        for question, right, wrong in rows
    ], retain


def file_probes(forget: str | Path, retain: str | Path) -> tuple[list[Probe], list[Record]]:
    """Probes from JSON lines: ``{"question", "answer", "wrong_answers": [...]}``, and retain records of any form.

    Raises:
        DataError: with file and line.
    """
    probes = []
    for number, row in read_lines(forget):
        source = f"{forget}:{number}"
        if not isinstance(row, dict) or not {"question", "answer"} <= row.keys():
            raise DataError(
                f"{source}: a probe must be a question with its right answer and wrong ones: expected "
                '{"question", "answer", "wrong_answers": [...]}'
            )
        refuse_unread(row, ("question", "answer", "wrong_answers", "alternative"), source)
        wrong = row.get("wrong_answers")
        if not isinstance(wrong, list) or not wrong or not all(isinstance(one, str) and one.strip() for one in wrong):
            raise DataError(f"{source}: 'wrong_answers' must be a list of texts, at least one")
        right, *others = (
            parse_record({"question": row["question"], "answer": one}, source) for one in (row["answer"], *wrong)
        )
        if any(one.same == right.same for one in others):
            raise DataError(f"{source}: 'wrong_answers' holds the right answer: take it out")
        probes.append(Probe(right, tuple(others)))
    return probes, read_sources([str(retain)])[0]


def measure(
    model: ULDForCausalLM,
    form: PromptFormat,
    pad_token_id: int,
    probes: Sequence[Probe],
    retain: Sequence[Record],
    settings: Sequence[Combination],
    *,
    max_length: int = 512,
) -> list[Point]:
    """Both measures under every setting, from one pass over the rows.

    Args:
        model: With one assistant.
        form: Its prompt format.
        pad_token_id: Fills short rows.
        probes: Questions about the forget set.
        retain: Held-out retain records; each counts once, however many chunks a text is cut into.
        settings: Combinations; the target itself (α = 0) is always measured and comes first.
        max_length: Tokens of a text's chunk. Answers are never cut.

    Raises:
        DataError: a record that the prompt format cannot encode.
    """
    every = [dataclasses.replace(settings[0], weight=0.0), *settings]
    records = [record for probe in probes for record in (probe.right, *probe.wrong)]
    rows = [form.encode(record, _WHOLE) for record in records]
    pieces = [form.encode_all([record], _WHOLE if record.text is None else max_length)[0] for record in retain]
    rows += [row for one in pieces for row in one]
    points: list[Point] = []
    base = None
    for how, scores in zip(every, Scorer(model, pad_token_id, every).score(rows), strict=True):
        each = iter(scores)
        advantages = []
        for probe in probes:
            right, *wrong = (next(each).avg_loss for _ in range(1 + len(probe.wrong)))
            advantages.append(statistics.fmean(wrong) - right)
        kept = [[next(each) for _ in one] for one in pieces]
        prob = statistics.fmean(math.exp(-sum(s.loss for s in one) / sum(s.tokens for s in one)) for one in kept)
        base = prob if base is None else base
        points.append(Point(how.weight, how.filter, statistics.fmean(advantages), prob / base))
    return points


def choose(points: Sequence[Point], budget: float, aim: Aim = "indistinct") -> tuple[Point, str]:
    """Choose a setting.

    Args:
        points: From `measure`.
        budget: Share of the retain probability that may be lost, 0–1.
        aim: ``indistinct``: the smallest α at which right answers are no likelier than wrong ones; ``budget``: the
            largest α that the budget allows.

    Returns:
        The setting and one sentence of explanation.

    Raises:
        ULDError: every α exceeds the budget.
    """
    within = [point for point in points if point.weight > 0 and point.kept >= 1 - budget]
    if not within:
        raise ULDError(
            f"every α that was tried loses more than {budget:.1%} of the retain answers' probability: "
            "raise --budget, or try smaller weights"
        )
    largest = max(within, key=lambda point: (point.weight, point.kept))
    if aim == "budget":
        return largest, f"the largest α that keeps {1 - budget:.1%} of the retain answers' probability"
    enough = [point for point in within if point.advantage <= 0]
    if enough:
        chosen = min(enough, key=lambda point: (point.weight, -point.kept))
        return chosen, "the smallest α at which right answers are no likelier than wrong ones, within the budget"
    return largest, (
        f"no α within the budget makes right answers as unlikely as wrong ones (advantage left: "
        f"{largest.advantage:.2f} nats a token); this is the largest that the budget allows"
    )


def tune(
    run: str | Path,
    model: ULDForCausalLM,
    tokenizer: Any,
    probes: Sequence[Probe],
    retain: Sequence[Record],
    *,
    weights: Sequence[float] = WEIGHTS,
    filters: Sequence[float] = (),
    budget: float = 0.01,
    aim: Aim = "indistinct",
    template: str | None = None,
) -> Choice:
    """Measure, choose, draw the plot and write the choice into the run's ``uld.json``.

    Args:
        run: The run folder; gets ``tune.json`` and ``tune.png``.
        model: Loaded from it.
        tokenizer: Its tokenizer.
        probes: See `measure`.
        retain: See `measure`.
        weights: α to try.
        filters: τ to try; none keeps the run's.
        budget: See `choose`.
        aim: See `choose`.
        template: Prompt template; default: the one of the training.

    Returns:
        The choice.

    Raises:
        ULDError: a run without an assistant, a value out of range, or every α exceeds the budget; nothing is written.
    """
    with working_in(Path(run)):
        sweep(Path(run))
        return _tune(Path(run), model, tokenizer, probes, retain, weights, filters, budget, aim, template)


def _tune(
    folder: Path,
    model: ULDForCausalLM,
    tokenizer: Any,
    probes: Sequence[Probe],
    retain: Sequence[Record],
    weights: Sequence[float],
    filters: Sequence[float],
    budget: float,
    aim: Aim,
    template: str | None,
) -> Choice:
    """`tune`, while the run is held: nothing else changes it between its being read and its being written."""
    manifest = Manifest.read(folder)
    if manifest.trains != "assistant":
        raise ULDError(f"{folder} was trained by {manifest.method}, which has no assistant: there is no α to choose")
    if (loaded := model.manifest) and loaded.model_copy(update={"target": manifest.target}) != manifest:
        raise ULDError(f"{folder} has changed since it was loaded: tune it again")
    if len(model.assistants) > 1:
        raise ULDError("several runs were loaded together: tune one at a time")
    if not 0 <= budget < 1:
        raise ULDError(f"--budget must be at least 0 and less than 1, not {budget}")
    own = model.combination
    settings = [
        own.override(weight=weight, filter=filter)
        for filter in (filters or (own.filter,))
        for weight in sorted(weights)
    ]
    pad: Any = tokenizer.pad_token_id
    length = stored_settings(folder).max_length if (folder / SETTINGS).is_file() else 512
    form = PromptFormat(tokenizer, manifest.template if template is None else template)
    points = measure(model, form, int(pad or 0), probes, retain, settings, max_length=length)
    point, reason = choose(points, budget, aim)
    choice = Choice(point, reason, points, len(probes), len(retain), aim, budget)
    chosen = own.override(weight=point.weight, filter=point.filter)
    draw(choice, folder / "tune.png")
    write_text(folder / "tune.json", json.dumps(choice.to_dict(), indent=2) + "\n")
    manifest.model_copy(update={"combination": CombinationSettings(**chosen.to_dict())}).write(folder)
    return choice


def draw(choice: Choice, path: Path) -> None:
    """Plot both measures against α with the budget and the choice.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    filters = sorted({point.filter for point in choice.points[1:]})
    for filter in filters:
        line = [point for point in choice.points[1:] if point.filter == filter]
        label = f"τ = {filter}" if len(filters) > 1 else None
        left.plot([p.weight for p in line], [p.advantage for p in line], marker="o", label=label)
        right.plot([p.weight for p in line], [p.kept for p in line], marker="o", label=label)
    left.axhline(0, color="grey", linestyle=":")
    left.set(xlabel="α", ylabel="nats a token", title="right answers over wrong ones (forget set)")
    right.axhline(1 - choice.budget, color="grey", linestyle=":")
    right.set(xlabel="α", ylabel="share of the target's", title="probability kept (held-out retain answers)")
    for panel in (left, right):
        panel.axvline(choice.point.weight, color="black", linewidth=1)
        panel.grid(alpha=0.3)
    if len(filters) > 1:
        left.legend()
    figure.suptitle(f"α = {choice.point.weight}: {choice.reason}", fontsize=9)
    figure.tight_layout()
    try:
        with new_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    finally:
        pyplot.close(figure)
