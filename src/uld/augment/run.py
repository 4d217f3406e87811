"""`uld augment`: from a forget file to a folder that `uld train --augment` reads.

The rules need seconds and are simply run. A model's raw answers go into a journal as they come, filters work on the
whole journal at the end: so a run that was stopped goes on where it was and sends nothing twice, and what comes out
depends neither on the concurrency nor on the stops.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uld.augment.endpoint import Reply
from uld.augment.generate import REASON, Candidates, Drop, Made, Problem, Unusable, Wanted, by_rules, choose
from uld.augment.items import Item, items, joined
from uld.augment.output import FILES, write
from uld.augment.prompts import Job, jobs, prompt, read_answer, version
from uld.data.documents import read_sources
from uld.data.record import DataError
from uld.errors import ULDError
from uld.runs.files import present
from uld.runs.locks import LOCK
from uld.runs.places import refuse_sources
from uld.runs.rows import CLAIM, RowFile, claim, claiming, take
from uld.text.progress import bar

if TYPE_CHECKING:
    from uld.augment.known import Known

JOURNAL = "journal.jsonl"
WHAT = "augmentation"


@dataclass(frozen=True)
class Progress:
    """How far a model has come.

    Attributes:
        done: Answered requests, those of earlier calls included.
        total: Requests in all.
        tokens_in: Tokens of the prompts, over all calls.
        tokens_out: Tokens of the answers.
    """

    done: int
    total: int
    tokens_in: int
    tokens_out: int

    def one_more(self, tokens_in: int, tokens_out: int) -> "Progress":
        """With one more answer."""
        return Progress(self.done + 1, self.total, self.tokens_in + tokens_in, self.tokens_out + tokens_out)

    def cost(self, price_in: float, price_out: float) -> float:
        """Price, from prices a million tokens."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


@dataclass(frozen=True)
class Result:
    """What an augmentation came to.

    Attributes:
        output: The folder.
        records: Records of the forget file, equal ones once.
        kept: Rows by file name.
        dropped: Candidates by kind and reason.
        progress: Of the model; None for the rules.
    """

    output: Path
    records: int
    kept: dict[str, int]
    dropped: dict[str, dict[str, int]]
    progress: Progress | None = field(default=None)


CHUNK_WORDS = 150
"""Most words of a text's chunk, by default."""
AskAll = Callable[[Sequence[tuple[int, str]], Callable[[int, Reply], bool]], None]


def read_items(forget: str | Path, wanted: Wanted, chunk_words: int) -> tuple[list[Item], list[str]]:
    """The items of what is to be forgotten, and the digests of its files.

    Raises:
        ULDError: it cannot be read, or there is nothing to make of it.
    """
    records, files = read_sources([str(forget)])
    found = items(records, chunk_words)
    if wanted.ask and not any(item.is_text for item in found):
        raise DataError(f'{forget} holds no {{"text"}} records to ask about: leave out --ask')
    if not any(vars(wanted).values()):
        raise ULDError("nothing is wanted: raise --paraphrases or --wrong-answers, or give --ask")
    # Records that differ in spelling alone were items of their own once: a journal that counts them so is another's.
    merged = len({record.content for record in records}) - len({record.same for record in records})
    return found, [file.sha256 for file in files] + ([f"{merged} records of other spelling"] if merged else [])


def augment_by_rules(
    forget: str | Path,
    output: Path,
    wanted: Wanted | None = None,
    *,
    seed: int = 0,
    chunk_words: int = CHUNK_WORDS,
    known: "Known | None" = None,
    unusable: Unusable = lambda record: None,
    progress: bool = False,
) -> Result:
    """Augment a forget file by rule.

    Args:
        forget: A file, a folder or a Hub data set (`uld.data.documents`).
        output: Folder, made if it is missing.
        wanted: How much of each item; default: `Wanted`'s own.
        seed: Of the rules.
        chunk_words: Most words of a text's chunk.
        known: Drops questions about texts whose answers a target does not know.
        unusable: Why a paraphrase, or a question about a text, cannot be used: it is dropped.
        progress: Show how far that is.

    Raises:
        ULDError: the file cannot be read, the folder holds something else, or the target knows no answer.
    """
    wanted = wanted or Wanted()
    refuse_sources(output, {"FORGET": [forget]}, within=True)
    found, digests = read_items(forget, wanted, chunk_words)
    claim(output, _about(digests, wanted, chunk_words, {"by": "rules", "seed": seed}), WHAT)
    with _judged(known, output, len(found), progress) as (unknown, tell):
        made = by_rules(found, wanted, seed, unknown, tell, unusable)
    return _finish(output, found, made, None, known)


