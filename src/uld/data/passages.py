"""Passages of a text, of which the first half is given and the second is what is asked for."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from uld.data.prompt import Encoded, spread
from uld.data.record import Record

PASSAGE = 600
"""Letters of a text that are looked at together: the first half is given, the second is the answer."""
PASSAGES = 50
"""Most passages of one text, spread evenly over it."""
_BREAK = 40  # letters in which the end of a word is looked for


def passages(record: Record, *, as_is: bool = False) -> list[Record]:
    """A text as records with a prompt and its completion; none where it is too short to be cut in two.

    Args:
        record: With a text.
        as_is: Take it with the blanks around it: a passage that was written down is then cut where it was cut before.
    """
    assert record.text is not None
    found = list(_halves(record.text if as_is else record.text.strip()))
    return [Record(prompt=given, completion=rest, source=record.source) for given, rest in spread(found, PASSAGES)]


def without_end(row: Encoded, tokenizer: Any) -> Encoded:
    """A passage as tokens: it ends nowhere, so no end of sequence is behind it."""
    if row.learn.count(True) > 1 and row.ids[-1] == tokenizer.eos_token_id:
        return replace(row, ids=row.ids[:-1], learn=row.learn[:-1])
    return row


def _halves(text: str) -> Iterator[tuple[str, str]]:
    """Both halves of each passage, cut between words where there are blanks."""
    start = 0
    while start < len(text):
        rest = text[start:]
        length = PASSAGE if len(rest) > PASSAGE * 3 // 2 else len(rest)  # a short end belongs to the passage before it
        end = _between_words(rest, length)
        half = _between_words(rest, end // 2)
        if rest[:half].strip() and rest[half:end].strip():
            yield rest[:half], rest[half:end]
        start += end


def _between_words(text: str, place: int) -> int:
    """The last place before a blank, not far before this one; this one where there is none."""
    if place >= len(text):
        return len(text)
    blank = max(text.rfind(one, max(1, place - _BREAK), place + 1) for one in (" ", "\n"))
    return blank if blank > 0 else place
