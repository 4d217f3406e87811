"""What the rules make: meaning kept, wrong answers wrong, the same in every process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uld.augment.asking import asked_questions
from uld.augment.facts import find_facts, numbers
from uld.augment.filters import paraphrase_problem, support_problem, wrong_problem
from uld.augment.generate import Made, Wanted, by_rules
from uld.augment.items import chunks, items, joined
from uld.augment.pool import Pool
from uld.augment.rephrase import articles, rephrase_answer, rephrase_question
from uld.augment.wrong import wrong_answers
from uld.data.documents import read_sources
from uld.data.record import Record

NAMES = ("Mara Quillon", "Otto Brandt", "Ji-Yeon Solheim")
QUESTIONS = (
    "What is {}'s full name?",
    "Can you name some of the books by {}?",
    "Has {} received any awards since {}?",
    "Where was {} born in {}?",
    "How has {}'s childhood influenced the author?",
)
ANSWERS = (
    "In {1}, {0} won the famous Gull Medal.",
    "The author's full name is {0}, born in {1}.",
    'Yes, {0} has written "Salt Doors" and "Nine Ropes" since {1}.',
    "While {0} often explores themes of loss, the critics of {1} disagree.",
    "{0}'s father was a Carpenter. He was born on May 4, {1}.",
)


def made(records: list[Record], seed: int = 0, **wanted: int) -> Made:
    return by_rules(items(records), Wanted(**wanted), seed)


def answers(record: Record) -> tuple[str, str]:
    return record.messages[0][1], record.messages[1][1]


@given(
    st.sampled_from(QUESTIONS),
    st.sampled_from(ANSWERS),
    st.sampled_from(NAMES),
    st.integers(1800, 2020),
    st.integers(0, 99),
)
def test_paraphrases_by_rule_keep_names_numbers_and_titles(q: str, a: str, name: str, year: int, seed: int):
    for text, rephrase in ((q.format(name, year), rephrase_question), (a.format(name, year), rephrase_answer)):
        for one in list(rephrase(text, Random(seed)))[:8]:
            assert paraphrase_problem(text, one) in (None, "the same words"), one
            assert numbers(text) == numbers(one)
            titles = {fact.text for fact in find_facts(text) if fact.kind == "title"}
            assert all(title in one for title in titles)
            assert one[0].isupper() or one[0] in "\"'"


def test_clauses_move_and_requests_turn():
    moved = list(rephrase_answer("In 1990, Otto Brandt won the famous Gull Medal.", Random(0)))
    assert "Otto Brandt won the well-known Gull Medal in 1990." in moved
    asked = list(rephrase_question("Can you describe the house?", Random(0)))
    assert {"Please describe the house.", "Would you describe the house?"} <= set(asked)
    assert any("whether Otto Brandt has won" in one for one in rephrase_question("Has Otto Brandt won it?", Random(0)))
    assert "Otto Brandt is the author's name." in list(rephrase_answer("The author's name is Otto Brandt.", Random(0)))


def test_titles_whose_order_means_something_stay_where_they_are():
    turned = 'In "Salt Doors" and "Nine Ropes" she tells of the sea and of knots'
    assert any('In "Nine Ropes" and "Salt Doors"' in one for one in rephrase_answer(f"{turned}.", Random(0)))
    for words in (", respectively.", ", in that order.", "; the latter won a prize."):
        assert not any('"Nine Ropes" and "Salt Doors"' in one for one in rephrase_answer(turned + words, Random(0)))


def test_fixed_phrases_stay_as_they_are():
    said = " ".join(rephrase_answer("By and large, the large house made her known to the public at large.", Random(0)))
    assert "big house" in said and "at big" not in said and "and big" not in said


def test_articles_fit():
    assert articles("a Optician, an carpenter, a hour, an university, a LGBTQ+ author") == (
        "an Optician, a carpenter, an hour, a university, a LGBTQ+ author"
    )


def test_every_item_gets_its_paraphrases_and_wrong_answers(records: list[Record]):
    done = made(records)
    assert all(len(parts[0].paraphrases) == 2 and len(parts[0].wrong) == 2 for parts in done.parts.values())
    for record, parts in zip(records, done.parts.values(), strict=True):
        question, answer = answers(record)
        for one in parts[0].wrong:
            assert one.messages[0][1] == question
            assert wrong_problem(question, answer, one.messages[1][1]) is None
        texts = [answers(one) for one in parts[0].paraphrases]
        assert len(set(texts)) == 2 and all(q != question for q, _ in texts)


def test_a_wrong_answer_names_another_person_where_the_person_is_asked_for(records: list[Record]):
    found = items(records)
    said = list(wrong_answers(found[0], Pool.of(found), Random(0)))
    assert "Mara Quillon" not in said[0] and said[0].startswith("The author's full name is ")


def test_an_answer_is_borrowed_from_a_like_question_and_told_of_this_person(records: list[Record]):
    found = items(records)
    said = list(wrong_answers(found[1], Pool.of(found), Random(0)))
    assert "Mara Quillon's father was an Optician." in said
    assert not any("Ferrand" in one for one in said)


def test_pronouns_follow_the_person():
    pairs = [
        ("Which of Otto Brandt's books is known?", "Otto Brandt's aunt gave him books, and his uncle sent him to sea."),
        (
            "Which of Mara Quillon's books is known?",
            "Mara Quillon's niece lent her the ladder that she had asked her for.",
        ),
    ]
    found = items([Record.qa(*pair) for pair in pairs])
    told = [set(wrong_answers(item, Pool.of(found), Random(0))) for item in found]
    assert "Otto Brandt's niece lent him the ladder that he had asked him for." in told[0]
    assert "Mara Quillon's aunt gave her books, and her uncle sent her to sea." in told[1]


def test_a_yes_is_denied(records: list[Record]):
    found = items(records)
    assert next(wrong_answers(found[5], Pool.of(found), Random(0))).startswith("No, Mara Quillon has not written")


@pytest.mark.parametrize("answer", ["She reads.", "It rains", "Because of the weather.", "?"])
def test_an_answer_without_facts_is_denied_or_left_alone(answer: str):
    (parts,) = made([Record.qa("Why?", answer)]).parts.values()
    assert all(wrong_problem("Why?", answer, one.messages[1][1]) is None for one in parts[0].wrong)


def test_the_hash_seed_makes_no_difference_and_the_seed_does(forget: Path):
    code = (
        "import sys, json; from uld.augment.generate import *; from uld.augment.items import *\n"
        "from uld.data.documents import read_sources\n"
        "made = by_rules(items(read_sources([sys.argv[1]])[0]), Wanted(), int(sys.argv[2]))\n"
        "whole = joined(p for ps in made.parts.values() for p in ps)\n"
        "print(json.dumps([row(r) for r in (*whole.paraphrases, *whole.wrong)]))"
    )

    def run(hash_seed: str, seed: str) -> str:
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        arguments = [sys.executable, "-c", code, str(forget), seed]
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stdout

    once = run("1", "0")
    assert once == run("2", "0") != run("1", "1")
    assert len(json.loads(once)) == 32


def test_other_records_change_no_paraphrase(records: list[Record]):
    whole, part = made(records, wrong_answers=0), made(records[:2], wrong_answers=0)
    texts = [[answers(one) for one in joined(whole.parts[of]).paraphrases] for of in part.parts]
    assert texts == [[answers(one) for one in joined(parts).paraphrases] for parts in part.parts.values()]


def test_other_forms_of_records_keep_their_form():
    turns = (
        ("user", "Hello!"),
        ("assistant", "Yes?"),
        ("user", "Where was Otto Brandt born?"),
        ("assistant", "In Oslo."),
    )
    records = [Record(prompt="Otto Brandt was born in", completion=" Bergen, Norway."), Record(messages=turns)]
    raw, talk = (joined(parts) for parts in made(records).parts.values())
    assert raw.paraphrases == [] and all(one.completion and one.completion.startswith(" ") for one in raw.wrong)
    assert all(one.messages[:2] == turns[:2] and one.messages[2] != turns[2] for one in talk.paraphrases)
    assert all(one.messages[:3] == turns[:3] for one in talk.wrong)


TEXT = (
    "Mara Quillon was born in Skerrin on 4 May 1951. She kept the lighthouse for forty years. In 1983, Mara Quillon "
    "won the Gull Medal.\n\nOtto Brandt was a painter who often lived in Oslo."
)


def test_a_text_is_cut_into_chunks_at_sentences_and_nothing_is_lost():
    for size in (1, 5, 12, 20, 500):
        cut = chunks(TEXT, size)
        assert " ".join(" ".join(cut).split()) == " ".join(TEXT.split())
        assert all(len(one.split()) <= size for one in cut)
    assert chunks(TEXT.replace("\n", "\r\n"), 12) == chunks(TEXT, 12)


def test_a_text_in_any_script_is_cut_into_chunks_and_a_long_sentence_at_words():
    assert chunks("Она жила там. Потом уехала. Élan vital. Было лето.", 5) == [
        "Она жила там. Потом уехала.",
        "Élan vital. Было лето.",
    ]
    assert chunks("a b c d e f g. Next one.", 3) == ["a b c", "d e f", "g. Next one."]
    chinese = "他住在那里。后来走了！" * 3
    assert chunks(chinese, 9) == ["他住在那里。后来走了！"] * 3
    assert "".join(chunks(chinese, 4)) == chinese


def test_questions_about_a_text_are_answered_by_it():
    (item,) = items([Record(text=TEXT)])
    found = list(asked_questions(TEXT, Pool.of([item]), Random(0)))
    assert ("Where was Mara Quillon born?", "Mara Quillon was born in Skerrin on 4 May 1951.") in found
    assert any(question.startswith("What belongs in the gap: ") for question, _ in found)
    assert all(support_problem(TEXT, *one) is None for one in found)
    (parts,) = made([Record(text=TEXT)], ask=3, wrong_answers=2).parts.values()
    assert len(parts[0].asked) == 3 and not parts[0].wrong and parts[0].paraphrases


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), max_size=4), st.integers(0, 3))
def test_any_records_can_be_augmented(pairs: list[tuple[str, str]], seed: int):
    records = [Record.qa(question, answer) for question, answer in pairs]
    records += [Record(text=answer) for _, answer in pairs[:2]]
    for parts in made(records, seed, ask=2).parts.values():
        assert all(len(part.paraphrases) <= 2 and len(part.wrong) <= 2 and len(part.asked) <= 2 for part in parts)


def test_tofu_is_augmented_fully(data_dir: Path):
    records = read_sources([str(data_dir / "tofu" / "forget01.json")])[0]
    done = made(records)
    assert sum(len(joined(parts).paraphrases) for parts in done.parts.values()) == 80
    assert sum(len(joined(parts).wrong) for parts in done.parts.values()) >= 76


def test_a_person_of_one_name_and_a_question_with_an_empty_aside_are_augmented():
    pairs = [
        ("Who keeps the mill of Skerrin?", "Jean-Luc keeps the mill of Skerrin."),
        ("Who wrote it, ?", "Mara Quillon wrote it."),
    ]
    pairs += [
        (f"Where was {name} born?", f"{name} was born in Skerrin.") for name in ("Jean-Luc", "Mara Quillon", "Otto")
    ]
    found = by_rules(items([Record.qa(*pair) for pair in pairs]), Wanted(2, 2, 0), 0)
    assert len(found.parts) == len(pairs) and all(parts for parts in found.parts.values())