def augment_by_model(
    forget: str | Path,
    output: Path,
    wanted: Wanted,
    ask_all: AskAll,
    *,
    by: dict[str, Any],
    chunk_words: int = CHUNK_WORDS,
    tries: int = 3,
    tell: Callable[[Progress], None] | None = None,
    known: "Known | None" = None,
    unusable: Unusable = lambda record: None,
    progress: bool = False,
) -> Result:
    """Augment a forget file by a model's answers.

    Args:
        forget: A file, a folder or a Hub data set (`uld.data.documents`).
        output: Folder, made if it is missing; one that was left unfinished is gone on with.
        wanted: How much of each item.
        ask_all: Asks numbered prompts and hands over the answers (`Endpoint.ask_all`).
        by: What decides the answers: model, temperature, seed.
        chunk_words: Most words of a text's chunk.
        tries: How often a model is asked whose answer cannot be read.
        tell: Hears of every answer.
        known: Drops questions about texts whose answers a target does not know.
        unusable: As for `augment_by_rules`.
        progress: Show how far that is.

    Raises:
        ULDError: the file cannot be read, the folder holds something else, the model gives up, or the target knows no
            answer.
    """
    refuse_sources(output, {"FORGET": [forget]}, within=True)
    found, digests = read_items(forget, wanted, chunk_words)
    about = _about(digests, wanted, chunk_words, {**by, "prompts": version()})
    asked: list[tuple[Item, Job, int]] = [
        (item, job, number)
        for item in found
        for job, number in jobs(item, wanted.paraphrases, wanted.wrong_answers, wanted.ask)
    ]
    with _journal(output, about) as journal:
        so_far = _progress(journal, len(asked))
        tried: Counter[int] = Counter()
        spent: dict[int, tuple[int, int]] = {}

        def done(number: int, reply: Reply) -> bool:
            before = spent.get(number, (0, 0))
            spent[number] = (before[0] + reply.tokens_in, before[1] + reply.tokens_out)
            tried[number] += 1
            try:
                read_answer(reply.text, asked[number][1])
            except ValueError:
                if tried[number] < tries:
                    return True
            tokens_in, tokens_out = spent[number]
            journal.add(number, {"text": reply.text, "tokens_in": tokens_in, "tokens_out": tokens_out})
            nonlocal so_far
            so_far = so_far.one_more(tokens_in, tokens_out)
            if tell:
                tell(so_far)
            return False

        if tell:
            tell(so_far)
        left = [(k, prompt(*one)) for k, one in enumerate(asked) if k not in journal.rows]
        if left:
            try:
                ask_all(left, done)
            except ULDError as error:
                raise ULDError(f"{error} ({len(journal.rows)} of {len(asked)} requests are done and kept)") from error
        answers = _by_item(asked, journal)
    with _judged(known, output, len(found), progress) as (unknown, each):

        def offer(item: Item, _: Any) -> Candidates:
            return _candidates(item, answers.get(item.key, []))

        made = choose(found, offer, wanted, unknown, each, unusable)
    return _finish(output, found, made, so_far, known)


@contextmanager
def _judged(
    known: "Known | None", output: Path, items: int, progress: bool
) -> Iterator[tuple[Problem | None, Callable[[int], None]]]:
    """What says which questions are not worth asking, and what hears how many items are done."""
    if known is None:
        yield None, lambda done: None
        return
    with known.judging(output, WHAT) as unknown, bar(items, "asking the target", "part", shown=progress) as line:
        yield unknown, lambda done: line.update(done - line.n)


