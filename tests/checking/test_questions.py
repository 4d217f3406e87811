"""What is asked: every form of a record, passages of texts, sets that share rows, and empty files."""

import json

import pytest

from uld.checking.asked import Asked, encoded
from uld.checking.questions import Item, Questions
from uld.data.passages import PASSAGES
from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.errors import DataError

KEPT = Record.qa("who bakes?", "the baker.")
WORDS = " ".join(f"word{i}" for i in range(700))


def forget_items(*records: Record, **how) -> list[Item]:
    return Questions.read(list(records), KEPT, **how).sets["forget"]


def test_every_form_has_a_question_and_an_answer():
    talk = (("system", "be brief"), ("user", "who?"), ("assistant", "Odo"), ("user", "where?"), ("assistant", "Kamp"))
    items = forget_items(
        Record.qa("who?", "Odo"), Record(prompt="Odo is", completion=" at home"), Record(messages=talk)
    )
    assert [(one.question, one.answer, one.passage) for one in items] == [
        ("who?", "Odo", False),
        ("Odo is", " at home", False),
        ("be brief\nwho?\nOdo\nwhere?", "Kamp", False),
    ]


def test_a_text_becomes_passages_that_lose_nothing():
    items = forget_items(Record(text=WORDS))
    assert len(items) > 5 and all(one.passage for one in items)
    assert "".join(one.question + one.answer for one in items) == WORDS
    assert all(one.answer.startswith(" ") and not one.question.endswith(" ") for one in items)  # between words
    assert {len(one.question) + len(one.answer) > 290 for one in items} == {True}


def test_a_text_without_blanks_is_cut_anywhere_and_a_long_one_spread():
    items = forget_items(Record(text="字" * 1500))
    assert "".join(one.question + one.answer for one in items) == "字" * 1500
    assert len(forget_items(Record(text=WORDS * 20))) == PASSAGES


def test_a_passage_ends_nowhere(letters):
    form = PromptFormat(letters)
    passage = Item(Record(prompt="abc", completion=" def"), passage=True)
    row = encoded(form, passage)
    assert letters.decode(row.ids).endswith("def") and encoded(form, Item(passage.record)).ids == [*row.ids, 2]


def test_only_the_last_answer_of_a_conversation_counts(letters):
    talk = (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    row = encoded(PromptFormat(letters), Item(Record(messages=talk)))
    said = letters.decode([token for token, learnt in zip(row.ids, row.learn, strict=True) if learnt])
    assert "d" in said and "b" not in said


def test_what_is_ordinary_is_not_asked_and_its_common_words_give_nothing_away(tmp_path):
    forget = Record.qa("Who is she?", "A bookbinder who lives in Elbendam.")
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"text": "A man who lives here. He binds."}) + "\n" + json.dumps({"text": "In a lane."}))
    asked, before = (Asked(Questions.read(forget, KEPT, **how)) for how in ({"ordinary": more}, {}))
    assert asked.keys["forget"] == [{"bookbinder", "elbendam"}]
    assert before.keys["forget"] == [{"a", "bookbinder", "lives", "in", "elbendam"}]
    assert [len(items) for items in asked.questions.sets.values()] == [1, 1] and asked.about != before.about
    with pytest.raises(DataError, match="this ordinary record is also in the forget set"):
        Questions.read(forget, KEPT, ordinary=[KEPT, forget])
    with pytest.raises(DataError, match="this ordinary record is also in the forget set"):
        Questions.read(Record.qa("x", "y"), KEPT, forget, ordinary=forget)


def test_a_limit_is_spread_over_each_set():
    many = [Record.qa(f"who is {i}?", f"number {i}") for i in range(10)]
    found = Questions.read(many[:9], many[9], limit=3)
    assert [one.answer for one in found.sets["forget"]] == ["number 0", "number 3", "number 6"]
    assert len(found.sets["retain"]) == 1
    kept = Questions.read(many[9], many[:9], limit=3)
    assert len(kept.sets["retain"]) == 3 and len(kept.kept) == 9  # key words are told by all of them


def test_the_same_question_cannot_be_kept_and_forgotten(tmp_path):
    forget, retain = tmp_path / "forget.jsonl", tmp_path / "retain.jsonl"
    forget.write_text(json.dumps({"question": "who is Odo?", "answer": "a teacher"}) + "\n")
    retain.write_text(json.dumps({"question": "who  is Odo?", "answer": "nobody"}) + "\n")
    with pytest.raises(
        DataError, match=r"retain.jsonl:1: the retain set asks what the forget set asks .*forget.jsonl:1"
    ):
        Questions.read(forget, retain)
    retain.write_text(forget.read_text())
    with pytest.raises(DataError, match=r"retain.jsonl:1: this retain record is also in the forget set"):
        Questions.read(forget, retain)
    with pytest.raises(DataError, match=r"the held-out set asks what the forget set asks .* is no other wording"):
        Questions.read(forget, KEPT, held_out=retain)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "empty"),
        ('{"question": "who?"}\n', "has 'question' but no 'answer'"),
        ('{"question": "who?", "answer": ""}\n', "'answer' is empty"),
        ('{"text": "a"}\n', "too short to be cut in two"),
    ],
)
def test_files_that_ask_nothing_are_refused(tmp_path, text, sentence):
    (tmp_path / "forget.jsonl").write_text(text)
    with pytest.raises(DataError, match=sentence):
        Questions.read(tmp_path / "forget.jsonl", KEPT)
