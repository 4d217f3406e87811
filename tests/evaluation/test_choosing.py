"""Which setting is chosen of several, by hand-made numbers."""

import json
import math
from dataclasses import replace

import pytest

from uld.errors import ULDError
from uld.evaluation.choosing import Choice, Point, choose, first_choice, least_read, lowered, neighbours
from uld.model.combine import MOST_WEIGHT


def points(*rows):
    return [Point(0.0, 0.01, 2.0, 1.0), *(Point(weight, 0.01, advantage, kept) for weight, advantage, kept in rows)]


def test_the_smallest_weight_that_suffices_is_chosen():
    point, reason = choose(points((0.5, 0.8, 1.0), (1.0, -0.1, 0.995), (1.5, -0.9, 0.993)), budget=0.01)
    assert point.weight == 1.0
    assert "smallest" in reason


def test_the_budget_comes_first():
    rows = points((0.5, 0.8, 0.999), (1.0, 0.3, 0.992), (1.5, -0.5, 0.97))
    point, reason = choose(rows, budget=0.01)
    assert point.weight == 1.0
    assert "0.30 nats" in reason
    assert choose(rows, budget=0.05)[0].weight == 1.5


def test_the_whole_budget_can_be_spent():
    rows = points((0.5, -0.1, 0.999), (1.0, -0.3, 0.985), (1.5, -0.5, 0.97))
    assert choose(rows, budget=0.02, aim="budget")[0].weight == 1.0
    assert choose(rows, budget=0.02)[0].weight == 0.5


def test_a_budget_that_nothing_fits_is_refused():
    with pytest.raises(ULDError, match="--budget"):
        choose(points((0.5, -0.1, 0.9), (1.0, -0.3, 0.8)), budget=0.01)


def curve(*advantages, weight=20.0, kept=0.999, error=0.05):
    """Points of margins 0, 1, …, each at an α and both its neighbours."""
    return [
        Point(near, 0.01, advantage, kept, float(margin), 0.001, error)
        for margin, advantage in enumerate(advantages)
        for near in neighbours(weight)
    ]


def test_steady_is_the_largest_margin_within_a_standard_error_of_the_lowest_advantage():
    point, reason = choose([*points(), *curve(-1.0, -1.2, -1.16, -1.14, -0.5)], 0.01, "steady")
    assert (point.margin, point.weight) == (2.0, 20.0)
    assert "lowest (-1.20 ± 0.05): -1.16 at α = 13.3, -1.16 at α = 20, -1.16 at α = 30" in reason
    assert choose([*points(), *curve(-1.0, -1.2, -1.16, -1.14, -0.5, error=0.1)], 0.01, "steady")[0].margin == 3.0


@pytest.mark.parametrize(("advantage", "error", "blind"), [(-0.2, 0.1, True), (0.1, 0.2, True), (0.3, 0.2, False)])
def test_questions_that_the_target_cannot_tell_either_are_spoken_of(advantage, error, blind):
    target = Point(0.0, 0.01, advantage, 1.0, error=error)
    reason = choose([target, *curve(-1.0, -1.2, 0.5)], 0.01, "steady")[1]
    assert ("do not show how much is forgotten" in reason) is blind
    assert (f"({advantage:+.2f} ± {error:.2f})" in reason) is blind


def test_an_assistant_that_has_learnt_too_little_is_spoken_of():
    assert "learnt too little" in choose([*points(), *curve(0.5, 0.4, 0.6)], 0.01, "steady")[1]
    assert "learnt too little" not in choose([*points(), *curve(0.5, -0.4, 0.6)], 0.01, "steady")[1]


def test_steady_keeps_the_budget():
    harmful, kind = curve(-2.0, -2.0, kept=0.9), curve(9, 9, -1.0, -1.0, 0.5)[6:]
    assert choose([*points(), *harmful, *kind], 0.01, "steady")[0].margin == 3.0
    assert choose([*points(), *harmful, *kind], 0.2, "steady")[0].margin == 1.0
    with pytest.raises(ULDError, match="--budget, or try smaller weights or larger margins"):
        choose([*points(), *harmful], 0.01, "steady")


def test_of_several_budgets_the_first_that_any_setting_keeps_counts():
    rows = [*points(), *curve(-2.0, -2.0, kept=0.9), *curve(9, 9, -1.0, kept=0.97)[6:]]
    point, reason, budget = first_choice(rows, [0.01, 0.05, 0.2], "steady")
    assert (point.margin, budget) == (2.0, 0.05)
    assert reason.startswith("within 5.0% of the retain answers' probability, as none loses 1.0% or less: ")
    assert first_choice(rows, [0.05], "steady")[1] == choose(rows, 0.05, "steady")[1]
    with pytest.raises(ULDError, match=r"more than 2\.0% .*the least: 3\.0%"):
        first_choice(rows, [0.01, 0.02], "steady")


def test_an_alpha_without_both_its_neighbours_is_no_candidate():
    alone = Point(5.0, 0.01, -9.0, 1.0, 7.0, 0.001)
    assert choose([*points(), *curve(-1.0, -1.2), alone], 0.01, "steady")[0].weight == 20.0
    with pytest.raises(ULDError, match="two thirds and one and a half times"):
        choose([*points(), alone], 0.01, "steady")


def test_of_several_alphas_that_forget_alike_the_one_that_keeps_most_is_chosen():
    rows = [*points(), *curve(-1.2, -1.2, weight=20.0, kept=0.992), *curve(-1.2, -1.2, weight=60.0, kept=0.993)]
    assert choose(rows, 0.01, "steady")[0].weight == 60.0


