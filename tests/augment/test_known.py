"""Questions whose answer a target does not know: the measure on a micro model, and what is dropped because of it."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from uld.augment.generate import REASON, Wanted
from uld.augment.known import SCORES, Known, new_tokens
from uld.augment.run import augment_by_model, augment_by_rules
from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.errors import ULDError

QUESTION, ANSWER, OTHER = "who keeps the mill?", "the mill is kept by bad ace", "the mill is kept by fed gig"
TEXT = (
    "Mara Quillon was born in Skerrin in 1951. Mara Quillon is a keeper of lighthouses. "
    "Tobias Ferrand was born in Lisbon in 1948."
)


@pytest.fixture(scope="module")
def learned(make_target: Callable[..., Any], letters: Any) -> Known:
    """A model of two layers that knows one answer."""
    model = make_target("llama", num_layers=2).train()
    row = PromptFormat(letters, None).encode(Record.qa(QUESTION, ANSWER), 10**6)
    ids = torch.tensor([row.ids])
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimiser.step()
    return Known("micro", lambda: (model.eval(), letters))


def test_a_known_answer_is_told_from_one_that_says_the_same_of_others(learned: Known) -> None:
    assert learned.probability(QUESTION, ANSWER) > 0.5
    assert learned.probability(QUESTION, OTHER) < 0.1
    assert learned.probability("who keeps the barn?", "a kid") < 0.1


def test_the_measure_is_the_mean_over_what_the_answer_adds(learned: Known, letters: Any) -> None:
    model, form = learned.load()[0], PromptFormat(letters, None)
    row = form.encode(Record.qa(QUESTION, ANSWER), 10**6)
    with torch.no_grad():
        losses = torch.log_softmax(model(torch.tensor([row.ids])).logits[0], -1)
    text = letters.decode(row.ids)
    start = text.index("kept")  # 'the', 'mill' stand in the question, 'is' and 'by' are common
    words = [(start, start + 4), (text.index("bad"), text.index("bad") + 3), (text.index("ace"), text.index("ace") + 3)]
    pieces = [letters.decode([one]) for one in row.ids]
    ends = [sum(map(len, pieces[:i])) for i in range(len(pieces) + 1)]
    places = [i for i in range(len(pieces)) if any(ends[i] < end and begin < ends[i + 1] for begin, end in words)]
    expected = torch.stack([losses[place - 1, row.ids[place]] for place in places]).mean().exp()
    assert learned._in(form, QUESTION, ANSWER) == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("pieces", "question", "expected"),
    [
        (["Ann", " keeps", " the", " mill", "."], "Who keeps the mill?", [0]),
        (["An", "n", " Fer", "ris", " keeps", " it"], "Who keeps it?", [0, 1, 2, 3]),
        (["Yes", ",", " she", " is"], "Is she?", [0]),
        (["the", " mill"], "The mill?", [0, 1]),
    ],
)
def test_what_an_answer_adds_to_its_question(pieces: list[str], question: str, expected: list[int]) -> None:
    ends = [0, *itertools.accumulate(map(len, pieces))]
    assert new_tokens("".join(pieces), list(itertools.pairwise(ends)), question) == expected


class Judge(Known):
    """Knows what is said of Mara, and counts how often it is asked."""

    def __init__(self, least: float = 0.1) -> None:
        super().__init__("judge", lambda: (None, None), None, least)
        self.asked: list[tuple[str, str]] = []

    def probability(self, question: str, answer: str) -> float:
        self.asked.append((question, answer))
        return 0.9 if "Mara" in question + answer else 0.01


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def questions(folder: Path) -> list[str]:
    path = folder / "questions.jsonl"
    return [json.loads(line)["question"] for line in path.read_text().splitlines()] if path.exists() else []


def test_what_the_target_does_not_know_is_not_asked_and_counted(document: Path, tmp_path: Path) -> None:
    wanted = Wanted(0, 0, 12)
    everything = augment_by_rules(document, tmp_path / "all", wanted)
    assert any("Tobias" in one for one in questions(tmp_path / "all")) and not everything.dropped.get("asked")
    judge = Judge()
    result = augment_by_rules(document, tmp_path / "some", wanted, known=judge)
    assert questions(tmp_path / "some") and not any("Tobias" in one for one in questions(tmp_path / "some"))
    dropped = result.dropped["asked"][REASON]
    assert dropped == sum("Mara" not in question + answer for question, answer in judge.asked) > 0
    report = json.loads((tmp_path / "some" / "report.json").read_text())
    assert report["known"] == {"target": "judge", "least": 0.1}
    assert report["dropped"]["asked"][REASON] == dropped
    none = Judge(least=0.0)
    augment_by_rules(document, tmp_path / "none", wanted, known=none)
    assert questions(tmp_path / "none") == questions(tmp_path / "all") and not none.asked


def test_a_stopped_call_asks_the_target_nothing_twice(document: Path, tmp_path: Path) -> None:
    class Stopped(Judge):
        def probability(self, question: str, answer: str) -> float:
            if len(self.asked) == 2:
                raise KeyboardInterrupt
            return super().probability(question, answer)

    output, wanted = tmp_path / "out", Wanted(0, 0, 12)
    first = Stopped()
    with pytest.raises(KeyboardInterrupt):
        augment_by_rules(document, output, wanted, known=first)
    assert len((output / SCORES).read_text().splitlines()) == 2 and not (output / "report.json").exists()
    second, whole = Judge(), Judge()
    augment_by_rules(document, output, wanted, known=second)
    augment_by_rules(document, tmp_path / "whole", wanted, known=whole)
    assert first.asked + second.asked == whole.asked
    assert questions(output) == questions(tmp_path / "whole")


def test_nothing_to_forget_is_one_sentence_and_costs_no_answer(document: Path, tmp_path: Path) -> None:
    class Ignorant(Judge):
        def probability(self, question: str, answer: str) -> float:
            return 0.01

    asked: list[int] = []

    def ask_all(left: Any, done: Any) -> None:
        from uld.augment.endpoint import Reply

        for number, _ in left:
            asked.append(number)
            items = [{"question": "Where was Mara Quillon born?", "answer": "Mara Quillon was born in Skerrin."}]
            done(number, Reply(json.dumps({"items": items})))

    how = {"by": {"named": "m"}, "chunk_words": 150}
    wanted = Wanted(0, 0, 1)
    with pytest.raises(ULDError, match=r"^nothing to forget: judge knows the answer to none of 1 questions"):
        augment_by_model(document, tmp_path / "out", wanted, ask_all, known=Ignorant(), **how)
    assert not (tmp_path / "out" / "report.json").exists()
    result = augment_by_model(document, tmp_path / "out", wanted, ask_all, known=Judge(least=0.005), **how)
    assert result.kept == {"questions.jsonl": 1} and asked == [0]  # the model's answers were kept


def test_a_target_that_was_trained_anew_in_its_folder_is_asked_again(tmp_path: Path) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    asked = []
    for bytes_, says in ((b"one", 0.001), (b"another", 0.9), (b"another", 0.5)):
        if not weights.exists() or weights.read_bytes() != bytes_:
            weights.write_bytes(bytes_)
        known = Known(str(weights.parent), lambda: (None, None))
        known.probability = lambda *pair, says=says: asked.append(says) or says  # type: ignore[method-assign]
        with known.judging(tmp_path, "an augmentation") as problem:
            found = problem((QUESTION, ANSWER))
        assert (found is None) is (says > 0.1)
    assert asked == [0.001, 0.9]  # what was kept of the second is the third's


def test_a_target_that_gives_nan_is_told_of_and_no_question_is_dropped(
    make_target: Callable[..., Any], letters: Any, document: Path, tmp_path: Path
) -> None:
    model = make_target("llama", num_layers=2)
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    broken = Known("broken", lambda: (model, letters))
    with pytest.raises(ULDError, match=r"^broken gives NaN as the probability of an answer"):
        augment_by_rules(document, tmp_path / "out", Wanted(0, 0, 2), known=broken)
    assert (tmp_path / "out" / SCORES).read_text() == "" and not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize("probability", ["NaN", '"0.9"', "null"])
def test_kept_scores_that_are_none_are_asked_for_again(document: Path, tmp_path: Path, probability: str) -> None:
    output, judge = tmp_path / "out", Judge()
    augment_by_rules(document, output, Wanted(0, 0, 4), known=judge)
    lines = [json.loads(line) for line in (output / SCORES).read_text().splitlines()]
    spoilt = json.dumps(lines[0] | {"probability": 0}).replace('"probability": 0', f'"probability": {probability}')
    (output / SCORES).write_text("\n".join([spoilt, *map(json.dumps, lines[1:])]) + "\n")
    again = Judge()
    augment_by_rules(document, output, Wanted(0, 0, 4), known=again)
    assert again.asked == judge.asked[:1]
