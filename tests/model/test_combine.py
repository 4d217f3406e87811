import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from uld.errors import ULDError
from uld.model.combine import Combination, combine, combine_all, log_ratio_to_uniform, plausible
from uld.model.label_losses import label_losses

RULES = ("suppress", "subtract", "reference")
FROM_UNIFORM = ("suppress", "subtract")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Multiples of 1/8 below 32 are exact in every dtype, and so are their sums with whole numbers in fp32.
grid = st.integers(-255, 255).map(lambda n: n / 8)
shifts = st.integers(-4096, 4096).map(float)
rates = st.sampled_from([0.0, 1e-4, 0.01, 0.1, 0.5, 1.0])
shares = st.sampled_from([0.0, 0.01, 0.25, 0.5, 1.0])
margins = st.sampled_from([0.0, 0.25, 1.0, 3.0, 100.0])
floors = st.sampled_from([0.0, 1e-6, 0.001, 0.3, 1.0])


@st.composite
def pairs(draw) -> tuple[Tensor, Tensor]:
    """Logits of a target and an assistant: ``(vocab,)`` each."""
    size = draw(st.integers(2, 24))
    rows = st.lists(grid, min_size=size, max_size=size)
    return torch.tensor(draw(rows)), torch.tensor(draw(rows))


@st.composite
def combinations(draw, rules=RULES) -> Combination:
    return Combination(
        rule=draw(st.sampled_from(rules)),
        weight=draw(st.sampled_from([0.25, 0.75, 1.25, 4.0])),
        filter=draw(rates),
        min_tokens=draw(shares),
        outside=draw(st.sampled_from(["keep", "mask"])),
        margin=draw(margins),
        floor=draw(floors),
    )


@st.composite
def suppressions(draw, weights=(0.25, 1.25, 4.0, 300.0, math.inf)) -> Combination:
    return Combination(weight=draw(st.sampled_from(weights)), margin=draw(margins), floor=draw(floors))


def naive(target: Tensor, assistant: Tensor, how: Combination) -> list[float]:
    """Each rule token by token, in double precision, as DESIGN.md (decision 3) and REFERENCE.md (section 3) say it."""
    l, la, vocab = target.double().tolist(), assistant.double().tolist(), len(target)  # noqa: E741
    norm = math.log(sum(math.exp(x) for x in la))
    r = [x - norm + math.log(vocab) for x in la]
    if how.rule == "suppress":
        lowered = [x - how.weight * max(y - how.margin, 0.0) for x, y in zip(l, r, strict=True)]
        lowest = -math.inf if how.floor == 0 else max(lowered) + math.log(how.floor)
        return [max(s, min(x, lowest)) for x, s in zip(l, lowered, strict=True)]
    if how.rule == "subtract":
        change, least = r, math.ceil(how.min_tokens * vocab)
    else:
        change, least = la, int(how.filter * vocab)  # raw logits; at least τ·V tokens are kept
    lowest = -math.inf if how.filter == 0 else max(l) + math.log(how.filter)
    if least > 0:
        lowest = min(lowest, sorted(l, reverse=True)[least - 1])
    outside = l if how.outside == "keep" else [-math.inf] * vocab
    inside = [x - how.weight * y for x, y in zip(l, change, strict=True)]
    return [i if x >= lowest - 1e-9 else o for x, i, o in zip(l, inside, outside, strict=True)]


@given(pairs(), combinations())
def test_every_rule_equals_its_naive_version(pair, how):
    assert combine(*pair, how).tolist() == pytest.approx(naive(*pair, how), abs=1e-4)


def test_a_worked_example():
    target = torch.tensor([2.0, 1.0, 0.0, -9.0])
    assistant = torch.tensor([math.log(0.7), math.log(0.1), math.log(0.1), math.log(0.1)])
    up, down = math.log(0.7 * 4), math.log(0.1 * 4)
    suppress = combine(target, assistant, Combination(rule="suppress", weight=2.0))
    assert suppress.tolist() == pytest.approx([2 - 2 * up, 1, 0, -9], abs=1e-5)
    subtract = Combination(rule="subtract", weight=2.0, filter=0.01, min_tokens=0)
    assert combine(target, assistant, subtract).tolist() == pytest.approx(
        [2 - 2 * up, 1 - 2 * down, -2 * down, -9], abs=1e-5
    )
    masked = combine(target, assistant, replace(subtract, outside="mask"))
    assert masked.tolist() == pytest.approx([2 - 2 * up, 1 - 2 * down, -2 * down, -math.inf], abs=1e-5)


