"""TOFU: its splits, from the Hub or from a folder, and the augmented training sets of the ULD paper.

Sources: Maini et al. 2024, arXiv 2401.06121 (data); Ji et al. 2024, arXiv 2406.08607, Section 3.3 (D'f and D'r).
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uld.data.files import File, folder_of
from uld.data.record import Record, text_of
from uld.data.rows import read_lines, read_rows
from uld.data.text import folded, says_nothing
from uld.errors import DataError
from uld.runs.manifest import DataFile, rows_digest

logger = logging.getLogger(__name__)

HUB_ID = "locuslab/TOFU"
FORGET_SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
"""Each forget split and the retain split that goes with it."""

SPLITS = (
    "full",
    *FORGET_SPLITS,
    *FORGET_SPLITS.values(),
    *(f"{name}_perturbed" for name in FORGET_SPLITS),
    "retain_perturbed",
    "real_authors",
    "real_authors_perturbed",
    "world_facts",
    "world_facts_perturbed",
)


_GAPS = ("paraphrased_questions", "paraphrased_answers", "perturbed_answers")
"""Columns of the augmentation, where a model may have failed to write some."""


@dataclass(frozen=True)
class TrainingSet:
    """What an assistant is trained on.

    Attributes:
        forget: D'f, to remember.
        retain: D'r, to be uniform on: retain items and wrong answers.
        files: Digests of everything that was read.
    """

    forget: list[Record]
    retain: list[Record]
    files: list[DataFile]


def check_split(split: str) -> None:
    """Refuse a name that is not one of TOFU's forget splits.

    Raises:
        DataError: lists the splits.
    """
    if split not in FORGET_SPLITS:
        raise DataError(f"{split!r} is not a forget split of TOFU: choose one of {', '.join(FORGET_SPLITS)} (--split)")


def load_tofu(name: str, data: str | Path | None = None) -> list[dict[str, Any]]:
    """Rows of one TOFU split.

    Args:
        name: One of `SPLITS`.
        data: Folder with ``NAME.json`` files (JSON lines); None takes the Hub's ``locuslab/TOFU``.

    Returns:
        Rows as stored: ``question``, ``answer``; in perturbed splits also ``perturbed_answer``, ``paraphrased_answer``.

    Raises:
        DataError: no such split, file or network, or a row that lacks a column.
    """
    return _load(name, data)[0]


def _load(name: str, data: str | Path | None) -> tuple[list[dict[str, Any]], DataFile]:
    """Rows of a split, and its digest: of the file's bytes, or for the Hub's of the rows as JSON lines."""
    if name not in SPLITS:
        raise DataError(f"TOFU has no split {name!r}: choose one of {', '.join(SPLITS)}")
    columns: dict[str, type] = {"question": str, "answer": str}
    if name.endswith("_perturbed"):
        columns |= {"perturbed_answer": list}
        if name.startswith(("forget", "retain")):
            columns |= {"paraphrased_answer": str}
    if data is not None:
        path = _file(data, f"{name}.json")
        file = File(path)
        rows = [_checked(row, columns, source) for source, row in read_rows(file)]
        return rows, DataFile(path=str(path), sha256=file.sha256, rows=len(rows))
    from datasets import load_dataset

    try:
        rows = [dict(row) for row in load_dataset(HUB_ID, name, split="train")]
    except Exception as error:  # datasets raises a dozen kinds for an unreachable Hub
        raise DataError(
            f"cannot read {HUB_ID} from the Hub ({type(error).__name__}): name a folder with --data"
        ) from error
    rows = [_checked(row, columns, f"{HUB_ID} {name}:{i}") for i, row in enumerate(rows, 1)]
    return rows, DataFile(path=f"{HUB_ID}/{name}", sha256=rows_digest(rows), rows=len(rows))


def _file(folder: str | Path, name: str) -> Path:
    path = folder_of(folder) / name
    if not os.path.lexists(path):
        raise DataError(f"{folder} has no {name}: --data must name a folder laid out like {HUB_ID}")
    return path


def _checked(row: Any, columns: Mapping[str, type], source: str) -> dict[str, Any]:
    """A row that has the columns: texts with something in them, or lists of texts."""
    for name, kind in columns.items():
        value: Any = row.get(name) if isinstance(row, dict) else None
        if not isinstance(value, kind) or not all(isinstance(text, str) for text in value):
            raise DataError(
                f"{source}: expected a JSON object with {', '.join(columns)}, but {name!r} is "
                f"{'missing' if value is None else 'not ' + ('a list of texts' if kind is list else 'a text')}"
            )
        texts = [value] if kind is str else value
        for text in texts:
            if name not in _GAPS or not says_nothing(text):
                text_of(text, name, source)
        if not texts and name not in _GAPS:
            raise DataError(f"{source}: {name!r} is an empty list")
    return row


def split_records(name: str, data: str | Path | None = None) -> tuple[list[Record], DataFile]:
    """One TOFU split as records, and its digest.

    Args:
        name: One of `SPLITS`.
        data: As for `load_tofu`.

    Raises:
        DataError: see `load_tofu`.
    """
    rows, file = _load(name, data)
    return [Record.qa(row["question"], row["answer"], f"{name}:{i}") for i, row in enumerate(rows, 1)], file


def training_set(
    split: str,
    data: str | Path | None = None,
    augmented: str | Path | None = None,
    *,
    paraphrases: int = 2,
    wrong_answers: int = 2,
    retain_rows: int | None = None,
    alternatives: bool = False,
) -> TrainingSet:
    """The paper's D'f and D'r for a forget split.

    D'f is the forget set and the first ``paraphrases`` paraphrases of each item (question and answer together, in file
    order). D'r is evenly spaced rows of the matching retain split, never among those that the benchmark evaluates
    (``retain_perturbed``), and the first ``wrong_answers`` wrong answers to each forget question. Where the files hold
    fewer, all that they hold are taken; the numbers go to the log.

    Args:
        split: ``forget01``, ``forget05`` or ``forget10``.
        data: Folder of TOFU; None takes the Hub.
        augmented: Folder with ``forgetXX_paraphrased.jsonl`` and ``forgetXX_perturbed.jsonl``; None augments nothing.
        paraphrases: Per forget item, 0 for none.
        wrong_answers: Per forget item, 0 for none.
        retain_rows: Number of retain rows; None takes as many as D'f has (the paper's number).
        alternatives: Whether each forget row gets its first wrong answer as its alternative (needs ``augmented``).

    Raises:
        DataError: a missing file, too many ``retain_rows``, or augmentation that does not belong to the split.
    """
    check_split(split)
    kept = FORGET_SPLITS[split]
    loaded = {name: _load(name, data) for name in (split, kept, "retain_perturbed")}
    rows = {name: some for name, (some, _) in loaded.items()}
    files = [file for _, file in loaded.values()]
    forget = rows[split]
    lies: list[tuple[str, dict[str, Any]]] = []
    told: list[tuple[str, dict[str, Any]]] = []
    if augmented is not None and paraphrases:
        path = _augmentation_file(augmented, f"{split}_paraphrased.jsonl", "--paraphrases 0")
        told, file = _augmentation(path, forget, ("paraphrased_questions", "paraphrased_answers"))
        files.append(file)
    if augmented is not None and (wrong_answers or alternatives):
        lies, file = _augmentation(_wrong_answers_file(augmented, split), forget, ("perturbed_answers",))
        files.append(file)
    other = {_key(row): _wrong(row)[0] for _, row in lies if _wrong(row)} if alternatives else {}
    remember = [
        Record.qa(row["question"], row["answer"], f"{split}:{i}", other.get(_key(row)))
        for i, row in enumerate(forget, 1)
    ]
    wrong: list[Record] = []
    for source, row in told:
        pairs = _pairs(row)[:paraphrases]
        remember += [Record.qa(question, answer, source, other.get(_key(row))) for question, answer in pairs]
    for source, row in lies:
        wrong += [Record.qa(row["question"], answer, source) for answer in _wrong(row)[:wrong_answers]]
    pool = _pool(rows[kept], rows["retain_perturbed"])
    number = len(remember) if retain_rows is None else retain_rows
    if number > len(pool):
        raise DataError(
            f"{number} retain rows are wanted, but {kept} has only {len(pool)} that are not evaluated: "
            "lower --retain-rows"
        )
    chosen = [pool[k] for k in _even(number, len(pool))]
    retain = [Record.qa(row["question"], row["answer"], f"{kept}:{i}") for i, row in chosen]
    logger.info(
        "%s: to forget %d rows and %d paraphrases; to retain %d of %d rows that are not evaluated and %d wrong answers",
        *(split, len(forget), len(remember) - len(forget), len(retain), len(pool), len(wrong)),
    )
    return TrainingSet(remember, retain + wrong, files)


def held_out(
    split: str,
    data: str | Path | None,
    augmented: str | Path,
    *,
    paraphrases: int = 2,
    wrong_answers: int = 2,
    retain_rows: int | None = None,
) -> tuple[list[tuple[str, str, list[str], tuple[str, str]]], list[Record]]:
    """What `training_set` leaves out with the same settings, and no benchmark evaluates: for choosing α.

    Returns:
        For each forget item with a paraphrase to spare: its question and its answer in those words, wrong answers
        (those to spare, or where there are none those that were trained on), and the question and answer that were
        trained on. And the retain rows to spare.

    Raises:
        DataError: a missing file, or nothing to spare.
    """
    check_split(split)
    kept = FORGET_SPLITS[split]
    forget, retain, evaluated = (load_tofu(name, data) for name in (split, kept, "retain_perturbed"))
    path = _augmentation_file(augmented, f"{split}_paraphrased.jsonl", "other rows, --forget and --retain")
    told = _augmentation(path, forget, ("paraphrased_questions", "paraphrased_answers"))[0]
    lies = {
        _key(row): row
        for _, row in _augmentation(_wrong_answers_file(augmented, split), forget, ("perturbed_answers",))[0]
    }
    probes = []
    for _, row in told:
        wrong = _wrong(lies[_key(row)]) if _key(row) in lies else []
        pairs = _pairs(row)
        learnt = {_key(row), *map(_folded, pairs[:paraphrases])}
        spare = [pair for pair in pairs[paraphrases:] if _folded(pair) not in learnt]
        if spare and wrong:
            probes.append((*spare[0], wrong[wrong_answers:] or wrong, (row["question"], row["answer"])))
    pool = _pool(retain, evaluated)
    trained = len(forget) + sum(len(_pairs(row)[:paraphrases]) for _, row in told)
    rest = _untaken(pool, trained if retain_rows is None else retain_rows, kept)
    if not probes or not rest:
        raise DataError(
            f"training took {'every paraphrase' if not probes else 'every retain row'} that there is, so none is left "
            f"to choose α on: train with fewer {'--paraphrases' if not probes else '--retain-rows'}"
        )
    return probes, rest


def uncovered(split: str, data: str | Path | None, retain_rows: int) -> list[Record]:
    """Retain rows that `training_set` leaves out where it takes so many, and no benchmark evaluates.

    Args:
        split: Forget split.
        data: Folder of TOFU; None takes the Hub.
        retain_rows: As many as training takes: `uld.training.inputs.covered_rows`.
    """
    check_split(split)
    kept = FORGET_SPLITS[split]
    pool = _pool(load_tofu(kept, data), load_tofu("retain_perturbed", data))
    return _untaken(pool, retain_rows, kept)


def _untaken(pool: Sequence[tuple[int, dict[str, Any]]], number: int, kept: str) -> list[Record]:
    """Rows of the pool that `training_set` leaves out; none that says the same as one that it takes."""
    taken = {_key(pool[k][1]) for k in _even(number, len(pool))}
    return [Record.qa(row["question"], row["answer"], f"{kept}:{i}") for i, row in pool if _key(row) not in taken]


def _pairs(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Paraphrases of a question and its answer, in file order."""
    pairs = zip(row["paraphrased_questions"], row["paraphrased_answers"], strict=False)
    return [pair for pair in pairs if not any(map(says_nothing, pair))]


