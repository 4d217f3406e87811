"""Choosing how a finished run is combined, without a retain-only model and without any benchmark's rows.

Two things are measured under every setting from one pass, because the logits of target and assistant do not depend on
it: how much likelier the unlearned model finds a right answer about the forget set than wrong ones (on paraphrases that
were not trained on), and how much of the target's probability it keeps on retain answers that were not trained on.

The aim ``steady`` chooses margin and floor, and takes an α so large that it hardly matters: what is remembered beyond
the margin goes to the floor. The floor is the target's own surprise (`surprise`); the margin is the largest at which no
less is forgotten than at any other, so that as little as possible of everything else is touched. Where right answers
still are likelier than wrong ones in the very words that were trained on, the floor is halved until they are not.

The aim ``read`` then looks at what people read. Behind a wrong beginning of its own the unlearned model comes back to
what is remembered, and there the assistant is less sure: a smaller margin takes more of that away, at the cost of
answers that read worse and of other matter. Benchmarks of losses do not see it, so it is an aim of its own.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.errors import ULDError
from uld.evaluation.choosing import STEADY, Aim, Choice, Point, fewest, first_choice, least_read, lowered, neighbours
from uld.evaluation.held_out import Probe
from uld.evaluation.probing import measure, read_answers, surprise
from uld.model.combine import STEADY_WEIGHT, Combination, margins_of
from uld.model.unlearned import ULDForCausalLM
from uld.runs.card import write_card
from uld.runs.files import new_file, sweep, write_text
from uld.runs.folder import working_in
from uld.runs.manifest import RUN_SETTINGS, TUNE, CombinationSettings, Manifest
from uld.text.json_text import dumps
from uld.training.stored import stored_settings

WEIGHTS = tuple(step / 4 for step in range(1, 13))
"""α that ``indistinct`` and ``budget`` try, beside the run's own."""
SHARES = (1.0, 5 / 6, 2 / 3, 1 / 2, 1 / 3, 0.0)
"""Margins that ``read`` tries first, as shares of what ``steady`` chooses."""
FINER = 2
"""How often ``read`` halves the step from the margin that it found to the next larger one, which lets more back."""
BUDGET, READ_BUDGET = 0.01, 0.1
"""Share of the retain answers' probability that may be lost, and that ``read`` may lose for its smaller margin: as much
as the default thresholds of a check allow."""
HALVINGS = 5
"""How often ``steady`` may halve the floor."""
_SIGNS = {"weight": "α", "margin": "margin", "floor": "floor", "filter": "τ"}


@dataclass(frozen=True)
class Grid:
    """Settings to try; None takes what the aim tries by itself.

    Attributes:
        weights: α.
        margins: m, nats.
        floors: φ; for ``steady``, `surprise` if None.
        filters: τ.
    """

    weights: Sequence[float] | None = None
    margins: Sequence[float] | None = None
    floors: Sequence[float] | None = None
    filters: Sequence[float] | None = None

    def around(self, own: Combination, aim: Aim, vocabulary: int) -> list[Combination]:
        """The settings of an aim, by τ, margin, floor and α, over a run's own.

        Args:
            own: The run's combination; for ``steady`` with the floor to take where no floors are given.
            aim: What is asked for.
            vocabulary: V.

        Raises:
            ULDError: a value out of range, or a margin or floor for a rule that has none.
        """
        steady = aim in STEADY
        usual = (STEADY_WEIGHT,) if steady else (*WEIGHTS, own.weight)
        weights: Sequence[float] = self.weights or usual
        if steady:
            weights = [near for weight in weights for near in neighbours(weight)]
        if own.rule != "suppress":  # which alone has them, whatever the run holds
            own = dataclasses.replace(own, margin=0.0, floor=0.0)
        margins = self.margins or (own.margin,)
        if steady and not self.margins:
            # Held-out paraphrases hardly tell larger margins apart, and other wordings come through under them.
            margins = margins_of(vocabulary)
        weights = sorted({round(weight, 9): weight for weight in weights}.values())
        return [
            own.override(filter=filter, margin=margin, floor=floor, weight=weight)
            for filter, margin, floor, weight in itertools.product(
                sorted(self.filters or (own.filter,)), sorted(margins), sorted(self.floors or (own.floor,)), weights
            )
        ]


