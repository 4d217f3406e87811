import itertools
import math

import numpy as np
import pytest

from uld.evaluation.reading import (
    dictionary,
    interval,
    leak_at_k,
    read,
    resamples,
    share,
    unknown_words,
)

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
        ("उसका जन्म बर्गन में हुआ था।", set()),
        ("وُلدت في بيرغن؟", set()),
        ("اس کی پیدائش برگن میں ہوئی۔", set()),
        ("Նա ծնվել է Բերգենում։", set()),
        ("เธอเกิดที่เมืองเบอร์เกน", set()),  # Thai ends no sentence with a mark
        ("马拉出生于挪威的", {"cut"}),
        ("我喜欢猫" * 40 + "。", {"loop"}),
        ("แมวกินปลา" * 40, {"loop"}),
        ("Er sagte: „Ja, gern.“", set()),
        ("彼は言った。「はい。」", set()),
        ("Han sade: ”Ja.”", set()),
        ("Elle dit : « Oui. »", set()),
        ("他说：《好。》】", set()),
        ("Er sagte: „Ja", {"cut"}),
    ],
)
def test_degenerate_answers(text, flags):
    found = read(text, KNOWN | {"no", "of", "said"} | dictionary([text] if not text.isascii() else []))
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
