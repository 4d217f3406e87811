"""TOFU: run a model over the four task sets and write the per-sample log that all aggregates follow from.

Every row is written as soon as it is done, so that a stopped evaluation goes on where it was. Source: Maini et al.
2024, arXiv 2401.06121; definitions in `uld.evaluation.metrics`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld.data.prompt import Encoded, PromptFormat
from uld.data.record import DataError, Record
from uld.data.tofu import check_split, load_tofu
from uld.evaluation.metrics import rouge_recall
from uld.evaluation.resume import begin, complete
from uld.evaluation.scoring import Scorer, generate_answers, length_batches, refuse_nan
from uld.evaluation.tofu_log import FILE_NAME, TaskLog, TofuLog, write_log
from uld.logits import Combination
from uld.modeling import ULDForCausalLM

TASKS = ("forget", "retain", "real_authors", "world_facts")
_BATCH_TOKENS = 64 * 64  # prompt tokens that are generated from at a time


def task_rows(task: str, split: str, data: str | Path | None) -> list[dict[str, Any]]:
    """Rows of a task set: the perturbed version of the split.

    Args:
        task: One of `TASKS`.
        split: ``forget01``, ``forget05`` or ``forget10``.
        data: Folder of TOFU, or None for the Hub.

    Raises:
        DataError: no such split or file, or a row without the answers to score.
    """
    check_split(split)
    name = f"{split if task == 'forget' else task}_perturbed"
    rows = load_tofu(name, data)
    wrong = len(rows[0]["perturbed_answer"])
    for number, row in enumerate(rows, start=1):
        if not wrong or len(row["perturbed_answer"]) != wrong:
            raise DataError(f"{name}:{number}: 'perturbed_answer' must list as many wrong answers as every other row's")
    return rows


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    output: str | Path,
    *,
    data: str | Path | None = None,
    template: str | None = None,
    tasks: Sequence[str] = TASKS,
    generate: bool = True,
    max_new_tokens: int = 200,
    limit: int | None = None,
    progress: bool = True,
) -> TofuLog:
    """Evaluate a model on TOFU, or go on with an evaluation that was stopped.

    Under ``torchrun`` every process calls it and takes its share of the rows; the first writes the log.

    Args:
        model: Any causal LM.
        tokenizer: Its tokenizer.
        split: Forget split.
        output: Folder for the log; rows already in it are not computed again.
        data: Folder of TOFU, or None for the Hub.
        template: Prompt template; None takes the tokenizer's chat template.
        tasks: Task sets to run.
        generate: Whether to generate answers (without them there is no ROUGE).
        max_new_tokens: Most tokens of a generated answer.
        limit: First rows of each task set only (TOFU's own logs hold 300).
        progress: Show a progress bar.

    Returns:
        The log, also written to ``output`` in the format of TOFU's authors. An answer that the model cannot give
        (probability 0, as ``outside=mask`` makes some) has an infinite loss, in files the JSON number ``1e999``.

    Raises:
        ULDError: missing data, a model that gives NaN, or a folder with the results of other settings.
    """
    form = PromptFormat(tokenizer, template)
    rows = {task: task_rows(task, split, data) for task in tasks}
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    output = begin(output, model, form, split=split, max_new_tokens=max_new_tokens, data=digest)
    job = _Job(model, tokenizer, form, generate, max_new_tokens)
    logs = {}
    for task in tasks:
        wanted = rows[task][:limit]
        done = complete(
            output,
            task,
            _batches(wanted),
            lambda batch, wanted=wanted: evaluate_rows(job, [wanted[i] for i in batch]),
            device=model.device.type,
            finished=lambda i, result, wanted=wanted: _is_finished(result, wanted[i], generate),
            progress=progress,
        )
        logs[task] = _task_log(wanted, done, generate)
    log = TofuLog(logs, source=str(output))
    if PartialState().is_main_process:
        write_log(log, output / FILE_NAME)
    return log


@dataclass(frozen=True)
class _Job:
    """What is done to every row."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    form: PromptFormat
    generate: bool
    max_new_tokens: int

    @cached_property
    def scorer(self) -> Scorer:
        """Made when the first row needs it."""
        return Scorer.of(self.model, self.tokenizer)


def _batches(rows: list[dict[str, Any]]) -> list[list[int]]:
    """Row numbers in batches, the same for every process and for an evaluation that goes on after a stop.

    A row's last digits depend on the rows that it is padded with, so this gives the same numbers however it is run.
    """
    lengths = [len(row["question"]) // 4 + len(row["answer"]) // 8 + 1 for row in rows]  # about tokens; only to sort
    return list(length_batches(lengths, _BATCH_TOKENS))


def _is_finished(result: dict[str, Any], row: dict[str, Any], generate: bool) -> bool:
    """Whether a stored result holds all that is asked of a row."""
    if len(result.get("scores", ())) != len(answers_of(row)):
        return False
    return not generate or {"generated", "rouge1", "rougeL"} <= result.keys()


def answers_of(row: dict[str, Any]) -> list[str]:
    """Answers to score, in order: the true one, the paraphrased one (if the row has one), the wrong ones."""
    paraphrased = [row["paraphrased_answer"]] if row.get("paraphrased_answer") else []
    return [row["answer"], *paraphrased, *row["perturbed_answer"]]


def evaluate_rows(job: _Job, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Scores and generated answers of some rows.

    Returns:
        For each row ``scores`` (loss and tokens of each of `answers_of`) and, if asked for, ``generated``.

    Raises:
        ULDError: the model gives NaN.
    """
    scores = iter(job.scorer.score(_encoded(job.form, rows))[0])
    results: list[dict[str, Any]] = [
        {"scores": [[(one := next(scores)).loss, one.tokens] for _ in answers_of(row)]} for row in rows
    ]
    refuse_nan(job.model, (loss for result in results for loss, _ in result["scores"]))
    if job.generate:
        prompts = [job.form.prompt_ids(row["question"]) for row in rows]
        texts = generate_answers(job.model, job.tokenizer, prompts, max_new_tokens=job.max_new_tokens)
        for result, row, prompt, text in zip(results, rows, prompts, texts, strict=True):
            shown: Any = job.tokenizer.decode(prompt, skip_special_tokens=True)
            result["generated"] = [shown, text, row["answer"]]
            result["rouge1"], result["rougeL"] = rouge_recall(text, row["answer"])
    return results


def _encoded(form: PromptFormat, rows: list[dict[str, Any]]) -> list[Encoded]:
    """Every answer of every row behind its question."""
    return [
        form.encode(Record.qa(row["question"], a, "TOFU"), max_length=2**31) for row in rows for a in answers_of(row)
    ]


def _task_log(rows: list[dict[str, Any]], results: list[dict[str, Any]], generate: bool) -> TaskLog:
    """Results as the columns of a log."""
    first_wrong = [2 if row.get("paraphrased_answer") else 1 for row in rows]
    truth = [result["scores"][0] for result in results]
    paraphrase = [result["scores"][first - 1] for result, first in zip(results, first_wrong, strict=True)]
    wrong = [result["scores"][first:] for result, first in zip(results, first_wrong, strict=True)]
    return TaskLog(
        keys=[str(i) for i in range(len(rows))],
        avg_loss=[loss / tokens for loss, tokens in truth],
        paraphrase_loss=[loss / tokens for loss, tokens in paraphrase],
        wrong_losses=[[loss / tokens for loss, tokens in row] for row in wrong],
        loss=[loss for loss, _ in truth],
        tokens=[tokens for _, tokens in truth],
        paraphrase_loss_sum=[loss for loss, _ in paraphrase],
        paraphrase_tokens=[tokens for _, tokens in paraphrase],
        wrong_loss_sums=[[loss for loss, _ in row] for row in wrong],
        wrong_tokens=[[tokens for _, tokens in row] for row in wrong],
        rouge1=[result["rouge1"] for result in results] if generate else None,
        rougeL=[result["rougeL"] for result in results] if generate else None,
        generated=[tuple(result["generated"]) for result in results] if generate else None,
    )


def score_grid(
    model: ULDForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    combinations: Sequence[Combination],
    *,
    data: str | Path | None = None,
    template: str | None = None,
    tasks: Sequence[str] = TASKS,
    limit: int | None = None,
) -> list[TofuLog]:
    """Logs without generation for many settings of the combination, from one forward over the data.

    Returns:
        One log a combination.
    """
    form = PromptFormat(tokenizer, template)
    scorer = Scorer.of(model, tokenizer, combinations)
    logs: list[dict[str, TaskLog]] = [{} for _ in combinations]
    for task in tasks:
        rows = task_rows(task, split, data)[:limit]
        for log, scores in zip(logs, scorer.score(_encoded(form, rows)), strict=True):
            each = iter(scores)
            results = [{"scores": [[(one := next(each)).loss, one.tokens] for _ in answers_of(row)]} for row in rows]
            log[task] = _task_log(rows, results, generate=False)
    return [TofuLog(log, source="grid") for log in logs]
