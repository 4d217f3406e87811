"""What a text states that a paraphrase must not change: names, titles, numbers and dates.

English only, by its capitals and its quotation marks; no model. A word that opens a sentence is a name only where other
text says so (`Capitals`), because every word is capitalised there.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from uld.augment.lexicon import COMMON, MONTHS, NUMBER_WORDS

WORD = re.compile(r"[^\W_]+(?:[-'’/+&.](?=[^\W_])[^\W_]+)*\+?")
_MONTH = "|".join(MONTHS)
_DATE = re.compile(
    rf"\b(?:(?P<month>{_MONTH})\.? (?P<day>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<year>\d{{4}})"
    rf"|(?P<day2>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<month2>{_MONTH}),? (?P<year2>\d{{4}})"
    r"|(?P<one>\d{1,2})[/.](?P<two>\d{1,2})[/.](?P<year3>\d{4})"
    r"|(?P<year4>\d{4})-(?P<three>\d{2})-(?P<four>\d{2}))\b"
)
_NUMBER = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")
_QUOTED = re.compile(
    r"\"([^\"\n]{2,150}?)\"|“([^”\n]{2,150}?)”|‘([^\n]{2,150}?)’(?!\w)"
    r"|(?<!\w)'((?:[^'\n]|'(?=\w)|'(?= [A-Z])){2,150}?)'(?!\w)"
)
_LINKS = {"of", "de", "del", "la", "van", "von", "der", "bin", "ibn", "al", "el", "da", "dos", "du", "di"}
_SENTENCE_END = re.compile(r"(?:[.!?:]|\n)[\"'”’)]*\s*$")

Kind = Literal["title", "date", "number", "name"]


@dataclass(frozen=True, slots=True)
class Fact:
    """A piece of a text that states something checkable.

    Attributes:
        kind: ``title`` is what stands in quotation marks, without them.
        text: As it stands.
        start: Its first character in the text.
        end: The character behind it.
    """

    kind: Kind
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Capitals:
    """Which words other text writes with a capital inside a sentence, and which in lower case.

    Attributes:
        names: Lower-case forms of words that are capitalised inside a sentence.
        plain: Words that are written in lower case.
    """

    names: frozenset[str] = field(default_factory=frozenset)
    plain: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Capitals":
        """Look through texts."""
        names: set[str] = set()
        plain: set[str] = set()
        for text in texts:
            quoted = [match.span() for match in _QUOTED.finditer(text)]
            for match in WORD.finditer(text):
                if any(start <= match.start() < end for start, end in quoted):
                    continue
                if not match[0][0].isupper():
                    plain.add(stem(match[0]))
                elif not opens_sentence(text, match.start()):
                    names.add(stem(match[0]))
        return cls(frozenset(names), frozenset(plain))


def stem(word: str) -> str:
    """A word in lower case without a possessive ending."""
    word = word.lower()
    return word[:-2] if word.endswith(("'s", "’s")) else word.rstrip("'’")


@lru_cache(4096)
def words(text: str) -> tuple[str, ...]:
    """All words, as `stem` makes them."""
    return tuple(stem(match[0]) for match in WORD.finditer(text))


def opens_sentence(text: str, position: int) -> bool:
    """Whether what stands at a position is the first of its sentence, or of a quotation."""
    before = text[:position].rstrip(" \"'“‘([")
    return not before or bool(_SENTENCE_END.search(before))


@lru_cache(4096)
def find_facts(text: str, capitals: Capitals | None = None) -> tuple[Fact, ...]:
    """Names, titles, numbers and dates, in order and without overlap.

    Args:
        text: Any text.
        capitals: What other text says about words that open a sentence; None: this text alone.
    """
    capitals = capitals or Capitals.of([text])
    found: list[Fact] = []
    for match in _QUOTED.finditer(text):
        inner = next(group for group in match.groups() if group is not None)
        if inner[:1].isupper() or inner[:1].isdigit():
            start = match.start() + match[0].index(inner)
            inner = inner.rstrip(",.;")
            found.append(Fact("title", inner, start, start + len(inner)))
    for kind, pattern in (("date", _DATE), ("number", _NUMBER)):
        found += [
            Fact(kind, match[0], *match.span())  # type: ignore[arg-type]
            for match in pattern.finditer(text)
            if _free(found, *match.span())
        ]
    found += [fact for fact in _names(text, capitals) if _free(found, fact.start, fact.end)]
    return tuple(sorted(found, key=lambda fact: fact.start))


def _free(found: list[Fact], start: int, end: int) -> bool:
    return all(end <= fact.start or start >= fact.end for fact in found)


def _names(text: str, capitals: Capitals) -> Iterable[Fact]:
    """Runs of capitalised words; small words like ``of`` may stand inside."""
    marks = list(WORD.finditer(text))
    i = 0
    while i < len(marks):
        if not _is_name(text, marks, i, capitals):
            i += 1
            continue
        last = i
        while not _possessive(marks[last][0]):
            joined = last + 1
            while joined < len(marks) and marks[joined][0] in _LINKS and _near(text, marks, joined):
                joined += 1
            if joined >= len(marks) or not _near(text, marks, joined) or not _is_name(text, marks, joined, capitals):
                break
            last = joined
        end = marks[last].end() - (2 if _possessive(marks[last][0]) else 0)
        yield Fact("name", text[marks[i].start() : end], marks[i].start(), end)
        i = last + 1


def _possessive(word: str) -> bool:
    return word.endswith(("'s", "’s"))


def _near(text: str, marks: list[re.Match[str]], i: int) -> bool:
    return i > 0 and text[marks[i - 1].end() : marks[i].start()] == " "


def _is_name(text: str, marks: list[re.Match[str]], i: int, capitals: Capitals) -> bool:
    word = marks[i][0]
    if not word[0].isupper() or word in ("I", "I'm", "I've") or stem(word) in COMMON:
        return False
    if not opens_sentence(text, marks[i].start()):
        return True
    lower = stem(word)
    if lower in capitals.plain:
        return lower in capitals.names and i + 1 < len(marks) and marks[i + 1][0][0].isupper()
    following = i + 1 < len(marks) and _near(text, marks, i + 1) and marks[i + 1][0][0].isupper()
    return lower in capitals.names or _possessive(word) or following


def name_words(text: str, capitals: Capitals | None = None, *, sure: bool = False) -> set[str]:
    """The words of all names, and the capitalised ones of all titles.

    Args:
        text: Any text.
        capitals: As for `find_facts`.
        sure: Leave out words that open a sentence, unless ``capitals`` knows them as names.
    """
    found: set[str] = set()
    for fact in find_facts(text, capitals):
        if fact.kind in ("date", "number"):
            continue
        for match in WORD.finditer(fact.text):
            opening = match.start() == 0 and opens_sentence(text, fact.start) and fact.kind == "name"
            known = stem(match[0]) in (capitals.names if capitals else ())
            if match[0][0].isupper() and not (sure and opening and not known):
                found.add(stem(match[0]))
    return found - COMMON


@lru_cache(4096)
def numbers(text: str) -> frozenset[str]:
    """All numbers and dates in one form each: ``2,000``, ``2000`` and ``two`` as digits, a date whatever its order.

    Day and month of a date are sorted, because 05/11 is May in one country and November in another.
    """
    found: set[str] = set()
    rest: list[str] = []
    end = 0
    for match in _DATE.finditer(text):
        found.add(_date(match))
        rest.append(text[end : match.start()])
        end = match.end()
    left = " ".join([*rest, text[end:]])
    found |= {str(float(match[0].replace(",", ""))).removesuffix(".0") for match in _NUMBER.finditer(left)}
    return frozenset(found | {NUMBER_WORDS[word] for word in words(left) if word in NUMBER_WORDS})


def _date(match: re.Match[str]) -> str:
    part = match.groupdict()
    year = next(part[key] for key in ("year", "year2", "year3", "year4") if part[key])
    month = part["month"] or part["month2"]
    if month:
        two = [MONTHS.index(month) + 1, int(part["day"] or part["day2"])]
    else:
        two = [int(part["one"] or part["three"]), int(part["two"] or part["four"])]
    return "-".join([year, *map(str, sorted(two))])


def sentences(text: str) -> list[str]:
    """Split into sentences at full stops, question and exclamation marks before a capital; abbreviations hold.

    The sentences joined with blanks are the text, but for its white space.
    """
    parts = re.split(
        r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|Jr|vs)\.)(?<!\bMrs\.)([\"'”’)]*)\s+(?=[\"'“‘(]?[A-Z0-9])",
        text.strip(),
    )
    return [
        " ".join((sentence + quote).split()) for sentence, quote in zip(parts[::2], [*parts[1::2], ""], strict=True)
    ]
