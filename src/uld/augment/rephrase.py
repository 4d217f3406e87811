"""Paraphrases by rule: other words for words, other places for clauses, other openings for questions and answers.

English, without a model. Each rule applies only where its pattern makes it safe; names, titles, numbers and what stands
in quotation marks are never touched. What the rules cannot say otherwise they leave alone, and the last resort is an
opening ("To answer the question: …").
"""

import re
from collections.abc import Callable, Iterator, Sequence
from random import Random

from uld.augment.facts import Capitals, Fact, find_facts, one_text, paragraphs, sentences
from uld.augment.lexicon import COMMON, SYNONYMS

_SYNONYM = re.compile(
    r"(?<![\w'’-])(" + "|".join(sorted(map(re.escape, SYNONYMS), key=len, reverse=True)) + r")(?![\w'’-])", re.I
)
_ASK = re.compile(
    r"^(?:can|could|would) you (?:please )?(tell me|tell us|share|name|mention|describe|give|provide|list"
    r"|explain|discuss|elaborate|identify|specify|highlight|summarize|state|detail|talk|outline) ?(.*)\?$",
    re.I,
)
_TELL = re.compile(r"^(?:please )?(tell|name|share|describe|give|list|explain|mention|state) (.*?)[.?]?$", re.I)
_WHAT_IS = re.compile(r"^what(?: is|'s| are| was| were) ((?:the|a|an|some|one|his|her|their) .*)\?$", re.I)
_NO_NOUN_PHRASE = re.compile(
    r"\b(?:and|or) (?:how|where|when|why|who|what|which|did|does|do|is|are|was|were|has|have)\b"
    r"|\b(?:for|in|of|on|at|to|from|with|about|by|like|called|named|known|considered|based|set|doing)$",
    re.I,
)
_ASIDE = re.compile(r"^(.*?), ([^,]*[^,\s][^,]*)\?$")
_NAME_FIRST = re.compile(
    r"^(?P<wh>(?:where|when|why|how|in (?:what|which) \w+(?: \w+)?) )?"
    r"(?P<aux>has|have|is|was|are|were) (?P<rest>.*)\?$",
    re.I,
)
_LEADS = (
    "Could you tell me: {}",
    "I would like to know: {}",
    "Please answer this question: {}",
    "Here is a question: {}",
    "Do you know the answer to this: {}",
    "One more question: {}",
    "Can you answer this: {}",
    "I have been wondering: {}",
)
_ANSWERS = (
    "To answer the question: {}",
    "The answer is this: {}",
    "In answer to that: {}",
    "This much is known: {}",
    "In short: {}",
    "What can be said is this: {}",
)
_YES = ("Yes, ", "Indeed, ", "Yes indeed: ", "That is so: ", "Yes, it is so: ")
_OPENERS = (
    *(
        "in",
        "after",
        "during",
        "throughout",
        "with",
        "through",
        "by",
        "despite",
        "since",
        "following",
        "at",
        "from",
        "before",
    ),
    *("growing up", "while", "although", "though", "because", "as a result of", "over", "apart from", "based on"),
    *("for", "under", "upon", "until", "due to", "thanks to", "among", "within"),
)
_OPENING = re.compile(rf"^({'|'.join(_OPENERS)})\b([^,]*), (.*)([.!])$", re.I)
_SUBJECT = re.compile(r"^(?:[A-Z][\w'’.-]*|he|she|they|it|his|her|their|its|the|a|an|one|some|many|this|these)\b")
_IS_NAME = re.compile(
    r"^((?:the|one of|a|an|another) .*?|[A-Z][\w-]*(?: [A-Z][\w-]*)*['’]s? .*?) (is|was|are|were) (.+)\.$", re.I
)
_AWARD = re.compile(
    r"^(.+?) (?:has |have )?(?:won|received|earned|was awarded|was honou?red with) "
    r"(the [^,;]*?(?:Award|Prize|Medal)\b[^,;]*)\.$"
)
_ORDERED = re.compile(r"\b(?:respectively|in that order|first|then|former|latter)\b", re.I)
_QUOTED_LIST = re.compile(r"([\"“'‘])(?!s\b)[^\"”]{2,120}?,?[\"”'’](?:,? (?:and )?[\"“'‘][^\"”]{2,120}?,?[\"”'’])+")


def rephrase_question(question: str, rng: Random, capitals: Capitals | None = None) -> Iterator[str]:
    """Other ways to ask a question, the freer ones first.

    Args:
        question: As it stands.
        rng: Decides the order and the words.
        capitals: See `uld.augment.facts.find_facts`.
    """
    question = " ".join(question.split())
    turned = [text for rule in (_request, _statement, _indirect) for text in rule(question, capitals)]
    rng.shuffle(turned)
    for text in turned:
        yield _reworded(text, rng, 0.5, capitals)
    plain = [_reworded(question, rng, 1.0, capitals)]
    aside = _ASIDE.match(question)
    if aside and aside[2].split()[0].lower() in ("apart", "besides", "in", "if", "according"):
        plain.append(f"{_upper(aside[2])}, {lowered(aside[1], capitals)}?")
    yield from plain
    leads = list(_LEADS)
    rng.shuffle(leads)
    for lead in leads:
        yield lead.format(_reworded(rng.choice(plain), rng, 0.5, capitals))


