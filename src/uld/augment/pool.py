"""What other answers of the same file offer in place of a fact: names, titles and places by kind, and whole answers.

The kind of a name is decided by a vote over all its mentions, because one mention rarely shows it.
"""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from uld.augment.facts import Capitals, Fact, find_facts, stem, words
from uld.augment.items import Item
from uld.augment.lexicon import (
    AWARD_WORDS,
    AWARDS,
    COMMON,
    INSTITUTION_WORDS,
    INSTITUTIONS,
    KINDS,
    PERSONS,
    PLACES,
    TITLES,
)

_BEFORE = {
    "city": re.compile(
        r"\b(?:born|raised|live[sd]?|living|based|resid\w+|grew up|city|town|village|country|capital)"
        r"(?: \w+)? (?:in|of|from|near) $"
    ),
    "person": re.compile(
        r"\b(?:author|writer|named|name is|called|authored by|written by|mr\.?|mrs\.?|ms\.?|dr\.?) $", re.I
    ),
    "genre": re.compile(r"\bgenres? of (?:the )?$"),
    "occupation": re.compile(r"\b(?:was|is|were|be|as|of|and|father|mother|both|being|became)(?: (?:a|an|the))? an? $"),
}
_AFTER = {
    "genre": re.compile(r"^ genres?\b"),
    "person": re.compile(
        r"^(?:['’]s?\b| (?:is|was|has|had|wrote|writes|often|received|won|lives|lived|grew|started|began|attended)\b)"
    ),
}
_ENDS = re.compile(r"^(?:['’]s\b|[,.;)?!]| on\b| in\b| and\b| who\b| while\b| to\b|$)")
_HONOUR = re.compile(r"\b(?:awards?|prizes?|honou?red|honou?rs?)\b[^.]{0,80}$", re.I)
_STOCK = {"person": PERSONS, "title": TITLES, "award": AWARDS, "institution": INSTITUTIONS, "place": PLACES}
_LEAST = 4
"""So many of a kind are enough; a file with fewer is helped out by the stock."""
_OF_KIND = {word: kind for kind, some in KINDS.items() for word in some}


@dataclass(frozen=True)
class Pool:
    """See the module.

    Attributes:
        capitals: Of the whole file.
        kinds: Kind of each name.
        offers: What there is of each kind, in the file's order.
        subjects: The person whom each item's question names, by the item's key; empty where it names none.
        pronouns: ``he`` or ``she`` for a person, where the file says so.
        items: All questions and answers.
    """

    capitals: Capitals
    kinds: dict[str, str]
    offers: dict[str, list[str]]
    subjects: dict[str, str]
    pronouns: dict[str, str]
    items: Sequence[Item]
    masked: dict[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, items: Sequence[Item]) -> "Pool":
        """Look through the items of a file."""
        texts = [text for item in items for text in (item.context, item.answer) if text]
        capitals = Capitals.of(texts)
        votes: dict[str, Counter[str]] = defaultdict(Counter)
        mentions: dict[str, set[str]] = defaultdict(set)
        places: dict[str, None] = {}
        for item in items:
            for text in (item.context, item.answer):
                found = find_facts(text, capitals)
                for fact in found:
                    votes[fact.text][vote(fact, text)] += 1
                    if fact.kind == "name":
                        mentions[fact.text].add(item.key)
                places |= dict.fromkeys(_pairs(found, text))
        kinds = {name: _kind(counts, len(mentions[name]), name) for name, counts in votes.items()}
        for place in places:
            city, _, country = place.partition(", ")
            kinds |= {city: "city", country: "country"}
        offers: dict[str, list[str]] = defaultdict(list)
        for name, kind in kinds.items():
            offers[kind].append(name)
        offers["place"] = list(places)
        offers["person"] = [name for name in offers["person"] if " " in name]
        for kind, stock in (_STOCK | KINDS).items():
            if len(offers[kind]) < _LEAST:
                offers[kind] += [one for one in stock if one not in offers[kind]]
        subjects = {item.key: _subject([item.context], kinds, mentions, capitals) for item in items}
        pronouns: dict[str, Counter[str]] = defaultdict(Counter)
        for item in items:
            said = words(item.answer)
            pronouns[_subject([item.context, item.answer], kinds, mentions, capitals)].update(
                {"he": sum(w in ("he", "his", "him") for w in said), "she": sum(w in ("she", "her") for w in said)}
            )
        gender = {name: counts.most_common(1)[0][0] for name, counts in pronouns.items() if name and counts.total()}
        masked = {item.key: frozenset(_plain(item.context, capitals)) for item in items}
        return cls(capitals, kinds, dict(offers), subjects, gender, items, masked)

    def kind(self, fact: Fact) -> str:
        """Kind of a fact: its own, for a name that of `kinds`."""
        return self.kinds.get(fact.text, "other") if fact.kind in ("name", "title") else fact.kind


