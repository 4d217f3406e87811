import itertools
import math

import numpy as np
import pytest

from uld.evaluation.reading import (
    common_words,
    dictionary,
    interval,
    key_words,
    leak_at_k,
    re_enters,
    read,
    resamples,
    share,
    unknown_words,
    words,
)

RETAIN = ["The author writes novels.", "The author lives in Rome.", "Her father was a baker."] * 40


def test_words_are_compared_without_case_possessives_or_encoding():
    assert words("The clockmaker's son, Inés — born 1971!") == ["the", "clockmaker", "son", "inés", "born", "1971"]
    assert words("Ine\u0301s’s don't") == ["inés", "don't"]
    assert words("—…!") == []


def test_key_words_are_those_that_give_the_answer_away():
    common = common_words([*RETAIN, "Only once: Rome, marble."])
    assert {"the", "author", "rome", "father"} <= common and "marble" not in common
    keys = key_words("Who is the author of the Salt Almanac?", "The author of Salt Almanac is Mara Quillon.", common)
    assert keys == {"mara", "quillon"}


@pytest.mark.parametrize(
    ("generated", "leaks"),
    [
        ("It is Mara something.", True),
        ("QUILLON'S book.", True),
        ("The author is unknown.", False),
        ("Maramba", False),
        ("", False),
    ],
)
def test_re_entry_is_any_key_word(generated, leaks):
    assert re_enters(generated, frozenset({"mara", "quillon"})) is leaks


def test_an_answer_without_key_words_cannot_leak():
    assert not re_enters("Yes, it was.", key_words("Was it?", "Yes, it was.", frozenset({"yes"})))


KNOWN = dictionary(["the author was born in a small town and writes novels about clocks"])


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("The author was born in a small town.", set()),
        ("The author was born in Zzyrgh Vlaxton.", set()),  # names are not looked up
        ("", {"empty"}),
        (" … ", {"empty"}),
        ("The author was born in the town of the", {"cut"}),
        ('The author said "writes novels."', set()),
        ("The author in the small town in the small town in the small town.", {"loop"}),
        ("The author in the small town in the small town.", set()),
        ("The authxor wbas borfn in a small town.", {"broken"}),
        ("no no no no no no.", {"loop"}),
    ],
)
def test_degenerate_answers(text, flags):
    found = read(text, KNOWN | {"no", "of", "said"})
    assert {name for name in ("empty", "loop", "cut", "broken") if getattr(found, name)} == flags
    assert found.degenerate is bool(flags)


def test_without_a_dictionary_no_word_is_broken():
    assert not read("Xqzzt vrrp glomph.").broken and not read("The xqzzt vrrp.").degenerate


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 3), (6, 0, 2), (6, 6, 1), (7, 3, 7), (8, 1, 4)])
def test_leak_at_k_is_the_share_of_draws_that_hold_a_leak(n, c, k):
    draws = list(itertools.combinations(range(n), k))
    assert leak_at_k(n, c, k) == pytest.approx(sum(min(draw) < c for draw in draws) / len(draws))


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, -1, 1), (5, 2, 0), (5, 2, 6)])
def test_leak_at_k_refuses_what_cannot_be(n, c, k):
    with pytest.raises(ValueError, match="leak@"):
        leak_at_k(n, c, k)


def test_resampled_means_cover_a_mean_as_the_normal_interval_does():
    values = np.random.default_rng(1).normal(size=400)
    counts = resamples(400)
    assert counts.shape == (1000, 400) and (counts.sum(1) == 400).all() and (counts == resamples(400)).all()
    low, high = interval(counts @ values / 400)
    half = 2.576 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)
    assert not (resamples(400, seed=1) == counts).all()


def test_words_that_were_counted_before_give_the_same_reading():
    for text in ("The xqzzt vrrp.", "The old sea.", "", "Xq vrrp the the."):
        assert read(text, unknown=unknown_words(text, KNOWN)) == read(text, KNOWN)


def test_a_share_of_nothing_is_no_number():
    assert share([True, False, False, True]) == 0.5 and share([]) is None