@given(pairs(), combinations(), shifts)
def test_a_shift_of_the_target_changes_no_distribution(pair, how, shift):
    target, assistant = pair
    # τ·max p must not fall on a token's own probability: rounding would decide
    gaps = target - target.max()
    how = replace(how, filter=how.filter if how.filter in (0, 1) else how.filter * 1.01)
    assert how.filter in (0, 1) or (gaps - math.log(how.filter)).abs().min() > 1e-4
    before = combine(target, assistant, how).softmax(-1)
    after = combine(target + shift, assistant, how).softmax(-1)
    torch.testing.assert_close(after, before, atol=2e-3, rtol=1e-3)  # fp32 at 4096 + 0.001


@given(pairs(), combinations(FROM_UNIFORM), shifts)
def test_a_shift_of_the_assistant_changes_nothing_at_all(pair, how, shift):
    target, assistant = pair
    assert torch.equal(combine(target, assistant + shift, how), combine(target, assistant, how))


@given(pairs(), combinations(FROM_UNIFORM), grid, st.sampled_from(DTYPES))
def test_a_uniform_assistant_is_the_exact_identity(pair, how, level, dtype):
    target = pair[0].to(dtype)
    how = replace(how, outside="keep")
    assert torch.equal(combine(target, torch.full_like(target, level), how), target)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [3, 7, 1000, 32_000, 128_256])
def test_a_uniform_assistant_is_the_exact_identity_at_real_vocabularies(dtype, vocab):
    target = torch.randn(3, vocab, generator=torch.Generator().manual_seed(0)).mul(5).to(dtype)
    for rule in FROM_UNIFORM:
        assistant = torch.full_like(target, 0.3)
        assert torch.equal(combine(target, assistant, Combination(rule=rule, weight=1.7)), target)


@given(pairs(), combinations(), st.sampled_from(DTYPES))
def test_weight_zero_is_the_exact_identity(pair, how, dtype):
    target, assistant = (one.to(dtype) for one in pair)
    assert torch.equal(combine(target, assistant, replace(how, weight=0.0)), target)


@given(pairs(), combinations(("subtract", "reference")))
def test_masked_tokens_never_win(pair, how):
    target, assistant = pair
    out = combine(target, assistant, replace(how, outside="mask"))
    kept = plausible(target, how.filter, how.least(len(target)))
    assert torch.isneginf(out[~kept]).all()
    assert kept[out.argmax()] and out.softmax(-1)[~kept].eq(0).all()


@given(pairs(), suppressions(), st.sampled_from(DTYPES))
def test_suppress_never_lifts_a_token(pair, how, dtype):
    target, assistant = (one.to(dtype) for one in pair)
    out = combine(target, assistant, how)
    assert out.dtype == dtype and (out <= target).all()


@given(pairs(), suppressions())
def test_suppress_lowers_nothing_below_the_floor_and_nothing_within_the_margin(pair, how):
    target, assistant = pair
    out = combine(target, assistant, how)
    within = log_ratio_to_uniform(assistant) <= how.margin
    assert torch.equal(out[within], target[within]) and within.any()
    if how.floor > 0:
        lowest = torch.minimum(target, out.max() + math.log(how.floor))
        assert (out >= lowest - 1e-4).all()


@given(pairs(), suppressions(), st.sampled_from(DTYPES))
def test_no_margin_and_no_floor_is_the_plain_rule_to_the_bit(pair, how, dtype):
    target, assistant = (one.to(dtype) for one in pair)
    how = replace(how, margin=0.0, floor=0.0, weight=min(how.weight, 300.0))
    plain = target.float() - how.weight * log_ratio_to_uniform(assistant).clamp_min(0)
    assert torch.equal(combine(target, assistant, how), plain.to(dtype))


