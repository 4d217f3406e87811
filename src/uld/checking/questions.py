"""What a check asks: the user's files as questions with answers, in three sets, and what is wrong with them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from uld.data.documents import Source, listed, read_records, read_sources
from uld.data.passages import passages
from uld.data.prompt import spread
from uld.data.record import Record, refuse_equal
from uld.data.text import folded, shown
from uld.errors import DataError
from uld.runs.manifest import DataFile

SETS = ("forget", "held_out", "retain")

Sources = Source | Sequence[Source]


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its true answer.

    Attributes:
        record: Question and answer, prompt and completion, or a conversation, of which the last answer counts.
        passage: Whether the answer is the second half of a passage, which ends where it was cut.
    """

    record: Record
    passage: bool = False

    @property
    def question(self) -> str:
        """What is given, as people read it."""
        return self.record.asked

    @property
    def answer(self) -> str:
        """What stands in the file."""
        return self.record.answer


@dataclass(frozen=True)
class Questions:
    """All that is asked.

    Attributes:
        sets: By the names of `SETS`; ``held_out`` only where it was given.
        files: What was read, by set; nothing of records that were handed over.
        kept: Every answer that is to be kept, also those beyond the limit, and what is ordinary beside them: words that
            are common in these give nothing away.
    """

    sets: Mapping[str, list[Item]]
    files: Mapping[str, list[DataFile]]
    kept: Sequence[str]

    @classmethod
    def read(
        cls,
        forget: Sources,
        retain: Sources,
        held_out: Sources | None = None,
        limit: int | None = None,
        ordinary: Sources | None = None,
    ) -> "Questions":
        """Read the files.

        Args:
            forget: What must be gone.
            retain: What must still be there.
            held_out: What must be gone, in wordings that were not trained on.
            limit: Most questions of each set, spread evenly over it.
            ordinary: More answers or texts from which common words are taken; nothing of them is asked.

        Raises:
            DataError: one cannot be read or is empty, or two of them share a row.
        """
        given = {"forget": forget, "held_out": held_out, "retain": retain}
        sets: dict[str, list[Item]] = {}
        files: dict[str, list[DataFile]] = {}
        records: dict[str, list[Record]] = {}
        for name, sources in given.items():
            if sources is None and name == "held_out":
                continue
            records[name], files[name] = _read(sources)
            if not records[name]:
                raise DataError(
                    f"the {name.replace('_', '-')} set is empty: name at least one question with its answer"
                )
            sets[name] = [item for record in records[name] for item in _items(record)]
        for name in ("forget", "held_out"):
            if name in records:
                refuse_equal(records[name], records["retain"])
                refuse_asked(records[name], records["retain"], "retain", name)
        if "held_out" in records:
            refuse_asked(records["forget"], records["held_out"], "held_out", "forget")
        kept = [item.answer for item in sets["retain"]]
        if ordinary is not None:
            more = _read(ordinary)[0]
            for name in ("forget", "held_out"):
                refuse_equal(records.get(name, []), more, "ordinary")
            kept += [text for record in more for text in record.told]
        return cls({name: spread(items, limit) for name, items in sets.items()}, files, kept)


def places(sources: Sources | None) -> list[str | Path]:
    """The files and folders among what is given."""
    return [one for one in listed(sources or ()) if isinstance(one, str | Path)]


def _read(sources: Sources | None) -> tuple[list[Record], list[DataFile]]:
    """Records of files, and those that are there already."""
    records: list[Record] = []
    files: list[DataFile] = []
    for one in listed(() if sources is None else sources):
        if isinstance(one, Record):
            records += read_records([one])
        else:
            some, read = read_sources([str(one)])
            records, files = records + some, files + read
    return records, files


def _items(record: Record) -> Iterator[Item]:
    """A record as it is, or the passages of a text."""
    if record.text is None:
        yield Item(record)
        return
    found = passages(record)
    if not found:
        raise DataError(f"{record.source}: the text is too short to be cut in two: ask a question about it instead")
    yield from (Item(one, passage=True) for one in found)


def refuse_asked(first: Sequence[Record], second: Sequence[Record], name: str, other: str) -> None:
    """Refuse sets that ask the same question, whatever they answer.

    Raises:
        DataError: names both places.
    """
    asked = {question: record.source for record in first if (question := question_of(record))}
    for record in second:
        if (question := question_of(record)) in asked:
            what = "would have to be kept and to be forgotten" if name == "retain" else "is no other wording"
            raise DataError(
                f"{record.source}: the {name.replace('_', '-')} set asks what the {other.replace('_', '-')} set asks "
                f"({asked[question]}), {shown(question)}, which {what}: take it out of one of them"
            )


def question_of(record: Record) -> str:
    """What is asked, as it is compared; of a text all of it."""
    return folded(record.text if record.text is not None else Item(record).question)
