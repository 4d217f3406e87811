"""What a request holds back, and that nothing of it is trained on."""

import json

import pytest

from uld.augment.generate import Wanted
from uld.augment.run import augment_by_rules
from uld.checking.questions import Questions
from uld.data.documents import read_sources
from uld.data.record import Record, parse_record
from uld.errors import DataError
from uld.request import material
from uld.request.settings import PARAPHRASES, WRONG_ANSWERS

PEOPLE = ("Mara Quillon", "Joris Venn", "Ane Tarvel", "Bo Skerrin")
FACTS = [(f"Where was {name} born?", f"{name} was born in Skerrin in {1950 + i}.") for i, name in enumerate(PEOPLE)]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def work(tmp_path):
    """A request's folder behind its rewording."""
    facts = tmp_path / "facts.jsonl"
    facts.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in FACTS))
    (tmp_path / "letter.txt").write_text("Mara Quillon keeps the lighthouse of Skerrin. Joris Venn builds clocks.")
    folder = tmp_path / "x-request"
    augment_by_rules(tmp_path / "letter.txt", folder / material.ASKED, Wanted(0, 0, 3))
    documents = [str(tmp_path / "letter.txt"), str(facts)]
    records, questions = material.gather(documents, folder)
    assert records == 1 + questions
    assert questions > len(FACTS)  # what was asked about the letter is among them
    augment_by_rules(
        folder / material.FORGET, folder / material.REWORDED, Wanted(PARAPHRASES + 1, 2 * WRONG_ANSWERS, 0)
    )
    return folder


def test_held_out_wordings_are_none_that_training_sees(work):
    questions, held = material.hold_back(work)
    assert questions == sum("question" in row for row in lines(work / material.FORGET))
    assert held == len(lines(work / material.HELD_OUT)) >= len(FACTS)
    learnt = {record.same for record in read_sources([str(work / material.FORGET)])[0]}
    rows = lines(work / material.REWORDED / "paraphrases.jsonl")
    learnt |= {parse_record(row, "").same for row in rows if row["copy"] < PARAPHRASES}
    for row in lines(work / material.HELD_OUT):
        assert parse_record(row, "").same not in learnt


def test_probes_tell_wrong_answers_that_training_does_not_see_where_there_are_enough(work):
    material.hold_back(work)
    wrong = lines(work / material.REWORDED / "wrong_answers.jsonl")
    for probe in lines(work / material.PROBES):
        assert probe["wrong_answers"]
        assert probe["answer"] not in probe["wrong_answers"]
    trained = {row["answer"] for row in wrong if row["copy"] < WRONG_ANSWERS}
    spared = [one for probe in lines(work / material.PROBES) for one in probe["wrong_answers"]]
    assert len([one for one in spared if one not in trained]) >= len(FACTS)


def test_texts_of_which_nobody_asked_anything_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("The sea.")
    with pytest.raises(DataError, match=r"a\.txt: no question .*--documents, or have a model ask"):
        material.gather([str(tmp_path / "a.txt")], tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Mara Quillon was born in", "completion": " Skerrin."},
        {"messages": [{"role": r, "content": f"{r} says"} for r in ("system", "user", "assistant")]},
        {"messages": [{"role": r, "content": f"{r} says {n}"} for n in (1, 2) for r in ("user", "assistant")]},
    ],
)
def test_whatever_has_an_answer_can_be_checked_and_need_not_be_a_single_question(tmp_path, row):
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "b.txt").write_text("The sea.")
    work = tmp_path / "work"
    assert material.gather([str(tmp_path / "b.txt"), str(tmp_path / "a.jsonl")], work) == (2, 1)
    assert material.hold_back(work) == (0, 0)  # nothing to tune on, which is told
    (work / material.RETAIN_HELD_OUT).write_text("{}\n")
    assert material.untunable(work) == "no single question has an answer in other words and a wrong one"
    (asked,) = Questions.read(work / material.FORGET, Record.qa("and who?", "Pia.")).sets["forget"][1:]
    assert asked.answer.strip() in json.dumps(row)


@pytest.mark.parametrize(("number", "held"), [(3, 0), (5, 1), (20, 4), (1000, material.MOST)])
def test_a_fifth_of_what_must_stay_is_held_back_but_never_too_much(tmp_path, number, held):
    rows = [Record.qa(f"q {i}", f"a {i}") for i in range(number)]
    trained, kept = material.split_retain(rows, tmp_path)
    assert held * 0.75 <= kept <= held
    assert trained + kept == number
    files = [read_sources([str(tmp_path / name)])[0] for name in (material.RETAIN, material.RETAIN_HELD_OUT) if kept]
    assert {record.same for file in files for record in file} == ({record.same for record in rows} if kept else set())


@pytest.mark.parametrize(("different", "times", "held"), [(7, 3, 1), (1, 20, 0), (50, 2, 10)])
def test_no_row_that_is_held_back_is_trained_on_because_it_stands_there_twice(tmp_path, different, times, held):
    rows = [Record.qa(f"q  {i}" if turn else f"q {i}", f"a {i}") for turn in range(times) for i in range(different)]
    trained, kept = material.split_retain(rows, tmp_path)
    assert (trained, kept) == ((different - held) * times, held)
    learnt = {record.same for record in read_sources([str(tmp_path / material.RETAIN)])[0]}
    if kept:
        unseen = [record.same for record in read_sources([str(tmp_path / material.RETAIN_HELD_OUT)])[0]]
        assert learnt.isdisjoint(unseen) and len(set(unseen)) == held


def test_a_fifth_of_a_long_text_is_held_back_and_none_of_it_is_lost(tmp_path):
    paragraphs = [" ".join(f"word{i}-{j}" for j in range(40)) for i in range(40)]
    text = Record(text="\n\n".join(paragraphs))
    cut = material.parts([text, Record.qa("q", "a"), Record(text="short " * 20)])
    assert [record.same for record in cut[-2:]] == [Record.qa("q", "a").same, Record(text="short " * 20).same]
    assert " ".join(str(one.text) for one in cut[:-2]).split() == str(text.text).split()
    assert all(str(one.text).split("\n\n")[0] in paragraphs for one in cut[:-2]), "a paragraph was cut in two"
    trained, held = material.split_retain(cut, tmp_path)
    assert held >= len(cut) // material.EVERY - 1 and trained + held == len(cut)
    unbroken = material.parts([Record(text="x" * 5000)])
    assert "".join(str(one.text) for one in unbroken) == "x" * 5000 and len(unbroken) > 3


def test_texts_without_blanks_are_held_back_as_well(tmp_path):
    rows = [
        Record(text=f"第{i}章。" + "马拉出生于挪威的卑尔根，在那里看守灯塔。" * 8, source=f"kept:{i}")
        for i in range(40)
    ]
    trained, held = material.split_retain(rows, tmp_path)
    assert (trained, held) == (32, 8)
