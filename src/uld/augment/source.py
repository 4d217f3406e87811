"""Which augmentation a training takes: none, the rules', or what `uld augment` wrote (``--augment``)."""

import dataclasses
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from uld.augment.generate import Unusable, Wanted, by_rules
from uld.augment.items import Augmented, items, joined
from uld.augment.output import FILES, folder_beside, lines, read
from uld.data.documents import hub_place
from uld.data.record import Record
from uld.runs.manifest import DataFile
from uld.runs.rows import CLAIM

logger = logging.getLogger(__name__)

NONE, RULES, AUTO = "none", "rules", "auto"


def augmentation(
    choice: str,
    sources: Mapping[str, Sequence[Record]],
    *,
    paraphrases: int,
    wrong_answers: int,
    seed: int,
    unusable: Unusable = lambda record: None,
) -> tuple[dict[str, Augmented], list[DataFile]]:
    """Paraphrases and wrong answers for what is to be forgotten.

    Args:
        choice: ``rules``, ``auto`` (for each file what `uld augment` wrote beside it, rules for the others), or a
            folder of `uld augment`.
        sources: Records by the file that they stand in, or by a name that is no file.
        paraphrases: Of each item.
        wrong_answers: To each question.
        seed: Of the rules.
        unusable: Why a row cannot be used: it is left out, and counted in the log; rules make another.

    Returns:
        By `uld.augment.items.digest`, and what the artefact says about where it came from. What the rules made has no
        file: its path is ``rules``, its digest that of the rows.

    Raises:
        ULDError: a folder cannot be used.
    """
    number = {"paraphrases": paraphrases, "wrong_answers": wrong_answers}
    made: dict[str, Augmented] = {}
    files: list[DataFile] = []
    ruled: list[Record] = []
    if choice not in (RULES, AUTO):
        made, files = read(choice, [record for records in sources.values() for record in records], **number)
        return _usable(made, choice, unusable), files
    beside: dict[Path, list[Record]] = {}
    for source, records in sources.items():
        folder = _beside(source) if choice == AUTO else None
        if folder is None:
            ruled += records
        else:
            beside.setdefault(folder, []).extend(records)
    for folder, records in beside.items():  # several files of a folder share one
        some, read_from = read(folder, records, **number)
        made |= _usable(some, folder, unusable)
        files += read_from
    if ruled:
        with _counted(unusable, RULES) as problem:
            ruled_made = by_rules(items(ruled), Wanted(**number), seed, unusable=problem)
        text = "".join(lines(ruled_made.parts, side) for side in FILES)
        files.append(DataFile(path=RULES, sha256=hashlib.sha256(text.encode()).hexdigest(), rows=text.count("\n")))
        logger.info(
            "rules: %d rows for %d records, %d candidates dropped", text.count("\n"), len(ruled), len(ruled_made.drops)
        )
        made |= {of: joined(parts) for of, parts in ruled_made.parts.items()}
    return made, files


def _usable(made: Mapping[str, Augmented], folder: str | Path, unusable: Unusable) -> dict[str, Augmented]:
    """Rows of a folder without those that cannot be used."""
    sides = [field.name for field in dataclasses.fields(Augmented)]
    with _counted(unusable, str(folder)) as problem:
        return {
            of: Augmented(**{side: [row for row in getattr(one, side) if problem(row) is None] for side in sides})
            for of, one in made.items()
        }


@contextmanager
def _counted(unusable: Unusable, source: str) -> Iterator[Unusable]:
    """The same, and at the end the log says how many rows of a source it has found."""
    left: Counter[str] = Counter()

    def problem(record: Record) -> str | None:
        reason = unusable(record)
        left.update([reason] if reason is not None else [])
        return reason

    yield problem
    for reason, number in left.items():
        logger.warning("%s: %d made rows are left out: %s", source, number, reason)


def _beside(source: str) -> Path | None:
    """The folder that `uld augment` wrote for a file or a data set, or for the nearest folder above the file."""
    if hub_place(source) is None:
        if not os.path.isfile(source):
            return None
        if os.path.exists(own := folder_beside(source)):
            return own
        beside = [folder_beside(folder) for folder in Path(source).absolute().parents if folder.name]
    else:
        beside = [folder_beside(source)]
    return next((folder for folder in beside if os.path.isfile(folder / CLAIM)), None)
