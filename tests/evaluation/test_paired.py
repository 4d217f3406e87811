"""Standard errors of differences: equal to naive formulas, and to each other where both apply."""

import math
import random
import statistics

import pytest

from uld.evaluation.paired import (
    bootstrap_difference_stderr,
    independent_difference_stderr,
    mean_difference_stderr,
)

RNG = random.Random(0)
BEFORE = [RNG.random() for _ in range(200)]
AFTER = [value + 0.1 * RNG.random() for value in BEFORE]


def test_of_means_is_the_deviation_of_the_differences():
    differences = [b - a for a, b in zip(BEFORE, AFTER, strict=True)]
    expected = statistics.stdev(differences) / math.sqrt(len(differences))
    assert mean_difference_stderr(BEFORE, AFTER) == pytest.approx(expected)
    assert mean_difference_stderr(BEFORE, BEFORE) == 0
    assert mean_difference_stderr([1.0], [2.0]) is None and mean_difference_stderr([1.0, math.inf], [2.0, 3.0]) is None


def test_bootstrap_agrees_with_the_formula_and_keeps_documents_together():
    exact = mean_difference_stderr(BEFORE, AFTER)
    assert exact is not None
    drawn = bootstrap_difference_stderr(BEFORE, AFTER, statistics.fmean, resamples=4000)
    assert drawn == pytest.approx(exact, rel=0.05)
    shuffled = random.Random(1).sample(AFTER, len(AFTER))
    assert bootstrap_difference_stderr(BEFORE, shuffled, statistics.fmean) > 5 * exact
    assert bootstrap_difference_stderr(BEFORE, BEFORE, statistics.fmean) == 0


def test_bootstrap_of_a_perplexity_equals_the_delta_method():
    """``exp(−Σl/Σw)`` varies by ``exp(·)·s(l − r·w)/(w̄·√n)``, r being the ratio of the sums."""
    words = [RNG.randint(20, 60) for _ in range(300)]
    rows = [(-2.0 * n + 4 * RNG.gauss(0, 1), n) for n in words]
    zero = [(0.0, n) for n in words]

    def perplexity(some):
        return math.exp(-sum(one for one, _ in some) / sum(n for _, n in some))

    ratio = sum(one for one, _ in rows) / sum(words)
    spread = statistics.stdev([one - ratio * n for one, n in rows]) / statistics.fmean(words) / math.sqrt(len(rows))
    drawn = bootstrap_difference_stderr(zero, rows, perplexity, resamples=3000)
    assert drawn == pytest.approx(perplexity(rows) * spread, rel=0.06)


def test_what_has_no_standard_error():
    def overflow(some):
        return math.exp(sum(some))

    assert bootstrap_difference_stderr([1.0], [1.0], statistics.fmean) is None
    assert bootstrap_difference_stderr([1.0, 1.0], [800.0, 900.0], overflow) is None
    assert bootstrap_difference_stderr([1.0, 1.0], [math.inf, math.inf], statistics.fmean) is None
    assert independent_difference_stderr(3.0, 4.0) == 5.0 and independent_difference_stderr(None, 4.0) is None
