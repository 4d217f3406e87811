"""Which of the settings that were tried is chosen: arithmetic on what was measured of each. Ground floor."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from uld.errors import ULDError
from uld.logits import MOST_WEIGHT

Aim = Literal["steady", "indistinct", "budget"]
AIMS = get_args(Aim)
_STEP = 1.5  # from an α to its neighbours


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
    """

    weight: float
    filter: float
    advantage: float
    kept: float
    margin: float = 0.0
    floor: float = 0.0
    error: float = 0.0

    @property
    def line(self) -> tuple[float, float, float]:
        """What points that differ in α alone share."""
        return self.filter, self.margin, self.floor


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

    @property
    def curve(self) -> list[Point]:
        """What was measured at the chosen τ, margin and floor, by α."""
        return sorted((p for p in self.points[1:] if p.line == self.point.line), key=lambda point: point.weight)


def choose(points: Sequence[Point], budget: float, aim: Aim = "indistinct") -> tuple[Point, str]:
    """Choose a setting.

    Args:
        points: From `measure`.
        budget: Share of the retain probability that may be lost, 0–1.
        aim: ``indistinct``: the smallest α at which right answers are no likelier than wrong ones; ``budget``: the
            largest α that the budget allows; ``steady``: where right answers are about as likely as wrong ones at
            two thirds, once and one and a half times α (see `unsteadiness`), and of all settings that cannot be told
            from the best (one standard error: Breiman et al. 1984) the one that keeps most of the retain probability.

    Returns:
        The setting and one sentence of explanation.

    Raises:
        ULDError: every setting exceeds the budget.
    """
    within = [point for point in points if point.weight > 0 and point.kept >= 1 - budget]
    if not within:
        raise ULDError(
            f"every α that was tried loses more than {budget:.1%} of the retain answers' probability: "
            "raise --budget, or try smaller weights"
        )
    if aim == "steady":
        return _steadiest(points, within)
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


def neighbours(weight: float) -> tuple[float, float, float]:
    """Two thirds of an α, itself, and one and a half times it."""
    return weight / _STEP, weight, min(weight * _STEP, math.inf if weight == math.inf else MOST_WEIGHT)


def unsteadiness(points: Sequence[Point]) -> Callable[[Point], float]:
    """How far right answers are from as likely as wrong ones, at a point and at both neighbours of its α.

    Args:
        points: All that were measured.

    Returns:
        From a point to the largest ``|advantage|`` of the three, nats a token; inf where a neighbour was not measured.
    """
    known = {(*point.line, round(point.weight, 9)): abs(point.advantage) for point in points}

    def worst(point: Point) -> float:
        three = (known.get((*point.line, round(weight, 9)), math.inf) for weight in neighbours(point.weight))
        return max(three)

    return worst


def _steadiest(points: Sequence[Point], within: Sequence[Point]) -> tuple[Point, str]:
    worst = unsteadiness(points)
    best = min(within, key=worst)
    if worst(best) == math.inf:
        raise ULDError("no α was measured together with two thirds and one and a half times it")
    alike = [point for point in within if worst(point) <= worst(best) + best.error]
    chosen = max(alike, key=lambda point: (round(point.kept, 3), -worst(point)))
    return chosen, (
        f"right answers are within {worst(chosen):.2f} nats a token of wrong ones from α = "
        f"{neighbours(chosen.weight)[0]:.3g} to {neighbours(chosen.weight)[2]:.3g}, "
        f"and {chosen.kept:.1%} of the retain answers' probability is kept"
    )
