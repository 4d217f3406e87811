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