def tune(
    run: str | Path,
    model: ULDForCausalLM,
    tokenizer: Any,
    probes: Sequence[Probe],
    retain: Sequence[Record],
    *,
    grid: Grid = Grid(),
    budget: float | Sequence[float] | None = None,
    aim: Aim | None = None,
    template: str | None = None,
    trained: Sequence[Record] | None = None,
    ordinary: Sequence[Record] = (),
    progress: bool = True,
) -> Choice:
    """Measure, choose, draw the plot and write the choice into the run's ``uld.json``.

    Args:
        run: The run folder; gets ``tune.json`` and ``tune.png``.
        model: Loaded from it.
        tokenizer: Its tokenizer.
        probes: See `measure`.
        retain: See `measure`.
        grid: Settings to try.
        budget: See `choose`; of several the first that any setting keeps. For a smaller margin ``read`` may lose as
            much as the last of them, up to `READ_BUDGET`. Default: `BUDGET`, for ``read`` both.
        aim: See `choose`; default: ``steady`` for the rule suppress, ``indistinct`` for others.
        template: Prompt template; default: the one of the training.
        trained: For the aim ``read``: questions and texts that were trained on and that the target knows; default: the
            probes' in the words that were trained on, where those are known.
        ordinary: For the aim ``read``: more records whose common words give nothing away, beside ``retain``.
        progress: Show a progress bar.

    Returns:
        The choice.

    Raises:
        ULDError: a run without an assistant, a value out of range, or every α exceeds the budget; nothing is written.
    """
    with working_in(Path(run)):
        sweep(Path(run))
        read = [probe.learnt or probe.right for probe in probes] if trained is None else trained
        return _tune(Path(run), model, tokenizer, probes, retain, grid, budget, aim, template, read, ordinary, progress)


def _tune(
    folder: Path,
    model: ULDForCausalLM,
    tokenizer: Any,
    probes: Sequence[Probe],
    retain: Sequence[Record],
    grid: Grid,
    budget: float | Sequence[float] | None,
    aim: Aim | None,
    template: str | None,
    trained: Sequence[Record],
    ordinary: Sequence[Record],
    progress: bool,
) -> Choice:
    """`tune`, while the run is held: nothing else changes it between its being read and its being written."""
    manifest = Manifest.read(folder)
    if manifest.trains not in ("assistant", "pair"):
        raise ULDError(f"{folder} was trained by {manifest.method}, which has no assistant: there is no α to choose")
    if (loaded := model.manifest) and loaded.model_copy(update={"target": manifest.target}) != manifest:
        raise ULDError(f"{folder} has changed since it was loaded: tune it again")
    own = model.combination
    if len(model.assistants) > len(own.parts):
        raise ULDError("several runs were loaded together: tune one at a time")
    if budget is None:
        budget = (BUDGET, READ_BUDGET) if aim == "read" else BUDGET
    budgets = [float(budget)] if isinstance(budget, int | float) else list(budget)
    if bad := [one for one in budgets if not 0 <= one < 1]:
        raise ULDError(f"--budget must be at least 0 and less than 1, not {bad[0]}")
    if own.rule == "rank":
        raise ULDError("the rule rank has no α to choose: its k is --rank-tokens; --rule offset has one")
    aim = aim or ("steady" if own.rule == "suppress" else "indistinct")
    if aim in STEADY and own.rule != "suppress":
        raise ULDError(f"--aim {aim} is for the rule suppress, not for {own.rule}: use indistinct or budget")
    pad: Any = tokenizer.pad_token_id
    pad = int(pad or 0)
    length = stored_settings(folder).max_length if (folder / RUN_SETTINGS).is_file() else 512
    form = PromptFormat(tokenizer, manifest.template if template is None else template)
    if aim in STEADY and not grid.floors:
        own = own.override(floor=surprise(model, form, pad, probes))
    settings = grid.around(own, aim, model.config.get_text_config().vocab_size)
    look = functools.partial(measure, model, form, pad, probes, retain, max_length=length, progress=progress)
    points = look(settings)
    point, reason, kept = first_choice(points, budgets, aim)
    floors: list[Point] = []
    if aim in STEADY and not grid.floors and point.learnt is not None:
        how = own.override(weight=point.weight, filter=point.filter, margin=point.margin)
        found = look([how.override(floor=how.floor / 2**k) for k in range(1, HALVINGS + 1)])[1:]
        floors = [point, *(one for one in found if one.kept >= 1 - kept)]
        point, why = lowered(floors)
        reason, floors = f"{reason}; {why}", floors[: floors.index(point) + 1]
    read: list[Point] = []
    if aim == "read":
        most = max(kept, min(READ_BUDGET, budgets[-1]))
        how = own.override(weight=point.weight, filter=point.filter, floor=point.floor)
        margins = {point.margin, *(grid.margins or [share * point.margin for share in SHARES])}
        ask = functools.partial(read_answers, model, tokenizer, form, trained, [*retain, *ordinary], progress=progress)
        falling = sorted((one for one in margins if one <= point.margin), reverse=True)
        read, asked = _read(look, ask, how, falling, most, finer=0 if grid.margins else FINER)
        point, why = least_read(read, asked) if read else (point, "no true answer has a word that gives it away")
        reason, kept = f"{reason}; {why}", kept if point.kept >= 1 - kept else most
    points = [*points, *floors[1:], *read]
    choice = Choice(point, reason, points, len(probes), len(retain), aim, kept, tuple(floors), tuple(read))
    chosen = own.override(weight=point.weight, filter=point.filter, margin=point.margin, floor=point.floor)
    plot_choice(choice, folder / "tune.png")
    write_text(folder / TUNE, dumps(choice.to_dict(), indent=2) + "\n")
    manifest = manifest.model_copy(update={"combination": CombinationSettings(**chosen.to_dict())})
    write_card(folder, manifest)
    manifest.write(folder)
    return choice


