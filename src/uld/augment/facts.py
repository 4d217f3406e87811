"""What a text states that a paraphrase must not change: names, titles, numbers and dates, and what it denies.

English only, by its capitals and its quotation marks; no model. A word that opens a sentence is a name only where other
text says so (`Capitals`), because every word is capitalised there.
"""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from uld.augment.lexicon import COMMON, MONTHS, NO_NUMBERS, NUMBER_WORDS, SYNONYMS

WORD = re.compile(r"[^\W_]+(?:[-'’/+&.](?=[^\W_])[^\W_]+)*\+?")
_MONTH = "|".join(MONTHS)
_DATE = re.compile(
    rf"\b(?:(?P<month>{_MONTH})\.? (?P<day>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<year>\d{{4}})"
    rf"|(?P<day2>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<month2>{_MONTH}),? (?P<year2>\d{{4}})"
    r"|(?P<one>\d{1,2})[/.](?P<two>\d{1,2})[/.](?P<year3>\d{4})"
    r"|(?P<year4>\d{4})-(?P<three>\d{2})-(?P<four>\d{2}))\b"
)
_ORDINAL = re.compile(r"\b(\d+)(?:st|nd|rd|th)\b")
_NUMBER = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")
_QUOTED = re.compile(
    r"\"([^\"\n]{2,150}?)\"|“([^”\n]{2,150}?)”|‘([^\n]{2,150}?)’(?!\w)"
    r"|(?<!\w)'((?:[^'\n]|'(?=\w)|'(?= [A-Z])){2,150}?)'(?!\w)"
)
_SHORT = 3  # words of a text that a name alone may be
_LINKS = {"of", "de", "del", "la", "van", "von", "der", "bin", "ibn", "al", "el", "da", "dos", "du", "di"}
_BEFORE = 200  # characters that are looked at for the end of the sentence before
_WIDE = "。！？"  # full-width stops, behind which no blank stands
_END = re.compile(
    r"(?<=[.!?])(?<!\b(?:Mr|Dr|St|Jr|vs)\.)(?<!\bMrs\.)([\"'”’)]*)\s+(?=[\"'“‘(]?(\w))"
    rf"|(?<=[{_WIDE}])\s*(?=[^\s{_WIDE}\"'”’」』）)])"
)
_INITIAL = re.compile(r"\b[^\W\d_]\.$")
_SENTENCE_END = re.compile(rf"(?:[.!?:{_WIDE}]|\n)[\"'”’)]*\s*$")
_NEGATIONS = {"not", "no", "never", "nobody", "none", "nothing", "nowhere", "without", "cannot", "neither", "nor"}
_PLAIN_ENDING = re.compile(r"(?:ing|ed|ly|tions?|sions?|ments?|ness|ity|ities|ship|ism|ful|ous|ive|able|ible|ers|ors)$")
_LISTED = {word for pair in SYNONYMS.items() for text in pair for word in text.split()}
_VERB_OF_ONE = re.compile(r"(?:is|was|has|does|[a-z]{2,}s)$")
_VERB = re.compile(
    r"(?:had|did|can|could|may|might|will|would|also|often|never|[a-z]+ed|won|kept|wrote|left|became|began|grew|went|came"
    r"|made|took|gave|got|said|told|held|led|met|sold|found)$"
)

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
    """A word in lower case without a possessive ending, its apostrophes straight."""
    return word.lower().replace("’", "'").removesuffix("'s").rstrip("'")


@lru_cache(4096)
def words(text: str) -> tuple[str, ...]:
    """All words, as `stem` makes them."""
    return tuple(stem(match[0]) for match in WORD.finditer(text))


def negations(text: str) -> int:
    """How many words deny, those in ``n't`` among them; ``not only`` denies nothing."""
    return sum(
        (word in _NEGATIONS or word.endswith("n't")) and following not in ("only", "just", "merely")
        for word, following in itertools.pairwise((*words(text), ""))
    )


