"""KnowUnDo: did a model unlearn what it must, and keep what it may know about the same people.

Source: Tian et al. 2024, arXiv 2407.01920, §3.3, as its released code computes the numbers: accuracy is the share of an
answer's tokens that are the greedy prediction when the true tokens before them are given.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.evaluation.memorization import exact_memorization
from uld.evaluation.metrics import rouge_l_f1
from uld.evaluation.resume import begin, complete
from uld.evaluation.scoring import Scorer, refuse_nan
from uld.evaluation.token_scores import token_scores
from uld.model.generate import generate_answers, length_batches
from uld.text.table import aligned

_BATCH_TOKENS = 64 * 64  # prompt tokens that are generated from at a time

Found = dict[str, list[dict[str, Any]]]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Sequence[Record]],
    output: str | Path,
    *,
    template: str | None = None,
    generate: bool = True,
    max_new_tokens: int = 128,
    limit: int | None = None,
    progress: bool = True,
) -> Found:
    """Run a model over both sets, or go on where an evaluation was stopped.

    Args:
        model: Any causal LM.
        tokenizer: Its tokenizer.
        sets: From `uld.data.knowundo.load_knowundo`.
        output: Folder for the rows; those already in it are not computed again.
        template: Prompt template; None takes the tokenizer's chat template.
        generate: Whether to generate answers (without them there is no ROUGE).
        max_new_tokens: Most tokens of a generated answer.
        limit: First rows of each set only.
        progress: Show a progress bar.

    Returns:
        For each set its rows: ``accuracy``, ``avg_loss`` in nats a token and, if asked for, ``generated``, ``truth``
        and ``rougeL_f1``.

    Raises:
        ULDError: a model that gives NaN, or a folder with the results of other settings.
    """
    form = PromptFormat(tokenizer, template)
    given = {name: [record.content for record in records] for name, records in sets.items()}
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
    output = begin(output, model, form, data=digest, max_new_tokens=max_new_tokens)
    job = _Job(model, tokenizer, form, generate, max_new_tokens)
    found: Found = {}
    for name, records in sets.items():
        wanted = records[:limit]
        found[name] = complete(
            output,
            name,
            list(length_batches([len(str(record.content)) // 4 for record in wanted], _BATCH_TOKENS)),
            lambda batch, wanted=wanted: job.rows([wanted[i] for i in batch]),
            device=model.device.type,
            finished=lambda _, result: "generated" in result or not generate,
            progress=progress,
        )
    return found


@dataclass(frozen=True)
class _Job:
    """What is done to rows."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    form: PromptFormat
    generate: bool
    max_new_tokens: int

    @cached_property
    def scorer(self) -> Scorer:
        """Made when the first row needs it."""
        return Scorer.of(self.model, self.tokenizer)

    def rows(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """Results of some questions."""
        scores = token_scores(self.scorer, [self.form.encode(record, 2**31) for record in records])
        results: list[dict[str, Any]] = [
            {"accuracy": exact_memorization(one.right), "avg_loss": float(-one.log_probs.mean())} for one in scores
        ]
        refuse_nan(self.model, (result["avg_loss"] for result in results))
        if self.generate:
            prompts = [self.form.prompt_ids(record.messages[0][1]) for record in records]
            texts = generate_answers(self.model, self.tokenizer, prompts, max_new_tokens=self.max_new_tokens)
            for result, record, text in zip(results, records, texts, strict=True):
                question, truth = (content for _, content in record.messages)
                result |= {"question": question, "generated": text, "truth": truth}
                result["rougeL_f1"] = rouge_l_f1(text, truth)
        return results


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
class KnowUnDoResult:
    """KnowUnDo's numbers, successes in per cent.

    Attributes:
        unlearn_success: ``100 · (1 − accuracy)`` on the questions to forget.
        retention_success: ``100 · accuracy`` on those to keep.
        sets: All numbers of each set.
    """

    unlearn_success: float
    retention_success: float
    sets: dict[str, SetResult]

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        return vars(self) | {"sets": {name: vars(one) for name, one in self.sets.items()}}

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


def summarise(found: Found) -> KnowUnDoResult:
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
