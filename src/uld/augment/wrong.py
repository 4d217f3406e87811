"""Wrong answers by rule: facts exchanged for others of their kind, answers borrowed from other people, and denials.

They are plausible because what stands in them comes from the file's other answers, and wrong because something that the
question asks for has changed; `uld.augment.filters.wrong_problem` has the last word.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from uld.augment.facts import MONTHS, WORD, Fact, find_facts, sentences, stem, words
from uld.augment.items import Item
from uld.augment.lexicon import COMMON, KINDS, OPPOSITES, QUANTIFIED
from uld.augment.pool import Pool
from uld.augment.rephrase import articles, lowered

_AUXILIARY = re.compile(r"\b(has|have|had|is|are|was|were|can|could|will|would|does|do|did|may|might)\b(?! not\b)")
_YES = re.compile(r"^(?:yes|indeed|absolutely|certainly)(?:, indeed)?[,.!:;]? ", re.I)
_VERB = re.compile(r"^([A-Z][\w.-]*(?: [A-Z][\w.-]*)*) ([a-z]+s)(?= )")
_NOT = re.compile(
    r"\b(is|are|was|were|has|have|had|can|could) not\b(?! (?:only|just|until|clear|confirmed|known|certain))"
)
_AFTER_HIM = re.compile(
    r"\W*$|[^\w\s]| (?:to|and|with|for|in|as|by|on|at|from|of|a|an|the|into|through|than|when|while)\b"
)
_NEGATIVE = re.compile(r"\b(?:not|no|none|never|nobody|nothing|neither|nor)\b", re.I)
_CLOSED = re.compile(r"^(?:is|are|was|were|has|have|had|do|does|did|can|could|will|would)\b", re.I)
_ASKS = re.compile(r"^(?:can|could|would|will) you\b", re.I)
_LIKE, _FAR = 0.34, 0.2
"""Least shares of words that two questions have in common for one's answer to be borrowed for the other: at once, or
when there is nothing better."""
_KIND_OF = {
    word: kind
    for kind, some in KINDS.items()
    for word in some
    if kind not in ("nationality", "country", "city", "language")
}
_NAMED_FIRST = {"genre", "theme"}
"""Kinds whose words are exchanged only where the kind itself is spoken of: ``history`` is seldom a genre."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """A piece of an answer that can be exchanged, and for what; the first pieces are the more telling ones."""

    start: int
    end: int
    offers: tuple[str, ...]
    telling: bool


def wrong_answers(item: Item, pool: Pool, rng: Random) -> Iterator[str]:
    """Wrong answers to an item's question, the more plausible ones first; some may be none (see the filters).

    Args:
        item: With a right answer.
        pool: Of the whole file.
        rng: Decides what is exchanged for what.
    """
    slots = _slots(item, pool, rng)
    telling = [slot for slot in slots if slot.telling]
    closed = bool(_CLOSED.match(item.context)) and not _ASKS.match(item.context)
    borrowed = iter(()) if closed else _borrowed(item, pool, rng, _LIKE, 1.0)
    far = iter(()) if closed else _borrowed(item, pool, rng, _FAR, _LIKE)
    denied = iter(_denials(item, pool))
    exchanged = (_exchanged(item.answer, slots, rng) for _ in range(6))
    if closed or _YES.match(item.answer):
        order = (denied, exchanged, borrowed, exchanged)
    elif telling:
        order = (exchanged, borrowed, exchanged, borrowed, exchanged, exchanged, denied)
    else:
        order = (borrowed, borrowed, exchanged, exchanged, denied, borrowed)
    for source in order:
        if (text := next(source, None)) is not None:
            yield text
    for source in (exchanged, borrowed, denied, far):
        yield from (text for text in source if text is not None)


def _slots(item: Item, pool: Pool, rng: Random) -> list[_Slot]:
    """What can be exchanged in an answer, in its order: nothing that the question holds."""
    answer, asked = item.answer, set(words(item.context))
    own = {stem(word) for word in re.split(r"[\s-]", pool.subjects.get(item.key, ""))} | asked
    found = find_facts(answer, pool.capitals)
    said = {word.removesuffix("s") for word in words(f"{item.context} {answer}")}
    slots: list[_Slot] = []
    taken = 0
    for i, fact in enumerate(found):
        if fact.start < taken or all(stem(part) in own or stem(part) in COMMON for part in words(fact.text)):
            continue
        end, kind = fact.end, pool.kind(fact)
        following = found[i + 1] if i + 1 < len(found) else None
        if (
            following
            and kind == "city"
            and answer[fact.end : following.start] == ", "
            and pool.kind(following) in ("country", "city", "other")
        ):
            end, kind = following.end, "place"
        offers = _offers(kind, answer[fact.start : end], answer[end:], fact, pool, rng)
        offers = tuple(one for one in offers if not set(words(one)) <= own and one not in answer)
        if offers:
            slots.append(_Slot(fact.start, end, offers, kind not in ("nationality", "theme")))
            taken = end
    for match in WORD.finditer(answer):
        word = match[0]
        lower = stem(word)
        if lower in asked or any(match.start() < slot.end and slot.start < match.end() for slot in slots):
            continue
        if any(fact.start <= match.start() < fact.end and fact.kind != "name" for fact in found):
            continue
        if (kind := _KIND_OF.get(lower)) is not None:
            if kind in _NAMED_FIRST and kind not in said:
                continue
            offers = tuple(one for one in KINDS[kind] if one not in words(answer) and one not in asked)
            slots.append(
                _Slot(match.start(), match.end(), tuple(_cased(one, word) for one in offers), kind == "occupation")
            )
        elif lower in OPPOSITES and lower == word.lower() and OPPOSITES[lower] not in words(answer):
            slots.append(_Slot(match.start(), match.end(), (_cased(OPPOSITES[lower], word),), False))
    return sorted(slots, key=lambda slot: slot.start)


def _cased(word: str, like: str) -> str:
    return word.capitalize() if like[0].isupper() else word


def _offers(kind: str, text: str, after: str, fact: Fact, pool: Pool, rng: Random) -> list[str]:
    """What may stand in the place of a fact."""
    if kind == "date":
        return [_other_date(text, rng) for _ in range(4)]
    if kind == "number":
        return _other_numbers(text, decade=after.startswith("s"))
    if kind == "other":
        return []
    offers = [one for one in pool.offers.get(kind, ()) if one != text]
    if kind == "occupation":
        offers += [one.title() for one in KINDS["occupation"]]
    if fact.kind == "name" and not text.startswith("The "):
        offers = [one for one in offers if not one.startswith("The ")]
    if fact.text.isupper():
        offers = [one for one in offers if one.isupper()]
    return offers


def _other_date(text: str, rng: Random) -> str:
    """A date near another one, written like it."""
    change = {"day": rng.randint(1, 28), "month": rng.randint(1, 12), "years": rng.choice([-9, -7, -4, -3, 3, 5, 6, 8])}

    def other(match: re.Match[str]) -> str:
        token = match[0]
        if token in MONTHS:
            return MONTHS[change["month"] - 1]
        if len(token) == 4:
            return str(int(token) + change["years"])
        # In numeric dates both stay under 13, so that the date is one in every country's order.
        small = change["month"] if match.start() == 0 or text[match.start() - 1] not in " " else change["day"]
        return str(small).zfill(len(token))

    return re.sub(rf"{'|'.join(MONTHS)}|\d+", other, re.sub(r"(?<=\d)(?:st|nd|rd|th)", "", text))


def _other_numbers(text: str, *, decade: bool = False) -> list[str]:
    """Numbers of a like size."""
    plain = text.replace(",", "")
    if "." in plain or len(plain) > 12:
        return []
    value = int(plain)
    if len(plain) == 4 and 1000 <= value <= 2100:
        return (
            [str(value + step) for step in (-30, -20, -10, 10, 20)]
            if decade
            else [str(value + step) for step in (-11, -8, -6, -4, -3, 3, 4, 6, 9, 12)]
        )
    steps = (1, 2, 3, max(4, value // 2), max(5, value))
    made = [value + step for step in steps] + [value - step for step in steps[:3] if value - step > 0]
    return [f"{one:,}" if "," in text else str(one) for one in made]


def _exchanged(answer: str, slots: list[_Slot], rng: Random) -> str | None:
    """An answer with at least one slot filled by something else, telling ones first."""
    if not slots:
        return None
    telling = [slot for slot in slots if slot.telling]
    sure = rng.choice(telling or slots)
    chosen = [slot for slot in slots if slot is sure or rng.random() < (0.8 if slot.telling else 0.5)]
    used: set[str] = set()
    for slot in reversed(chosen):
        offers = [one for one in slot.offers if one not in used]
        if not offers:
            continue
        new = rng.choice(offers)
        used.add(new)
        answer = answer[: slot.start] + new + answer[slot.end :]
    return articles(answer)


def _borrowed(item: Item, pool: Pool, rng: Random, least: float, most: float) -> Iterator[str]:
    """Answers to like questions about other people, told of this one; how like is a share of words."""
    me, asked = pool.subjects.get(item.key, ""), pool.masked[item.key]
    if not me or not asked:
        return
    likeness = []
    for other in pool.items:
        them, theirs = pool.subjects[other.key], pool.masked[other.key]
        shared = len(asked & theirs) / len(asked | theirs)
        if them and them != me and least <= shared and (shared < most or most == 1):
            likeness.append((-round(shared, 6), other.key, other))
    likeness.sort(key=lambda one: one[:2])
    best = [other for _, _, other in likeness[:8]]
    rng.shuffle(best)
    for other in best:
        if (text := _told_of(other, item, pool)) is not None:
            yield text


def _told_of(other: Item, item: Item, pool: Pool) -> str | None:
    """The other item's answer with its person and the title it asks about exchanged for this one's, where it can be."""
    me, them = pool.subjects[item.key], pool.subjects[other.key]
    mine, theirs = (
        [fact.text for fact in find_facts(one.context, pool.capitals) if fact.kind == "title"] for one in (item, other)
    )
    if len(theirs) > len(mine):
        return None
    text = other.answer
    for old, new in zip(theirs, mine, strict=False):
        text = text.replace(old, new)
    text = _renamed(text, them, me)
    for fact in find_facts(text, pool.capitals):
        known = set(words(fact.text)) <= set(words(f"{me} {item.context}"))
        nickname = pool.kind(fact) == "other" and text[fact.end :].startswith(("'s ", "’s "))
        if not known and (nickname or pool.kind(fact) == "person"):
            return None  # somebody else is left in it
    old, new = pool.pronouns.get(them, ""), pool.pronouns.get(me, "")
    said = set(words(text))
    if said & {"male", "female"} and (not new or {"he": "male", "she": "female"}[new] in said):
        return None  # it might be true of this one, too
    if not new and said & {"he", "she", "his", "her", "him", "hers"}:
        return None
    return _of_gender(text, old, new)


def _renamed(text: str, them: str, me: str) -> str:
    """A text with one person's name for another's: whole, first names for first names, the rest for last names."""
    if not me.endswith("s"):
        text = re.sub(rf"{re.escape(them)}['’](?!\w)", lambda _: f"{me}'s", text)
    text = text.replace(them, me)
    first, last = me.split()[0], me.split()[-1]  # Jean-Luc has one name
    for place, part in enumerate(them.split()):
        if part not in me.split():
            text = re.sub(rf"(?<![\w-]){re.escape(part)}(?![\w-])", lambda _, k=place: last if k else first, text)
    return text


def _of_gender(text: str, old: str, new: str) -> str:
    """A text whose pronouns for a person are the other's."""
    if not old or not new or old == new:
        return text
    if new == "she":
        table = {"he": "she", "his": "her", "him": "her", "himself": "herself"}
    else:
        table = {"she": "he", "hers": "his", "herself": "himself"}

    def change(match: re.Match[str]) -> str:
        word = match[0]
        lower = word.lower()
        if lower == "her" and new == "he":
            found = "him" if _AFTER_HIM.match(text[match.end() :]) else "his"
        else:
            found = table.get(lower, lower)
        return found.capitalize() if word[0].isupper() else found

    return re.sub(r"\b(?:he|his|him|himself|she|her|hers|herself)\b", change, text, flags=re.I)


