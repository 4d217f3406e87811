"""How likely another model finds the answers that a model gave: a task of its own, for the answers' fluency."""

import hashlib
from collections.abc import Sequence
from typing import Any

from uld.data.prompt import Encoded
from uld.data.record import Record
from uld.evaluation.benchmark import Row, Subject, Task, by_length
from uld.evaluation.scoring import Score, refuse_nan
from uld.model.generate import BATCH_TOKENS
from uld.runs.manifest import fingerprint


def judged(
    judge: Subject, asked: Sequence[Record], answers: Sequence[str], rows: Sequence[Row], name: str = "judged"
) -> Task[Any]:
    """How likely another model finds each answer.

    Judged are the very tokens that the model wrote, behind the very tokens of the prompt, and an end of sequence only
    where one was written. Where they are other text in the judge's tokenizer, and in rows that do not say (earlier
    versions kept the text alone), the text is made tokens of; where it is not known whether it ended, it has no end.

    Args:
        judge: The other model.
        asked: What was asked, in order; the answers in these records do not count.
        answers: What a model said to it.
        rows: What is known of each answer beside: `uld.model.generate.Written.row`.
        name: Of the task; that of its file also says what decided the rows.

    Returns:
        A task with ``judged_loss``, summed, in nats, and ``judged_tokens``; both 0 for an empty answer.
    """
    encoded = [_encoded(judge, record, text, row) for record, text, row in zip(asked, answers, rows, strict=True)]

    def work(batch: list[Encoded | None]) -> list[Row]:
        there = [row for row in batch if row is not None]
        scores = iter(judge.scorer.score(there)[0] if there else [])
        found = [next(scores) if row is not None else Score(0.0, 0) for row in batch]
        refuse_nan(judge.model, (score.loss for score in found))
        return [{"judged_loss": score.loss, "judged_tokens": score.tokens} for score in found]

    said = [row.ids if row is not None else [] for row in encoded]
    file = f"{name}-{few_digits(fingerprint(judge.model.named_parameters()), said)}"
    return Task(name, encoded, work, by_length([len(ids) for ids in said], BATCH_TOKENS), file=file)


def _encoded(judge: Subject, record: Record, text: str, row: Row) -> Encoded | None:
    """An answer behind its question as the judge reads it; None for one without text."""
    if not text.strip():
        return None
    ended = row.get("end") is not None
    raw = text if record.prompt is None else row.get("written", text)  # there nobody else writes the blank before it
    prompt, answer = judge.form.behind(record, raw, ended=ended)
    if "ids" in row and _reads(judge, row["ids"], text):
        answer = [*row["ids"], *([row["end"]] if ended else [])]
    return Encoded(prompt + answer, [False] * len(prompt) + [True] * len(answer)) if answer else None


def _reads(judge: Subject, ids: Sequence[int], text: str) -> bool:
    """Whether tokens are this text to a judge as well."""
    tokenizer: Any = judge.tokenizer
    return max(ids, default=0) < len(tokenizer) and tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def few_digits(*parts: Any) -> str:
    """Eight digits of what decides some rows."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]
