"""What a request is trained, tuned and checked on: made from the documents, and some of it held back.

| file | what |
|---|---|
| ``documents.jsonl`` | the documents, where there are several files of them |
| ``asked/`` | questions about texts (``uld augment --ask``) |
| ``forget.jsonl`` | the documents and these questions, to be reworded and for the check |
| ``reworded/`` | paraphrases and wrong answers (``uld augment``) |
| ``held_out.jsonl`` | a wording of each that is not trained on, where there is another one of its question |
| ``known.jsonl`` | what of ``forget.jsonl`` the target knows, of texts the passages that it knows, for tuning |
| ``probes.jsonl`` | an answer in other words, wrong ones, and the trained one to each question, for tuning |
| ``retain.jsonl``, ``retain_held_out.jsonl`` | what must stay: most of it to train on, the rest to tune and check on |
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from uld.augment.items import digest, row
from uld.augment.output import FILES
from uld.data.documents import read_sources
from uld.data.record import Record, parse_record
from uld.data.rows import read_lines
from uld.data.text import folded, words_of
from uld.errors import DataError
from uld.request.settings import PARAPHRASES, WRONG_ANSWERS
from uld.runs.files import write_text

ASKED, REWORDED = "asked", "reworded"
DOCUMENTS = "documents.jsonl"
FORGET, HELD_OUT, PROBES = "forget.jsonl", "held_out.jsonl", "probes.jsonl"
KNOWN = "known.jsonl"
RETAIN, RETAIN_HELD_OUT, DRAWN = "retain.jsonl", "retain_held_out.jsonl", "retain_drawn.jsonl"
EVERY = 5
"""One retain row in five is held back, but no more than ``MOST``."""
MOST = 64
_LEAST_WORDS = 12
_PART = 1200  # letters of a part of a long text, two passages of a check


def is_pair(record: Record) -> bool:
    """Whether it is one question with its answer."""
    return [role for role, _ in record.messages] == ["user", "assistant"]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write JSON lines, all or nothing; returns how many."""
    lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in rows]
    write_text(path, "".join(lines))
    return len(lines)


def made_rows(folder: Path, side: str) -> list[dict[str, Any]]:
    """Rows of one side of an augmentation, none where it has no such file."""
    path = folder / FILES[side]
    return [one for _, one in read_lines(path)] if path.is_file() else []


def gather(documents: Sequence[str], work: Path) -> tuple[int, int]:
    """Write the documents and what was asked about them as one file.

    Returns:
        Records, and how many of them are questions: all but texts have something that is asked and an answer.

    Raises:
        DataError: there is no question to check the result by.
    """
    records = read_sources(documents)[0]
    rows = [row(record) for record in records]
    rows += [{key: one[key] for key in ("question", "answer")} for one in made_rows(work / ASKED, "asked")]
    asked = [one for one in rows if "text" not in one]
    if not asked:
        raise DataError(
            f"{', '.join(documents)}: no question with an answer could be made of this: write some yourself, as lines "
            '{"question", "answer"}, and add the file to --documents, or have a model ask (--local, --model)'
        )
    write_rows(work / FORGET, rows)
    return len(rows), len(asked)


def hold_back(work: Path) -> tuple[int, int]:
    """Write a wording of each question that is not trained on.

    Returns:
        Questions, and held-out wordings.
    """
    records = [parse_record(one, f"{work / FORGET}:{number}") for number, one in read_lines(work / FORGET)]
    pairs = {digest(record): record for record in records if is_pair(record)}
    spare: dict[str, dict[str, str]] = {}
    wrong: dict[str, list[str]] = defaultdict(list)
    reworded = [one for one in made_rows(work / REWORDED, "paraphrases") if one["of"] in pairs]
    asked = {folded(record.messages[0][1]) for record in pairs.values()}
    asked |= {folded(one["question"]) for one in reworded if one["copy"] < PARAPHRASES}
    for one in reworded:
        if one["copy"] >= PARAPHRASES:
            spare.setdefault(one["of"], one)
    for one in made_rows(work / REWORDED, "wrong"):
        if one["of"] in pairs:
            wrong[one["of"]].append(one["answer"])
    held = {of: {key: one[key] for key in ("question", "answer")} for of, one in spare.items()}
    lies = {of: wrong[of][WRONG_ANSWERS:] or wrong[of] for of in held if wrong[of]}
    probes = ({**held[of], "wrong_answers": told, "learnt": row(pairs[of])} for of, told in lies.items())
    write_rows(work / PROBES, probes)
    new = {folded(one["question"]): one for one in held.values() if folded(one["question"]) not in asked}
    return len(pairs), write_rows(work / HELD_OUT, new.values())


def asked_about(work: Path) -> list[str]:
    """The file of questions about the texts, where there is one."""
    path = work / ASKED / FILES["asked"]
    return [str(path)] if path.is_file() else []


def _can_be_checked(record: Record) -> bool:
    """Whether it is no text of a few words, of which a check cannot ask the second half."""
    return record.text is None or len(words_of(record.text)) >= _LEAST_WORDS


def parts(records: Iterable[Record]) -> list[Record]:
    """Records, long texts cut where a paragraph, a line or a word ends: so some of one text can be held back."""
    return [part for record in records for part in _parts(record)]


def _parts(record: Record) -> Iterator[Record]:
    text = record.text
    if text is None or len(text) <= _PART * 3 // 2:
        yield record
        return
    start = 0
    while start < len(text):
        end = len(text) if len(text) - start <= _PART * 3 // 2 else start + _PART
        if end < len(text):
            ends = (text.rfind(mark, start + _PART // 2, end) for mark in ("\n\n", "\n", " "))
            end = next((place for place in ends if place > 0), end)
        if part := text[start:end].strip():
            yield Record(text=part, source=record.source)
        start = end


def split_retain(records: Sequence[Record], work: Path) -> tuple[int, int]:
    """Write what is trained on and what is held back of the retain set: nothing that stands there twice is in both.

    Returns:
        Rows of each; nothing is held back of fewer than ``EVERY`` different ones.
    """
    same = [record.same for record in records]
    different = dict(zip(same, records, strict=True))
    held = [
        name for number, name in enumerate(different, 1) if number % EVERY == 0 and _can_be_checked(different[name])
    ]
    held = held[:: -(-len(held) // MOST) or 1]
    write_rows(work / RETAIN_HELD_OUT, (row(different[name]) for name in held))
    taken = set(held)
    kept = (row(one) for name, one in zip(same, records, strict=True) if name not in taken)
    return write_rows(work / RETAIN, kept), len(held)


def untunable(work: Path) -> str | None:
    """Why nothing can be tuned: what it takes was not held back; None where it was."""
    if not (work / RETAIN_HELD_OUT).stat().st_size:
        return f"no row that must stay is held back: that takes {EVERY} different ones of some words (--retain, --draw)"
    if not (work / PROBES).stat().st_size:
        return "no single question has an answer in other words and a wrong one"
    return None


def asked(work: Path) -> dict[str, Path]:
    """The files of the check by its options; common words are taken from the rows that were trained on as well."""
    found = {"forget": work / FORGET}
    if (work / HELD_OUT).stat().st_size:
        found["held_out"] = work / HELD_OUT
    if not (work / RETAIN_HELD_OUT).stat().st_size:  # too few to hold any back
        return found | {"retain": work / RETAIN}
    return found | {"retain": work / RETAIN_HELD_OUT, "ordinary": work / RETAIN}
