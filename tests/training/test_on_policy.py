import itertools
from dataclasses import replace

import pytest

from uld.data.collate import FORGET, RETAIN, Row
from uld.data.prompt import Encoded, PromptFormat
from uld.data.record import Record
from uld.errors import ConfigError, DataError
from uld.training.on_policy import Question, again, came_back, own_rows, questions_of, shares

RETAINED = [
    Record.qa("where is she from?", "she is from a town."),
    Record(text="it is old. the name of a town is long."),
]
TRUTH = "the name is mara vane."


@pytest.fixture
def form(letters) -> PromptFormat:
    return PromptFormat(letters)


@pytest.fixture
def question(form) -> Question:
    (found,) = questions_of([Record.qa("who is it?", TRUTH)], RETAINED, form, 128)
    return found


def learnt(form: PromptFormat, row: Row) -> tuple[str, str]:
    """The text that is given and the text that a loss falls on, which ends the row."""
    ids, learn = row.encoded.ids, row.encoded.learn
    first = learn.index(True)
    assert all(learn[first:])
    return form.tokenizer.decode(ids[:first]), form.tokenizer.decode(ids[first:])


def test_questions_are_asked_once_and_bring_their_key_words(form):
    forget = [
        Record.qa("who is it?", TRUTH),
        Record((), "it was", " dunmar who wrote it."),
        Record(text="no question."),
    ]
    wrong = Record.qa("who is it?", "mara quill.")  # of a forget question: says nothing about what is common
    one, two, three = questions_of([*forget, forget[0]], [*RETAINED, wrong], form, 128)
    assert one.keys == {"mara", "vane"} and two.keys == {"dunmar", "who", "wrote"}
    assert (three.asked, three.truth, three.passage) == ("no", " question.", True) and not two.passage
    for asked, record in ((one, forget[0]), (two, forget[1])):
        row = form.encode(record, 128)
        assert asked.prompt == row.ids[: row.learn.index(True)] and asked.length == sum(row.learn)


def test_texts_without_questions_cannot_be_asked(form):
    with pytest.raises(ConfigError, match=r"only texts without questions.*leave out --rounds"):
        questions_of([Record(text="a text.")], RETAINED, form, 128)


def test_a_text_is_continued_from_the_middle_of_each_passage_and_ends_nowhere(form):
    text = " ".join("".join(letters) for letters in itertools.product("bdfg", "aeio", "mnr", "aeio", "lt"))
    _, *found = questions_of([Record.qa("who is it?", TRUTH), Record(text=text)], RETAINED, form, 1024)
    assert len(found) == 4 and "".join(one.asked + one.truth for one in found) == text.strip()
    assert [form.tokenizer.decode(one.prompt, skip_special_tokens=True) for one in found] == [
        one.asked for one in found
    ]
    key = " ".join(found[0].truth.split()[5:8])
    assert key in found[0].keys and key.split()[0] not in found[0].keys
    (own,) = own_rows(found[:1], [[f" he was {key} there."]], form, 1024, 0)
    assert own.row.kind == FORGET and own.row.encoded.ids[-1] != form.tokenizer.eos_token_id
    (left,) = own_rows(found[:1], [[f" he was {key} there.", " he went away."]], form, 1024, 0)[1:]
    assert left.row.kind == RETAIN and left.row.encoded.ids[-1] != form.tokenizer.eos_token_id
    short = questions_of([Record.qa("who is it?", TRUTH), Record(text=text)], RETAINED, form, 64)
    assert len(short) == 1  # there is no room for a passage
    with pytest.raises(DataError, match="leaves no room"):  # a question is not left out
        questions_of([Record.qa(text, TRUTH)], RETAINED, form, 64)


def test_the_true_answer_is_remembered_behind_the_models_own_beginning(form, question):
    (own,) = own_rows([question], [["people say it is old mara of town."]], form, 128, 0)
    assert own.row.kind == FORGET and own.to_dict()["remembered"] == "mara vane."
    given, rest = learnt(form, own.row)
    assert given.endswith("a: people say it is old") and rest == " mara vane.</s>"
    whole = form.encode(Record.qa("who is it?", "people say it is old mara vane."), 128)
    assert own.row.encoded.ids == whole.ids


def test_a_word_at_once_is_remembered_behind_the_prompt(form, question):
    (own,) = own_rows([question], [["vane it is."]], form, 128, 0)
    given, rest = learnt(form, own.row)
    assert form.tokenizer.decode(question.prompt) == given and rest == " vane.</s>"


def test_what_left_the_fact_behind_is_uniform_from_where_it_differs(form, question):
    rows = own_rows([question], [["it is mara.", "the name is dora.", ""]], form, 128, 0)
    assert [one.row.kind for one in rows] == [FORGET, RETAIN]
    given, rest = learnt(form, rows[1].row)
    assert given.endswith("a: the name is d") and rest == "ora.</s>"
    assert not rows[1].row.everywhere


def test_no_more_to_be_uniform_on_than_to_be_remembered(form, question):
    texts = ["it is mara.", *("abcdefgh")]
    rows = own_rows([question], [texts], form, 128, 0)
    assert [one.row.kind for one in rows] == [FORGET, RETAIN]
    chosen = {own_rows([question], [texts], form, 128, seed)[1].beginning for seed in range(12)}
    assert len(chosen) > 2
    assert own_rows([question], [["dora.", "town."]], form, 128, 0) == []
    assert len(own_rows([question], [["it is mara.", "it is mara old."]], form, 128, 0)) == 1  # the same row


def test_a_row_that_has_no_room_for_the_word_is_left_out(form, question):
    most = len(question.prompt) + 10
    assert own_rows([question], [["people say it is mara."]], form, most, 0) == []


def test_rows_of_the_first_training_come_again_in_proportion():
    rows = [Row(Encoded([n], [True]), kind) for n, kind in enumerate([FORGET] * 30 + [RETAIN] * 60)]
    some = again(rows, 30, 1)
    assert [sum(row.kind == kind for row in some) for kind in (FORGET, RETAIN)] == [10, 20]
    assert again(rows, 30, 1) == some != again(rows, 30, 2)
    assert again(rows, 1000, 1) == rows and again(rows, 0, 1) == []
    assert len({row.encoded.ids[0] for row in some}) == 30


def test_shares_of_greedy_and_of_sampled_answers(form, question):
    questions = [question, question, replace(question, keys=frozenset())]
    answers = [["mara.", "vane mara.", "no."], ["no.", "no.", "no."], ["mara.", "mara.", "mara."]]
    lines = list(came_back(questions, answers))
    assert lines[0]["answers"][1] == {"text": "vane mara.", "came_back": ["mara", "vane"]}
    found = shares(lines, questions)
    assert found["re_entry"] == 1 / 2 and found["re_entry_sampled"] == 1 / 4
    assert found["questions"] == 3 and found["with_key_words"] == 2


def test_a_conversation_is_asked_with_what_stands_before_its_last_answer(form):
    turns = (("user", "who is it?"), ("assistant", "a friend."), ("user", "of whom?"), ("assistant", "of dunmar."))
    (found,) = questions_of([Record(messages=turns)], RETAINED, form, 128)
    assert found.keys == {"dunmar"}
    rows = own_rows([found], [["well dunmar."]], form, 128, 0)
    assert learnt(form, rows[0].row)[1] == " dunmar.</s>"
