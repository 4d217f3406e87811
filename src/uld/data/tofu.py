"""TOFU: its splits, from the Hub or from a folder, and the augmented training sets of the ULD paper.

Sources: Maini et al. 2024, arXiv 2401.06121 (data); Ji et al. 2024, arXiv 2406.08607, Section 3.3 (D'f and D'r).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uld.artifact import DataFile, file_digest
from uld.data.record import DataError, Record, read_rows

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
        DataError: no such split, file or network.
    """
    if name not in SPLITS:
        raise DataError(f"TOFU has no split {name!r}: choose one of {', '.join(SPLITS)}")
    if data is not None:
        return _checked(read_rows(_file(data, f"{name}.json")), ("question", "answer"), f"{data}/{name}.json")
    from datasets import load_dataset

    try:
        return [dict(row) for row in load_dataset(HUB_ID, name, split="train")]
    except Exception as error:  # datasets raises a dozen kinds for an unreachable Hub
        raise DataError(
            f"cannot read {HUB_ID} from the Hub ({type(error).__name__}): name a folder with --data"
        ) from error


def _file(folder: str | Path, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise DataError(f"{folder} has no {name}: --data must name a folder laid out like {HUB_ID}")
    return path


def _checked(rows: list[Any], keys: Sequence[str], source: str) -> list[dict[str, Any]]:
    for number, row in enumerate(rows, start=1):
        missing = [key for key in keys if not isinstance(row, dict) or key not in row]
        if missing:
            raise DataError(
                f"{source}:{number}: expected a JSON object with {', '.join(keys)}, but {missing[0]!r} is missing"
            )
    return rows


def _digest(path: Path, rows: int) -> DataFile:
    return DataFile(path=str(path), sha256=file_digest(path), rows=rows)


def training_set(
    split: str,
    data: str | Path | None = None,
    augmented: str | Path | None = None,
    *,
    paraphrases: int = 2,
    wrong_answers: int = 2,
    retain_rows: int | None = None,
) -> TrainingSet:
    """The paper's D'f and D'r for a forget split.

    D'f is the forget set and the first ``paraphrases`` paraphrases of each item (question and answer together, in file
    order). D'r is evenly spaced rows of the matching retain split, never among those that the benchmark evaluates
    (``retain_perturbed``), and the first ``wrong_answers`` wrong answers to each forget question.

    Args:
        split: ``forget01``, ``forget05`` or ``forget10``.
        data: Folder of TOFU; None takes the Hub.
        augmented: Folder with ``forgetXX_paraphrased.jsonl`` and ``forgetXX_perturbed.jsonl``; None augments nothing.
        paraphrases: Per forget item, 0 for none.
        wrong_answers: Per forget item, 0 for none.
        retain_rows: Number of retain rows; None takes as many as D'f has (the paper's number).

    Raises:
        DataError: a missing file, or augmentation that does not belong to the split.
    """
    check_split(split)
    forget = load_tofu(split, data)
    files = []
    if data is not None:
        files = [_digest(Path(data) / f"{name}.json", 0) for name in (split, FORGET_SPLITS[split], "retain_perturbed")]
        files[0] = files[0].model_copy(update={"rows": len(forget)})
    remember = [Record.qa(row["question"], row["answer"], f"{split}:{i}") for i, row in enumerate(forget, 1)]
    wrong: list[Record] = []
    if augmented is not None:
        if paraphrases:
            path = Path(augmented) / f"{split}_paraphrased.jsonl"
            rows = _augmentation(path, forget, ("paraphrased_questions", "paraphrased_answers"))
            files.append(_digest(path, len(rows)))
            for i, row in enumerate(rows, 1):
                pairs = list(zip(row["paraphrased_questions"], row["paraphrased_answers"], strict=False))[:paraphrases]
                remember += [Record.qa(question, answer, f"{path}:{i}") for question, answer in pairs]
        if wrong_answers:
            # The larger splits contain the smaller ones, so one file of wrong answers serves them all.
            names = [name for name in FORGET_SPLITS if name >= split]
            paths = [path for name in names if (path := Path(augmented) / f"{name}_perturbed.jsonl").is_file()]
            if not paths:
                raise DataError(
                    f"{augmented} has no {split}_perturbed.jsonl with wrong answers (or use --wrong-answers 0)"
                )
            rows = _augmentation(paths[0], forget, ("perturbed_answers",))
            files.append(_digest(paths[0], len(rows)))
            for i, row in enumerate(rows, 1):
                wrong += [
                    Record.qa(row["question"], answer, f"{paths[0]}:{i}")
                    for answer in row["perturbed_answers"][:wrong_answers]
                ]
    evaluated = {(row["question"], row["answer"]) for row in load_tofu("retain_perturbed", data)}
    pool = [row for row in load_tofu(FORGET_SPLITS[split], data) if (row["question"], row["answer"]) not in evaluated]
    number = len(remember) if retain_rows is None else retain_rows
    if number > len(pool):
        raise DataError(
            f"retain_rows is {number}, but {FORGET_SPLITS[split]} has only {len(pool)} rows that are not evaluated"
        )
    chosen = [pool[i * len(pool) // number] for i in range(number)]
    retain = [Record.qa(row["question"], row["answer"], f"{FORGET_SPLITS[split]}:{i}") for i, row in enumerate(chosen)]
    return TrainingSet(remember, retain + wrong, files)


def _augmentation(path: Path, forget: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of an augmentation file that belong to the forget rows, in the forget rows' order."""
    if not path.is_file():
        raise DataError(
            f"there is no {path}: --augmented must name a folder with the augmentation files of TOFU's splits"
        )
    rows = _checked(read_rows(path), ("question", "answer", *keys), str(path))
    known = {(row["question"], row["answer"]): row for row in reversed(rows)}
    found = [known[key] for row in forget if (key := (row["question"], row["answer"])) in known]
    if not found:
        raise DataError(f"{path} belongs to other data: none of its questions is among the rows to forget")
    return found
