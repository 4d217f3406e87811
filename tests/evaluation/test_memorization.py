"""Memorization against naive versions, at its limits, and with bad input."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uld.evaluation.memorization import exact_memorization, extraction_strength, longest_verbatim_run

flags = st.lists(st.booleans(), min_size=1, max_size=12)
ids = st.lists(st.integers(0, 3), max_size=9)


@given(flags)
def test_exact_memorization_counts(right):
    assert exact_memorization(right) == sum(right) / len(right)


@given(flags)
def test_extraction_strength_tries_every_prefix(right):
    shortest = next(k for k in range(len(right) + 1) if all(right[k:]))
    assert extraction_strength(right) == 1 - shortest / len(right)
    assert extraction_strength(right) <= exact_memorization(right) + 1e-12


@given(ids, ids)
def test_the_longest_run_is_that_of_all_pairs_of_slices(generated, truth):
    slices = {tuple(generated[i:j]) for i in range(len(generated)) for j in range(i + 1, len(generated) + 1)}
    shared = [s for s in slices if any(tuple(truth[i : i + len(s)]) == s for i in range(len(truth)))]
    assert longest_verbatim_run(generated, truth) == max(map(len, shared), default=0)


def test_a_run_is_contiguous_and_may_stand_anywhere():
    assert longest_verbatim_run([9, 1, 2, 3, 8], [1, 2, 3, 4, 9, 8]) == 3
    assert longest_verbatim_run([1, 9, 2, 9, 3], [1, 2, 3]) == 1
    assert longest_verbatim_run([1, 1, 1, 1], [1, 1]) == 2


@pytest.mark.parametrize("measure", [exact_memorization, extraction_strength])
@pytest.mark.parametrize("bad", [[], [[True], [False]], True])
def test_what_is_no_text_is_refused(measure, bad):
    with pytest.raises(ValueError, match="one-dimensional"):
        measure(bad)