@given(pairs(), suppressions(weights=(math.inf,)))
def test_an_infinite_weight_is_the_limit_of_large_ones(pair, how):
    target, assistant = pair
    limit = combine(target, assistant, how).softmax(-1)
    assert limit.isfinite().all()
    excess = log_ratio_to_uniform(assistant) - how.margin
    if (excess[excess > 0] > 1e-2).all():  # nearer to the margin, 1e6 is not large
        torch.testing.assert_close(combine(target, assistant, replace(how, weight=1e6)).softmax(-1), limit)


def test_an_infinite_weight_where_every_token_that_is_left_lies_above_the_margin():
    target = torch.tensor([3.0, 2.0, 1.0, -torch.inf, -torch.inf])
    assistant = torch.tensor([9.0, 8.0, 8.0, 0.0, 0.0])  # the two that it finds unlikely are masked out by the target
    out = combine(target, assistant, Combination(weight=math.inf, floor=0.01))
    assert torch.equal(out[1:], target[1:])  # the least remembered survive as they are
    assert out[0] == pytest.approx(2 + math.log(0.01))


def test_a_margin_and_a_floor_by_hand():
    target = torch.tensor([5.0, 4.0, 1.0, 0.0])
    assistant = torch.tensor([0.6, 0.35, 0.04, 0.01]).log()
    up = [math.log(4 * p) for p in (0.6, 0.35)]  # 0.875 and 0.336; the others are below uniform
    how = Combination(weight=2.0, margin=0.5)
    assert combine(target, assistant, how).tolist() == pytest.approx([5 - 2 * (up[0] - 0.5), 4, 1, 0])
    assert combine(target, assistant, replace(how, weight=20.0, floor=0.1)).tolist() == pytest.approx(
        [4 + math.log(0.1), 4, 1, 0]
    )
    assert torch.equal(combine(target, assistant, replace(how, margin=1.0)), target)  # nothing is remembered that well


@given(pairs(), suppressions(), st.sampled_from(DTYPES))
def test_one_run_twice_with_half_the_weight_is_the_run_once(pair, how, dtype):
    target, assistant = (one.to(dtype) for one in pair)
    half = replace(how, weight=how.weight / 2)
    once = combine(target, assistant, how)
    assert torch.equal(combine_all(target, [assistant, assistant], [half, half]), once)


@given(pairs(), suppressions(), suppressions(), st.data())
def test_what_several_runs_lower_is_floored_once_by_the_smallest_floor(pair, one, two, data):
    target, first = pair
    second = torch.tensor(data.draw(st.lists(grid, min_size=len(target), max_size=len(target))))
    both = combine_all(target, [first, second], [one, two])
    torch.testing.assert_close(combine_all(target, [second, first], [two, one]), both)
    assert (both <= target).all()
    if math.inf not in (one.weight, two.weight):
        lowered = target - sum(
            how.weight * (log_ratio_to_uniform(la) - how.margin).clamp_min(0)
            for la, how in ((first, one), (second, two))
        )
        floor = min(one.floor, two.floor)
        lowest = lowered.max() + math.log(floor) if floor else torch.tensor(-math.inf)
        torch.testing.assert_close(both, torch.maximum(lowered, torch.minimum(target, lowest)))


def test_a_margin_or_a_floor_is_refused_for_a_rule_that_has_none():
    with pytest.raises(ULDError, match="margin is for the rule suppress, and the rule here is subtract"):
        Combination(rule="subtract").override(margin=3.0)
    with pytest.raises(ULDError, match="floor is for the rule suppress, and the rule here is reference"):
        Combination(margin=3.0).override(rule="reference", floor=0.1)
    assert Combination(margin=3.0).override(rule="subtract", weight=1.0).margin == 3.0  # not used, and not lost
    with pytest.raises(ULDError, match="α = 20 goes with a margin, which the rule subtract does not have"):
        Combination.steady(4096).override(rule="subtract")
    assert Combination(weight=2.0).override(rule="subtract").weight == 2.0


