"""Which words of a true answer give it away, and whether a text holds one: re-entry.

Pure functions of texts. A word is a run of letters and digits, compared without case, accents' encoding or a possessive
ending. Scripts that write no blanks between words, such as Chinese and Thai, have two characters in a row for a word.
"""

import itertools
import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator

from uld.data.text import MARKS, WITHOUT_BLANKS

COMMON = 0.01
"""A word in more than this share of the retain answers gives nothing away."""
RUN = 3
"""Words in a row of a passage that give it away."""

_SIGNS = (  # vowels and tones of Thai, Lao, Tibetan, Burmese and Khmer, which are no letters
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u0f71-\u0f84\u0f86\u0f87\u0f8d-\u0fbc"
    "\u102b-\u103e\u1056-\u1059\u105e-\u1060\u1062-\u1064\u1067-\u106d\u1071-\u1074\u1082-\u108d\u17b4-\u17d3\u17dd"
)
_CHARACTER = re.compile(rf"(?![\W_])[{WITHOUT_BLANKS}][{MARKS}{_SIGNS}]*")
_LETTERS = rf"[^\W_{WITHOUT_BLANKS}](?:[^\W_{WITHOUT_BLANKS}]|[{MARKS}])*"
_ABBREVIATION = re.compile(r"(?<!\w)[^\W\d_a-z][^\W\d_]{0,2}\.$")  # Mr., St., J.
_TITLES = frozenset({"mr", "mrs", "ms", "dr"})
_WORD = re.compile(rf"(?:{_CHARACTER.pattern})+|{_LETTERS}(?:['’]{_LETTERS})*")


def spelled(text: str) -> list[str]:
    """The words of a text in order, in their own spelling but for the encoding; runs of Chinese and the like whole."""
    return _WORD.findall(unicodedata.normalize("NFKC", text))


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Where each word of a text begins and ends."""
    for found in _WORD.finditer(text):
        places = [found.span()]
        if _CHARACTER.match(text, found.start()):
            places = [one.span() for one in _CHARACTER.finditer(text, *found.span())]
        if len(places) == 1:
            yield places[0]
        yield from ((begin, end) for (begin, _), (_, end) in itertools.pairwise(places))


def form(word: str) -> str:
    """A word in the form in which it is compared."""
    word = word.casefold()
    return re.sub(r"'s?$", "", word.replace("’", "'")) if "'" in word or "’" in word else word


def words(text: str) -> list[str]:
    """The words of a text in order, in the form in which they are compared."""
    text = unicodedata.normalize("NFKC", text)
    return [form(text[begin:end]) for begin, end in _spans(text)]


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


def telling(asked: str, answer: str, common: frozenset[str], *, passage: bool) -> frozenset[str]:
    """What gives a true answer away: `key_words` of an answer, `key_phrases` of the second half of a passage."""
    return (key_phrases if passage else key_words)(asked, answer, common)


def key_phrases(given: str, rest: str, common: frozenset[str]) -> frozenset[str]:
    """What gives the second half of a passage away: its names and numbers, and its other key words in company.

    A passage has dozens of words that its beginning does not have, most of them of every day, and any text of its
    length holds some of them. So of these only `RUN` words in a row count, of which one or more is a key word.

    Args:
        given: The first half.
        rest: The second half.
        common: As for `key_words`.

    Returns:
        Words, and rows of words with a blank between two.
    """
    keys, passage = key_words(given, rest, common), given + rest
    found = [one for one in placed(passage) if one[0] >= len(given)]
    names = {word for begin, length, word in found if word in keys and _is_name(passage, begin, length)}
    rows = zip(*([word for _, _, word in found][i:] for i in range(RUN)), strict=False)
    return frozenset({*names, *(" ".join(row) for row in rows if not keys.isdisjoint(row))})


def _is_name(text: str, begin: int, length: int) -> bool:
    """Whether a word is a number, or has a capital that no beginning of a sentence or a speech accounts for."""
    word, before = text[begin : begin + length], text[:begin].rstrip()
    if any(letter.isdigit() for letter in word):
        return True
    if not word[0].isupper() or not word[1:2].isalpha() or form(word) in _TITLES:  # nor is I'm
        return False
    follows = before[-1:].isalnum() or before[-1:] in (",", ";") or bool(_ABBREVIATION.search(before))
    return follows and before != text[:begin]  # a quotation mark or a bracket may stand directly before it


def _told(text: str) -> Iterator[tuple[int, str]]:
    """Every word of a text, and `RUN` words in a row with a blank between two, with the place where it begins."""
    found = list(placed(text))
    for i, (begin, _, word) in enumerate(found):
        yield begin, word
        if i + RUN <= len(found):
            yield begin, " ".join(word for _, _, word in found[i : i + RUN])


def said_of(generated: str, keys: frozenset[str]) -> frozenset[str]:
    """The key words and phrases that stand in what a model wrote."""
    return keys.intersection(one for _, one in _told(generated))


def re_enters(generated: str, keys: frozenset[str]) -> bool:
    """Whether any key word or phrase stands in what a model wrote."""
    return bool(said_of(generated, keys))


def re_entry(generated: str, truth: str, keys: frozenset[str]) -> tuple[str, str] | None:
    """Where memorised words come back: an answer up to its first key word, and the true answer from that word on.

    Args:
        generated: What a model wrote.
        truth: The true answer.
        keys: From `telling`.

    Returns:
        Two texts that make one answer, the first perhaps empty; None where none of them stands in what was written.
    """
    first = next(((place, one) for place, one in _told(generated) if one in keys), None)
    if first is None:
        return None
    there = next(place for place, one in _told(truth) if one == first[1])
    return generated[: first[0]], truth[there:]


def placed(text: str) -> Iterator[tuple[int, int, str]]:
    """The words of a text, as `words` has them, each with the place where it begins, and its length there."""
    if unicodedata.is_normalized("NFKC", text):
        yield from ((begin, end - begin, form(text[begin:end])) for begin, end in _spans(text))
        return
    lengths = list(_lengths(text))
    whole = unicodedata.normalize("NFKC", text)
    for start, end in _spans(whole):
        begin = max(0, bisect_right(lengths, start) - 1)
        stop = max(begin + 1, bisect_right(lengths, end) - 1)
        yield begin, stop - begin, form(whole[start:end])


def _lengths(text: str) -> Iterator[int]:
    """Letters of every beginning of a text, once it is spelled as words are compared; nothing is spelled twice."""
    yield 0
    start = before = 0
    for end in range(1, len(text) + 1):
        if _is_apart(text[end - 1]):
            before += len(unicodedata.normalize("NFKC", text[start : end - 1]))
            start = end - 1
        yield before + len(unicodedata.normalize("NFKC", text[start:end]))


def _is_apart(letter: str) -> bool:
    """Whether a letter never becomes one with what stands before it, as accents and the ends of Korean syllables do."""
    first = unicodedata.normalize("NFKD", letter)[0]
    return unicodedata.category(first)[0] != "M" and not "\u1160" <= first <= "\u11ff"