@contextmanager
def _journal(output: Path, about: dict[str, Any]) -> Iterator[RowFile]:
    """The journal of a claimed folder; where nothing came of it, the folder is given up: its settings bind nobody."""
    with ExitStack() as stack:
        with claiming(output, WHAT):
            take(output, about, WHAT)
            journal = stack.enter_context(RowFile(output / JOURNAL, WHAT))  # held until the folder is gone
        journal.rows = {k: row for k, row in journal.rows.items() if _is_answer(row)}  # or it is asked for again
        try:
            yield journal
        except BaseException:
            with claiming(output, WHAT):
                if not journal.rows and present(output) == {CLAIM, JOURNAL}:
                    for name in (JOURNAL, CLAIM, LOCK):  # settings without a journal are still this folder's
                        (output / name).unlink()
                    output.rmdir()
            raise


def _is_answer(row: dict[str, Any]) -> bool:
    """Whether a line of the journal is what was written into it."""
    return isinstance(row.get("text"), str) and all(isinstance(row.get(f"tokens_{way}"), int) for way in ("in", "out"))


def _by_item(asked: Sequence[tuple[Item, Job, int]], journal: RowFile) -> dict[str, list[tuple[Job, str]]]:
    """A model's answers, by the item's key."""
    answers: dict[str, list[tuple[Job, str]]] = {}
    for k, (item, job, _) in enumerate(asked):
        answers.setdefault(item.key, []).append((job, journal.rows[k]["text"]))
    return answers


def _candidates(item: Item, answers: Sequence[tuple[Job, str]]) -> Candidates:
    """What a model's answers about an item offer."""
    found: dict[str, list[Any]] = {"pairs": [], "wrong": [], "asked": []}
    refused: list[Drop] = []
    for job, text in answers:
        try:
            listed = read_answer(text, job)
        except ValueError as error:
            kind = {"wrong": "wrong_answer", "asked": "asked"}.get(job, "paraphrase")
            refused.append(Drop(kind, str(error), item.record.source, text))  # type: ignore[arg-type]
            continue
        if job == "text":
            found["pairs"] += [("", str(one)) for one in listed]
        else:
            found[job] += listed
    return Candidates(found["pairs"], found["wrong"], found["asked"], refused)


def _progress(journal: RowFile, total: int) -> Progress:
    rows = journal.rows.values()
    return Progress(
        len(journal.rows), total, sum(row["tokens_in"] for row in rows), sum(row["tokens_out"] for row in rows)
    )


def _about(digests: list[str], wanted: Wanted, chunk_words: int, by: dict[str, Any]) -> dict[str, Any]:
    """Everything that decides what comes out."""
    return {"forget": digests, **wanted.to_dict(), "chunk_words": chunk_words, **by}


def _finish(
    output: Path, found: Sequence[Item], made: Made, progress: Progress | None, known: "Known | None" = None
) -> Result:
    """Write the files and the report.

    Raises:
        ULDError: questions were asked, and the target knows the answer to none.
    """
    if known is not None:
        lost = sum(drop.reason == REASON for drop in made.drops)
        if lost and not any(part.asked for parts in made.parts.values() for part in parts):
            raise ULDError(
                f"nothing to forget: {known.name} knows the answer to none of {lost} questions about the documents: "
                "name the model that was trained on them (--target), or lower --known"
            )
    whole = joined(part for parts in made.parts.values() for part in parts)
    kept = {name: len(getattr(whole, side)) for side, name in FILES.items() if getattr(whole, side)}
    dropped: dict[str, Counter[str]] = {}
    for drop in made.drops:
        dropped.setdefault(drop.kind, Counter())[_short(drop.reason)] += 1
    counts = {kind: dict(reasons.most_common()) for kind, reasons in sorted(dropped.items())}
    report = {
        "records": len(made.parts),
        "items": len(found),
        "kept": kept,
        "dropped": counts,
        "known": {"target": known.name, "least": known.least} if known else None,
        "tokens": {"in": progress.tokens_in, "out": progress.tokens_out} if progress else None,
        "drops": [asdict(drop) for drop in made.drops],
    }
    write(output, made.parts, report)
    return Result(output, len(made.parts), kept, counts, progress)


def _short(reason: str) -> str:
    """A reason without the names that it is about."""
    parts = reason.split(": ")
    return ": ".join(parts[:2]) if parts[0] in ("question", "answer") else parts[0]
