"""A benchmark of one's own, on a few questions: ``python own_benchmark.py MODEL OUTPUT``.

It says how often a model answers with the right word, and how likely it finds that word. The rest comes from the pipe:
rows that are kept as they finish, continuing after a stop, several processes, the files.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import uld
from uld.data.record import Record
from uld.evaluation.benchmark import Benchmark, Found, Result, Row, Subject, Task, by_length

QUESTIONS = (
    ("What colour is the sky on a clear day?", "blue"),
    ("How many legs has a spider?", "eight"),
    ("What do bees make?", "honey"),
)


@dataclass(frozen=True)
class WordsResult(Result):
    """The numbers: shares in [0, 1], means over the questions."""

    right: float
    probability: float

    def table(self) -> str:
        """For people."""
        return f"| right | probability |\n|---|---|\n| {self.right:.2f} | {self.probability:.3g} |\n"


@dataclass
class Words(Benchmark):
    """Questions with one word as their answer. A setting is a field."""

    name = "words"

    questions: Sequence[tuple[str, str]] = QUESTIONS
    max_new_tokens: int = 16

    def settings(self, subject: Subject) -> dict[str, Any]:
        """All that decides the rows: a folder that was filled with other settings is refused."""
        return {"questions": [list(one) for one in self.questions], "max_new_tokens": self.max_new_tokens}

    def tasks(self, subject: Subject, found: Found) -> Iterator[Task[tuple[str, str]]]:
        """The rows, and what is done to some of them at a time. Results are kept in ``words.jsonl``."""

        def work(rows: list[tuple[str, str]]) -> list[Row]:
            answers = subject.answers([question for question, _ in rows], self.max_new_tokens)
            scores = subject.scorer.score([subject.form.encode(Record.qa(*row), max_length=2**31) for row in rows])[0]
            return [
                {"answer": answer, "right": word in answer.lower().split(), "loss": score.loss}
                for (_, word), answer, score in zip(rows, answers, scores, strict=True)
            ]

        yield Task("words", self.questions, work, by_length([len(question) for question, _ in self.questions]))

    def summarise(self, found: Found, others: Mapping[str, Found] | None = None) -> WordsResult:
        """From rows to numbers."""
        rows = found["words"]
        return WordsResult(
            right=sum(row["right"] for row in rows) / len(rows),
            probability=sum(math.exp(-row["loss"]) for row in rows) / len(rows),
        )


if __name__ == "__main__":
    model, output = sys.argv[1:]
    print(uld.evaluate(Words(), model, output=output).table())
