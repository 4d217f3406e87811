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


def judged(judge: Subject, asked: Sequence[Record], answers: Sequence[str], name: str = "judged") -> Task[Any]:
    """How likely another model finds each answer.

    Args:
        judge: The other model.
        asked: What was asked, in order; the answers in these records do not count.
        answers: What a model said to it.
        name: Of the task; that of its file also says what decided the rows.

    Returns:
        A task with ``judged_loss``, summed, in nats, and ``judged_tokens``; both 0 for an empty answer.
    """
    rows = [
        judge.form.encode(record.answered(text), max_length=2**31).last_answer() if text.strip() else None
        for record, text in zip(asked, answers, strict=True)
    ]

    def work(batch: list[Encoded | None]) -> list[Row]:
        there = [row for row in batch if row is not None]
        scores = iter(judge.scorer.score(there)[0] if there else [])
        found = [next(scores) if row is not None else Score(0.0, 0) for row in batch]
        refuse_nan(judge.model, (score.loss for score in found))
        return [{"judged_loss": score.loss, "judged_tokens": score.tokens} for score in found]

    file = f"{name}-{few_digits(fingerprint(judge.model.named_parameters()), judge.form.template, list(answers))}"
    batches = by_length([len(row.ids) if row is not None else 0 for row in rows], BATCH_TOKENS)
    return Task(name, rows, work, batches, file=file)


def few_digits(*parts: Any) -> str:
    """Eight digits of what decides some rows."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]
