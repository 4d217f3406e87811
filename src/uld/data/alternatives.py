"""Alternative answers to the questions whose answers are to be forgotten.

Some methods prefer, or train on, another answer: one of a list that declines to answer (``idk``), or one that comes
with the data (``given``).
"""

import dataclasses
import random
from collections.abc import Sequence
from importlib.resources import files
from typing import Literal

from uld.data.record import Record
from uld.errors import DataError


def idk_answers() -> list[str]:
    """Answers that decline to answer: at least a hundred, in a fixed order."""
    return (files("uld.data") / "idk.txt").read_text(encoding="utf-8").splitlines()


def alternative_records(forget: Sequence[Record], source: Literal["idk", "given"], seed: int) -> list[Record]:
    """The forget records with another answer, one for each.

    Args:
        forget: Questions with the answers to forget.
        source: ``idk``: drawn from `idk_answers`, for each answer of a conversation; ``given``: the record's own
            ``alternative``.
        seed: Decides the draw, together with the row's number alone.

    Raises:
        DataError: a record that is a whole text, has no alternative where one should be given, or has one for several
            answers, the others of which would be learnt.
    """
    answers = idk_answers()
    records = []
    for number, record in enumerate(forget):
        if record.text is not None:
            raise DataError(
                f"{record.source}: a text has no alternative answer, and the method needs one: give questions and "
                "answers, or choose a method without (uld ls methods)"
            )
        if source == "given" and record.alternative is None:
            raise DataError(
                f"{record.source}: the method needs an alternative answer and this record has none: add the key "
                "'alternative', or wrong answers with --augment (TOFU's with --augmented), or take ours with "
                "--alternatives idk"
            )
        turns = sum(role == "assistant" for role, _ in record.messages)
        if source == "given" and turns > 1:
            raise DataError(
                f"{record.source}: has {turns} answers and one alternative, so the others would be learnt: split the "
                "conversation into records of one answer each, or take --alternatives idk"
            )
        chance = random.Random(f"{seed}:{number}")
        drawn = [chance.choice(answers) for _ in range(max(1, turns))]
        records.append(_answered(record, [str(record.alternative)] if source == "given" else drawn))
        if source == "given" and records[-1].same == record.same:
            raise DataError(f"{record.source}: the alternative answer says the same as the one to forget: change it")
    return records


def _answered(record: Record, others: Sequence[str]) -> Record:
    """The record with other answers, in their order."""
    if record.prompt is not None:
        return dataclasses.replace(record, completion=others[0])
    left = iter(others)
    turns = tuple((role, next(left) if role == "assistant" else text) for role, text in record.messages)
    return dataclasses.replace(record, messages=turns)
