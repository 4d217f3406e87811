"""Questions about a text by rule, so that an assistant learns its facts and not only its wording.

Simple and honest: a few sentence patterns (born, is, a year), what the text says about a name, and gaps to fill. Every
answer stands in the text.
"""

import re
from collections.abc import Iterator
from random import Random

from uld.augment.facts import Fact, find_facts, one_text, opens_sentence, paragraphs, sentences
from uld.augment.pool import Pool

_BORN = re.compile(r"^(?P<who>.+?) (?:was|were) born\b(?P<rest>.*)$")
_IS = re.compile(r"^(?P<who>.+?) (?P<verb>is|was) (?:an?|the) ")
_YEAR = re.compile(r"\bin (1\d{3}|20\d{2})\b", re.I)
_GAP = "____"
_LONGEST = 300


def asked_questions(chunk: str, pool: Pool, rng: Random) -> Iterator[tuple[str, str]]:
    """Questions and answers, plain questions before gaps.

    Args:
        chunk: Of a text.
        pool: Of the whole file.
        rng: Chooses among the gaps.
    """
    parts = [part for paragraph in paragraphs(chunk) for part in sentences(paragraph) if len(part) <= _LONGEST]
    for part in parts:
        yield from _by_pattern(part, pool)
    names: dict[str, list[str]] = {}
    for part in parts:
        for fact in find_facts(part, pool.capitals):
            if fact.kind in ("name", "title"):
                names.setdefault(fact.text, []).append(part)
    for name, said in sorted(names.items(), key=lambda one: -len(one[1])):
        yield f"What does the text say about {name}?", one_text(said[:3])
    gaps = [(part, fact) for part in parts for fact in find_facts(part, pool.capitals) if part.count(fact.text) == 1]
    rng.shuffle(gaps)
    for part, fact in gaps:
        if len(part.split()) > 5:
            gap = part[: fact.start] + _GAP + part[fact.end :]
            yield f"What belongs in the gap: {gap}", fact.text


def _by_pattern(sentence: str, pool: Pool) -> Iterator[tuple[str, str]]:
    facts = find_facts(sentence, pool.capitals)
    if (match := _BORN.match(sentence)) and _is_name(match["who"], facts):
        kinds = {fact.kind for fact in facts if fact.start >= match.start("rest")}
        if "date" in kinds or "number" in kinds:
            yield f"When was {match['who']} born?", sentence
        if re.match(r" in (?!\d)", match["rest"]):
            yield f"Where was {match['who']} born?", sentence
    elif (match := _IS.match(sentence)) and _is_name(match["who"], facts):
        asks = "Who" if pool.kinds.get(match["who"]) == "person" else "Who or what"
        yield f"{asks} {match['verb']} {match['who']}?", sentence
    if (match := _YEAR.search(sentence)) and any(fact.kind == "name" for fact in facts):
        yield f"What happened in {match[1]}?", sentence


def _is_name(text: str, facts: tuple[Fact, ...]) -> bool:
    first = next((fact for fact in facts if fact.start <= 1), None)
    return first is not None and first.text == text and opens_sentence(text, first.start)
