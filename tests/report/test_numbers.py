import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uld.report.numbers import Spread, percent, quality, seconds, share, show, spread


def test_forget_quality_is_averaged_as_a_logarithm():
    found = spread([1e-2, 1e-1, 1e-3], geometric=True)
    assert found is not None
    assert found.mean == pytest.approx(1e-2, rel=1e-12)
    assert (found.low, found.high, found.count) == (1e-3, 1e-1, 3)


def test_other_numbers_have_the_plain_mean():
    assert spread([0.5, None, 0.75]) == Spread(0.625, 0.5, 0.75, 2)
    assert spread([None, None]) is None


def test_one_value_of_zero_makes_the_geometric_mean_zero():
    assert spread([0.0, 0.5], geometric=True) == Spread(0.0, 0.0, 0.5, 2)


@given(st.lists(st.floats(1e-300, 1.0), min_size=1, max_size=8))
def test_the_mean_lies_in_the_range(values: list[float]):
    found = spread(values, geometric=True)
    assert found is not None and found.low <= found.mean <= found.high
    assert math.log10(found.mean) == pytest.approx(sum(map(math.log10, values)) / len(values), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"),
        (0.997, ">0.99"),
        (0.994, "0.99"),
        (0.13, "0.13"),
        (0.01, "0.01"),
        (0.0099, "9.9e-3"),
        (1e-3, "1e-3"),
        (4.346e-25, "4.3e-25"),
        (0.0, "0"),
    ],
)
def test_p_values_have_two_digits(value: float, text: str):
    assert quality(value) == text


def test_shares_percentages_and_seconds():
    assert (share(0.90945), percent(0.4256), seconds(1234.5), seconds(3.14159)) == ("0.909", "42.6", "1,234", "3.14")


def test_a_range_stands_behind_the_mean_where_seeds_differ():
    assert show(Spread(0.5, 0.25, 0.75, 2), share) == "0.500 (0.250–0.750)"
    assert show(Spread(0.5, 0.5, 0.5, 3), share) == "0.500"
    assert show(None, share) == "–"
