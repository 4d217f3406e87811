"""Tokens that a model must have, whatever the text, and those that it has not."""

import copy

import pytest

from uld.errors import ULDError
from uld.model.vocabulary import embedding_rows, own_ids, refuse_foreign


def test_own_tokens_are_the_special_ones_and_the_last(letters):
    assert own_ids(letters) == [0, 1, 2, 33]


def test_what_a_tokenizer_does_not_have_is_left_out(letters):
    other = copy.deepcopy(letters)
    other.pad_token = None
    assert own_ids(other) == [1, 2, 33]


def test_the_first_token_without_an_embedding_is_refused(make_target):
    rows = embedding_rows(make_target(num_layers=1))
    assert rows == 34
    refuse_foreign([3, 33], rows, "place")
    refuse_foreign([], rows, "place")
    with pytest.raises(ULDError, match=r"^place: the tokenizer gives a token 34, .* only 34 tokens \(0 to 33\)"):
        refuse_foreign([3, 34], rows, "place")