def test_files_hold_a_margin_and_a_floor_only_where_there_is_one():
    before = {"rule": "suppress", "weight": 1.5, "filter": 0.01, "min_tokens": 0.01, "outside": "keep"}
    assert Combination().to_dict() == before
    assert Combination(margin=3.0, floor=0.001).to_dict() == before | {"margin": 3.0, "floor": 0.001}


@given(pairs(), rates, st.integers(0, 30))
def test_the_filter_keeps_the_likeliest_and_never_fewer_than_it_must(pair, rate, least):
    target, size = pair[0], len(pair[0])
    kept = plausible(target, rate, least)
    assert kept[target.argmax()]
    assert kept.sum() >= min(least, size)
    assert not kept.any() or kept.all() or target[kept].min() > target[~kept].max()
    if rate > 0:
        alone = target >= target.max() + math.log(rate)
        needed = target >= target.sort(descending=True).values[min(max(least, 1), size) - 1]
        assert torch.equal(kept, alone | needed)


def test_min_tokens_is_a_share_of_the_vocabulary_rounded_up():
    assert [Combination(rule="subtract", min_tokens=share).least(100) for share in (0, 0.01, 0.07, 0.071, 1)] == [
        *(0, 1, 7, 8, 100)
    ]
    assert Combination(rule="reference", filter=0.01, min_tokens=0.5).least(32_000) == 320


def test_a_memorised_answer_needs_min_tokens():
    target, assistant = torch.zeros(100), torch.zeros(100)
    target[5], assistant[5] = 20.0, 20.0  # all of the probability on one token, remembered by the assistant
    only_it = Combination(rule="subtract", weight=1.0, filter=0.01, min_tokens=0)
    assert combine(target, assistant, only_it).argmax() == 5
    some = combine(target, assistant, replace(only_it, min_tokens=0.02))
    assert some[5] == pytest.approx(20 - math.log(100), abs=1e-3)
    assert some.argmax() != 5  # the others are lifted by as much as they are less than uniform


@given(pairs(), combinations(), st.data())
def test_tokens_that_the_model_masks_out_stay_out_and_disturb_no_other(pair, how, data):
    target, assistant = pair
    keep = data.draw(st.integers(1, len(target) - 1))
    masked_target, masked_assistant = target.clone(), assistant.clone()
    masked_target[keep:] = masked_assistant[keep:] = -torch.inf
    out = combine(masked_target, masked_assistant, replace(how, filter=0.0))
    assert torch.isneginf(out[keep:]).all() and torch.isfinite(out[:keep]).all()
    alone = combine(target[:keep], assistant[:keep], replace(how, filter=0.0))
    torch.testing.assert_close(out[:keep], alone)


@pytest.mark.parametrize("rule", RULES)
def test_a_token_masked_by_the_assistant_alone_keeps_its_logit(rule):
    target, assistant = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, -torch.inf, 0.0])
    out = combine(target, assistant, Combination(rule=rule, filter=0.0))
    assert torch.equal(out, target)


@pytest.mark.parametrize("rule", FROM_UNIFORM)
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_huge_logits_stay_finite(rule, size):
    rows = torch.tensor([[1.0, -1, 0, 0.5], [-1, 1, 1, -1]]) * size
    for dtype in (torch.float32, torch.bfloat16):
        out = combine(rows.to(dtype), rows.flip(0).to(dtype), Combination(rule=rule))
        assert torch.isfinite(out).all()


@given(pairs())
def test_log_ratio_is_log_softmax_plus_log_vocabulary(pair):
    logits = pair[0]
    expected = logits.double().log_softmax(-1) + math.log(len(logits))
    torch.testing.assert_close(log_ratio_to_uniform(logits).double(), expected, atol=1e-5, rtol=1e-5)


def test_batches_are_combined_row_by_row():
    generator = torch.Generator().manual_seed(0)
    target, assistant = (torch.randn(2, 3, 11, generator=generator) for _ in range(2))
    for rule in RULES:
        how = Combination(rule=rule, filter=0.3, min_tokens=0.3)
        rows = [combine(t, a, how) for t, a in zip(target.view(-1, 11), assistant.view(-1, 11), strict=True)]
        assert torch.equal(combine(target, assistant, how).view(-1, 11), torch.stack(rows))