def test_without_bound_an_alpha_is_its_own_neighbour():
    assert neighbours(math.inf) == (math.inf, math.inf, math.inf)
    assert neighbours(3.0) == (2.0, 3.0, 4.5)
    endless = curve(-1.0, -1.2, weight=math.inf)
    point, reason = choose([*points(), *endless], 0.01, "steady")
    assert (point.weight, point.margin) == (math.inf, 1.0)
    assert reason.endswith(": -1.20 at α = inf")


def test_an_alpha_as_large_as_can_be_is_its_own_upper_neighbour():
    assert neighbours(MOST_WEIGHT)[1:] == (MOST_WEIGHT, MOST_WEIGHT)


def test_what_just_meets_the_budget_or_just_forgets_counts():
    assert choose(points((1.0, 0.0, 0.75), (2.0, -1.0, 0.99)), budget=0.25)[0].weight == 1.0


def test_the_target_itself_is_never_chosen():
    """Its advantage may be negative as it is."""
    rows = [Point(0.0, 0.01, -1.0, 1.0), Point(0.5, 0.01, -1.5, 1.0)]
    assert [choose(rows, 0.01, aim)[0].weight for aim in ("indistinct", "budget")] == [0.5, 0.5]


@pytest.mark.parametrize("aim", ["indistinct", "budget"])
def test_of_several_settings_of_one_alpha_the_one_that_keeps_most_is_chosen(aim):
    rows = [Point(0.0, 0.01, 2.0, 1.0), *(Point(1.0, 0.01, -0.5, kept) for kept in (0.992, 0.998, 0.995))]
    assert choose(rows, 0.01, aim)[0].kept == 0.998


def test_of_several_alphas_that_forget_and_keep_alike_the_smallest_is_chosen():
    rows = [*points(), *curve(-1.2, -1.2, weight=60.0), *curve(-1.2, -1.2, weight=20.0)]
    assert choose(rows, 0.01, "steady")[0].weight == 20.0


def falling(*learnt):
    """Points of one margin whose floors halve, with the advantage of the trained words and its error of 0.1."""
    return [
        Point(20.0, 0.01, -1.0, 0.99, 5.0, 0.008 / 2**k, 0.05, advantage, 0.1) for k, advantage in enumerate(learnt)
    ]


def test_the_floor_is_lowered_until_trained_words_are_no_likelier_than_wrong_ones():
    point, reason = lowered(falling(0.5, 0.11, 0.1, -0.4))
    assert point.floor == 0.002
    assert reason == "the highest floor, from 0.008 down, at which trained words are not (+0.10 ± 0.10)"
    point, reason = lowered(falling(-0.2, -0.5))
    assert point.floor == 0.008 and reason == "trained words are no likelier than wrong ones (-0.20 ± 0.10)"
    point, reason = lowered(falling(0.9, 0.5))
    assert point.floor == 0.004 and "stay likelier than wrong ones at every floor (+0.50 ± 0.10)" in reason


def test_read_is_the_largest_margin_at_which_as_little_comes_back_as_at_any():
    def rows(*shares):
        return [
            Point(20.0, 0.01, -1.0, 0.99, margin, 0.01, re_entry=share)
            for margin, share in zip((6.0, 4.0, 2.0, 0.0), shares, strict=True)
        ]

    point, reason = least_read(rows(0.85, 0.5, 0.25, 0.2), 64)  # one standard error of .2 is .05
    assert point.margin == 2.0 and reason.endswith("(85% at 6, 50% at 4, 25% at 2, 20% at 0)")
    assert least_read(rows(0.85, 0.5, 0.26, 0.2), 64)[0].margin == 0.0
    assert least_read(rows(0.85, 0.5, 0.26, 0.2), 40)[0].margin == 2.0
    assert least_read(rows(0.0, 0.0, 0.0, 0.0), 64)[0].margin == 6.0
    assert choose([*points(), *curve(-1.0, -1.2, -0.5)], 0.01, "read") == choose(
        [*points(), *curve(-1.0, -1.2, -0.5)], 0.01, "steady"
    )


def test_a_curve_is_what_differs_from_the_chosen_by_its_margin_alone():
    chosen, other = Point(3.0, 0.01, -1.0, 0.99, margin=2.0), Point(3.0, 0.01, -0.5, 1.0, margin=1.0)
    beside = [Point(4.5, 0.01, -1.0, 0.98), Point(3.0, 0.1, -1.0, 0.98), Point(3.0, 0.01, -1.0, 0.98, floor=0.1)]
    target = Point(3.0, 0.01, 2.0, 1.0)  # stands first, whatever its numbers
    choice = Choice(chosen, "why", [target, chosen, *beside, other], 4, 5, "steady", 0.01)
    assert choice.curve == [other, chosen]
    lower = replace(chosen, floor=-0.1)  # the margin was chosen before
    assert replace(choice, point=lower, floors=(chosen, lower)).curve == [other, chosen]
    answered = replace(other, re_entry=0.5)
    assert replace(choice, points=[*choice.points, answered], read=(answered,)).curve == [other, chosen]
    told = json.loads(json.dumps(choice.to_dict()))
    assert Point(**told["point"]) == chosen and [Point(**one) for one in told["points"]] == choice.points
    assert (told["reason"], told["probes"], told["retain"], told["aim"], told["budget"]) == (
        "why",
        4,
        5,
        "steady",
        0.01,
    )
