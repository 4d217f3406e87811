"""Records of other tools and benchmarks, rewritten into the four forms of `uld.data.record`, which then checks them.

A format is known by the keys of a row, never by the name of a file. What a format brings beside the document (wrong
answers of a benchmark, the level of a probe) is left out and counted in the log; every other key is subject to the
rules of all records. A row that fits two formats is refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from uld.data.record import FORMS, KEYS, Record, is_void, parse_record, text_of
from uld.data.text import folded, shown, words_of
from uld.errors import DataError

Row = dict[str, Any]
CONVERSATIONS = ("messages", "conversations")
"""Keys that hold a list of turns, which a CSV cell holds as JSON."""
_FROM = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Format:
    """How another tool writes a document.

    Attributes:
        name: Of the tool or benchmark.
        needs: Keys that its rows have, each with something in it: together they tell it from others.
        rewrite: Makes the row of one of our forms from what the keys hold; the place is for messages.
        may: Keys that its rows may also have, and that are read.
        aside: Keys that belong to the tool and are left out on purpose.
        repeats: Keys that are left out where they hold all that is read, and are refused elsewhere.
        fits: Whether a row with the keys is one, where the keys alone do not tell.
    """

    name: str
    needs: tuple[str, ...]
    rewrite: Callable[[Row, str], Row]
    may: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    repeats: tuple[str, ...] = ()
    fits: Callable[[Row], bool] = lambda row: True

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that it has a use for."""
        return (*self.needs, *self.may, *self.aside, *self.repeats)


def _renamed(**names: str) -> Callable[[Row, str], Row]:
    """Give texts the names that they have here."""
    return lambda row, source: {new: text_of(row[old], old, source) for new, old in names.items()}


def _alpaca(row: Row, source: str) -> Row:
    """The question is the instruction, and below it what it is about, if anything."""
    parts = [text_of(row[key], key, source) for key in ("instruction", "input") if key in row]
    return {"question": "\n\n".join(parts), "answer": text_of(row["output"], "output", source)}


def _sharegpt(row: Row, source: str) -> Row:
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f'{source}: \'conversations\' must be a list of {{"from", "value"}} objects')
    first = [{"role": "system", "content": text_of(row["system"], "system", source)}] if "system" in row else []
    return {"messages": [*first, *(_turn(turn, source) for turn in turns)]}


def _turn(turn: Row, source: str) -> Row:
    """A turn with our keys; what else it has is checked there."""
    if not {"from", "value"} & turn.keys():
        return turn
    if {"role", "content"} & turn.keys():
        raise DataError(
            f'{source}: a turn of \'conversations\' has both {{"from", "value"}} and {{"role", "content"}}: '
            "leave one of them"
        )
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in _FROM:
        raise DataError(f"{source}: a turn's 'from' must be one of {', '.join(_FROM)}, not {shown(speaker)}")
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    return {"role": _FROM[speaker], "content": text_of(turn.get("value"), "value", source), **rest}


def _tells_its_subject(row: Row) -> bool:
    """Whether nothing is lost without the subject, because the text names it."""
    subject, text = row["subject"], row["text"]
    return isinstance(subject, str) and isinstance(text, str) and set(words_of(subject)) <= set(words_of(text))


_PROBE = ("subject", "level", "type")
_TOFU = ("perturbed_answer", "paraphrased_answer", "paraphrased_question")
FORMATS = (
    Format("Alpaca", ("instruction", "output"), _alpaca, may=("input",), repeats=("text",)),
    Format("ShareGPT", ("conversations",), _sharegpt, may=("system",)),
    Format("KnowUnDo", ("text", "labels"), _renamed(question="text", answer="labels")),
    Format("MUSE", ("prompt", "gt"), _renamed(prompt="prompt", completion="gt")),
    Format("RWKU", ("query", "answer"), _renamed(question="query", answer="answer"), aside=_PROBE),
    Format("RWKU", ("subject", "text"), _renamed(text="text"), fits=_tells_its_subject),
    Format("TOFU", ("question", "answer", _TOFU[0]), _renamed(question="question", answer="answer"), aside=_TOFU),
    Format(
        "open-unlearning",
        ("question", "answer", "alternate"),
        _renamed(question="question", answer="answer", alternative="alternate"),
    ),
)
"""Formats of other tools. What OpenAI takes for fine-tuning has our own form of conversations."""
FOREIGN = frozenset(key for one in FORMATS for key in (*one.needs, *one.may)) - frozenset(KEYS)
"""Keys that are read besides those of our own forms."""
KNOWN = (*KEYS, *sorted(FOREIGN))
"""Every key that is read in some format."""


def read_row(row: Any, source: str) -> tuple[Record, list[str]]:
    """Turn one row, of our own or of another tool, into a record.

    Args:
        row: What was decoded from a line, an item or a row of a table.
        source: ``file:line`` or the like.

    Returns:
        The record, and the keys that were left out and hold something.

    Raises:
        DataError: it is none, fits two formats, or holds text that would be lost.
    """
    own, aside = _rewritten(row, source) if isinstance(row, dict) else (row, [])
    record = parse_record(own, source)
    return record, [*aside, *(key for key, value in own.items() if key not in KEYS and value not in (None, ""))]


def _rewritten(row: Row, source: str) -> tuple[Row, list[str]]:
    """A row in one of our forms, and the keys that its format leaves out."""
    told = {key: value for key, value in row.items() if not is_void(value)}
    found = [one for one in FORMATS if all(key in told for key in one.needs) and one.fits(told)]
    if not found:
        _refuse_half(told, row, source)
        return row, []
    chosen = found[0]
    for other in found[1:]:
        if beside := [key for key in other.needs if key not in chosen.keys]:
            raise DataError(
                f"{source}: has {shown(chosen.needs[0])} as in {chosen.name} and {shown(beside[0])} as in "
                f"{other.name}, and only one could be read: take out the other"
            )
    own = chosen.rewrite(told, source)
    aside = [key for key in chosen.aside if key in told]
    for key in chosen.repeats:
        if key in told and not _holds(told[key], own.values()):
            raise DataError(
                f"{source}: has {shown(key)} beside {' and '.join(map(shown, chosen.needs))} of {chosen.name}, and it "
                "says something else: take it out"
            )
        aside += [key] if key in told else []
    rest = {key: value for key, value in row.items() if key not in chosen.keys}
    if double := sorted(key for key in KEYS if key in told and key in rest and (key != "alternative" or key in own)):
        mine = next(key for key in chosen.needs if key in FOREIGN)
        raise DataError(
            f"{source}: has {shown(mine)} as in {chosen.name} and {shown(double[0])}, which belong to different forms, "
            f"and only one could be read: expected one of {FORMS}"
        )
    return {**own, **rest}, aside


def _holds(value: Any, texts: Any) -> bool:
    return isinstance(value, str) and all(
        folded(part) in folded(value) for text in texts for part in str(text).split("\n\n")
    )


def _refuse_half(told: Mapping[str, Any], row: Mapping[str, Any], source: str) -> None:
    """Say what is missing where a row has a part of another tool's format, and none of ours."""
    if any(key in told for key in KEYS):
        return
    for one in FORMATS:
        has = [key for key in (*one.needs, *one.may) if key in told and key in FOREIGN]
        missing = [key for key in one.needs if key not in told]
        if has and missing:
            lack = f"its {missing[0]!r} is empty" if missing[0] in row else f"no {missing[0]!r}"
            raise DataError(
                f"{source}: has {has[0]!r} but {lack}: a record of {one.name} has {' and '.join(map(repr, one.needs))}"
            )