def rephrase_answer(answer: str, rng: Random, capitals: Capitals | None = None) -> Iterator[str]:
    """Other ways to give an answer, the freer ones first; arguments as for `rephrase_question`."""
    parts = sentences(answer)
    moved = [_moved(part, rng, capitals) for part in parts]
    if moved != parts:
        yield one_text(_reworded(part, rng, 1.0, capitals) for part in moved)
    yield _reworded(answer, rng, 1.0, capitals)
    if moved != parts:
        yield one_text(moved)
    opening = re.match(r"(?:yes|indeed|absolutely|certainly)(?:, indeed)?, ", answer, re.I)
    if opening:
        rest = answer[opening.end() :]
        ways = [way for way in _YES if not answer.startswith(way)]
        rng.shuffle(ways)
        for way in ways:
            yield _reworded(way + rest, rng, 0.7, capitals)
        return
    ways = list(_ANSWERS)
    rng.shuffle(ways)
    for way in ways:
        text = rng.choice([one_text(moved), answer])
        yield way.format(lowered(_reworded(text, rng, 0.7, capitals), capitals))


def rephrase_text(text: str, rng: Random, capitals: Capitals | None = None) -> Iterator[str]:
    """Other wordings of a chunk of a text, without openings; arguments as for `rephrase_question`."""
    for share in (1.0, 0.6, 0.8, 0.4):
        made = []
        for paragraph in paragraphs(text):
            parts = [_moved(part, rng, capitals) for part in sentences(paragraph)]
            made.append(one_text(_reworded(part, rng, share, capitals) for part in parts))
        yield "\n\n".join(made)


def _request(question: str, capitals: Capitals | None) -> list[str]:
    """``Can you tell me …?`` as a request, and a request as a question."""
    if match := _ASK.match(question):
        verb, rest = match[1].lower(), match[2]
        end = f"{verb} {rest}".strip()
        return [f"Please {end}.", f"I would like you to {end}.", f"Would you {end}?", f"{_upper(end)}, please."]
    if match := _TELL.match(question):
        return [f"Could you {match[1].lower()} {match[2]}?", f"Would you please {match[1].lower()} {match[2]}?"]
    return []


def _statement(question: str, capitals: Capitals | None) -> list[str]:
    """``What is the …?`` as a request for what follows, where that is one noun phrase."""
    match = _WHAT_IS.match(question)
    if not match or _NO_NOUN_PHRASE.search(match[1]) or "," in re.sub(r"[A-Z]\w*, [A-Z]\w*|\d, \d", "", match[1]):
        return []
    return [f"Please tell me {match[1]}.", f"I would like to know {match[1]}.", f"Can you tell me {match[1]}?"]


def _indirect(question: str, capitals: Capitals | None) -> list[str]:
    """``Where was NAME born?`` as ``Do you know where NAME was born?``, where the subject is a name alone."""
    match = _NAME_FIRST.match(question)
    if not match:
        return []
    rest = match["rest"]
    # Another auxiliary behind the name tells a subject from the first word of a longer one.
    first = next((fact for fact in find_facts(rest, capitals) if fact.start == 0 and fact.kind == "name"), None)
    if first is None or rest[first.end :][:2] in ("'s", "’s") or not rest[first.end :].startswith(" "):
        return []
    after = rest[first.end :].split()
    if not after or not (
        after[0].endswith(("ed", "en"))
        or after[0]
        in (
            "won",
            "born",
            "a",
            "an",
            "the",
            "made",
            "been",
            "ever",
            "still",
            "also",
            "known",
            "active",
            "involved",
            "part",
            "married",
        )
    ):
        return []
    asked = f"{(match['wh'] or 'whether ').lower()}{first.text} {match['aux'].lower()}{rest[first.end :]}"
    return [f"Do you know {asked}?", f"Could you tell me {asked}?", f"I would like to know {asked}."]


def _moved(sentence: str, rng: Random, capitals: Capitals | None) -> str:
    """A sentence with a clause in another place, or as it is."""
    for rule in (_award_first, _name_first, _clause_last):
        if (text := rule(sentence, capitals)) is not None:
            sentence = text
            break
    return _titles_turned(sentence)


