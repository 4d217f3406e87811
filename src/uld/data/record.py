"""Records: what a row of a user's file may hold, in four forms.

``{"question", "answer"}``, ``{"prompt", "completion"}``, ``{"messages": [{"role", "content"}, …]}`` or ``{"text"}``. A
key without a value (null, an empty text) counts as none. A key that is not read is refused where it holds a text that
would be lost, unless its name says that it only describes the row (`DESCRIBES`). The rules are the same for every type
of file.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from uld.data.text import folded, says_nothing, shown
from uld.errors import DataError

FORMS = '{"question", "answer"}, {"prompt", "completion"}, {"messages": [...]} or {"text"}'
KEYS = ("question", "answer", "prompt", "completion", "messages", "text", "alternative")
"""Every key that a record may have."""
_DESCRIBING = (
    "id _id uid uuid guid idx index row line number hash digest sha256 md5 url uri link source "
    "origin dataset subset config split fold dump file filename file_name path file_path "
    "licence license lang language date time timestamp created created_at updated updated_at "
    "version revision length tokens token_count meta metadata of copy drawn_from "
    "__index_level_0__ "
)
DESCRIBES = frozenset(_DESCRIBING.split())
"""Keys that describe a row and are left out, beside every name that ends in ``_id``."""
_FREE = ("meta", "metadata")  # whatever stands below these is left out on purpose
_LONGEST_DESCRIPTION = 300  # characters: a source may be a URL, but no passage
_FORMS = (("question", "answer"), ("prompt", "completion"), ("messages",), ("text",))
_ROLES = ("system", "user", "assistant", "developer")  # the last is OpenAI's newer name of the first
_SENTENCE = re.compile(r"(?<=[.!?…。！？])\s+|\n+")
_NUMBER = re.compile(r"\s*([-+]?[0-9][0-9.,_]*([eE][-+]?[0-9]+)?\s*%?|true|false)\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Record:
    """One document in normal form; exactly one of the three shapes is filled.

    Attributes:
        messages: ``(role, content)`` pairs of a conversation; a question and its answer are two of them.
        prompt: Raw prompt, with ``completion``.
        completion: Raw completion.
        text: A whole text.
        source: ``file:line``, for messages about it.
        alternative: Another answer to the same question, for the methods that need one.
    """

    messages: tuple[tuple[str, str], ...] = ()
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    source: str = ""
    alternative: str | None = None

    @classmethod
    def qa(cls, question: str, answer: str, source: str = "", alternative: str | None = None) -> "Record":
        """A question and its answer."""
        return cls(messages=(("user", question), ("assistant", answer)), source=source, alternative=alternative)

    def answered(self, text: str) -> "Record":
        """The same question with another answer: the last one of a conversation, or the completion of a prompt."""
        if self.prompt is not None:
            return replace(self, completion=text)
        return replace(self, messages=(*self.messages[:-1], ("assistant", text)))

    @property
    def asked(self) -> str:
        """What stands before the answer, as people read it; nothing before a text."""
        return self.prompt or "\n".join(content for _, content in self.messages[:-1])

    @property
    def answer(self) -> str:
        """The last answer of a conversation, or the completion of a prompt; nothing of a text."""
        return self.completion or (self.messages[-1][1] if self.messages else "")

    @property
    def told(self) -> list[str]:
        """Its answer, or the sentences of a text: what common words are taken from (`uld.data.words`)."""
        if self.text is not None:
            return [part for part in _SENTENCE.split(self.text) if part.strip()]
        return [self.answer]

    @property
    def content(self) -> tuple[object, ...]:
        """What the record says to the letter, without where it stood and blanks at its ends: for digests of work."""
        texts = (text and text.strip() for text in (self.prompt, self.completion, self.text))
        return (*((role, content.strip()) for role, content in self.messages), *texts)

    @property
    def exact(self) -> tuple[object, ...]:
        """What the record says as it stands, without where: blanks at an end can decide its tokens."""
        return (*self.messages, self.prompt, self.completion, self.text)

    @property
    def same(self) -> tuple[object, ...]:
        """What the record says as it is compared (`uld.data.text.folded`): equal for equal documents."""
        texts = (None if text is None else folded(text) for text in (self.prompt, self.completion, self.text))
        return (*((role, folded(content)) for role, content in self.messages), *texts)


def parse_record(row: Any, source: str) -> Record:
    """Turn one row into a record.

    Args:
        row: What was decoded from a line, an item or a row of a table.
        source: ``file:line`` or the like.

    Raises:
        DataError: it has none of the four forms, or holds text that would be lost.
    """
    if not isinstance(row, dict):
        raise DataError(f"{source}: expected a JSON object, one of {FORMS}, but found {type(row).__name__}")
    told = {key: value for key, value in row.items() if not is_void(value)}
    form = _form(row, told, source)
    refuse_unread(told, (*form, "alternative"), source, beside_text=form == ("text",))
    if "alternative" in told and form == ("text",):
        raise DataError(f"{source}: has 'alternative', which is another answer to a question, and a text has none")
    other = text_of(told["alternative"], "alternative", source) if "alternative" in told else None
    if form == ("messages",):
        return Record(messages=_messages(told["messages"], source), source=source, alternative=other)
    texts = [text_of(told[key], key, source) for key in form]
    if form == ("text",):
        return Record(text=texts[0], source=source)
    one, two = texts
    if form == ("question", "answer"):
        return Record.qa(one, two, source, other)
    return Record((), one, two, source=source, alternative=other)


def _form(row: Mapping[str, Any], told: Mapping[str, Any], source: str) -> tuple[str, ...]:
    """The one form that a row has."""
    found = ", ".join(shown(key) for key in list(row)[:5]) + (", …" if len(row) > 5 else "")
    forms = [form for form in _FORMS if any(key in told for key in form)]
    if not forms:
        if empty := [key for key in KEYS if key in row]:
            raise DataError(f"{source}: {', '.join(map(repr, empty))} {'is' if len(empty) == 1 else 'are all'} empty")
        raise DataError(f"{source}: expected one of {FORMS}, but found the keys {found or 'none'}")
    if len(forms) > 1:
        one, two = (next(key for key in form if key in told) for form in forms[:2])
        raise DataError(
            f"{source}: has {one!r} and {two!r}, which belong to different forms, and only one could be read: expected "
            f"one of {FORMS}"
        )
    if missing := [key for key in forms[0] if key not in told]:
        (has,) = (key for key in forms[0] if key in told)
        lack = f"its {missing[0]!r} is empty" if missing[0] in row else f"no {missing[0]!r}"
        raise DataError(f"{source}: has {has!r} but {lack}: expected one of {FORMS}, but found the keys {found}")
    return forms[0]


def refuse_unread(row: Mapping[str, Any], known: Sequence[str], source: str, *, beside_text: bool = False) -> None:
    """Refuse a row with a key that is not read and holds something that would be lost.

    Numbers and truth values hold nothing, also where they are written as texts, as in a CSV file. Beside a whole text
    they are refused, because there they may be the answer or the label that belongs to it.

    Args:
        row: Keys and values.
        known: Keys that are read.
        source: For the message.
        beside_text: Whether what is read is a whole text.

    Raises:
        DataError: names the key.
    """
    for key, value in row.items():
        if key not in known and _lost(str(key), value, beside_text):
            raise DataError(
                f"{source}: the key {shown(key)} is not read, so what stands in it would be lost: take it out, write "
                f"the row as one of {FORMS}, or put what only describes it under 'metadata'"
            )


def describes(key: str) -> bool:
    """Whether a key only describes a row."""
    name = key.strip().casefold()
    return name in DESCRIBES or name.endswith("_id")


def _lost(key: str, value: Any, beside_text: bool) -> bool:
    if key in _FREE:
        return False
    leaves = [leaf for leaf in _leaves(value) if not is_void(leaf)]
    if describes(key):
        texts = [leaf for leaf in leaves if isinstance(leaf, str)]
        return any("\n" in text.strip() for text in texts) or sum(map(len, texts)) > _LONGEST_DESCRIPTION
    return any(beside_text or not _number(leaf) for leaf in leaves)


def _leaves(value: Any) -> Iterator[Any]:
    """Everything in a value that is no list and no object."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += one.values()
        elif isinstance(one, list | tuple):
            left += one
        else:
            yield one