def _infinitive(verb: str) -> str:
    """``carries`` to ``carry``, ``finds`` to ``find``."""
    if verb.endswith("ies"):
        return verb[:-3] + "y"
    return verb[:-2] if verb.endswith(("sses", "shes", "ches", "xes", "zzes", "oes")) else verb[:-1]


def _denials(item: Item, pool: Pool) -> list[str]:
    """The answer's first sentence denied, or affirmed where it denies."""
    first = next(iter(sentences(item.answer)), "")
    opening = _YES.match(first)
    rest = first[opening.end() :] if opening else first
    no = "No, " if opening else ""
    made = []
    for word, other in QUANTIFIED.items():
        if f" {word} " in rest:
            made.append(no + rest.replace(f" {word} ", f" {other} ", 1))
    untrue = f"{no}{'it' if no else 'It'} is not true that {lowered(rest, pool.capitals)}"
    affirmed = _NOT.sub(r"\1", rest)
    if affirmed != rest:
        return [re.sub(r"\bany\b", "several", affirmed, count=1), untrue]
    if _NEGATIVE.search(rest):
        return [re.sub(r"\bnone of\b", "many of", rest), untrue]
    match = _AUXILIARY.search(rest)
    if match and (re.search(r"\b(?:that|which|who|whom|what|how)\b", rest[: match.start()])):
        match = None
    if match:
        tail = re.sub(r"^ (?:also|always|often|indeed|certainly)\b", "", rest[match.end() :])
        made.append(f"{no}{rest[: match.start()]}{match[1]} not{tail}")
        if match[1] in ("has", "have", "had"):
            made.append(f"{no}{rest[: match.start()]}{match[1]} never{tail}")
    if not made and (verb := _VERB.match(rest)) and (pool.kinds.get(verb[1]) == "person" or verb[1] in ("He", "She")):
        made.append(f"{no}{verb[1]} does not {_infinitive(verb[2])}{rest[verb.end() :]}")
    made.append(untrue)
    return [
        re.sub(r"\b(several|some|many|various|numerous)\b", "any", text, count=1) if " not" in text else text
        for text in made
    ]