def _clause_last(sentence: str, capitals: Capitals | None) -> str | None:
    """``In 1990, she left.`` as ``She left in 1990.`` does."""
    shielded, facts = _shielded(sentence, capitals)
    match = _OPENING.match(shielded)
    if not match or "," in match[3] or ";" in shielded or ":" in shielded or not match[2].strip():
        return None
    opener, clause, rest, stop = match[1].lower(), match[2], match[3], match[4]
    if not _SUBJECT.match(_unshielded(rest, facts)):
        return None
    comma = "" if opener in ("in", "during", "throughout", "at", "before", "after", "since", "until") else ","
    if re.search(r"\b(?:that|which|who|where|when|to|and)\b", rest) and comma == "":
        comma = ","  # else the clause would seem to belong to the last words
    return _unshielded(f"{_upper(rest)}{comma} {opener}{clause}{stop}", facts)


def _name_first(sentence: str, capitals: Capitals | None) -> str | None:
    """``The author's name is NAME.`` as ``NAME is the author's name.`` does."""
    match = _IS_NAME.match(sentence)
    if not match:
        return None
    facts = find_facts(sentence, capitals)
    start, end = match.span(3)
    whole = [
        fact
        for fact in facts
        if fact.kind in ("name", "title") and fact.start - start in (0, 1) and end - fact.end in (0, 1)
    ]
    if not whole or any(word in f" {match[1].lower()} " for word in (" that ", " which ", " who ", ",")):
        return None
    verb = match[2]
    return f"{match[3]} {verb} {lowered(match[1], capitals)}."


def _award_first(sentence: str, capitals: Capitals | None) -> str | None:
    """``She won the … Award.`` as ``The … Award went to her.``, for names."""
    match = _AWARD.match(sentence)
    if not match or not any(
        f.start == 0 and f.end == len(match[1]) and f.kind == "name" for f in find_facts(match[1], capitals)
    ):
        return None
    return f"{_upper(match[2])} went to {match[1]}."


def _titles_turned(sentence: str) -> str:
    """A list of titles in quotation marks, the first and the last of them exchanged where their order says nothing."""
    match = _QUOTED_LIST.search(sentence)
    if not match or _ORDERED.search(sentence):
        return sentence
    spans = [m.span(1) for m in re.finditer(r"[\"“]([^\"”]{2,120}?),?[\"”]", match[0])]
    if len(spans) < 2:
        return sentence
    (a, b), (c, d) = spans[0], spans[-1]
    text = match[0]
    turned = text[:a] + text[c:d] + text[b:c] + text[a:b] + text[d:]
    return sentence[: match.start()] + turned + sentence[match.end() :]


def _reworded(text: str, rng: Random, share: float, capitals: Capitals | None) -> str:
    """A text with a share of the words that have synonyms exchanged; facts stay."""
    shielded, facts = _shielded(text, capitals)

    def exchange(match: re.Match[str]) -> str:
        found = match[0]
        inside = found != found.lower() and found != _upper(found.lower())
        if inside or (
            found[0].isupper()
            and match.start() > 0
            and shielded[match.start() - 2 : match.start()] not in (". ", "! ", ": ")
        ):
            return found
        if rng.random() >= share:
            return found
        other = SYNONYMS[found.lower()]
        return _upper(other) if found[0].isupper() else other

    changed = _SYNONYM.sub(exchange, shielded)
    return _unshielded(articles(changed), facts)


def articles(text: str) -> str:
    """Make ``a`` and ``an`` fit the words behind them."""

    def fit(match: re.Match[str]) -> str:
        article, word = match[1], match[2]
        lower = word.lower()
        vowel = (
            lower[0] in "aeiou" and not re.match(r"uni(?!n|m)|use|usu|uk|eu|one\b|once", lower)
        ) or lower.startswith(("hour", "honest", "honor", "honour", "heir"))
        right = "an" if vowel else "a"
        return (right.capitalize() if article[0].isupper() else right) + " " + word

    return re.sub(r"\b([Aa]n?) ([A-Za-z][a-z][\w-]*)", fit, text)


def _shielded(text: str, capitals: Capitals | None) -> tuple[str, Sequence[Fact]]:
    """A text with a mark in the place of each fact, which no rule matches."""
    facts = find_facts(text, capitals)
    out, end = [], 0
    for number, fact in enumerate(facts):
        out += [text[end : fact.start], f"\x00{number}\x01"]
        end = fact.end
    return "".join([*out, text[end:]]), facts


def _unshielded(text: str, facts: Sequence[Fact]) -> str:
    return re.sub("\x00(\\d+)\x01", lambda match: facts[int(match[1])].text, text)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def lowered(text: str, capitals: Capitals | None) -> str:
    """A sentence as the continuation of another: in lower case, unless it begins with a name."""
    first = re.match(r"[\w'’-]+", text)
    if not first or first[0].startswith("I'") or first[0] == "I":
        return text
    word = first[0].lower()
    if any(fact.start == 0 for fact in find_facts(text, capitals)):
        return text
    known = capitals is not None and word in capitals.plain and word not in capitals.names
    return text[:1].lower() + text[1:] if word in COMMON or known else text


Rephrase = Callable[[str, Random, Capitals | None], Iterator[str]]