def _number(value: Any) -> bool:
    if isinstance(value, str):
        return _NUMBER.fullmatch(value) is not None
    return isinstance(value, int | float | Decimal)


def is_void(value: Any) -> bool:
    """Whether a value is as good as none: null, or a text that says nothing."""
    return value is None or (isinstance(value, str) and says_nothing(value) and "\0" not in value)


def text_of(value: Any, key: str, source: str) -> str:
    """A value that must be a text with something in it.

    Raises:
        DataError: names the key.
    """
    if not isinstance(value, str):
        raise DataError(f"{source}: {key!r} must be a string, not {type(value).__name__}")
    if "\0" in value:
        raise DataError(f"{source}: {key!r} holds NUL characters, which no text does: save the text as UTF-8 again")
    if says_nothing(value):
        raise DataError(f"{source}: {key!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON's escapes can write half a character
        raise DataError(
            f"{source}: {key!r} holds half of a surrogate pair, which is no text: write the character itself"
        ) from error
    return value


def _messages(value: Any, source: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise DataError(f'{source}: \'messages\' must be a list of {{"role", "content"}} objects')
    pairs = []
    for message in value:
        role = message.get("role")
        if role not in _ROLES:
            raise DataError(f"{source}: a message's 'role' must be one of {', '.join(_ROLES[:3])}, not {shown(role)}")
        refuse_unread(message, ("role", "content", "weight"), f"{source}: in 'messages'")
        if role == "assistant" and message.get("weight") not in (None, 1):
            raise DataError(
                f"{source}: a message has the 'weight' {shown(message['weight'])}, but every assistant turn is learnt "
                "in full: leave out the weight, or the conversation"
            )
        pairs.append(("system" if role == "developer" else role, _content(message.get("content"), source)))
    if not any(role == "assistant" for role, _ in pairs):
        raise DataError(f"{source}: 'messages' holds no assistant turn, so there is nothing to learn from it")
    if pairs[-1][0] != "assistant":
        raise DataError(f"{source}: 'messages' ends in a {pairs[-1][0]} turn that nothing answers: take it out")
    return tuple(pairs)


def _content(value: Any, source: str) -> str:
    """What a message says; OpenAI may write it as a list of parts."""
    if not isinstance(value, list) or not value:
        return text_of(value, "content", source)
    parts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise DataError(f"{source}: a message's 'content' has a part of the type {shown(kind)}: only text is read")
        refuse_unread(part, ("type", "text"), f"{source}: in 'content'")
        parts.append(text_of(part.get("text"), "text", source))
    return "".join(parts)


def refuse_equal(forget: Iterable[Record], retain: Iterable[Record], name: str = "retain") -> None:
    """Refuse a retain set that holds documents to be forgotten: it would train against itself.

    Records are compared by `Record.same`: line ends, kinds of blanks and the spelling of accents make no difference.

    Args:
        forget: What is to be forgotten.
        retain: What is not.
        name: What the second is called.

    Raises:
        DataError: names the first shared record and how many there are.
    """
    known = {record.same: record.source for record in forget}
    shared = [record for record in retain if record.same in known]
    if shared:
        one, others = shared[0], len(shared) - 1
        more = f", and {others} more like it" if others else ""
        raise DataError(
            f"{one.source}: this {name} record is also in the forget set ({known[one.same]}){more}: remove from the "
            f"{name} set what is to be forgotten"
        )
