"""KnowUnDo: did a model unlearn what it must, and keep what it may know about the same people.

Source: Tian et al. 2024, arXiv 2407.01920, §3.3, as its released code computes the numbers: accuracy is the share of an
answer's tokens that are the greedy prediction when the true tokens before them are given.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uld.data.knowundo import load_knowundo
from uld.data.record import Record
from uld.evaluation.benchmark import Benchmark, Found, Result, Subject, Task, by_length, digest
from uld.evaluation.memorization import exact_memorization
from uld.evaluation.metrics import rouge_l_f1
from uld.evaluation.scoring import refuse_nan
from uld.runs.values import Count
from uld.text.table import aligned


@dataclass
class KnowUnDo(Benchmark):
    """Both sets of questions.

    Attributes:
        data: Folder with ``unlearn_val.json`` and ``retention_val.json``; or the sets themselves.
        part: ``val``, what the paper evaluates on, or ``train``.
        generate: Whether to generate answers (without them there is no ROUGE).
        max_new_tokens: Most tokens of a generated answer.
        limit: First questions of each set only.
    """

    in_name = ("max_new_tokens",)

    data: str | Path | Mapping[str, Sequence[Record]]
    part: str = "val"
    generate: bool = True
    max_new_tokens: Count = 128
    limit: Count | None = None
    sets: Mapping[str, Sequence[Record]] = field(init=False)

    def __post_init__(self) -> None:
        """Read the sets."""
        super().__post_init__()
        self.name = f"knowundo-{self.part}"
        self.sets = self.data if isinstance(self.data, Mapping) else load_knowundo(self.data, self.part)

    def settings(self, subject: Subject) -> dict[str, Any]:
        """The questions, and how long an answer may be."""
        given = {name: [record.exact for record in records] for name, records in self.sets.items()}
        return {"data": digest(given), "max_new_tokens": self.max_new_tokens}

    def tasks(self, subject: Subject, found: Found) -> Iterator[Task[Record]]:
        """A task a set."""
        for name, records in self.sets.items():
            rows = records[: self.limit]
            yield Task(
                name,
                rows,
                lambda some: self.work(subject, some),
                by_length([len(str(record.content)) // 4 for record in rows]),
                finished=lambda _, result: "generated" in result or not self.generate,
            )

    def work(self, subject: Subject, records: Sequence[Record]) -> list[dict[str, Any]]:
        """Results of some questions: ``accuracy``, ``avg_loss`` in nats a token and perhaps an answer."""
        scores = subject.token_scores([subject.form.encode(record, 2**31) for record in records])
        results: list[dict[str, Any]] = [
            {"accuracy": exact_memorization(one.right), "avg_loss": float(-one.log_probs.mean())} for one in scores
        ]
        refuse_nan(subject.model, (result["avg_loss"] for result in results))
        if self.generate:
            texts = subject.answers([record.messages[0][1] for record in records], self.max_new_tokens)
            for result, record, text in zip(results, records, texts, strict=True):
                question, truth = (content for _, content in record.messages)
                result |= {"question": question, "generated": text, "truth": truth}
                result["rougeL_f1"] = rouge_l_f1(text, truth)
        return results

    def summarise(self, found: Found, others: Mapping[str, Found] | None = None) -> "KnowUnDoResult":
        """From rows to KnowUnDo's numbers."""
        sets = {}
        for name, rows in found.items():
            losses = [row["avg_loss"] for row in rows]
            mean = sum(losses) / len(rows)
            rouge = [row["rougeL_f1"] for row in rows if "rougeL_f1" in row]
            sets[name] = SetResult(
                rows=len(rows),
                accuracy=sum(row["accuracy"] for row in rows) / len(rows),
                prob=sum(math.exp(-one) for one in losses) / len(rows),
                perplexity=math.exp(mean) if mean < 700 else math.inf,
                rouge_l=sum(rouge) / len(rows) if len(rouge) == len(rows) else None,
            )
        return KnowUnDoResult(
            unlearn_success=100 * (1 - sets["unlearn"].accuracy),
            retention_success=100 * sets["retention"].accuracy,
            sets=sets,
        )


@dataclass(frozen=True)
class SetResult:
    """Numbers of one set.

    Attributes:
        rows: Questions.
        accuracy: Mean share of an answer's tokens that are predicted, in [0, 1].
        prob: Mean of ``exp(−avg_loss)``.
        perplexity: ``exp(mean avg_loss)``.
        rouge_l: Mean ROUGE-L F1 of the greedy answers; None without them.
    """

    rows: int
    accuracy: float
    prob: float
    perplexity: float
    rouge_l: float | None


@dataclass(frozen=True)
class KnowUnDoResult(Result):
    """KnowUnDo's numbers, successes in per cent.

    Attributes:
        unlearn_success: ``100 · (1 − accuracy)`` on the questions to forget.
        retention_success: ``100 · accuracy`` on those to keep.
        sets: All numbers of each set.
    """

    unlearn_success: float
    retention_success: float
    sets: dict[str, SetResult]

    def table(self) -> str:
        """Both successes, then each set, as Markdown."""
        head = ("unlearn success (%)", "retention success (%)")
        lines = aligned(head, [[f"{self.unlearn_success:.2f}", f"{self.retention_success:.2f}"]])
        rows = [
            [
                *(name, str(one.rows), f"{one.accuracy:.4f}", f"{one.prob:.4f}", f"{one.perplexity:.4g}"),
                "-" if one.rouge_l is None else f"{one.rouge_l:.4f}",
            ]
            for name, one in self.sets.items()
        ]
        lines += ["", *aligned(("set", "rows", "accuracy", "Prob", "perplexity", "ROUGE-L F1"), rows)]
        return "\n".join(lines) + "\n"
