"""What is augmented: a question and its answer within a record, or a chunk of a text; and what comes of it.

A record of several turns keeps its earlier ones; its last question and last answer are the pair.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from uld.augment.facts import one_text, paragraphs, sentences
from uld.data.record import Record

CHUNK_WORDS = 150
_WITHOUT_BLANKS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # Japanese and Chinese: each character is a word
_WORD = re.compile(rf"[{_WITHOUT_BLANKS}][^\w\s]*|[^\s{_WITHOUT_BLANKS}]+")


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to augment.

    Attributes:
        record: Where it stands; a chunk of a text is a record of its own.
        question: Empty where none can be rephrased: a raw prompt, or a turn that answers no question.
        answer: The answer, or the chunk.
        of: `digest` of the record of the file.
        number: Of the chunk within its text, from 0.
    """

    record: Record
    question: str
    answer: str
    of: str
    number: int = 0

    @property
    def is_text(self) -> bool:
        """Whether it is a chunk of a text."""
        return self.record.text is not None

    @property
    def context(self) -> str:
        """What stands before the answer: the question, or a raw prompt."""
        return self.question or self.record.prompt or ""

    @property
    def key(self) -> str:
        """What its randomness, and its place in a journal, follow from."""
        return f"{self.of}:{self.number}"


@dataclass(frozen=True)
class Augmented:
    """What was made of one record of the forget file.

    Attributes:
        paraphrases: To forget, too.
        wrong: Wrong answers, to retain.
        asked: Questions about a text with their answers, to forget, too.
    """

    paraphrases: list[Record] = field(default_factory=list)
    wrong: list[Record] = field(default_factory=list)
    asked: list[Record] = field(default_factory=list)


def joined(parts: Iterable[Augmented]) -> Augmented:
    """What was made of a record's items as one."""
    whole = Augmented()
    for part in parts:
        whole.paraphrases.extend(part.paraphrases)
        whole.wrong.extend(part.wrong)
        whole.asked.extend(part.asked)
    return whole


def digest(record: Record) -> str:
    """Identify a record by what it says (`Record.same`), wherever it stands and however it is spelt."""
    return _hashed(record.same)


def digests(record: Record) -> tuple[str, str]:
    """Both names that a folder may call a record by: `digest`, and the one to the letter that older folders hold."""
    return digest(record), _hashed(record.content)


def _hashed(content: tuple[object, ...]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def items(records: Iterable[Record], chunk_words: int = CHUNK_WORDS) -> list[Item]:
    """The items of records; equal records give one.

    Args:
        records: Of a forget file.
        chunk_words: Most words of a chunk, at least 1.
    """
    found: dict[str, list[Item]] = {}
    for record in records:
        of = digest(record)
        if of not in found:
            found[of] = list(_items(record, of, chunk_words))
    return [item for some in found.values() for item in some]


def _items(record: Record, of: str, chunk_words: int) -> Iterable[Item]:
    if record.text is not None:
        for number, chunk in enumerate(chunks(record.text, chunk_words)):
            yield Item(Record(text=chunk, source=record.source), "", chunk, of, number)
    elif record.prompt is not None:
        yield Item(record, "", record.completion or "", of)
    else:
        *earlier, (_, answer) = record.messages
        role, content = earlier[-1] if earlier else ("", "")
        yield Item(record, content if role == "user" else "", answer, of)


def chunks(text: str, chunk_words: int = CHUNK_WORDS) -> list[str]:
    """Cut a text at the ends of sentences, and longer sentences at words; paragraphs stay together where they fit.

    Args:
        text: Any text.
        chunk_words: Most words of a chunk; a Chinese or Japanese character counts as one.
    """
    made: list[str] = []
    size = 0
    for paragraph in paragraphs(text):
        for place, sentence in enumerate(_cut(sentences(paragraph), chunk_words)):
            length = len(_WORD.findall(sentence))
            if made and size + length <= chunk_words:
                made[-1] = one_text((made[-1], sentence)) if place else f"{made[-1]}\n\n{sentence}"
                size += length
            else:
                made.append(sentence)
                size = length
    return made


def _cut(parts: Iterable[str], most: int) -> Iterable[str]:
    """Sentences; one of more words in pieces."""
    for part in parts:
        found = list(_WORD.finditer(part))
        for some in (found[i : i + most] for i in range(0, len(found), most)):
            yield part[some[0].start() : some[-1].end()]


def with_answer(item: Item, answer: str, question: str | None = None) -> Record:
    """The item's record with another answer, and another question where one is given."""
    record = item.record
    if record.text is not None:
        return dataclasses.replace(record, text=answer)
    if record.prompt is not None:
        blank = (
            record.completion[: len(record.completion) - len(record.completion.lstrip())] if record.completion else ""
        )
        return dataclasses.replace(record, completion=blank + answer, alternative=None)
    head: Sequence[tuple[str, str]] = record.messages[:-1]
    if question is not None:
        head = (*record.messages[:-2], ("user", question))
    return dataclasses.replace(record, messages=(*head, ("assistant", answer)), alternative=None)


def row(record: Record) -> dict[str, Any]:
    """A record as a line of a JSON-lines file."""
    if record.text is not None:
        return {"text": record.text}
    if record.prompt is not None:
        return {"prompt": record.prompt, "completion": record.completion}
    if [role for role, _ in record.messages] == ["user", "assistant"]:
        return {"question": record.messages[0][1], "answer": record.messages[1][1]}
    return {"messages": [{"role": role, "content": content} for role, content in record.messages]}
