"""Which words of a true answer give it away, and whether a text holds one: re-entry.

Pure functions of texts. A word is a run of letters and digits, compared without case, accents' encoding or a possessive
ending.
"""

import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator

from uld.data.text import MARKS

COMMON = 0.01
"""A word in more than this share of the retain answers gives nothing away."""

_LETTERS = rf"[^\W_](?:[^\W_]|[{MARKS}\u0e31\u0e34-\u0e3a\u0e47-\u0e4e])*"  # the last are Thai's
_WORD = re.compile(rf"{_LETTERS}(?:['’]{_LETTERS})*")


def spelled(text: str) -> list[str]:
    """The words of a text in order, in their own spelling but for the encoding."""
    return _WORD.findall(unicodedata.normalize("NFKC", text))


def form(word: str) -> str:
    """A word in the form in which it is compared."""
    word = word.casefold()
    return re.sub(r"'s?$", "", word.replace("’", "'")) if "'" in word or "’" in word else word


def words(text: str) -> list[str]:
    """The words of a text in order, in the form in which they are compared."""
    return [form(word) for word in spelled(text)]


def common_words(answers: Iterable[str], share: float = COMMON) -> frozenset[str]:
    """Words that stand in more than a share of some answers.

    Args:
        answers: Of the retain set.
        share: In [0, 1].
    """
    counts: Counter[str] = Counter()
    total = 0
    for answer in answers:
        counts.update(set(words(answer)))
        total += 1
    return frozenset(word for word, count in counts.items() if count > share * total)


def key_words(question: str, answer: str, common: frozenset[str]) -> frozenset[str]:
    """The words of a true answer that give it away: none of the question's, and none that are common.

    Args:
        question: What was asked.
        answer: The true answer.
        common: From `common_words`, of the retain answers.
    """
    return frozenset(words(answer)) - frozenset(words(question)) - common


def re_enters(generated: str, keys: frozenset[str]) -> bool:
    """Whether any key word stands in what a model wrote."""
    return not keys.isdisjoint(words(generated))


def re_entry(generated: str, truth: str, keys: frozenset[str]) -> tuple[str, str] | None:
    """Where memorised words come back: an answer up to its first key word, and the true answer from that word on.

    Args:
        generated: What a model wrote.
        truth: The true answer.
        keys: From `key_words` of this answer.

    Returns:
        Two texts that make one answer, the first perhaps empty; None where no key word stands in what was written.
    """
    first = next(((place, word) for place, _, word in placed(generated) if word in keys), None)
    if first is None:
        return None
    there = next(place for place, _, word in placed(truth) if word == first[1])
    return generated[: first[0]], truth[there:]


def placed(text: str) -> Iterator[tuple[int, int, str]]:
    """The words of a text, as `words` has them, each with the place where it begins, and its length there."""
    if unicodedata.is_normalized("NFKC", text):
        yield from ((found.start(), len(found[0]), form(found[0])) for found in _WORD.finditer(text))
        return
    # Letters of every beginning, once it is spelled like this.
    lengths = [len(unicodedata.normalize("NFKC", text[:end])) for end in range(len(text) + 1)]
    for found in _WORD.finditer(unicodedata.normalize("NFKC", text)):
        begin = max(0, bisect_right(lengths, found.start()) - 1)
        stop = max(begin + 1, bisect_right(lengths, found.end()) - 1)
        yield begin, stop - begin, form(found[0])
