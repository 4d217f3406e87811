"""Side by side: streamed answers are those that each model gives alone; runs share a target and keep their settings."""

import itertools
import threading

import pytest

from uld.errors import ULDError
from uld.evaluation.explain import Kept, explain
from uld.model.generate import generate_answers
from uld.model.load import load
from uld.playground.answers import ALL, COLUMNS, Asking, _in_lockstep, questions_of, runs_of, table_row

QUESTION = "who is ada?"


@pytest.fixture(scope="module")
def folders(make_run, tmp_path_factory):
    """Two runs of one target, whose assistants have different depths."""
    from uld.model.combine import Combination

    place = tmp_path_factory.mktemp("runs")
    (make_run(place, num_layers=2)).rename(place / "one")
    (make_run(place, num_layers=1, how=Combination(weight=4.0, margin=0.5, floor=0.01))).rename(place / "two")
    return [str(place / "one"), str(place / "two")]


@pytest.fixture(scope="module")
def runs(folders):
    return runs_of(*load(folders), folders)


def test_each_run_answers_as_it_does_alone(folders, runs):
    assert [run.name for run in runs] == [*folders, ALL]
    for run, place in zip(runs, [*folders, folders], strict=True):
        model, tokenizer = load(place)
        assert run.settings() == model.combinations
        (*_, kept) = Asking(6).stream(run, QUESTION, run.settings())
        assert isinstance(kept, Kept)
        expected = explain(model, tokenizer, QUESTION, max_new_tokens=6)
        found = kept.under(run.settings())
        assert [one.text for one in found.answers] == [one.text for one in expected.answers]
        assert found.answers[0].taken == pytest.approx(expected.answers[0].taken, abs=1e-3)


def test_both_answers_grow_in_turn_to_what_each_model_says(runs):
    run = runs[0]
    *parts, _ = Asking(6).stream(run, QUESTION, run.settings())
    prompt = [run.form.prompt_ids(QUESTION)]
    for who, model in {"target": run.model.target, "unlearned": run.model}.items():
        texts = [part[who] for part in parts]
        assert texts[-1] == generate_answers(model, run.form.tokenizer, prompt, max_new_tokens=6)[0]
        assert all(later.startswith(sooner) for sooner, later in itertools.pairwise(texts))
    counts = [[len(ids) for ids in said.values()] for said in _in_lockstep(run, *prompt, 6)]
    assert counts[:4] == [[1, 0], [1, 1], [2, 1], [2, 2]]


def test_settings_hold_for_one_answer_alone(runs):
    run = runs[1]
    own = run.model.combinations
    off = run.settings(weight=0.0)
    *_, last, _ = Asking(6).stream(run, QUESTION, off)
    assert last["target"] == last["unlearned"]
    assert run.model.combinations is own
    with pytest.raises(ULDError, match=r"weight \(α\) must lie between 0 and"):
        run.settings(weight=-1.0)


def test_an_answer_that_nobody_waits_for_ends_and_leaves_the_model_free(runs):
    run, asking = runs[0], Asking(100)
    before = threading.active_count()
    news = asking.stream(run, QUESTION, run.settings(weight=1.0))
    next(news)
    news.close()
    assert threading.active_count() == before and run.settings() == run.model.combinations
    assert asking.given(run, QUESTION, "bob").under(run.settings()).answers[0].who == "given"


def test_what_fails_in_an_answer_is_told_to_the_asker(runs, monkeypatch):
    run = runs[0]
    monkeypatch.setattr(type(run.model), "forward", None)
    with pytest.raises(TypeError):
        list(Asking(6).stream(run, QUESTION, run.settings()))
    monkeypatch.undo()
    assert list(Asking(6).stream(run, QUESTION, run.settings()))


def test_a_question_is_checked_before_anything_is_asked(runs):
    for question, message in ((" ", "'question' is empty"), ("a" * 200, "the model takes fewer than 128")):
        with pytest.raises(ULDError, match=message):
            next(Asking(6).stream(runs[0], question, runs[0].settings()))


def test_runs_of_different_targets_are_refused(folders, make_run, tmp_path):
    other = make_run(tmp_path, seed=1)
    with pytest.raises(ULDError, match="another target"):
        load([folders[0], str(other)])


def test_questions_come_from_lines_or_from_records(tmp_path):
    lines, records, empty, texts = (tmp_path / name for name in ("q.txt", "q.jsonl", "e.txt", "t.jsonl"))
    lines.write_text("who is ada?\n\n  who is bob? \n")
    records.write_text('{"question": "who is ada?", "answer": "a teacher"}\n')
    empty.write_text("\n \n")
    texts.write_text('{"text": "a whole text"}\n')
    assert questions_of(lines) == ["who is ada?", "who is bob?"]
    assert questions_of(records) == ["who is ada?"]
    for file, message in ((empty, "no question in it"), (texts, "a .txt file of one question a line")):
        with pytest.raises(ULDError, match=message):
            questions_of(file)
    with pytest.raises(ULDError, match="no such file"):
        questions_of(tmp_path / "none.txt")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_question_of_a_file_ends_where_a_line_does_and_nowhere_else(tmp_path, end):
    asked = [f"who is ada,{sign}and who is bob?" for sign in "\u2028\u2029\x85\x0b\x0c\x1c"]
    (tmp_path / "lines.txt").write_bytes(f"\ufeff{end.join([*asked, ' ', chr(0x200B), ''])}".encode())
    assert questions_of(tmp_path / "lines.txt") == asked


def test_a_row_of_the_table(runs):
    run = runs[0]
    explanation = Asking(6).explained(run, QUESTION, run.settings())
    row = table_row(explanation)
    target, unlearned = explanation.answers
    assert len(row) == len(COLUMNS) and row[:3] == [QUESTION, target.text, unlearned.text]
    assert row[3] == pytest.approx(target.taken, abs=0.01)
    assert row[5] == pytest.approx(max(one.taken for one in target.tokens), abs=0.01)