def _wrong(row: Mapping[str, Any]) -> list[str]:
    """Distinct wrong answers to a question, in file order."""
    known, found = {folded(row["answer"])}, []
    for answer in row["perturbed_answers"]:
        if folded(answer) not in known and not says_nothing(answer):
            known.add(folded(answer))
            found.append(answer.strip())
    return found


def _pool(rows: list[dict[str, Any]], evaluated: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Rows that are not evaluated, with their number from 1."""
    known = {_key(row) for row in evaluated}
    return [(i, row) for i, row in enumerate(rows, 1) if _key(row) not in known]


def _even(number: int, total: int) -> list[int]:
    """Evenly spaced indices."""
    return [k * total // number for k in range(number)]


def _wrong_answers_file(folder: str | Path, split: str) -> Path:
    """The larger splits contain the smaller ones, so one file of wrong answers serves them all."""
    names = [f"{name}_perturbed.jsonl" for name in FORGET_SPLITS if name >= split]
    present = [name for name in names if os.path.lexists(Path(folder) / name)]
    return _augmentation_file(folder, (present or names)[0], "--wrong-answers 0")


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    """What identifies a row: one question occurs twice in TOFU, with two answers."""
    return _folded((row["question"], row["answer"]))


def _folded(pair: tuple[str, str]) -> tuple[str, str]:
    return folded(pair[0]), folded(pair[1])


def _augmentation_file(folder: str | Path, name: str, without: str) -> Path:
    path = folder_of(folder, "--augmented") / name
    if not os.path.lexists(path):
        raise DataError(
            f"{folder} has no {name}: --augmented must name a folder with the augmentation files of TOFU's splits "
            f"(or leave them out with {without})"
        )
    return path


def _augmentation(
    path: Path, forget: list[dict[str, Any]], keys: Sequence[str]
) -> tuple[list[tuple[str, dict[str, Any]]], DataFile]:
    """The rows of an augmentation file that belong to the forget rows, in their order, with ``file:line``."""
    columns: dict[str, type] = {"question": str, "answer": str} | dict.fromkeys(keys, list)
    known: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    file = File(path)
    lines = read_lines(file)
    for number, row in lines:
        source = f"{file.name}:{number}"
        known.setdefault(_key(_checked(row, columns, source)), (source, row))
    found = [known[_key(row)] for row in forget if _key(row) in known]
    if not found:
        raise DataError(f"{path} belongs to other data: none of its questions is among the rows to forget")
    if len(found) < len(forget):
        logger.warning("%s augments only %d of %d rows to forget", path, len(found), len(forget))
    return found, DataFile(path=str(path), sha256=file.sha256, rows=len(lines))
