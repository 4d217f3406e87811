"""What an augmentation must be to be kept; each filter gives the reason for which it drops one, or None.

A paraphrase keeps every name, number and date. A wrong answer is wrong. Nothing is empty, far too long or twice there.
"""

import re

from uld.augment.facts import Capitals, lacking, name_words, negations, numbers, words
from uld.augment.lexicon import COMMON, FUNCTION_WORDS, NUMBER_WORDS
from uld.data.text import folded

LONGEST = 2.5
"""A text that is this many times as long as the original (and 60 characters more) is far too long."""
_PARTICLE = re.compile(r"\W*(yes|no)\b\W*(?=$|(?<=[,.;:!–—]\s))", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"\[[^\]]*\]|<[^>]*>|\b(?:paraphrase|as an ai|i cannot|i can't|i'm sorry)\b", re.IGNORECASE)


def normalised(text: str) -> str:
    """A text without what makes no difference: case, punctuation, white space, articles."""
    return " ".join(word for word in words(folded(text)) if word not in ("the", "a", "an"))


def shape_problem(original: str, text: str) -> str | None:
    """Whether a text is empty, far too long, or not an answer at all."""
    if not normalised(text):
        return "empty"
    if len(text) > LONGEST * len(original) + 60:
        return "far too long"
    if (found := _PLACEHOLDER.search(text)) and found[0].lower() not in original.lower():
        return f"not a text of its own: {found[0]!r}"
    return None


def paraphrase_problem(original: str, text: str, context: str = "", capitals: Capitals | None = None) -> str | None:
    """Why a paraphrase is none.

    Args:
        original: The question, answer or chunk.
        text: Its paraphrase.
        context: What else belongs to it (an answer's question): its names may be left out or brought in.
        capitals: What the rest of the file says about capitalised words.
    """
    if problem := shape_problem(original, text):
        return problem
    if len(text) * 3 < len(original):
        return "far too short"
    if normalised(text) == normalised(original):
        return "the same words"
    both = f"{original}\n{context}"
    known = capitals or Capitals.of([original, context])
    before, around = name_words(original, known, sure=True), set(words(both))
    left = set(words(text))
    if lost := sorted(before - left - set(words(context))):
        return f"a name is gone: {', '.join(lost)}"
    if new := sorted(name_words(text, known, sure=True) - around):
        return f"a name is new: {', '.join(new)}"
    if lost := sorted(lacking(numbers(original), numbers(text) | numbers(context))):
        return f"a number or date is gone: {', '.join(lost)}"
    if new := sorted(lacking(numbers(text), numbers(both))):
        return f"a number or date is new: {', '.join(new)}"
    if bool(negations(original)) != bool(negations(text)):
        return "a negation came or went"
    return None


def wrong_problem(
    question: str, answer: str, text: str, others: tuple[str, ...] = (), capitals: Capitals | None = None
) -> str | None:
    """Why a wrong answer is right, or none.

    An answer is right where it says nothing that the right one and the question do not say, or where it holds all that
    sets the right answer apart (names and numbers beyond the question's) and no name or number of its own, and differs
    in more than a word like ``before``. It is wrong, whatever it says, where it denies more than the right one, or
    affirms what the right one denies.

    Args:
        question: May be empty.
        answer: The right answer.
        text: The wrong answer.
        others: Other right answers to the question.
        capitals: What the rest of the file says about capitalised words.
    """
    if problem := shape_problem(answer, text):
        return problem
    if normalised(text) in {normalised(one) for one in (answer, *others)}:
        return "the right answer"
    right, said, asked = set(words(answer)), set(words(text)), set(words(question))
    both = f"{question}\n{answer}"
    fresh = {word for word in said - right - asked - FUNCTION_WORDS if not word.endswith("n't")}
    figures = lacking(numbers(answer), numbers(question))
    other = lacking(numbers(text), numbers(both))
    if "one" in said - right - asked and lacking(figures, numbers(text)):
        other.add("1")  # elsewhere it is a pronoun
    if _contradicts(answer, text, bool(fresh)):
        return None
    if not fresh and not other:
        return "it says nothing that the right answer does not say"
    if fresh and fresh <= COMMON | set(NUMBER_WORDS):
        return None  # the same sentence, but for a word like "before"
    known = capitals or Capitals.of([both, text])
    names = name_words(answer, known) - asked
    new = name_words(text, known, sure=True) - set(words(both))
    if (names or figures) and names <= said and not lacking(figures, numbers(text)) and not new and not other:
        return "it holds what sets the right answer apart, and nothing else"
    return None


def _contradicts(answer: str, text: str, fresh: bool) -> bool:
    """Whether a text denies what an answer says, or the other way round.

    A ``No`` that opens either counts only against a ``Yes``: what follows it may agree with one that has none. A text
    that denies less contradicts where it says something ``fresh``, or where it leaves out nothing but the negation.
    """
    mine, theirs = _PARTICLE.match(answer), _PARTICLE.match(text)
    if mine and theirs and mine[1].lower() != theirs[1].lower():
        return True
    rest, other = (text[match.end() :] if match else text for match, text in ((mine, answer), (theirs, text)))
    denied, denies = (negations(rest or whole) for rest, whole in ((rest, answer), (other, text)))
    if denies >= denied:
        return denies > denied
    kept = {word for word in words(rest) if word not in COMMON and not negations(word)} <= set(words(other))
    return fresh or (denies == 0 and kept)


def support_problem(chunk: str, question: str, answer: str) -> str | None:
    """Why a question about a chunk and its answer are not supported by it, as by a name that does not stand there."""
    if not normalised(question) or not normalised(answer):
        return "empty"
    if len(answer) > max(600, len(chunk)):
        return "far too long"
    if normalised(answer) in normalised(question):
        return "the question holds its answer"
    known = Capitals.of([chunk])
    there = set(words(chunk))
    for what, text in (("question", question), ("answer", answer)):
        if new := sorted(name_words(text, known, sure=True) - there):
            return f"the {what} has a name that is not in the text: {', '.join(new)}"
        if new := sorted(lacking(numbers(text), numbers(chunk))):
            return f"the {what} has a number that is not in the text: {', '.join(new)}"
    content = set(words(answer)) - COMMON
    if content and len(content & there) * 2 < len(content):
        return "most of the answer's words are not in the text"
    return None
