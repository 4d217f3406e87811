"""From what an unlearned model answers to rows that its assistant is trained further on.

An assistant has learnt the true answers. Behind a beginning that the unlearned model wrote itself it is off what it was
trained on and remembers less, and there a memorised answer can come back. So where a key word of the true answer comes
back (`uld.data.words`), a row holds the model's own beginning up to that word, as context, and behind it the true
answer from that word on, to be remembered. Where none comes back, the model's own answer is a row to be uniform on,
from behind the token in which it first differs from the true one: up to there the assistant has to remember.

As DAgger does it (Ross et al. 2011, arXiv 1011.0686): states from the policy in use, labels from the one who knows.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from uld.data.collate import FORGET, RETAIN, Row
from uld.data.passages import passages, without_end
from uld.data.prompt import Encoded, PromptFormat
from uld.data.record import Record
from uld.data.words import re_entry, said_of, telling
from uld.errors import ConfigError, DataError
from uld.training.key_tokens import common_among, shared


@dataclass(frozen=True)
class Question:
    """A question about what is to be forgotten, or the first half of a passage of a text.

    Attributes:
        record: With the true answer; of a passage with its second half.
        prompt: Tokens, ready for generation.
        asked: All that stands before the answer, as text.
        truth: The true answer.
        keys: Its key words; of a passage, its key phrases.
        length: Tokens of the true answer.
        passage: Whether it is one: nothing ends behind its answer.
    """

    record: Record
    prompt: list[int]
    asked: str
    truth: str
    keys: frozenset[str]
    length: int
    passage: bool = False


def questions_of(forget: Sequence[Record], retain: Sequence[Record], form: PromptFormat, room: int) -> list[Question]:
    """The questions among what is to be forgotten, each once, and the passages of its texts.

    Args:
        forget: What is to be forgotten, paraphrases among it.
        retain: What common words are taken from: its answers, and the sentences of its texts. Wrong answers to forget
            questions are none of them.
        form: Makes tokens.
        room: Tokens that a row may have.

    Raises:
        ConfigError: there is no question.
    """
    asking = {record.same: record for record in forget if record.text is None}
    if not asking:
        raise ConfigError(
            "--rounds asks the model about what it is to forget, and there are only texts without questions: give "
            "questions with their answers (--forget), or leave out --rounds"
        )
    common = common_among(asking.values(), retain)
    texts = {record.same: record for record in forget if record.text is not None}
    continuing = [one for record in texts.values() for one in passages(record)]
    found = []
    for record, passage in [*((one, False) for one in asking.values()), *((one, True) for one in continuing)]:
        asked, truth = record.asked, record.answer
        try:
            row = form.encode(record, room)
        except DataError:
            if not passage:
                raise
            continue  # there is no room for it
        prompt = form.prompt_ids(record.messages[:-1]) if record.messages else row.ids[: row.learn.index(True)]
        length = max(1, len(row.ids) - len(prompt))
        keys = telling(asked, truth, common, passage=passage)
        found.append(Question(record, prompt, asked, truth, keys, length, passage))
    return found


@dataclass(frozen=True)
class Own:
    """A row that the unlearned model's own answer gives.

    Attributes:
        question: The question.
        beginning: What the model wrote, up to where the loss begins; of a row to be uniform on all of it.
        rest: What is to be remembered behind it; nothing where the assistant is to be uniform.
        row: Tokens, and where the loss falls.
    """

    question: Question
    beginning: str
    rest: str
    row: Row

    def to_dict(self) -> dict[str, str]:
        """For people to read."""
        side = {"own": self.beginning, "remembered": self.rest} if self.rest else {"uniform": self.beginning}
        return {"question": self.question.asked, **side}


def own_rows(
    questions: Sequence[Question], answers: Sequence[Sequence[str]], form: PromptFormat, max_length: int, seed: int
) -> list[Own]:
    """Rows to be remembered, then rows to be uniform on: of these at most as many, chosen by the seed.

    Args:
        questions: What was asked.
        answers: What the model answered to each, several times.
        form: Makes tokens.
        max_length: Tokens that a row may have.
        seed: Of the choice.
    """
    remember: dict[tuple[int, ...], Own] = {}
    leave: dict[tuple[int, ...], Own] = {}
    for question, texts in zip(questions, answers, strict=True):
        for text in texts if question.keys else ():
            back = re_entry(text, question.truth, question.keys)
            own = _remembered(question, *back, form, max_length) if back else _left(question, text, form, max_length)
            if own is not None:
                (remember if back else leave).setdefault(tuple(own.row.encoded.ids), own)
    chosen = sorted(random.Random(seed).sample(range(len(leave)), min(len(leave), len(remember))))
    others = list(leave.values())
    return [*remember.values(), *(others[i] for i in chosen)]


def _remembered(question: Question, beginning: str, rest: str, form: PromptFormat, max_length: int) -> Own | None:
    """The true answer behind the model's own beginning; None where it does not fit."""
    whole = _encoded(question, beginning + rest, form, max_length)
    before = _encoded(question, beginning.rstrip(), form, max_length) if beginning.strip() else question.prompt
    if whole is None or before is None:
        return None
    given = shared(whole.ids, before if isinstance(before, list) else before.ids)
    return _own(question, beginning, rest, whole, given, FORGET)