def _read(
    look: Callable[[list[Combination]], list[Point]],
    ask: Callable[[list[Combination]], tuple[list[float], int]],
    how: Combination,
    margins: Sequence[float],
    most: float,
    *,
    finer: int,
) -> tuple[list[Point], int]:
    """Read answers under smaller and smaller margins, then between the one that was found and the next larger.

    Args:
        look: Measures settings: `measure`, the target's own point first.
        ask: Reads answers under settings: `read_answers`.
        how: The rest of the combination.
        margins: From the largest on, which may cost anything.
        most: Share of the retain answers' probability that smaller ones may lose.
        finer: How often the step between the two is halved.

    Returns:
        What was read, from the largest margin on, and how many questions were asked; nothing where there was none.
    """

    def measured(read: dict[float, float]) -> list[Point]:
        points = look([how.override(margin=margin) for margin in read])[1:]
        return [dataclasses.replace(point, re_entry=share) for point, share in zip(points, read.values(), strict=True)]

    largest, *smaller = look([how.override(margin=margin) for margin in margins])[1:]
    tried = [largest, *(one for one in smaller if one.kept >= 1 - most)]
    shares, asked = ask([how.override(margin=one.margin) for one in tried])
    read = [dataclasses.replace(one, re_entry=share) for one, share in zip(tried, shares, strict=False)]
    if not read:
        return [], 0
    found, few = least_read(read, asked)[0].margin, fewest(read, asked)
    larger = min((one.margin for one in read if one.margin > found), default=found)
    between: dict[float, float] = {}
    while larger > found and len(between) < finer:
        middle = (larger + found) / 2
        between[middle] = ask([how.override(margin=middle)])[0][0]
        larger, found = (larger, middle) if between[middle] <= few else (middle, found)
    if between:
        read += [one for one in measured(between) if one.kept >= 1 - most]
    return sorted(read, key=lambda point: -point.margin), asked


def _lines(choice: Choice, along: str) -> dict[str, list[Point]]:
    """What was measured as lines of points that differ in one setting alone, by what tells the lines apart.

    Of several floors along the margin those that it was chosen at and that was chosen.
    """
    floors = {point.floor for point in (choice.point, *choice.floors[:1])}
    points = [
        point
        for point in choice.points[1:]
        if math.isfinite(getattr(point, along)) and (along == "weight" or point.floor in floors)
    ]
    names = {name: sign for name, sign in _SIGNS.items() if name != along}
    several = [name for name in names if len({getattr(point, name) for point in points}) > 1]
    several = several or ["weight" if along == "margin" else "filter"]
    lines: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: [getattr(point, name) for name in (*several, along)]):
        label = ", ".join(f"{names[name]} = {getattr(point, name):.3g}" for name in several)
        lines.setdefault(label, []).append(point)
    return lines


def plot_choice(choice: Choice, path: Path) -> None:
    """Plot both measures with the budget and the choice: against the margin for ``steady``, else against α.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4))
    (left, right) = figure.subplots(1, 2)
    along = "margin" if choice.aim in STEADY else "weight"
    lines = _lines(choice, along)
    for label, line in lines.items():
        x = [getattr(p, along) for p in line]
        left.plot(x, [p.advantage for p in line], marker="o", label=label)
        right.plot(x, [p.kept for p in line], marker="o", label=label)
    left.axhline(0, color="grey", linestyle=":")
    axis = "margin, nats" if along == "margin" else "α"
    left.set(xlabel=axis, ylabel="nats a token", title="right answers over wrong ones (forget set)")
    right.axhline(1 - choice.budget, color="grey", linestyle=":")
    right.set(xlabel=axis, ylabel="share of the target's", title="probability kept (held-out retain answers)")
    for panel in (left, right):
        if math.isfinite(getattr(choice.point, along)):
            panel.axvline(getattr(choice.point, along), color="black", linewidth=1)
        panel.grid(alpha=0.3)
    if len(lines) > 1:
        left.legend(fontsize=7)
    chosen = choice.point
    settings = f", margin {chosen.margin:.3g}, floor {chosen.floor:.2g}" if choice.aim in STEADY else ""
    figure.suptitle(f"α = {chosen.weight:g}{settings}: {choice.reason}", fontsize=7)
    figure.tight_layout()
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
