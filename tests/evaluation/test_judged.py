"""Judged are the tokens that a model wrote, behind its prompt, with an end only where one was written."""

import json
from typing import Any

import pytest
import tokenizers
import torch

from tests.conftest import letter_tokenizer
from uld.data.record import Record
from uld.evaluation.benchmark import Subject
from uld.evaluation.judged import judged
from uld.model.generate import Written, last_ids

QUESTION = Record.qa("who?", "me", "q")
COMPLETED = Record(prompt="she was born in", completion=" rome", source="p")
END = 2


@pytest.fixture
def judge(make_target, letters) -> Subject:
    return Subject(make_target("llama"), letters)


@torch.no_grad()
def naive(judge: Subject, prompt: str, answer: list[int]) -> float:
    given = judge.tokenizer(prompt, add_special_tokens=False).input_ids
    logits = judge.model(torch.tensor([[*given, *answer]])).logits[0, len(given) - 1 : -1]
    return -logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None]).sum().item()


def of(judge: Subject, record: Record, text: str, row: dict) -> tuple[float, int]:
    task = judged(judge, [record], [text], [row])
    (found,) = task.work(list(task.rows))
    return found["judged_loss"], found["judged_tokens"]


def row_of(judge: Subject, text: str, *more: int) -> dict:
    ids = judge.tokenizer(text, add_special_tokens=False).input_ids
    return Written.of([*ids, *more], judge.tokenizer, last_ids(judge.model, judge.tokenizer)).row


@pytest.mark.parametrize(("more", "end"), [((), []), ((END, 0, 0), [END])])
@pytest.mark.parametrize(("record", "prompt"), [(QUESTION, "<s>q: who? a:"), (COMPLETED, "she was born in")])
def test_the_written_tokens_count_and_an_end_only_where_one_was_written(judge, record, prompt, more, end):
    row = row_of(judge, " in rome.", *more)
    ids = [*judge.tokenizer(" in rome.", add_special_tokens=False).input_ids, *end]
    loss, tokens = of(judge, record, "in rome.", row)
    assert (tokens, loss) == (len(ids), pytest.approx(naive(judge, prompt, ids), rel=1e-4))


def test_rows_of_earlier_versions_are_judged_by_their_text_without_an_end(judge):
    loss, tokens = of(judge, QUESTION, "in rome.", {})
    ids = judge.tokenizer(" in rome.", add_special_tokens=False).input_ids
    assert (tokens, loss) == (len(ids), pytest.approx(naive(judge, "<s>q: who? a:", ids), rel=1e-4))


def with_other_numbers(tokenizer: Any) -> Any:
    """The same letters in another order."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    words = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    content["model"]["vocab"] = {word: i for i, word in enumerate([*words[:4], *words[:3:-1]])}
    whole = tokenizers.Tokenizer.from_str(json.dumps(content))
    special = {name: getattr(tokenizer, name) for name in ("pad_token", "bos_token", "eos_token", "unk_token")}
    return type(tokenizer)(tokenizer_object=whole, chat_template=tokenizer.chat_template, **special)


@pytest.mark.parametrize("end", [None, 3])
@pytest.mark.parametrize(("record", "prompt"), [(QUESTION, "<s>q: who? a:"), (COMPLETED, "she was born in")])
def test_a_judge_with_another_tokenizer_reads_the_text(judge, record, prompt, end):
    other = with_other_numbers(letter_tokenizer())
    judge = Subject(judge.model, other)
    theirs = letter_tokenizer()(" in rome.", add_special_tokens=False).input_ids
    ours = [*other(" in rome.", add_special_tokens=False).input_ids, *([] if end is None else [END])]
    assert ours[: len(theirs)] != theirs
    row = {"written": " in rome.", "ids": theirs, "end": end}
    loss, tokens = of(judge, record, "in rome.", row)
    assert (tokens, loss) == (len(ours), pytest.approx(naive(judge, prompt, ours), rel=1e-4))


REASONING = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}q: {{ m.content }} a:{% else %}"
    "<think></think>{{ m.content.split('</think>')[-1] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("known", [True, False])
def test_an_answer_is_no_template_of_its_own(judge, letters, known, monkeypatch):
    monkeypatch.setattr(letters, "chat_template", REASONING)
    row = row_of(judge, "a </think>") if known else {}
    text = letters.decode(row["ids"], skip_special_tokens=True).strip() if known else "a </think>"
    loss, tokens = of(Subject(judge.model, letters), QUESTION, text, row)
    assert tokens == len("a </think>") and loss > 0


def test_an_empty_answer_is_not_judged(judge):
    assert of(judge, QUESTION, "", row_of(judge, " ", END)) == (0.0, 0)