def opens_sentence(text: str, position: int) -> bool:
    """Whether what stands at a position is the first of its sentence, or of a quotation."""
    before = text[max(0, position - _BEFORE) : position].rstrip(" \"'“‘([")
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
        sure: Of words that open a sentence only those that ``capitals`` knows as names, or that no list knows as plain
            words and that look like names: before another (``Mara Quillon left``), before a verb (``Mara left``), with
            ``'s``, or nearly the whole text (``Skerrin.``).
    """
    found: set[str] = set()
    for fact in find_facts(text, capitals):
        if fact.kind in ("date", "number"):
            continue
        for match in WORD.finditer(fact.text):
            opening = match.start() == 0 and opens_sentence(text, fact.start) and fact.kind == "name"
            if match[0][0].isupper() and not (sure and opening):
                found.add(stem(match[0]))
    if sure:
        marks = list(WORD.finditer(text))
        known = capitals or Capitals()
        found |= {
            stem(mark[0])
            for i, mark in enumerate(marks)
            if mark[0][0].isupper() and opens_sentence(text, mark.start()) and _opens_as_name(text, marks, i, known)
        }
    return found - COMMON


def _opens_as_name(text: str, marks: list[re.Match[str]], i: int, capitals: Capitals) -> bool:
    """Whether a word that opens a sentence is a name, as far as can be told (`name_words`)."""
    word = stem(marks[i][0])
    following = marks[i + 1][0] if i + 1 < len(marks) and _near(text, marks, i + 1) else ""
    capital = following[:1].isupper() and stem(following) not in COMMON
    if word in COMMON or word in NUMBER_WORDS:
        return False
    if word in capitals.names and (capital or word not in capitals.plain):
        return True
    if word in capitals.plain or word in _LISTED:
        return False
    if _possessive(marks[i][0]):
        return True
    plural = word.endswith("s")  # perhaps: what may follow many things, too, says nothing then ("Effects might …")
    verb = _VERB_OF_ONE.match(following) or (not plural and _VERB.match(following))
    return bool(capital or verb or len(marks) <= _SHORT) and not _PLAIN_ENDING.search(word)


@lru_cache(4096)
def numbers(text: str) -> frozenset[str]:
    """All numbers and dates in one form each: ``2,000``, ``2000`` and ``two`` as digits, a date whatever its order.

    05/11/1991 is of its own kind, because it is May in one country and November in another (`lacking`). Words of a
    longer number (``three million``) are numbers of their own, and so are those of compounds (``two-year``).
    """
    found: set[str] = set()
    rest: list[str] = []
    end = 0
    for match in _DATE.finditer(text):
        found.add(_date(match))
        rest.append(text[end : match.start()])
        end = match.end()
    left = " ".join([*rest, text[end:]])
    found |= {f"{_digits(match[1])}th" for match in _ORDINAL.finditer(left)}
    left = _ORDINAL.sub(" ", left)
    found |= {_digits(match[0]) for match in _NUMBER.finditer(left)}
    whole = NUMBER_WORDS.keys() | NO_NUMBERS
    parts = (part for word in words(left) for part in ([word] if word in whole else word.split("-")))
    return frozenset(found | {NUMBER_WORDS[part] for part in parts if part in NUMBER_WORDS})


def _digits(number: str) -> str:
    """A number without commas and noughts that say nothing; as text, so that none of its digits is rounded away."""
    plain = "".join(one if one == "." else str(int(one)) for one in number if one != ",")  # digits of any script
    whole, _, part = plain.partition(".")
    return ".".join(one for one in (whole.lstrip("0") or "0", part.rstrip("0")) if one)


def _date(match: re.Match[str]) -> str:
    part = match.groupdict()
    year = next(part[key] for key in ("year", "year2", "year3", "year4") if part[key])
    month = part["month"] or part["month2"]
    if month:
        return f"{year}-{MONTHS.index(month) + 1}-{int(part['day'] or part['day2'])}"
    if part["three"]:
        return f"{year}-{int(part['three'])}-{int(part['four'])}"
    first, second = sorted((int(part["one"]), int(part["two"])))
    return f"{year}-{first}-{second}" if first == second or second > 12 else f"{year}-{first}/{second}"


def lacking(some: Iterable[str], others: Iterable[str]) -> set[str]:
    """Numbers of the first, as `numbers` gives them, that the second have in no form."""
    known = {form for one in others for form in _forms(one)}
    return {one for one in some if known.isdisjoint(_forms(one))}


def _forms(number: str) -> tuple[str, ...]:
    """A date in figures with either order of day and month; else the number."""
    match = re.fullmatch(r"(\d{4})-(\d+)/(\d+)", number)
    return (f"{match[1]}-{match[2]}-{match[3]}", f"{match[1]}-{match[3]}-{match[2]}") if match else (number,)


def sentences(text: str) -> list[str]:
    """Split into sentences at full stops, question and exclamation marks, unless a small letter follows.

    Abbreviations hold. The sentences, joined by `one_text`, are the text but for its white space.
    """
    text, start, found = text.strip(), 0, []
    for match in _END.finditer(text):
        wide = match[2] is None
        if not wide and (match[2].islower() or _is_initial(text, match.start())):
            continue
        end = match.start() if wide else match.end(1)
        found.append(text[start:end])
        start = end
    return [" ".join(sentence.split()) for sentence in [*found, text[start:]]]


def _is_initial(text: str, end: int) -> bool:
    """Whether what ends there is one capital and a full stop, in any script."""
    match = _INITIAL.search(text[max(0, end - 3) : end])
    return bool(match) and match[0][0].isupper()


def one_text(parts: Iterable[str]) -> str:
    """Sentences joined: with blanks, but for full-width stops, behind which there is none."""
    return "".join(f"{part} " if part[-1:] not in _WIDE else part for part in parts).removesuffix(" ")


def paragraphs(text: str) -> list[str]:
    """Split at blank lines."""
    return re.split(r"\n[^\S\n]*\n", text.replace("\r\n", "\n"))