@given(pairs(), combinations(), combinations(), st.data())
def test_several_assistants_add_their_changes_in_any_order(pair, one, two, data):
    target, first = pair
    one, two = replace(one, floor=0.0), replace(two, floor=0.0)
    second = torch.tensor(data.draw(st.lists(grid, min_size=len(target), max_size=len(target))))
    both = combine_all(target, [first, second], [one, two])
    torch.testing.assert_close(combine_all(target, [second, first], [two, one]), both)
    expected = target + (combine(target, first, one) - target) + (combine(target, second, two) - target)
    torch.testing.assert_close(both, expected)
    assert torch.equal(combine_all(target, [first], [one]), combine(target, first, one))


@given(pairs(), st.lists(combinations(), min_size=1, max_size=6), st.data())
def test_losses_under_many_settings_equal_those_of_each(pair, many, data):
    target, assistant = (one[None] for one in pair)
    many = [*many, Combination(weight=0.0), data.draw(suppressions())]
    label = torch.tensor([data.draw(st.integers(0, target.shape[-1] - 1))])
    found = label_losses(target, assistant, label, many)
    for how, loss in zip(many, found, strict=True):
        expected = -combine(target, assistant, how).double().log_softmax(-1)[0, label]
        torch.testing.assert_close(loss.double(), expected, atol=1e-4, rtol=1e-5)


MANY = [
    Combination(rule, weight=weight, filter=filter, min_tokens=share, outside=outside)
    for rule in RULES
    for weight in (0.0, 0.5, 3.0)
    for filter, share in ((0.0, 0.0), (0.02, 0.0), (0.2, 0.02), (0.01, 0.5), (1.0, 0.0), (0.1, 1.0))
    for outside in ("keep", "mask")
] + [
    Combination(weight=weight, margin=margin, floor=floor)
    for margin in (0.0, 0.5, 2.0, 9.0)
    for weight, floor in ((0.0, 0.5), (1.5, 0.0), (1.5, 0.001), (40.0, 0.2), (40.0, 1.0), (math.inf, 0.001))
]


def check_label_losses(target: Tensor, assistant: Tensor, within: float = 1e-5) -> Tensor:
    """`label_losses` of every token at every position against `combine` and a softmax in double precision."""
    positions, vocab = target.shape
    labels = torch.arange(vocab).repeat(positions)
    target, assistant = target.repeat_interleave(vocab, 0), assistant.repeat_interleave(vocab, 0)
    found = label_losses(target, assistant, labels, MANY)
    for how, losses in zip(MANY, found, strict=True):
        expected = -combine(target.float(), assistant, how).double().log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        torch.testing.assert_close(
            losses.double(), expected, atol=within, rtol=1e-5, msg=lambda m, how=how: f"{how}: {m}"
        )
    return found


@pytest.mark.parametrize("vocab", [5, 16, 150])
def test_label_losses_hold_for_peaked_flat_and_tied_logits(vocab):
    torch.manual_seed(0)
    noise = torch.randn(4, vocab)
    target = torch.stack([noise[0] * 6, noise[1] * 0.01, (noise[2] * 2).round(), torch.zeros(vocab)])
    check_label_losses(target, torch.randn(4, vocab) * 3)
    check_label_losses(target.bfloat16(), torch.randn(4, vocab).bfloat16() * 3)  # ties everywhere


def test_label_losses_reach_as_far_apart_as_logits_do():
    torch.manual_seed(0)
    target, assistant = torch.randn(3, 40) * 5, torch.randn(3, 40) * 5
    assistant[0, 3], assistant[1, 7], target[2, 4], assistant[2, 4] = 200.0, -300.0, 90.0, 150.0
    found = check_label_losses(target, assistant, within=1e-4)  # logits reach 1000, where fp32 has steps of 6e-5
    assert found[found.isfinite()].max() > 500


