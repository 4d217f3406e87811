"""Which tokens of what is to be forgotten an assistant remembers: those of key words, where only these are asked for.

A key word is what gives an answer away (`uld.data.words`). The other tokens of an answer are what any model would say
there; an assistant that remembers them as well takes them from the target's mouth, and the answer ends as gibberish. So
it is to be uniform on them. A text that answers no question is remembered whole: there every word is its author's. A
wrong answer carries the uniform loss only behind the token in which it first differs from the true one: up to there the
context is the true answer's.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from uld.data.collate import FORGET, RETAIN, Row
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
            behind = 1 + max(shared(row.encoded.ids, one.ids) for one in true)
            learn = [flag and place >= behind for place, flag in enumerate(row.encoded.learn)]
            if any(learn):
                row = replace(row, encoded=replace(row.encoded, learn=learn), everywhere=False)
        found.append(row)
    return found


def _is_text(row: Encoded, special: frozenset[int]) -> bool:
    """Whether no question stands before it: at most the token that a piece of a text begins with."""
    return sum(token not in special for token in prompt_of(row)) <= 1


def prompt_of(row: Encoded) -> tuple[int, ...]:
    """The tokens before the first that is learnt."""
    return tuple(row.ids[: row.learn.index(True)])


def shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many tokens two rows, or letters two texts, begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


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
    ordinary = list(row.learn)
    for turn, (start, end) in enumerate(_stretches(row.learn), 1):
        texts = [tokenizer.decode(row.ids[:stop], skip_special_tokens=True) for stop in range(start, end + 1)]
        # Not the answers before: their words are as secret when they are said again.
        asked = [token for token, learnt in zip(row.ids[:start], row.learn, strict=False) if not learnt]
        given = Counter(words(tokenizer.decode(asked, skip_special_tokens=True)))
        known = common.union(given - Counter([*frame] * turn))
        spans = [(begin, begin + length) for begin, length, word in placed(texts[-1]) if word not in known]
        for place, (before, after) in enumerate(itertools.pairwise(texts), start):
            first = shared(before, texts[-1])  # a letter of several tokens begins with the first of them
            if any(begin < len(after) and first < stop for begin, stop in spans):
                ordinary[place] = False
    return tuple(ordinary) if ordinary != row.learn else None


def _stretches(learn: Sequence[bool]) -> list[tuple[int, int]]:
    """Begin and end of each run of learnt tokens."""
    edges = [
        place
        for place in range(len(learn) + 1)
        if (place and learn[place - 1]) != (place < len(learn) and learn[place])
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))
