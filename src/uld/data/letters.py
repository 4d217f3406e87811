"""Which letters of a text each of its tokens spells.

A token alone does not say: some tokenizers leave out its blank, and a letter may be several tokens. So what is spelled
is what a token adds to the text of all before it.
"""

from collections.abc import Sequence
from typing import Any


def spelled_by(tokenizer: Any, ids: Sequence[int], start: int, end: int) -> tuple[str, list[tuple[int, int]]]:
    """The text of tokens, and the letters of it that some of them spell.

    Args:
        tokenizer: Made the tokens.
        ids: Of a row.
        start: The first token that is asked about.
        end: The token behind the last, which is behind the first.

    Returns:
        The text up to ``end`` without special tokens, and of each token from ``start`` the first of its letters and the
        one behind its last; tokens that make one letter have that letter each.
    """
    texts = [str(tokenizer.decode(list(ids[:stop]), skip_special_tokens=True)) for stop in range(start, end + 1)]
    whole = texts[-1]
    ends = [len(text) if whole.startswith(text) else None for text in texts]  # None within a letter
    first = [shared(texts[0], whole)]
    for place in ends[1:-1]:
        first.append(first[-1] if place is None else place)
    last = [len(whole)]
    for place in reversed(ends[1:-1]):
        last.append(last[-1] if place is None else place)
    return whole, list(zip(first, reversed(last), strict=True))


def shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many tokens two rows, or letters two texts, begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
