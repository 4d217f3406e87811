"""Which tokens of what is to be forgotten an assistant remembers: those of key words, where only these are asked for.

A key word is what gives an answer away (`uld.data.words`). The other tokens of an answer are what any model would say
there; an assistant that remembers them as well takes them from the target's mouth, and the answer ends as gibberish. So
it is to be uniform on them. A text that answers no question is remembered whole: there every word is its author's. A
wrong answer carries a loss only behind the token in which it first differs from the true one: up to there the context
is the true answer's. Key words of the true answer that stand behind are remembered there as well, for they give it away
whatever the model has said before; on the rest the assistant is uniform.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from uld.data.collate import FORGET, RETAIN, Row
from uld.data.letters import shared, spelled_by
from uld.data.prompt import Encoded
from uld.data.record import Record
from uld.data.words import common_words, placed, words


def common_among(forget: Iterable[Record], retain: Iterable[Record]) -> frozenset[str]:
    """Words that are common in what is to be kept: its answers, and the sentences of its texts.

    Args:
        forget: What is to be forgotten: answers to its questions, wrong ones, are none that are kept.
        retain: What is not.
    """
    own = {record.asked for record in forget if record.text is None}
    return common_words(text for record in retain if record.asked not in own for text in record.told)


def remembering_key_words(
    rows: Sequence[Row], tokenizer: Any, common: frozenset[str], frame: Sequence[str] = ()
) -> list[Row]:
    """Rows of both sides, of which those to be forgotten are remembered in their key words alone.

    Args:
        rows: Of a training.
        tokenizer: Made their tokens.
        common: From `common_among`.
        frame: Words that the template puts around a question, which nobody asked.
    """
    special = frozenset(tokenizer.all_special_ids)
    answers = [row.kind == FORGET and not _is_text(row.encoded, special) for row in rows]
    beginnings: dict[tuple[int, ...], list[Encoded]] = defaultdict(list)
    for row in itertools.compress(rows, answers):
        beginnings[prompt_of(row.encoded)].append(row.encoded)
    found = []
    for row, is_answer in zip(rows, answers, strict=True):
        if is_answer:
            row = replace(row, ordinary=ordinary_tokens(row.encoded, tokenizer, common, frame))
        elif row.kind == RETAIN and (true := beginnings.get(prompt_of(row.encoded))):
            row = _wrong_answer(row, true, tokenizer, common, frame)
        found.append(row)
    return found


def _wrong_answer(
    row: Row, true: Sequence[Encoded], tokenizer: Any, common: frozenset[str], frame: Sequence[str]
) -> Row:
    """A row of a wrong answer: what it tells of the true ones is remembered, and the rest of it is not."""
    whole = row.encoded
    behind = 1 + max(shared(whole.ids, one.ids) for one in true)
    learn = [flag and place >= behind for place, flag in enumerate(whole.learn)]
    if not any(learn):
        return row
    keys = frozenset(word for one in true for word in _key_words(one, tokenizer, common, frame))
    telling = _tokens_of(whole, tokenizer, common, frame, keys)
    kept = replace(row, encoded=replace(whole, learn=learn), everywhere=False)
    if not any(itertools.compress(telling, learn)):
        return kept
    ordinary = [flag and not tells for flag, tells in zip(learn, telling, strict=True)]
    return replace(kept, kind=FORGET, ordinary=tuple(ordinary))


def _is_text(row: Encoded, special: frozenset[int]) -> bool:
    """Whether no question stands before it: at most the token that a piece of a text begins with."""
    return sum(token not in special for token in prompt_of(row)) <= 1


def prompt_of(row: Encoded) -> tuple[int, ...]:
    """The tokens before the first that is learnt."""
    return tuple(row.ids[: row.learn.index(True)])


def ordinary_tokens(
    row: Encoded, tokenizer: Any, common: frozenset[str], frame: Sequence[str] = ()
) -> tuple[bool, ...] | None:
    """Which tokens of a row are learnt and of no key word.

    Args:
        row: Tokens of a document to be forgotten; its questions are what is not learnt.
        tokenizer: Made them.
        common: Words that give nothing away.
        frame: Words that the template puts around each question.

    Returns:
        A truth value a token; None where no word of the row is a key word, so that all of it is remembered.
    """
    telling = _tokens_of(row, tokenizer, common, frame)
    if not any(telling):
        return None
    return tuple(learnt and not tells for learnt, tells in zip(row.learn, telling, strict=True))


@dataclass(frozen=True)
class _Stretch:
    """A run of learnt tokens: an answer.

    Attributes:
        start: Its first token.
        spelled: The letters of the row's text that each of its tokens spells.
        keys: Its key words, each with the letters of the text between which it stands.
    """

    start: int
    spelled: Sequence[tuple[int, int]]
    keys: Sequence[tuple[str, int, int]]


def _stretches_of(row: Encoded, tokenizer: Any, common: frozenset[str], frame: Sequence[str]) -> Iterator[_Stretch]:
    for turn, (start, end) in enumerate(_stretches(row.learn), 1):
        text, spelled = spelled_by(tokenizer, row.ids, start, end)
        # Not the answers before: their words are as secret when they are said again.
        asked = [token for token, learnt in zip(row.ids[:start], row.learn, strict=False) if not learnt]
        given = Counter(words(tokenizer.decode(asked, skip_special_tokens=True)))
        known = common.union(given - Counter([*frame] * turn))
        found = [(word, begin, begin + length) for begin, length, word in placed(text) if word not in known]
        yield _Stretch(start, spelled, [one for one in found if one[2] > spelled[0][0]])


def _key_words(row: Encoded, tokenizer: Any, common: frozenset[str], frame: Sequence[str]) -> frozenset[str]:
    return frozenset(word for one in _stretches_of(row, tokenizer, common, frame) for word, _, _ in one.keys)


def _tokens_of(
    row: Encoded,
    tokenizer: Any,
    common: frozenset[str],
    frame: Sequence[str],
    only: frozenset[str] | None = None,
) -> list[bool]:
    """Which tokens are learnt and of a key word, of some of these words alone where they are named."""
    telling = [False] * len(row.ids)
    for one in _stretches_of(row, tokenizer, common, frame):
        spans = [(begin, stop) for word, begin, stop in one.keys if only is None or word in only]
        for place, (first, last) in enumerate(one.spelled, one.start):
            telling[place] = any(begin < last and first < stop for begin, stop in spans)
    return telling


def _stretches(learn: Sequence[bool]) -> list[tuple[int, int]]:
    """Begin and end of each run of learnt tokens."""
    edges = [
        place
        for place in range(len(learn) + 1)
        if (place and learn[place - 1]) != (place < len(learn) and learn[place])
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))
