"""The formulas against naive ones, at their limits, and with bad input."""

import math
import statistics

import numpy as np
import pytest

from uld.evaluation import metrics

RNG = np.random.default_rng(0)
LOSS = RNG.uniform(0.0, 6.0, size=23)
WRONG = RNG.uniform(0.0, 6.0, size=(23, 5))


def ratio(t, aggregator):
    """A truth ratio: the mean over its rows."""
    return metrics.truth_ratio_rows(t, aggregator).mean()


def test_equal_the_naive_formulas():
    naive_p = [math.exp(-x) for x in LOSS]
    naive_t = [math.exp(sum(w) / 5 - x) for x, w in zip(LOSS, WRONG, strict=True)]
    naive_n = [p / (p + sum(math.exp(-v) for v in w)) for p, w in zip(naive_p, WRONG, strict=True)]
    t = metrics.truth_ratio_statistic(LOSS, WRONG)
    np.testing.assert_allclose(metrics.probability(LOSS), naive_p, rtol=1e-14)
    np.testing.assert_allclose(metrics.normalised_probability(LOSS, WRONG), naive_n, rtol=1e-14)
    np.testing.assert_allclose(t, naive_t, rtol=1e-14)
    assert ratio(t, "closer_to_1_better") == pytest.approx(sum(min(x, 1 / x) for x in naive_t) / 23, rel=1e-14)
    assert ratio(t, "true_better") == pytest.approx(sum(max(0, 1 - 1 / x) for x in naive_t) / 23, rel=1e-14)
    shares = [p / (p + math.exp(-sum(w) / 5)) for p, w in zip(naive_p, WRONG, strict=True)]
    assert ratio(t, "prob_mean") == pytest.approx(sum(shares) / 23, rel=1e-14)


def test_a_smaller_loss_of_the_right_answer_raises_t():
    # The direction decides what "forgotten" means, so it is pinned by hand: p = e^-1 against wrong answers of e^-3.
    np.testing.assert_allclose(metrics.truth_ratio_statistic([1.0], [[2.0, 4.0]]), [math.e**2], rtol=1e-15)
    assert ratio([2.0], "true_better") == 0.5
    assert ratio([0.5], "true_better") == 0.0
    assert ratio([2.0, 0.5], "closer_to_1_better") == 0.5


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_limits_are_numbers_and_raise_no_warning():
    inf = math.inf
    t = metrics.truth_ratio_statistic(
        [inf, 1.0, inf, 0.0, 2000.0], [[1.0, 1.0], [1.0, inf], [inf, 2.0], [2000.0, 2000.0], [0.0, 0.0]]
    )
    assert t.tolist() == [0.0, inf, 1.0, inf, 0.0]
    assert ratio(t, "closer_to_1_better") == 1 / 5
    assert ratio(t, "true_better") == 2 / 5
    assert ratio(t, "prob_mean") == 2.5 / 5
    assert 0.0 <= metrics.forget_quality(t, t[::-1]) <= 1.0
    assert metrics.probability([inf, 0.0]).tolist() == [0.0, 1.0]
    normalised = metrics.normalised_probability([inf, 0.0, inf], [[1.0, 1.0], [inf, inf], [inf, inf]])
    np.testing.assert_array_equal(normalised, [0.0, 1.0, 1 / 3])


def test_normalised_probability_survives_underflow():
    # exp(-1000) is 0 in fp64, the ratio of three equal ones is not.
    np.testing.assert_allclose(metrics.normalised_probability([1000.0], [[1000.0, 1000.0]]), [1 / 3], rtol=1e-15)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_normalised_probability_ignores_a_common_shift(shift):
    shifted = metrics.normalised_probability(LOSS + shift, WRONG + shift)
    np.testing.assert_allclose(shifted, metrics.normalised_probability(LOSS, WRONG), rtol=1e-13)


def test_forget_quality_is_exact_and_sees_ranks_only():
    # Two disjoint samples of n: p = 2 / C(2n, n).
    low, high = np.arange(1.0, 6.0), np.arange(11.0, 16.0)
    assert metrics.forget_quality(low, high) == pytest.approx(2 / math.comb(10, 5), rel=1e-12)
    a, b = np.exp(RNG.normal(size=40)), np.exp(RNG.normal(0.6, 1.0, size=31))
    assert metrics.forget_quality(a, a) == 1.0
    assert metrics.forget_quality(1 / a, 1 / b) == pytest.approx(metrics.forget_quality(a, b), rel=1e-12)
    assert metrics.forget_quality(a**3, b**3) == metrics.forget_quality(a, b)


def test_model_utility_is_the_harmonic_mean():
    parts = RNG.uniform(0.1, 1.0, size=9).tolist()
    assert metrics.model_utility(parts) == pytest.approx(statistics.harmonic_mean(parts), rel=1e-14)
    assert metrics.model_utility([0.5, 0.0, 1.0]) == 0.0
    assert metrics.model_utility(part for part in (0.25, 0.25)) == 0.25


def test_rouge_is_stemmed_recall():
    assert metrics.rouge_recall("the cats are sleeping here today", "A cat sleeps") == (2 / 3, 2 / 3)
    assert metrics.rouge_recall("sleeping cats", "cats sleeping") == (1.0, 0.5)
    assert metrics.rouge_recall("", "cats") == (0.0, 0.0)
    assert metrics.rouge_recall("cats", "") == (0.0, 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.probability([1.0, math.nan]), "avg_loss is NaN or -inf in row 1"),
        (lambda: metrics.probability([-math.inf]), "avg_loss is NaN or -inf in row 0"),
        (
            lambda: metrics.truth_ratio_statistic([1.0, 2.0], [[1.0], [math.nan]]),
            "wrong_losses is NaN or -inf",
        ),
        (lambda: metrics.truth_ratio_statistic([1.0, 2.0], [[1.0, 2.0]]), "wrong_losses must be"),
        (lambda: metrics.normalised_probability([1.0], np.zeros((1, 0))), "wrong_losses must be"),
        (lambda: ratio([], "closer_to_1_better"), "t must be a non-empty"),
        (lambda: ratio([-1.0], "true_better"), "t must hold values of 0 or more"),
        (lambda: metrics.forget_quality([1.0], [math.nan]), "t_retain must hold"),
        (lambda: metrics.model_utility([]), "parts must be a non-empty"),
        (lambda: metrics.model_utility([0.5, -0.1]), "parts must hold"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
