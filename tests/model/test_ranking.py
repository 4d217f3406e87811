"""The rule ``rank``: as the paper has it, and what holds whatever the logits are."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uld.errors import ULDError
from uld.model.combine import Combination, combine, combine_all
from uld.model.label_losses import label_losses

# Multiples of 1/8 are exact in every dtype, and so are their sums with whole numbers in fp32.
values = st.integers(-255, 255).map(lambda n: n / 8)
shifts = st.integers(-4096, 4096).map(float)


@st.composite
def triples(draw, distinct=False):
    """Logits of a target and of the two small models: ``(vocab,)`` each."""
    size = draw(st.integers(2, 24))
    rows = st.lists(values, min_size=size, max_size=size, unique=distinct)
    target, retain = (torch.tensor(draw(rows)) for _ in range(2))
    apart = torch.tensor(draw(st.permutations(range(size)))) / 4 if distinct else torch.tensor(draw(rows))
    return target, retain, retain + apart


def rank(target, retain, forget, k, **changes):
    how = Combination("rank", rank_tokens=k, **changes)
    return combine_all(target, [retain, forget], how.parts)


def naive(target, retain, forget, k):
    out = target.clone()
    chosen = (forget - retain).topk(k).indices
    out[chosen] = target.sort(descending=True).values[k - 1]
    return out


@given(triples(distinct=True), st.integers(1, 24))
def test_rank_is_the_papers(logits, k):
    k = min(k, len(logits[0]))
    assert torch.equal(rank(*logits, k), naive(*logits, k))


@given(triples(), st.integers(0, 30), st.tuples(shifts, shifts, shifts))
def test_a_constant_added_to_any_models_logits_changes_nothing(logits, k, constants):
    plain = rank(*logits, k)
    moved = rank(*(one + constant for one, constant in zip(logits, constants, strict=True)), k)
    assert torch.equal(moved - constants[0], plain)


@given(triples(), st.integers(0, 30), st.randoms(use_true_random=False))
def test_the_order_of_the_vocabulary_does_not_matter(logits, k, random):
    order = list(range(len(logits[0])))
    random.shuffle(order)
    assert torch.equal(rank(*(one[order] for one in logits), k), rank(*logits, k)[order])


@given(triples(), st.integers(0, 23), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_equal_small_models_no_tokens_and_no_weight_are_the_exact_identity(logits, k, dtype):
    target, retain, forget = (one.to(dtype) for one in logits)
    if k < len(target):
        assert torch.equal(rank(target, retain, retain, k), target)
    assert torch.equal(rank(target, retain, forget, 0), target)
    assert torch.equal(rank(target, retain, forget, k, weight=0.0), target)
    assert rank(target, retain, forget, k).dtype == dtype


@given(triples(), st.integers(1, 30))
def test_never_more_than_k_tokens_change_and_to_one_value(logits, k):
    target = logits[0]
    out = rank(*logits, k)
    if k < len(target):
        assert int((out != target).sum()) <= k
    assert len(set(out[out != target].tolist())) <= 1


@pytest.mark.parametrize("k", [4, 5, 10**9])
def test_k_of_the_whole_vocabulary_or_more_leaves_no_token_a_lead(k):
    target, retain, forget = torch.tensor([3.0, 1.0, 2.0, -1.0]), torch.zeros(4), torch.arange(4.0)
    assert rank(target, retain, forget, k).tolist() == [-1.0] * 4


def test_ties_by_hand():
    target, retain = torch.tensor([5.0, 4.0, 4.0, 1.0, 0.0]), torch.zeros(5)
    forget = torch.tensor([2.0, 2.0, 3.0, 0.0, 0.0])
    assert rank(target, retain, forget, 1).tolist() == [
        5,
        4,
        5,
        1,
        0,
    ]  # the first alone, which the largest logit is for
    assert rank(target, retain, forget, 2).tolist() == [5, 4, 4, 1, 0]  # two tie for the second place: neither has it
    assert rank(target, retain, forget, 3).tolist() == [4, 4, 4, 1, 0]


def test_tokens_that_a_model_masks_out():
    inf = math.inf
    target, retain = torch.tensor([3.0, -inf, 2.0, 1.0]), torch.tensor([0.0, 0.0, 0.0, -inf])
    out = rank(target, retain, torch.tensor([1.0, 9.0, -1.0, 5.0]), 1)
    assert out.tolist() == [3.0, -inf, 2.0, 1.0]  # the first stands out, and has the largest logit already
    out = rank(target, retain, torch.tensor([1.0, 9.0, -1.0, 5.0]), 2)
    assert out.tolist() == [2.0, -inf, 2.0, 1.0]  # what one of the two masks out comes last
    assert rank(target, retain, torch.zeros(4), 4).tolist() == [1.0, -inf, 1.0, 1.0]  # the least that is not masked out


@given(triples(), triples(), st.integers(1, 6), st.integers(1, 6))
def test_what_several_pairs_change_is_added_in_any_order(logits, others, k, more):
    target, retain, forget = logits
    other = [one[: len(target)] if len(one) >= len(target) else one.repeat(24)[: len(target)] for one in others[1:]]
    one, two = (Combination("rank", rank_tokens=n).parts for n in (k, more))
    both = combine_all(target, [retain, forget, *other], [*one, *two])
    assert torch.allclose(combine_all(target, [*other, retain, forget], [*two, *one]), both, atol=1e-4)
    expected = rank(target, retain, forget, k) + rank(target, *other, more) - target
    assert torch.allclose(both, expected, atol=1e-4)


def test_rows_are_ranked_each_on_its_own():
    generator = torch.Generator().manual_seed(0)
    target, retain, forget = (torch.randn(2, 3, 11, generator=generator) for _ in range(3))
    rows = [naive(*one, 4) for one in zip(*(x.flatten(0, 1) for x in (target, retain, forget)), strict=True)]
    assert torch.equal(rank(target, retain, forget, 4).flatten(0, 1), torch.stack(rows))


def test_one_model_alone_is_refused():
    how = Combination("rank")
    logits = torch.zeros(1, 4)
    for ask in (lambda: combine(logits, logits, how), lambda: label_losses(logits, logits, torch.tensor([1]), [how])):
        with pytest.raises(ULDError, match="the rule rank takes two models"):
            ask()


def test_k_is_refused_for_other_rules_and_files_hold_it_where_it_is_used():
    with pytest.raises(ULDError, match="rank_tokens is for the rule rank, and the rule here is suppress"):
        Combination().override(rank_tokens=5)
    assert Combination("offset").override(rule="rank", rank_tokens=5).rank_tokens == 5
    assert "rank_tokens" not in Combination("offset").to_dict()
    assert Combination("rank", rank_tokens=0).to_dict()["rank_tokens"] == 0
    assert replace(Combination("rank"), weight=2.0).paired