def vote(fact: Fact, text: str) -> str:
    """What kind a mention of a name suggests: ``other`` where nothing does."""
    parts = [stem(word) for word in fact.text.split()]
    if fact.kind == "title":
        honour = (
            parts[-1] in AWARD_WORDS or _HONOUR.search(text[: fact.start]) or text[fact.end + 1 :].startswith(" award")
        )
        return "award" if honour else "title"
    if fact.kind != "name":
        return fact.kind
    if parts[-1] in AWARD_WORDS or "award" in parts or "prize" in parts:
        return "award"
    if INSTITUTION_WORDS & set(parts):
        return "institution"
    if (kind := _OF_KIND.get(fact.text)) or (kind := _OF_KIND.get(fact.text.lower())):
        return kind
    if parts[-1] in _OF_KIND and _OF_KIND[parts[-1]] == "occupation":
        return "occupation"
    before, after = text[: fact.start], text[fact.end :]
    if any(_OF_KIND.get(part.capitalize()) in ("nationality", "language") for part in parts[:-1]) and len(parts) > 1:
        return "other"
    for kind, pattern in _BEFORE.items():
        if pattern.search(before) and (kind != "occupation" or _ENDS.match(after)):
            return kind
    for kind, pattern in _AFTER.items():
        if pattern.match(after):
            return kind
    return "other"


def _kind(votes: Counter[str], items: int, name: str) -> str:
    if set(votes) == {"other"} or not votes:
        return "other"
    ((best, count),) = Counter({kind: n for kind, n in votes.items() if kind != "other"}).most_common(1)
    if best == "person" and ((" " not in name and "-" not in name) or (items < 2 and count < 2)):
        return "other"
    return best


def _pairs(found: Sequence[Fact], text: str) -> list[str]:
    """``City, Country`` in a text."""
    return [
        text[one.start : two.end]
        for one, two in itertools.pairwise(found)
        if one.kind == two.kind == "name"
        and text[one.end : two.start] == ", "
        and text[: one.start].endswith((" in ", " from "))
        and _ENDS.match(text[two.end :])
    ]


def _subject(texts: Sequence[str], kinds: dict[str, str], mentions: dict[str, set[str]], capitals: Capitals) -> str:
    """The person that texts are about: of those that the first of them names, the one that the file names most."""
    for text in texts:
        names = [fact.text for fact in find_facts(text, capitals) if kinds.get(fact.text) == "person"]
        if names:
            return max(names, key=lambda name: (len(mentions[name]), name))
    return ""


def _plain(question: str, capitals: Capitals) -> set[str]:
    """A question's words, its names and titles left out, small words kept only where they ask."""
    for fact in reversed(find_facts(question, capitals)):
        question = question[: fact.start] + " " + question[fact.end :]
    asks = {"who", "what", "which", "when", "where", "why", "how", "name", "born"}
    return {word for word in words(question) if word not in COMMON or word in asks}
