"""Rows that a run was not trained on, for choosing its settings: questions with right and wrong answers; others."""

from dataclasses import dataclass
from pathlib import Path

from uld.data.documents import read_sources
from uld.data.record import Record, parse_record, refuse_unread
from uld.data.rows import read_lines
from uld.data.tofu import held_out
from uld.errors import DataError, ULDError
from uld.methods.registry import get_method
from uld.runs.manifest import RUN_SETTINGS
from uld.training.inputs import covered_rows
from uld.training.stored import stored_settings


@dataclass(frozen=True)
class Probe:
    """A question about the forget set with answers.

    Attributes:
        right: The question with its right answer, in words that were not trained on.
        wrong: It with wrong answers.
        learnt: The question with its right answer as it was trained on, where that is known.
    """

    right: Record
    wrong: tuple[Record, ...]
    learnt: Record | None = None


def tofu_probes(run: str | Path) -> tuple[list[Probe], list[Record]]:
    """Held-out probes and retain rows of a run on TOFU: what its settings left out of training and no benchmark uses.

    Raises:
        ULDError: the run was not trained on TOFU, or nothing was left out.
    """
    if not (Path(run) / RUN_SETTINGS).is_file():
        raise ULDError(
            f"{run} has no {RUN_SETTINGS} that says what it was trained on: name rows with --forget and --retain"
        )
    config = stored_settings(Path(run))
    if config.split is None:
        raise ULDError(f"{run} was trained on files: name held-out rows with --forget and --retain")
    if config.augmented is None:
        raise ULDError(f"{run} was trained without --augmented: name held-out rows with --forget and --retain")
    rows, retain = held_out(
        config.split,
        config.data,
        config.augmented,
        paraphrases=config.paraphrases,
        wrong_answers=config.wrong_answers,
        retain_rows=covered_rows(config, get_method(config.method)),
    )
    learnt = {record.same for record in read_sources(config.retain)[0]} if config.retain else set()
    retain = [record for record in retain if record.same not in learnt]
    if not retain:
        raise ULDError(
            f"{run} was trained on all of TOFU's retain rows: name others with --retain, and probes with --forget"
        )
    return [
        Probe(Record.qa(question, right), tuple(Record.qa(question, one) for one in wrong), Record.qa(*learnt))
        for question, right, wrong, learnt in rows
    ], retain


def file_probes(forget: str | Path, retain: str | Path) -> tuple[list[Probe], list[Record]]:
    """Probes from JSON lines: ``{"question", "answer", "wrong_answers": [...]}``, and retain records of any form.

    A line may also have ``"learnt": {"question", "answer"}``, the same in the words that were trained on.

    Raises:
        DataError: with file and line.
    """
    probes = []
    for number, row in read_lines(forget):
        source = f"{forget}:{number}"
        if not isinstance(row, dict) or not {"question", "answer"} <= row.keys():
            raise DataError(
                f"{source}: a probe must be a question with its right answer and wrong ones: expected "
                '{"question", "answer", "wrong_answers": [...]}'
            )
        refuse_unread(row, ("question", "answer", "wrong_answers", "alternative", "learnt"), source)
        wrong = row.get("wrong_answers")
        if not isinstance(wrong, list) or not wrong or not all(isinstance(one, str) and one.strip() for one in wrong):
            raise DataError(f"{source}: 'wrong_answers' must be a list of texts, at least one")
        right, *others = (
            parse_record({"question": row["question"], "answer": one}, source) for one in (row["answer"], *wrong)
        )
        if any(one.same == right.same for one in others):
            raise DataError(f"{source}: 'wrong_answers' holds the right answer: take it out")
        learnt = None if row.get("learnt") is None else _learnt(row["learnt"], source)
        probes.append(Probe(right, tuple(others), learnt))
    return probes, read_sources([str(retain)])[0]


def _learnt(given: object, source: str) -> Record:
    if not isinstance(given, dict) or given.keys() != {"question", "answer"}:
        raise DataError(f'{source}: \'learnt\' must be the pair that was trained on: {{"question", "answer"}}')
    return parse_record(given, source)
