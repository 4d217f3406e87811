"""Which of the settings that were tried is chosen: arithmetic on what was measured of each. Ground floor."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from uld.errors import ULDError
from uld.model.combine import MOST_WEIGHT

Aim = Literal["steady", "read", "indistinct", "budget"]
AIMS = get_args(Aim)
STEADY: tuple[Aim, ...] = ("steady", "read")
"""Aims that choose margin and floor; ``read`` begins with what ``steady`` chooses."""
_STEP = 1.5  # from an α to its neighbours


class OverBudget(ULDError):
    """Every setting loses more of the retain answers than it may.

    Attributes:
        found: That, without what to do about it.
    """

    def __init__(self, found: str) -> None:
        """Say what was found, and what helps."""
        super().__init__(f"{found}: raise --budget, or try smaller weights or larger margins")
        self.found = found


@dataclass(frozen=True)
class Point:
    """What one setting does.

    Attributes:
        weight: α.
        filter: τ.
        advantage: Mean over probes of ``loss of the wrong answers − loss of the right one``, nats a token; 0 or less:
            the right answer is no likelier than the wrong ones; −inf where an answer has probability 0.
        kept: Mean probability of held-out retain answers, as a share of the target's.
        margin: m, nats.
        floor: φ.
        error: Standard error of the advantage.
        learnt: The advantage of right answers in the words that were trained on; None where those are not known.
        learnt_error: Its standard error.
        re_entry: Share of greedy answers to trained questions in which key words of the true answer come back; None
            where none was generated.
    """

    weight: float
    filter: float
    advantage: float
    kept: float
    margin: float = 0.0
    floor: float = 0.0
    error: float = 0.0
    learnt: float | None = None
    learnt_error: float = 0.0
    re_entry: float | None = None


@dataclass(frozen=True)
class Choice:
    """What was chosen and why.

    Attributes:
        point: The setting.
        reason: One sentence.
        points: All that were measured; the first is α = 0, the target.
        probes: Number of questions.
        retain: Number of retain answers.
        aim: What was asked for.
        budget: Share of the retain probability that may be lost.
        floors: The setting that ``steady`` chooses and the higher floors from which it was lowered, highest first; none
            where trained words are not known.
        read: What ``read`` had answers under, by falling margin.
    """

    point: Point
    reason: str
    points: list[Point]
    probes: int
    retain: int
    aim: Aim
    budget: float
    floors: tuple[Point, ...] = ()
    read: tuple[Point, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        return dataclasses.asdict(self)

    @property
    def curve(self) -> list[Point]:
        """What was measured at the chosen α and τ and at the floor that the margin was chosen at, by margin."""
        start = self.floors[0] if self.floors else self.point
        chosen = (start.weight, start.filter, start.floor)
        tried = (one for one in self.points[1:] if one not in self.read)
        same = (one for one in tried if (one.weight, one.filter, one.floor) == chosen)
        return sorted(same, key=lambda one: one.margin)


def choose(points: Sequence[Point], budget: float, aim: Aim = "indistinct") -> tuple[Point, str]:
    """Choose a setting.

    Args:
        points: From `measure`.
        budget: Share of the retain probability that may be lost, 0–1.
        aim: ``indistinct``: the smallest α at which right answers are no likelier than wrong ones; ``budget``: the
            largest α that the budget allows; ``steady``: the largest margin that cannot be told from the setting at
            which most is forgotten (one standard error: Breiman et al. 1984, *Classification and Regression Trees*,
            §3.4.3); ``read``: the same, to begin with.

    Returns:
        The setting and one sentence of explanation.

    Raises:
        ULDError: every setting exceeds the budget.
    """
    tried = [point for point in points if point.weight > 0]
    if aim in STEADY:  # which need to know what α's neighbours give
        known = {_place(point, point.weight) for point in points}
        tried = [one for one in tried if all(_place(one, near) in known for near in neighbours(one.weight))]
        if not tried:
            raise ULDError("no α was measured together with two thirds and one and a half times it")
    within = [point for point in tried if point.kept >= 1 - budget]
    if not within:
        most = max((point.kept for point in tried), default=0.0)
        raise OverBudget(
            f"every α that was tried loses more than {budget:.1%} of the retain answers' probability (the least: "
            f"{1 - most:.1%})"
        )
    if aim in STEADY:
        return _steady(points, within)
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


def first_choice(points: Sequence[Point], budgets: Sequence[float], aim: Aim) -> tuple[Point, str, float]:
    """`choose` within the first of several budgets that any setting keeps.

    Args:
        points: From `measure`.
        budgets: From the tightest on; at least one.
        aim: See `choose`.

    Returns:
        What `choose` gives, and the budget.

    Raises:
        ULDError: every setting exceeds the last.
    """
    for number, budget in enumerate(budgets):
        try:
            point, reason = choose(points, budget, aim)
        except ULDError:
            if budget == budgets[-1]:
                raise
            continue
        if number:
            tighter = budgets[number - 1]
            reason = (
                f"within {budget:.1%} of the retain answers' probability, as none loses {tighter:.1%} or less: {reason}"
            )
        return point, reason, budget
    raise ULDError("--budget holds no number")


def neighbours(weight: float) -> tuple[float, float, float]:
    """Two thirds of an α, itself, and one and a half times it."""
    return weight / _STEP, weight, min(weight * _STEP, math.inf if weight == math.inf else MOST_WEIGHT)


def _steady(points: Sequence[Point], within: Sequence[Point]) -> tuple[Point, str]:
    """The largest margin within one standard error of the lowest advantage; most kept and the smallest α of several."""
    known = {_place(point, point.weight): point.advantage for point in points}
    lowest = min(within, key=lambda point: point.advantage)
    alike = [point for point in within if point.advantage <= lowest.advantage + lowest.error]
    chosen = max(alike, key=lambda point: (point.margin, point.kept, -point.weight))
    beside = [f"{known[_place(chosen, near)]:+.2f} at α = {near:.3g}" for near in neighbours(chosen.weight)]
    said = ""
    if lowest.advantage > 0:
        said = ": right answers stay likelier than wrong ones under all of them, so the assistant has learnt too little"
    target = next((point for point in points if not point.weight), None)
    if target is not None and target.advantage <= target.error:
        said = (
            f": but the target itself finds right answers no likelier than wrong ones ({target.advantage:+.2f} ± "
            f"{target.error:.2f}), so these questions do not show how much is forgotten"
        )
    return chosen, (
        "the largest margin at which the advantage of right answers cannot be told from the lowest "
        f"({lowest.advantage:+.2f} ± {lowest.error:.2f}): {', '.join(dict.fromkeys(beside))}{said}"
    )


def lowered(points: Sequence[Point]) -> tuple[Point, str]:
    """The highest floor under which the very words that were trained on are no likelier than wrong answers.

    Other wordings of an answer sink sooner than its own words, and a floor keeps both up.

    Args:
        points: One margin and α at falling floors, each with `Point.learnt`.

    Returns:
        The setting and what to add to the reason why.
    """
    chosen = next((one for one in points if _is_even(one)), points[-1])
    found = f"{chosen.learnt:+.2f} ± {chosen.learnt_error:.2f}"
    if not _is_even(chosen):
        return chosen, f"trained words stay likelier than wrong ones at every floor ({found})"
    if chosen is points[0]:
        return chosen, f"trained words are no likelier than wrong ones ({found})"
    return chosen, f"the highest floor, from {points[0].floor:.2g} down, at which trained words are not ({found})"


def fewest(points: Sequence[Point], questions: int) -> float:
    """The share of answers that counts as no more than the lowest of the points: that and one standard error of it."""
    lowest = min(point.re_entry or 0.0 for point in points)
    return lowest + math.sqrt(lowest * (1 - lowest) / questions)


def least_read(points: Sequence[Point], questions: int) -> tuple[Point, str]:
    """The largest margin at which no more that was trained is read in answers than at any other (one standard error).

    Args:
        points: With `Point.re_entry`, of one α and floor.
        questions: How many were answered under each.

    Returns:
        The setting and what to add to the reason why.
    """
    few = fewest(points, questions)
    alike = [point for point in points if (point.re_entry or 0.0) <= few]
    chosen = max(alike, key=lambda point: point.margin)
    curve = ", ".join(f"{point.re_entry:.0%} at {point.margin:.3g}" for point in points)
    return chosen, f"the largest margin at which as few key words come back in answers as at any ({curve})"


def _is_even(point: Point) -> bool:
    """Whether trained words have no advantage that can be told from none (one standard error)."""
    return point.learnt is not None and point.learnt <= point.learnt_error


def _place(point: Point, weight: float) -> tuple[float, ...]:
    return point.filter, point.margin, point.floor, round(weight, 9)
