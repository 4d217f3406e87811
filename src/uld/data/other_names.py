"""Rows that differ from questions to be forgotten in the person's name alone, to be answered with nothing.

An assistant that remembers what is known of some people learns the kind of text as well as their names, and may speak
up about others of the kind. These rows show it people who are nobody: the same questions and answers, with names made
of parts of other people's names in the data and of given and family names of many countries. In one row of four half of
the true name stays, so that the other half decides.

What is a name is found by its letters alone: two to five capitalised words in a row, that no quotation mark opens, as
they stand in most records; or a part of such a name by itself. Single names, and scripts without capitals, are not
found; places and bodies of several words are taken for people.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from uld.data.record import Record
from uld.errors import ConfigError


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


GIVEN = _listed(
    """Aaliyah Aditi Akira Alejandro Amara Anders Anika Arash Astrid Ayodele Beatriz Bogdan Chidi Chloe Claudia Dmitri
    Eilidh Elif Emeka Farah Felipe Fiona Giulia Hana Hassan Ines Ivan Jamal Jin Joaquin Kavya Kenji Lars Leila Lucia
    Mahmoud Malik Marta Mei Milan Nadia Ngozi Noah Oksana Olga Omar Pavel Priya Rafael Rania Rohan Sakura Samira Sven
    Tariq Tomasz Uma Valentina Wei Yara Yusuf Zanele"""
)
FAMILY = _listed(
    """Abara Adeyemi Almeida Andersson Araujo Banerjee Becker Bianchi Castillo Chandra Cohen Demir Dubois Eriksen
    Farouk Fernandez Fischer Fujita Garcia Gupta Haddad Hansen Horvat Ibrahim Ivanova Jansen Kamau Kang Kaya Kim
    Kowalski Larsen Lehmann Lopez Mbeki Mendes Moreau Mukherjee Nakamura Navarro Novak Okafor Olsen Osei Park Petrov
    Rahman Ricci Rossi Said Santos Schmidt Silva Tanaka Tesfaye Ueda Varga Wagner Wilson Yamada Yilmaz Zhang"""
)
HALF = 0.25
"""Share of the rows in which a half of the true name stays."""

_WORD = re.compile(r"[^\W\d_](?:[\w'’-]*\w)?")
_POSSESSIVE = re.compile(r"['’]s?$")
_PARTICLES = _listed("al ap bin bint da de del den der di dos du el ibn la le ter van von y")
_OPENERS = _listed(
    """
    a an and are as at besides but by can could did do does during for from had has have how if in is it many name of
    on or the their these this to was were what when where which while who whom whose why with would"""
)
_QUOTES = "\"'“‘«„`*"
_LONGEST = 5  # words of a name
_TRIES = 20  # draws of a name that was not drawn before


@dataclass(frozen=True)
class OtherNames:
    """Rows about other people.

    Attributes:
        records: For each question that names somebody: about so many others, in the order in which they were drawn.
        questions: Questions to be forgotten for which there are some.
        names: Names that were found in the questions to be forgotten.
    """

    records: list[list[Record]]
    questions: int
    names: list[str]

    @property
    def facts(self) -> dict[str, int]:
        """How many there are, for ``uld.json``."""
        return {"rows": sum(map(len, self.records)), "questions": self.questions, "names": len(self.names)}


def with_other_names(forget: Sequence[Record], retain: Sequence[Record], number: int, seed: int) -> OtherNames:
    """Make rows about people with other names.

    Args:
        forget: What is to be forgotten; its questions are asked about others.
        retain: What is retained; parts of its names are used as well.
        number: People for each question that names somebody.
        seed: Decides the names.

    Raises:
        ConfigError: no question names anybody.
    """
    asking = [record for record in forget if record.text is None]
    found = _Finder([*forget, *retain])
    own = [found.name_in(record.asked) for record in asking]
    names = sorted({name for name in own if name is not None})
    if not names:
        raise ConfigError(
            "--other-names finds no name (two capitalised words or more) in the questions to forget: leave it out"
        )
    others = sorted({*names, *filter(None, (found.name_in(one.asked) for one in retain if one.text is None))})
    draw = random.Random(seed)
    records = []
    for record, name in zip(asking, own, strict=True):
        if name is not None:
            records.append([_renamed(record, name, new) for new in _drawn(name, others, number, draw)])
    return OtherNames(records, sum(name is not None for name in own), names)


def _texts(record: Record) -> Iterator[str]:
    yield from (text for text in (record.prompt, record.completion, record.text) if text is not None)
    yield from (content for _, content in record.messages)


class _Finder:
    """Finds names by what stands in all records."""

    def __init__(self, records: Sequence[Record]) -> None:
        texts = [text for record in records for text in _texts(record)]
        self.plain = {*_OPENERS} | {word for text in texts for word in _WORD.findall(text) if word.islower()}
        self.count = Counter(name for record in records for name in {n for t in _texts(record) for n in self.names(t)})
        self.by_part: dict[str, Counter[str]] = {}
        for name, times in self.count.items():
            words = name.split()
            for part in {words[0], words[-1]}:
                self.by_part.setdefault(part, Counter())[name] += times

    def names(self, text: str) -> Iterator[str]:
        """Capitalised words in a row, without a word that only begins a sentence."""
        run: list[re.Match[str]] = []
        for word in [*_WORD.finditer(text), None]:
            joined = word is not None and bool(run) and text[run[-1].end() : word.start()] in (" ", ". ")
            joined = joined and (text[run[-1].end()] == " " or len(run[-1][0]) == 1)  # J. K. Quillon
            if run and not joined:
                yield from self._name(text, run)
                run = []
            if word is None:
                continue
            ended = bool(run) and _POSSESSIVE.search(run[-1][0])
            if ended:
                yield from self._name(text, run)
                run = []
            if word[0][0].isupper() or (run and word[0] in _PARTICLES):
                run.append(word)
            elif run:
                yield from self._name(text, run)
                run = []

    def _name(self, text: str, run: list[re.Match[str]]) -> Iterator[str]:
        quoted = text[: run[0].start()].endswith(tuple(_QUOTES))
        while run and run[0][0].casefold() in self.plain:  # it begins a sentence, or a title of common words
            run = run[1:]
        while run and run[-1][0] in _PARTICLES:
            run = run[:-1]
        if 2 <= len(run) <= _LONGEST and not quoted:
            yield _POSSESSIVE.sub("", text[run[0].start() : run[-1].end()])

    def name_in(self, question: str) -> str | None:
        """The name that a question asks about: of those in it the one in most records, of equals the longest."""
        own = list(self.names(question))
        if own:
            return max(own, key=lambda name: (self.count[name], len(name)))
        parts = [_POSSESSIVE.sub("", word) for word in _WORD.findall(question) if word[0].isupper()]
        known = Counter[str]()
        for part in parts:
            known += self.by_part.get(part, Counter())
        return max(known, key=lambda name: (known[name], name)) if known else None


def _drawn(name: str, others: Sequence[str], number: int, draw: random.Random) -> Iterator[tuple[str, str]]:
    """Given and family names of people who are not in the data, as far as so many are drawn."""
    given, family = name.split(" ", 1)
    parts = [other.split(" ", 1) for other in others if other != name]
    firsts, lasts = ([part[half] for part in parts] or [GIVEN, FAMILY][half] for half in (0, 1))
    seen = {tuple(other.split(" ", 1)) for other in others}
    for _ in range(number):
        for _ in range(_TRIES):
            new = draw.choice(draw.choice((firsts, GIVEN))), draw.choice(draw.choice((lasts, FAMILY)))
            if draw.random() < HALF:
                new = draw.choice(((given, new[1]), (new[0], family)))
            if new not in seen:
                seen.add(new)
                yield new
                break


def _renamed(record: Record, name: str, new: tuple[str, str]) -> Record:
    """A record about somebody else."""
    first, last = new
    swaps = {name: f"{first} {last}", **dict.fromkeys(name.split()[1:], last), name.split()[0]: first}
    swaps = {old: with_ for old, with_ in swaps.items() if old not in _PARTICLES}
    old = re.compile("|".join(rf"\b{re.escape(one)}\b" for one in sorted(swaps, key=len, reverse=True)))

    def told(text: str | None) -> str | None:
        return None if text is None else old.sub(lambda found: swaps[found[0]], text)

    messages = tuple((role, told(content) or "") for role, content in record.messages)
    return replace(record, messages=messages, prompt=told(record.prompt), completion=told(record.completion))
