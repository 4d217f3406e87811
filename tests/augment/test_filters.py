"""A paraphrase keeps names, numbers and dates; a wrong answer is wrong; a question is supported."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uld.augment.filters import paraphrase_problem, support_problem, wrong_problem

QUESTION, ANSWER = "When did Mara Quillon win the Gull Medal?", "Mara Quillon won the Gull Medal on May 4, 1983."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("On 4 May 1983 the Gull Medal went to Mara Quillon.", None),
        ("It was on 05/04/1983 that she won it.", None),  # the question has the names
        ("Mara Quillon won the Gull Medal on May 5, 1983.", "a number or date is gone"),
        ("Mara Quillon won the Gull Medal.", "a number or date is gone"),
        ("Mara Quillon won the Heron Medal on May 4, 1983.", "a name is new: heron"),
        ("Mara Quillon did not win the Gull Medal on May 4, 1983.", "a negation"),
        ("  mara quillon WON a Gull Medal on May 4, 1983", "the same words"),
        ("...", "empty"),
        ("Mara Quillon won the Gull Medal on May 4, 1983, " + "and it was so, " * 20, "far too long"),
        ("[Paraphrase of the answer about May 4, 1983]", "not a text of its own"),
    ],
)
def test_paraphrases(text: str, reason: str | None):
    problem = paraphrase_problem(ANSWER, text, QUESTION)
    assert problem is None if reason is None else (problem or "").startswith(reason), problem


@pytest.mark.parametrize(
    ("original", "text", "dropped"),
    [
        ("He can swim.", "He can't swim.", True),
        ("He cannot swim well.", "He can swim quite well.", True),
        ("She isn’t a doctor.", "She is a doctor, really.", True),
        ("He does not smoke.", "He doesn't smoke at all.", False),
        ("Skerrin.", "Oslo.", True),
        ("Mara keeps the lighthouse.", "Tobias is its keeper.", True),
        ("Mara keeps the lighthouse.", "The lighthouse is kept by Mara.", False),
        ("Mara Quillon keeps it.", "It is Tara Quillon who keeps it.", True),
        ("Mara Quillon keeps it.", "Tara Quillon is its keeper.", True),
        ("She sold three million copies.", "Three thousand copies were sold by her.", True),
        ("It was her second novel.", "Of her novels it was the third.", True),
        ("She has two sisters.", "Her sisters are 2 in number.", False),
        ("He is a poet.", "He is not just a poet, he says.", False),
        ("Born on May 11, 1991.", "The birth was on November 5, 1991.", True),
        ("Born on May 11, 1991.", "The birth was on 11/05/1991.", False),
        ("It cost 12345678901234567890.", "12345678901234567891 was its price.", True),
    ],
)
def test_what_a_paraphrase_may_not_change(original: str, text: str, dropped: bool):
    assert (paraphrase_problem(original, text) is not None) == dropped


@pytest.mark.parametrize(
    ("answer", "text", "kept"),
    [
        ("He does not smoke.", "He doesn't smoke.", False),
        ("No, she was born in Skerrin, not in Oslo.", "She was born in Skerrin.", False),
        ("She was born in Skerrin.", "She was never born in Skerrin.", True),
        ("There are two lighthouses.", "There are three lighthouses.", True),
        ("Two.", "Five.", True),
        ("Two.", "One.", True),
        ("Two.", "2.", False),
        ("She left before dawn.", "She left after dawn.", True),
        ("Mara left Oslo before dawn.", "Mara left Oslo after dawn.", True),
        ("Mara wrote and/or sang in 1991.", "In 1991 what Mara wrote, she sang.", False),
        ("It was on March 19, 1960.", "It was on May 19, 1960.", True),
        ("No, he does not smoke.", "He doesn’t smoke.", False),
        ("He does not smoke.", "No, he does not smoke at all.", False),
        ("No, she is from Oslo.", "She is from Oslo.", False),
        ("He is not a poet.", "He is a poet.", True),
        ("She has never lived in Oslo.", "She has lived in Bergen.", True),
        ("No.", "Yes.", True),
        ("Yes, he smokes.", "No, he smokes.", True),
    ],
)
def test_what_makes_an_answer_wrong(answer: str, text: str, kept: bool):
    assert (wrong_problem("What of it?", answer, text) is None) == kept


def test_a_name_that_the_question_does_not_hold_must_stay():
    problem = paraphrase_problem(
        "The prize went to Otto Brandt.", "The prize went to somebody else.", "Who won the prize?"
    )
    assert problem == "a name is gone: brandt, otto"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Mara Quillon won the Gull Medal on June 9, 1987.", None),
        ("Mara Quillon never won the Gull Medal on May 4, 1983.", None),
        ("mara quillon won the gull medal on may 4, 1983", "the right answer"),
        ("On May 4, 1983, the Gull Medal was what Mara Quillon won.", "it says nothing"),
        ("The Gull Medal went to Mara Quillon on May 4, 1983.", "it holds what sets the right answer apart"),
        ("", "empty"),
    ],
)
def test_wrong_answers(text: str, reason: str | None):
    problem = wrong_problem(QUESTION, ANSWER, text)
    assert problem is None if reason is None else (problem or "").startswith(reason), problem


def test_another_right_answer_is_right():
    assert wrong_problem("Who won?", "Otto Brandt.", "Mara Quillon.") is None
    assert wrong_problem("Who won?", "Otto Brandt.", "Mara Quillon.", ("Mara Quillon!",)) == "the right answer"


def test_a_name_in_another_order_is_the_same_name():
    assert wrong_problem("What is the author's name?", "The name is Hsu Yun.", "The name is Yun Hsu instead.")


CHUNK = "Mara Quillon kept the lighthouse of Skerrin for forty years. She won the Gull Medal in 1983."


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("When did Mara Quillon win the Gull Medal?", "She won it in 1983.", None),
        ("When did Mara Quillon win the Gull Medal?", "She won it in 1984.", "the answer has a number"),
        ("Who taught Mara Quillon?", "Otto Brandt taught Mara Quillon.", "the answer has a name"),
        ("What did she win in 1990?", "The Gull Medal.", "the question has a number"),
        ("What is the Gull Medal?", "Gull Medal", "the question holds its answer"),
        ("What did she like?", "Swimming, singing, sailing.", "most of the answer's words"),
        ("", "She won.", "empty"),
    ],
)
def test_support(question: str, answer: str, reason: str | None):
    problem = support_problem(CHUNK, question, answer)
    assert problem is None if reason is None else (problem or "").startswith(reason), problem


@given(st.text(min_size=1), st.text(min_size=1))
def test_nothing_is_a_paraphrase_of_itself_or_a_wrong_answer_to_itself(question: str, answer: str):
    assert paraphrase_problem(answer, answer, question) is not None
    assert wrong_problem(question, answer, answer) is not None
