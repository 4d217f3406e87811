"""The field's losses against their papers' formulas, written out in loops and float64."""

import math

import pytest
import torch

from uld.errors import ULDError
from uld.methods.registry import get_method

ROWS, TOKENS, VOCAB = 3, 5, 11
LENGTHS = [5, 2, 4]


@pytest.fixture
def drawn():
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(ROWS, TOKENS, VOCAB, generator=draw) * 2
    return logits, torch.randint(VOCAB, (ROWS, TOKENS), generator=draw)


def positions(logits, labels, first=0):
    """Logits as floats and the label, of every position with a loss from the ``first`` of each row on."""
    for row, length in enumerate(LENGTHS):
        for t in range(first, length):
            yield logits[row, t].double().tolist(), int(labels[row, t])


def probability(logits, label):
    return math.exp(logits[label]) / sum(math.exp(x) for x in logits)


def log_likelihoods(logits, labels):
    return [
        sum(math.log(probability(logits[row, t].double().tolist(), int(labels[row, t]))) for t in range(length))
        for row, length in enumerate(LENGTHS)
    ]


def value(name, side, **options):
    return get_method(name).forget.value(side, **options)


def gradient(name, make_side, logits, labels, **options):
    leaf = logits.clone().requires_grad_()
    side = make_side(leaf, labels, LENGTHS, reference=options.pop("reference", None))
    value(name, side, **options).backward()
    return leaf.grad


@pytest.mark.parametrize(("beta", "gamma"), [(4.5, 0.0), (2.5, 0.3), (0.1, 2.0)])
def test_simnpo(make_side, drawn, beta, gamma):
    logits, labels = drawn
    expected = 0.0
    for total, length in zip(log_likelihoods(logits, labels), LENGTHS, strict=True):
        expected += -2 / beta * math.log(1 / (1 + math.exp(beta / length * total + gamma)))
    found = value("simnpo", make_side(logits, labels, LENGTHS), beta=beta, gamma=gamma)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_simnpo_is_npo_per_token_against_a_reference_that_the_margin_stands_for(make_side, drawn):
    """For answers of one length n: SimNPO(β, γ) = NPO(β/n, log π₀ = −γ n / β) / n."""
    logits, labels = drawn
    n, beta, gamma = 4, 2.0, 0.7
    side = make_side(logits, labels, [n] * ROWS, reference=torch.full((ROWS,), -gamma * n / beta))
    expected = value("npo", side, beta=beta / n) / n
    assert value("simnpo", side, beta=beta, gamma=gamma).item() == pytest.approx(expected.item(), rel=1e-6)


def test_simnpo_becomes_gradient_ascent_per_token_as_beta_goes_to_0(make_side, drawn):
    logits, labels = drawn
    expected = gradient("ga", make_side, logits, labels) / torch.tensor(LENGTHS)[:, None, None]
    far, near = (
        (gradient("simnpo", make_side, logits, labels, beta=beta) - expected).abs().max() for beta in (1.0, 1e-4)
    )
    assert near < 1e-3 * expected.abs().max() < far


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 3.0])
def test_wga(make_side, drawn, beta):
    logits, labels = drawn
    expected = 0.0
    for one, label in positions(logits, labels):
        p = probability(one, label)
        expected += p**beta * math.log(p)
    found = value("wga", make_side(logits, labels, LENGTHS), beta=beta)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("beta1", "beta2"), [(5.0, 1.0), (1.0, 0.5), (0.0, 2.0)])
def test_satimp(make_side, drawn, beta1, beta2):
    logits, labels = drawn
    expected = 0.0
    for one, label in positions(logits, labels):
        p = probability(one, label)
        expected += p**beta1 * (1 - p) ** beta2 * math.log(p)
    found = value("satimp", make_side(logits, labels, LENGTHS), beta1=beta1, beta2=beta2)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "weight"),
    [("wga", {"beta": 2.0}, lambda p: p**2), ("satimp", {"beta1": 3.0, "beta2": 2.0}, lambda p: p**3 * (1 - p) ** 2)],
)
def test_weights_of_tokens_carry_no_gradient(make_side, drawn, name, options, weight):
    """The gradient is that of gradient ascent, times the weight, and nothing else."""
    logits, labels = drawn
    p = logits.double().softmax(-1).gather(-1, labels[..., None])
    expected = weight(p) * gradient("ga", make_side, logits, labels)
    torch.testing.assert_close(gradient(name, make_side, logits, labels, **options).double(), expected.double())