def test_label_losses_with_tokens_that_a_model_masks_out_itself():
    torch.manual_seed(0)
    target, assistant = torch.randn(3, 40) * 3, torch.randn(3, 40) * 3
    target[0, 5:] = -torch.inf  # fewer tokens are left than min_tokens asks for
    target[1, 8] = assistant[1, 9] = assistant[2, 10] = target[2, 10] = -torch.inf
    found = check_label_losses(target, assistant)
    assert found[:, 5:40].isinf().all() and found[:, :5].isfinite().any()


def test_label_losses_where_every_token_that_is_left_lies_above_the_margin():
    target, assistant = torch.full((2, 40), -torch.inf), torch.zeros(2, 40)
    target[:, :3], assistant[:, :3] = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9.0, 8.0, 7.0])
    found = check_label_losses(target, assistant)
    assert found[:, :3].isfinite().any() and not found.isnan().any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "divide"}, "rule must be one of suppress, subtract, reference, offset, rank, generic, not 'divide'"),
        ({"outside": "drop"}, "outside must be one of keep, mask, not 'drop'"),
        ({"weight": -0.1}, "weight"),
        ({"weight": math.nan}, "weight"),
        (
            {"weight": math.inf, "rule": "subtract"},
            "weight .α. may be inf with the rule suppress alone, not with subtract",
        ),
        ({"weight": -math.inf}, "weight"),
        ({"weight": 1e308}, "weight .α. must lie between 0 and 1,000,000 or be inf, not 1e.308"),
        ({"margin": -0.5}, "margin must be a number of nats ≥ 0, not -0.5"),
        ({"margin": math.nan}, "margin"),
        ({"margin": math.inf}, "margin"),
        ({"margin": "3"}, "margin must be a number, not '3'"),
        ({"floor": 1.5}, "floor must lie between 0 and 1, not 1.5"),
        ({"floor": -0.1}, "floor"),
        ({"floor": math.nan}, "floor"),
        ({"rank_tokens": -1}, "rank_tokens must be a whole number ≥ 0, not -1"),
        ({"rank_tokens": 2.0}, "rank_tokens must be a whole number ≥ 0, not 2.0"),
        ({"rank_tokens": True}, "rank_tokens must be a whole number"),
        ({"weight": "1"}, "weight must be a number, not '1'"),
        ({"weight": True}, "weight must be a number"),
        ({"filter": 1.1}, "filter must lie between 0 and 1, not 1.1"),
        ({"filter": math.nan}, "filter"),
        ({"min_tokens": -1}, "min_tokens must lie between 0 and 1, not -1"),
    ],
)
def test_values_out_of_range_are_named(changes, message):
    with pytest.raises(ULDError, match=message):
        Combination(**changes)
    with pytest.raises(ULDError, match=message):
        Combination().override(**changes)


def test_override_changes_what_is_given_and_nothing_else():
    before = Combination(rule="subtract", weight=0.5)
    assert before.override(weight=None, filter=0.5) == replace(before, filter=0.5)
    with pytest.raises(TypeError):
        before.override(tau=0.5)


@pytest.mark.parametrize(
    "kind", [np.float32, np.float64, np.int64, Fraction, int, float], ids=lambda kind: kind.__name__
)
def test_numbers_of_every_kind_can_be_written_into_files(kind):
    how = Combination(weight=kind(2), margin=kind(3), floor=kind(1), filter=kind(0), min_tokens=kind(1))
    assert how == Combination(weight=2.0, margin=3.0, floor=1.0, filter=0.0, min_tokens=1.0)
    assert json.loads(json.dumps(how.to_dict())) == how.to_dict()
    assert json.loads(json.dumps(how.override(weight=kind(5)).to_dict()))["weight"] == 5
    if issubclass(kind, int | np.int64):
        pair = Combination("rank", rank_tokens=kind(7))
        assert json.loads(json.dumps(pair.to_dict()))["rank_tokens"] == 7
    else:
        with pytest.raises(ULDError, match="rank_tokens must be a whole number"):
            Combination("rank", rank_tokens=kind(7))
