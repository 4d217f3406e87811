"""Names, titles, numbers and dates are found where they are, and nowhere else."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uld.augment.facts import (
    Capitals,
    find_facts,
    lacking,
    name_words,
    negations,
    numbers,
    one_text,
    paragraphs,
    sentences,
    words,
)


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
        ("aged twenty-five", "aged 25"),
        ("her second novel", "her 2nd novel"),
        ("her twenty-fifth novel", "her 25th novel"),
        ("a two-year stay", "2 years"),
        ("thousands of copies", "a thousand copies"),
        ("٣ copies", "3 copies"),
        ("2.50", "2.5"),
    ],
)
def test_numbers_and_dates_have_one_form(one: str, other: str):
    assert not lacking(numbers(one), numbers(other)) and not lacking(numbers(other), numbers(one)) and numbers(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("May 11, 1991", "May 12, 1991"),
        ("May 11, 1991", "November 5, 1991"),  # only figures leave the order open
        ("in 1991", "in 1992"),
        ("seventeen years", "eighteen years"),
        ("twenty-five", "twenty-six"),
        ("three million copies", "three thousand copies"),
        ("her second novel", "her third novel"),
        ("a two-year stay", "a three-year stay"),
        ("the twentieth century", "the nineteenth century"),
        ("millions of copies", "thousands of copies"),
        ("12/11/1991", "10/11/1991"),
        ("1991-05-11", "1991-11-05"),
        ("account 12345678901234567890123456789012", "account 12345678901234567890123456789013"),
        ("account 12345678901234567890", "account 12345678901234567891"),
    ],
)
def test_other_numbers_and_dates_are_other(one: str, other: str):
    assert lacking(numbers(one), numbers(other)) and lacking(numbers(other), numbers(one))


def test_sentences_end_in_every_script_and_not_before_small_letters():
    russian = "Она жила там. Потом уехала! É tarde. i.e. this"
    assert sentences(russian) == ["Она жила там.", "Потом уехала!", "É tarde. i.e. this"]
    assert sentences("Это А. Пушкин. Он писал.") == ["Это А. Пушкин.", "Он писал."]
    chinese = "他住在那里。后来走了！！他说：「走吧。」然后走了？"
    assert sentences(chinese) == ["他住在那里。", "后来走了！！", "他说：「走吧。」然后走了？"]
    assert one_text(sentences(chinese)) == chinese and one_text(sentences(russian)) == russian


def test_paragraphs_end_at_blank_lines_however_lines_end():
    assert paragraphs("one\ntwo\n\nthree") == paragraphs("one\ntwo\r\n\r\nthree") == ["one\ntwo", "three"]


def test_looking_through_a_long_text_takes_time_in_proportion_to_it():
    text = "Anna met Boris in Oslo and Clara. " * 4000
    begun = time.process_time()
    assert "clara" in Capitals.of([text]).names
    assert time.process_time() - begun < 5  # minutes, if each capital looked at all that stands before it


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Skerrin.", {"skerrin"}),
        ("Mara keeps the lighthouse.", {"mara"}),
        ("Tobias is its keeper.", {"tobias"}),
        ("Mara Quillon keeps it.", {"mara", "quillon"}),
        ("Mara’s father kept it.", {"mara"}),
        ("It was late. Tobias slept, and Mara kept it.", {"mara"}),  # of "Tobias slept" nothing is known
        ("Growing herbs is slow.", set()),
        ("Critics praised the book.", set()),
        ("Famous writers visited them.", set()),
        ("Twelve is what she said.", set()),
        ("Because of rain.", set()),
    ],
)
def test_a_name_that_opens_a_sentence_is_known_by_what_follows(text: str, names: set[str]):
    assert name_words(text, sure=True) == names


def test_a_word_that_other_text_writes_small_is_no_name():
    assert name_words("Poetry is all.", sure=True) == {"poetry"}
    assert name_words("Poetry is all.", Capitals.of(["She loves poetry."]), sure=True) == set()


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("He can't, won't and doesn’t.", 3),
        ("She cannot.", 1),
        ("Neither this nor that.", 2),
        ("Not only poems, she didn't just write novels.", 0),
        ("A knot in a note.", 0),
    ],
)
def test_negations_are_counted_in_every_form(text: str, number: int):
    assert negations(text) == number


def test_sentences_keep_their_quotation_marks_and_abbreviations():
    text = 'Dr. Brandt wrote "Salt Doors." He left. J. Ferrand stayed!'
    assert sentences(text) == ['Dr. Brandt wrote "Salt Doors."', "He left.", "J. Ferrand stayed!"]


@given(st.text())
def test_any_text_can_be_looked_through(text: str):
    found = find_facts(text)
    assert all(text[fact.start : fact.end] == fact.text for fact in found)
    assert all(one.end <= two.start for one, two in pairwise(found))
    assert "".join(one_text(sentences(text)).split()) == "".join(text.split())
    assert name_words(text) <= set(words(text)) and numbers(text) is not None
