"""The paper's losses against formulas written out naively, from logits to sums."""

import math

import pytest
import torch

from uld.methods.registry import get_method

ROWS, TOKENS, VOCAB = 3, 5, 11
LENGTHS = [5, 2, 4]


@pytest.fixture
def drawn():
    draw = torch.Generator().manual_seed(0)
    logits, frozen, other, other_frozen = torch.randn(4, ROWS, TOKENS, VOCAB, generator=draw, dtype=torch.float64)
    labels = torch.randint(VOCAB, (ROWS, TOKENS), generator=draw)
    return logits.float(), frozen.float(), other.float(), other_frozen.float(), labels


def log_likelihoods(logits, labels, lengths=LENGTHS):
    """Summed log-probabilities, one token after the other."""
    found = []
    for row, length in enumerate(lengths):
        total = 0.0
        for t in range(length):
            weights = [math.exp(x) for x in logits[row, t].tolist()]
            total += math.log(weights[labels[row, t]] / sum(weights))
        found.append(total)
    return found


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_gradient_ascent_is_the_log_likelihood(make_side, drawn):
    logits, _, _, _, labels = drawn
    found = get_method("ga").forget.value(make_side(logits, labels, LENGTHS))
    assert found.item() == pytest.approx(sum(log_likelihoods(logits, labels)), rel=1e-6)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_npo(make_side, drawn, beta):
    logits, frozen, _, _, labels = drawn
    now, before = log_likelihoods(logits, labels), log_likelihoods(frozen, labels)
    side = make_side(logits, labels, LENGTHS, reference=torch.tensor(before))
    expected = sum(-2 / beta * math.log(sigmoid(-beta * (a - b))) for a, b in zip(now, before, strict=True))
    assert get_method("npo").forget.value(side, beta=beta).item() == pytest.approx(expected, rel=1e-6)


def test_npo_becomes_gradient_ascent_as_beta_goes_to_0(make_side, drawn):
    logits, frozen, _, _, labels = drawn
    reference = torch.tensor(log_likelihoods(frozen, labels))

    def gradient(name, **options):
        leaf = logits.clone().requires_grad_()
        get_method(name).forget.value(make_side(leaf, labels, LENGTHS, reference=reference), **options).backward()
        return leaf.grad

    expected = gradient("ga")
    far, near = ((gradient("npo", beta=beta) - expected).abs().max().item() for beta in (0.1, 1e-4))
    assert near < 1e-3 * expected.abs().max() < far


def test_dpo_prefers_the_alternative(make_side, drawn):
    logits, frozen, other, other_frozen, labels = drawn
    beta, lengths = 0.3, [1, 3, 2]
    side = make_side(logits, labels, LENGTHS, reference=torch.tensor(log_likelihoods(frozen, labels)))
    wanted_before = log_likelihoods(other_frozen, labels, lengths)
    side.alternative = make_side(other, labels, lengths, reference=torch.tensor(wanted_before))
    margins = [
        (w - w0) - (u - u0)
        for w, w0, u, u0 in zip(
            log_likelihoods(other, labels, lengths),
            wanted_before,
            log_likelihoods(logits, labels),
            log_likelihoods(frozen, labels),
            strict=True,
        )
    ]
    expected = sum(-2 / beta * math.log(sigmoid(beta * margin)) for margin in margins)
    assert get_method("dpo").forget.value(side, beta=beta).item() == pytest.approx(expected, rel=1e-6)


def test_kl_is_that_of_the_frozen_model_to_the_trained_one(make_side, drawn):
    logits, frozen, _, _, labels = drawn
    expected = 0.0
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            p, q = frozen[row, t].double().softmax(-1), logits[row, t].double().softmax(-1)
            expected += sum((a * math.log(a / b)).item() for a, b in zip(p, q, strict=True))
    side = make_side(logits, labels, LENGTHS, frozen=frozen)
    assert get_method("ga+kl").retain.value(side).item() == pytest.approx(expected, rel=1e-6)
    same = make_side(frozen, labels, LENGTHS, frozen=frozen)
    assert get_method("npo+kl").retain.value(same).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["undial", "di"])
def test_self_distillation_lowers_the_memorised_tokens_logit(make_side, drawn, name):
    logits, frozen, _, _, labels = drawn
    expected = 0.0
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            wanted = frozen[row, t].double().clone()
            wanted[labels[row, t]] -= 4.0
            wanted, log_q = wanted.softmax(-1), logits[row, t].double().log_softmax(-1)
            expected -= sum((a * b).item() for a, b in zip(wanted, log_q, strict=True))
    side = make_side(logits, labels, LENGTHS, frozen=frozen)
    assert get_method(name).forget.value(side, strength=4.0).item() == pytest.approx(expected, rel=1e-6)


def test_uld_remembers_and_is_uniform_and_so_is_the_uniform_baseline(make_side, drawn):
    logits, _, _, _, labels = drawn
    side = make_side(logits, labels, LENGTHS)
    uld = get_method("uld")
    assert uld.forget.value(side).item() == pytest.approx(-sum(log_likelihoods(logits, labels)), rel=1e-6)
    expected = sum(
        -logits[r, t].double().log_softmax(-1).mean().item() for r, n in enumerate(LENGTHS) for t in range(n)
    )
    assert uld.retain.value(side).item() == pytest.approx(expected, rel=1e-6)
    assert get_method("uniform").forget.value(side).item() == pytest.approx(expected, rel=1e-6)


def test_losses_of_a_side_without_rows_are_0_and_reach_the_logits(make_side, drawn):
    logits, frozen, _, _, labels = drawn
    for name in ("ga+kl", "npo+gd", "undial", "uld"):
        leaf = logits.clone().requires_grad_()
        side = make_side(leaf, labels, [0, 0, 0], frozen=frozen)
        for loss in get_method(name).losses:
            value = loss.value(side)
            assert value.item() == 0 or loss.per == "row"  # rows are there, without a position
            value.backward()
            assert leaf.grad is not None
