"""What a model is asked for, and how its answer is read: JSON, checked at this border and nowhere else."""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ValidationError

from uld.augment.endpoint import encodable
from uld.augment.items import Item

Job = Literal["pairs", "wrong", "text", "asked"]
SPARE = 1
"""So many more than are wanted are asked for, because the filters drop some."""


class Pair(BaseModel):
    """A question and its answer."""

    question: str
    answer: str


class Pairs(BaseModel):
    """An answer that lists questions and answers."""

    items: list[Pair]


class Texts(BaseModel):
    """An answer that lists texts."""

    items: list[str]


_PAIRS_FORM = '{"items": [{"question": "...", "answer": "..."}, ...]}'
_TEXTS_FORM = '{"items": ["...", ...]}'
_END = "\nAnswer with JSON alone, in this form: "
_ASK: dict[Job, str] = {
    "pairs": """\
Rephrase this question and its answer in {n} different ways. Every version means the same. Keep every name, title,
number and date exactly as it stands, and add nothing.

Question: {question}
Answer: {answer}
""",
    "wrong": """\
Give {n} different wrong answers to this question. Each is as long as the right answer, sounds as plausible, and states
other facts: other names, numbers, dates or places. None may be true.

Question: {question}
Right answer: {answer}
""",
    "text": """\
Rewrite this text in {n} different ways. Every version says the same in other words. Keep every name, title, number and
date exactly as it stands, and leave nothing out.

Text: {answer}
""",
    "asked": """\
Write {n} questions that this text answers, each with its answer in a whole sentence. Ask for facts. Every question
names whom or what it is about, and can be understood without the text. Use nothing that the text does not say.

Text: {answer}
""",
}
_OF_PAIRS = ("pairs", "asked")


def jobs(item: Item, paraphrases: int, wrong_answers: int, ask: int) -> Iterator[tuple[Job, int]]:
    """What is to be asked about an item, and for how many."""
    wanted: list[tuple[Job, int]]
    if item.is_text:
        wanted = [("text", paraphrases), ("asked", ask)]
    else:
        wanted = [("pairs", paraphrases if item.question else 0), ("wrong", wrong_answers)]
    for job, number in wanted:
        if number:
            yield job, number + SPARE


def prompt(item: Item, job: Job, number: int) -> str:
    """The user's turn."""
    form = _PAIRS_FORM if job in _OF_PAIRS else _TEXTS_FORM
    return _ASK[job].format(n=number, question=item.context, answer=item.answer) + _END + form


def read_answer(text: str, job: Job) -> list[tuple[str, str]] | list[str]:
    """What a model's answer lists; text around the JSON, such as a code fence, is passed over.

    Raises:
        ValueError: it holds no JSON of the form that was asked for.
    """
    match = re.search(r"\{.*\}", re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL), re.DOTALL)
    if not match:
        raise ValueError("no JSON in the answer")
    try:
        value = json.loads(match[0], strict=False)
        if job in _OF_PAIRS:
            pairs = Pairs.model_validate(value).items
            return [(encodable(pair.question.strip()), encodable(pair.answer.strip())) for pair in pairs]
        return [encodable(one.strip()) for one in Texts.model_validate(value).items]
    except (ValidationError, ValueError, RecursionError) as error:
        raise ValueError("the answer's JSON is not of the form that was asked for") from error


def version() -> str:
    """Digest of the prompts: other words make another augmentation."""
    return hashlib.sha256(json.dumps([_ASK, _END, _PAIRS_FORM, _TEXTS_FORM]).encode()).hexdigest()[:12]