def test_wga_without_a_weight_is_gradient_ascent_and_satimp_without_importance_is_wga(make_side, drawn):
    side = make_side(*drawn, LENGTHS)
    assert value("wga", side, beta=0.0).item() == pytest.approx(value("ga", side).item(), rel=1e-6)
    satimp = value("satimp", side, beta1=1.5, beta2=0.0)
    assert satimp.item() == pytest.approx(value("wga", side, beta=1.5).item(), rel=1e-6)


@pytest.mark.parametrize("skip", [0, 1, 2, 3])
def test_ce_u(make_side, drawn, skip):
    logits, labels = drawn
    expected = 0.0
    for one, label in positions(logits, labels, skip):
        others = sum(math.exp(x) for v, x in enumerate(one) if v != label)
        everything = sum(math.exp(x) for x in one)
        expected -= sum(math.exp(x) / others * math.log(math.exp(x) / everything) for x in one[:label])
        expected -= sum(math.exp(x) / others * math.log(math.exp(x) / everything) for x in one[label + 1 :])
    found = value("ce-u", make_side(logits, labels, LENGTHS), skip=skip)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_ce_u_teaches_a_distribution_that_never_uses_the_labels_own_logit(make_side, drawn):
    """``p − gradient`` is the distribution that is taught: that of the other tokens, whatever the label's logit."""
    logits, labels = drawn

    def taught(logits):
        return logits.softmax(-1) - gradient("ce-u", make_side, logits, labels, skip=0)

    changed = logits.scatter_add(-1, labels[..., None], torch.full((ROWS, TOKENS, 1), 3.0))
    for row, length in enumerate(LENGTHS):
        one, other, at = taught(logits)[row, :length], taught(changed)[row, :length], labels[row, :length, None]
        torch.testing.assert_close(one, other)
        assert one.gather(-1, at).abs().max() < 1e-6
        others = logits[row, :length].exp().scatter(-1, at, 0.0)
        torch.testing.assert_close(one, others / others.sum(-1, keepdim=True))


def test_pdu_flattens_the_logits(make_side, drawn):
    logits, labels = drawn
    expected = sum((max(one) - sum(one) / VOCAB) ** 2 for one, _ in positions(logits, labels))
    assert value("pdu", make_side(logits, labels, LENGTHS)).item() == pytest.approx(expected, rel=1e-6)
    flat = make_side(torch.full_like(logits, 3.0), labels, LENGTHS)
    assert value("pdu", flat).item() == pytest.approx(0, abs=1e-6)


def test_pdus_weight_rises_above_the_bound_falls_below_it_and_is_never_negative():
    reweigh = get_method("pdu").reweigh
    assert reweigh is not None
    assert reweigh(100.0, 0.5, 6.0, bound=0.3, step=5.0) == pytest.approx(100 + 5 * 0.2)
    assert reweigh(100.0, 0.1, 6.0, bound=0.3, step=5.0) == pytest.approx(100 - 5 * 0.2)
    assert reweigh(0.5, 0.1, 6.0, bound=0.3, step=5.0) == 0.0
    assert reweigh(100.0, 0.3, 6.0) == 100.0
    assert reweigh(100.0, 9.9, 5.0) == 100.0 < reweigh(100.0, 9.9, 5.01)  # five epochs of warm-up by default


def test_idk_and_the_task_vector_learn_the_answers_of_their_forget_rows(make_side, drawn):
    logits, labels = drawn
    expected = -sum(log_likelihoods(logits, labels))
    for name in ("idk", "idk+gd", "idk+kl", "task-vector"):
        assert value(name, make_side(logits, labels, LENGTHS)).item() == pytest.approx(expected, rel=1e-6)
    assert all(get_method(f"idk{end}").alternatives == "instead" for end in ("", "+gd", "+kl"))


def test_methods_that_are_others_under_another_name_or_with_other_data():
    kl_min, altpo = get_method("kl-min"), get_method("altpo")
    assert (kl_min.losses, kl_min.defaults) == (get_method("ga+kl").losses, get_method("ga+kl").defaults)
    assert altpo.losses == get_method("dpo+gd").losses and altpo.defaults["alternatives"] == "given"


@pytest.mark.parametrize("name", ["npo", "dpo", "simnpo"])
@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_a_beta_that_is_not_positive_is_refused(make_side, drawn, name, beta):
    side = make_side(*drawn, LENGTHS)
    side.alternative = side
    with pytest.raises(ULDError, match=f"--option beta={beta:g}: β must be more than 0"):
        value(name, side, beta=beta)