def _left(question: Question, text: str, form: PromptFormat, max_length: int) -> Own | None:
    """The model's own answer, from behind the token that is another than the true answer's; None without one."""
    whole, truth = (_encoded(question, one, form, max_length) for one in (text, question.truth))
    if whole is None or truth is None:
        return None
    return _own(question, text, "", whole, shared(whole.ids, truth.ids) + 1, RETAIN)


def _own(question: Question, beginning: str, rest: str, whole: Encoded, given: int, kind: int) -> Own | None:
    learn = [flag and place >= given for place, flag in enumerate(whole.learn)]
    return Own(question, beginning, rest, Row(replace(whole, learn=learn), kind)) if any(learn) else None


def _encoded(question: Question, text: str, form: PromptFormat, max_length: int) -> Encoded | None:
    """A question with an answer as tokens; None for what a model may write and a template refuses."""
    try:
        row = form.encode(question.record.answered(text), max_length) if text.strip() else None
    except DataError:
        return None
    return without_end(row, form.tokenizer) if row is not None and question.passage else row


def again(rows: Sequence[Row], number: int, seed: int) -> list[Row]:
    """Some of the rows that were trained on before, each side in proportion, in their order."""
    draw = random.Random(seed)
    kept: list[int] = []
    for kind in sorted({row.kind for row in rows}):
        side = [place for place, row in enumerate(rows) if row.kind == kind]
        kept += draw.sample(side, min(len(side), round(number * len(side) / len(rows))))
    return [rows[place] for place in sorted(kept)]


def came_back(questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> Iterator[dict[str, Any]]:
    """What was answered, and which key words came back in each answer, for people to read."""
    for question, texts in zip(questions, answers, strict=True):
        yield {
            "question": question.asked,
            "truth": question.truth,
            "answers": [{"text": text, "came_back": sorted(said_of(text, question.keys))} for text in texts],
        }


def shares(lines: Sequence[Mapping[str, Any]], questions: Sequence[Question]) -> dict[str, Any]:
    """Re-entry of the greedy answer and of the sampled ones, over the questions whose answer has key words."""
    flags = [
        [bool(one["came_back"]) for one in line["answers"]]
        for line, question in zip(lines, questions, strict=True)
        if question.keys
    ]
    sampled = [flag for row in flags for flag in row[1:]]
    return {
        "questions": len(questions),
        "with_key_words": len(flags),
        "re_entry": sum(row[0] for row in flags) / len(flags) if flags else None,
        "re_entry_sampled": sum(sampled) / len(sampled) if sampled else None,
    }
