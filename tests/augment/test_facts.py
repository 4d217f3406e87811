"""Names, titles, numbers and dates are found where they are, and nowhere else."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uld.augment.facts import Capitals, find_facts, name_words, numbers, sentences, words


def facts(text: str) -> list[tuple[str, str]]:
    return [(fact.kind, fact.text) for fact in find_facts(text)]


def test_every_kind_is_found():
    text = "Mara Quillon, born on May 4th, 1951 in Cape Town, wrote \"Salt Doors\" and 'The Keeper's Key' in 3 years."
    assert facts(text) == [
        ("name", "Mara Quillon"),
        ("date", "May 4th, 1951"),
        ("name", "Cape Town"),
        ("title", "Salt Doors"),
        ("title", "The Keeper's Key"),
        ("number", "3"),
    ]


def test_small_words_stand_inside_a_name_and_possessives_end_it():
    assert facts("He left the University of Cape Town and Otto Brandt's Garden.") == [
        ("name", "University of Cape Town"),
        ("name", "Otto Brandt"),
        ("name", "Garden"),
    ]


def test_a_word_that_opens_a_sentence_is_a_name_only_where_other_text_says_so():
    assert facts("Growing herbs is slow. Rohan likes it.") == []
    capitals = Capitals.of(["It was given to Rohan.", "They were growing herbs."])
    assert [fact.text for fact in find_facts("Growing herbs is slow. Rohan likes it.", capitals)] == ["Rohan"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("on May 11, 1991", "on 11th of May 1991"),
        ("on 05/11/1991", "on November 5, 1991"),  # either order: countries differ
        ("on 1991-05-11", "on 11.05.1991"),
        ("2,000 copies", "2000 copies"),
        ("two sisters", "2 sisters"),
    ],
)
def test_numbers_and_dates_have_one_form(one: str, other: str):
    assert numbers(one) == numbers(other) != frozenset()


def test_other_dates_are_other():
    assert numbers("May 11, 1991") != numbers("May 12, 1991")
    assert numbers("in 1991") != numbers("in 1992")


def test_sentences_keep_their_quotation_marks_and_abbreviations():
    text = 'Dr. Brandt wrote "Salt Doors." He left. J. Ferrand stayed!'
    assert sentences(text) == ['Dr. Brandt wrote "Salt Doors."', "He left.", "J. Ferrand stayed!"]


@given(st.text())
def test_any_text_can_be_looked_through(text: str):
    found = find_facts(text)
    assert all(text[fact.start : fact.end] == fact.text for fact in found)
    assert all(one.end <= two.start for one, two in pairwise(found))
    assert " ".join(sentences(text)).split() == text.split()
    assert name_words(text) <= set(words(text)) and numbers(text) is not None
