"""Which augmentation a training takes: none, the rules', or what `uld augment` wrote (``--augment``)."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from uld.augment.generate import Wanted, by_rules
from uld.augment.items import Augmented, items, joined
from uld.augment.output import FILES, folder_beside, lines, read
from uld.data.documents import hub_place
from uld.data.record import Record
from uld.runs.manifest import DataFile
from uld.runs.rows import CLAIM

logger = logging.getLogger(__name__)

NONE, RULES, AUTO = "none", "rules", "auto"


def augmentation(
    choice: str, sources: Mapping[str, Sequence[Record]], *, paraphrases: int, wrong_answers: int, seed: int
) -> tuple[dict[str, Augmented], list[DataFile]]:
    """Paraphrases and wrong answers for what is to be forgotten.

    Args:
        choice: ``rules``, ``auto`` (for each file what `uld augment` wrote beside it, rules for the others), or a
            folder of `uld augment`.
        sources: Records by the file that they stand in, or by a name that is no file.
        paraphrases: Of each item.
        wrong_answers: To each question.
        seed: Of the rules.

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
        return read(choice, [record for records in sources.values() for record in records], **number)
    beside: dict[Path, list[Record]] = {}
    for source, records in sources.items():
        folder = _beside(source) if choice == AUTO else None
        if folder is None:
            ruled += records
        else:
            beside.setdefault(folder, []).extend(records)
    for folder, records in beside.items():  # several files of a folder share one
        some, read_from = read(folder, records, **number)
        made |= some
        files += read_from
    if ruled:
        ruled_made = by_rules(items(ruled), Wanted(**number), seed)
        text = "".join(lines(ruled_made.parts, side) for side in FILES)
        files.append(DataFile(path=RULES, sha256=hashlib.sha256(text.encode()).hexdigest(), rows=text.count("\n")))
        logger.info(
            "rules: %d rows for %d records, %d candidates dropped", text.count("\n"), len(ruled), len(ruled_made.drops)
        )
        made |= {of: joined(parts) for of, parts in ruled_made.parts.items()}
    return made, files


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
