"""Augmentation of a whole forget set by rule: candidates, filters, and what was dropped and why.

Everything follows from the records and the seed: each item draws from a generator of its own, so the order of the
records makes no difference to what is drawn.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any, Literal

from uld.augment.asking import asked_questions
from uld.augment.facts import Capitals
from uld.augment.filters import normalised, paraphrase_problem, support_problem, wrong_problem
from uld.augment.items import Augmented, Item, with_answer
from uld.augment.pool import Pool
from uld.augment.rephrase import rephrase_answer, rephrase_question, rephrase_text
from uld.augment.wrong import wrong_answers
from uld.data.record import Record, text_of
from uld.errors import DataError

REASON = "nothing to forget (the target does not know the answer)"
"""Why a question is dropped whose answer a target does not know."""
Problem = Callable[[tuple[str, str]], str | None]
Unusable = Callable[[Record], str | None]
"""Why a record that was made cannot be used where it is to be, such as for its length; None where it can."""
Kind = Literal["paraphrase", "wrong_answer", "asked"]
_TRIES = 40
_STALE = 12  # candidates in a row that bring nothing new


@dataclass(frozen=True)
class Wanted:
    """How much to make of each item.

    Attributes:
        paraphrases: Of a question and its answer, or of a chunk.
        wrong_answers: To each question.
        ask: Questions about each chunk of a text.
    """

    paraphrases: int = 2
    wrong_answers: int = 2
    ask: int = 0

    def to_dict(self) -> dict[str, int]:
        """All fields."""
        return asdict(self)


@dataclass(frozen=True)
class Drop:
    """A candidate that a filter dropped.

    Attributes:
        kind: What it was to be.
        reason: Of the filter.
        source: ``file:line`` of the record.
        text: The candidate.
    """

    kind: Kind
    reason: str
    source: str
    text: str


@dataclass(frozen=True)
class Candidates:
    """What some source offers for an item, unchecked.

    Attributes:
        pairs: Paraphrased questions and answers (of chunks: without a question).
        wrong: Wrong answers.
        asked: Questions about a chunk, and answers.
        refused: What the source itself has dropped; it may fill while candidates are drawn.
    """

    pairs: Iterable[tuple[str, str]] = ()
    wrong: Iterable[str] = ()
    asked: Iterable[tuple[str, str]] = ()
    refused: list[Drop] = field(default_factory=list)


def select(
    item: Item,
    found: Candidates,
    wanted: Wanted,
    pool: Pool,
    right: Sequence[str] = (),
    unknown: Problem | None = None,
    unusable: Unusable = lambda record: None,
) -> tuple[Augmented, list[Drop]]:
    """The first candidates that pass the filters, as many as are wanted, and those that did not pass.

    Args:
        item: What they are for.
        found: Candidates; no more of them are asked for than are needed.
        wanted: How many.
        pool: Of the whole file.
        right: Other right answers to the item's question.
        unknown: Why a question about a text is not worth asking (`uld.augment.known`); None: every one is.
        unusable: Why a paraphrase, or a question about a text, cannot be used.
    """
    drops: list[Drop] = []
    capitals = pool.capitals

    def keep(kind: Kind, number: int, some: Iterable[Any], problem: Callable[[Any], str | None]) -> list[Any]:
        kept: list[Any] = []
        seen: set[str] = set()
        if number:
            for candidate in some:
                parts = [candidate] if isinstance(candidate, str) else [part for part in candidate if part]
                text = " / ".join(parts)
                reason = problem(candidate) or ("a duplicate" if normalised(text) in seen else _unreadable(parts))
                if reason:
                    drops.append(Drop(kind, reason, item.record.source, text))
                    continue
                seen.add(normalised(text))
                kept.append(candidate)
                if len(kept) == number:
                    break
        return kept

    def changed(pair: tuple[str, str]) -> str | None:
        question, answer = pair
        if item.question and (problem := paraphrase_problem(item.question, question, "", capitals)):
            return f"question: {problem}"
        problem = paraphrase_problem(item.answer, answer, item.question, capitals)
        if problem and not (problem == "the same words" and item.question):
            return f"answer: {problem}" if item.question else problem
        return unusable(with_answer(item, answer, question or None))  # also another question with the same answer

    told = keep("paraphrase", wanted.paraphrases if _rephrasable(item) else 0, found.pairs, changed)
    others = (*right, *(answer for _, answer in told))
    lies = keep(
        "wrong_answer",
        0 if item.is_text else wanted.wrong_answers,
        found.wrong,
        lambda text: wrong_problem(item.context, item.answer, text, others, capitals),
    )
    asked = keep(
        "asked",
        wanted.ask if item.is_text else 0,
        found.asked,
        lambda pair: (
            support_problem(item.answer, *pair)
            or unusable(Record.qa(pair[0], pair[1], item.record.source))
            or (unknown(pair) if unknown else None)
        ),
    )
    made = Augmented(
        [with_answer(item, answer, question or None) for question, answer in told],
        [with_answer(item, answer) for answer in lies],
        [Record.qa(question, answer, item.record.source) for question, answer in asked],
    )
    return made, [*found.refused, *drops]


def _unreadable(parts: Iterable[str]) -> str | None:
    """Whether a file with these texts could not be read back: a model may write NUL characters."""
    try:
        for part in parts:
            text_of(part, "text", "")
    except DataError:
        return "no text that can be read"
    return None


def _rephrasable(item: Item) -> bool:
    return item.is_text or bool(item.question)


def rule_candidates(item: Item, pool: Pool, seed: int) -> Candidates:
    """What the rules offer for an item."""

    def rng(what: str) -> Random:
        return Random(f"{seed}:{item.key}:{what}")

    refused: list[Drop] = []
    pairs = _pairs(item, pool.capitals, rng, refused)
    if item.is_text:
        return Candidates(pairs, asked=asked_questions(item.answer, pool, rng("asked")), refused=refused)
    return Candidates(pairs, _fresh(wrong_answers(item, pool, rng("wrong"))), refused=refused)


def _pairs(
    item: Item, capitals: Capitals, rng: Callable[[str], Random], refused: list[Drop]
) -> Iterator[tuple[str, str]]:
    """Paraphrases of question and answer, each question and each answer once while there are others."""
    if item.is_text:
        yield from (("", text) for text in _fresh(rephrase_text(item.answer, rng("text"), capitals)))
        return
    sides: list[list[str]] = []
    for what, text, rephrase, context in (
        ("question", item.question, rephrase_question, ""),
        ("answer", item.answer, rephrase_answer, item.question),
    ):
        sides.append([])
        for made in _fresh(rephrase(text, rng(what), capitals)):
            problem = paraphrase_problem(text, made, context, capitals)
            if problem is None:
                sides[-1].append(made)
            elif problem != "the same words":  # no rule applied
                refused.append(Drop("paraphrase", f"{what}: {problem}", item.record.source, made))
    questions, answers = sides
    for i in range(min(len(questions), _TRIES) if answers else 0):
        yield questions[i], answers[i % len(answers)]


def _fresh(texts: Iterable[str]) -> Iterator[str]:
    """Texts without repetitions; it ends when nothing new comes."""
    seen: set[str] = set()
    stale = 0
    for text in texts:
        if normalised(text) in seen:
            stale += 1
            if stale == _STALE:
                return
            continue
        seen.add(normalised(text))
        yield text


def right_answers(found: Iterable[Item]) -> dict[str, list[str]]:
    """All right answers to each question: one question may stand in a file with several."""
    answers: dict[str, list[str]] = {}
    for item in found:
        answers.setdefault(normalised(item.context), []).append(item.answer)
    return answers


@dataclass(frozen=True)
class Made:
    """An augmented forget set.

    Attributes:
        parts: By the record's `uld.augment.items.digest`, what was made of each of its items.
        drops: Candidates that filters dropped.
    """

    parts: dict[str, list[Augmented]]
    drops: list[Drop]


def choose(
    found: Sequence[Item],
    offer: Callable[[Item, Pool], Candidates],
    wanted: Wanted,
    unknown: Problem | None = None,
    tell: Callable[[int], None] = lambda done: None,
    unusable: Unusable = lambda record: None,
) -> Made:
    """Take for each item the first candidates that pass the filters.

    Args:
        found: All items of a forget file.
        offer: Gives an item's candidates.
        wanted: How many of each.
        unknown: See `select`.
        tell: Hears how many items are done.
        unusable: See `select`.
    """
    pool, right = Pool.of(found), right_answers(found)
    made = Made({}, [])
    for done, item in enumerate(found, 1):
        others = right[normalised(item.context)]
        some, dropped = select(item, offer(item, pool), wanted, pool, others, unknown, unusable)
        made.parts.setdefault(item.of, []).append(some)
        made.drops.extend(dropped)
        tell(done)
    return made


def by_rules(
    found: Sequence[Item],
    wanted: Wanted,
    seed: int,
    unknown: Problem | None = None,
    tell: Callable[[int], None] = lambda done: None,
    unusable: Unusable = lambda record: None,
) -> Made:
    """Augment items by rule: with the wanted numbers, the seed and what is not worth making they decide everything."""
    return choose(found, lambda item, pool: rule_candidates(item, pool, seed), wanted, unknown, tell, unusable)
