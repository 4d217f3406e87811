"""TOFU: run a model over the four task sets and write the per-sample log that all aggregates follow from.

Every row is written as soon as it is done, so that a stopped evaluation goes on where it was. Source: Maini et al.
2024, arXiv 2401.06121; definitions in `uld.evaluation.metrics`.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld.data.prompt import Encoded, PromptFormat
from uld.data.record import DataError, Record
from uld.data.tofu import check_split, load_tofu, split_records
from uld.evaluation.memorization import exact_memorization, extraction_strength
from uld.evaluation.metrics import rouge_recall
from uld.evaluation.reading import dictionary, unknown_words
from uld.evaluation.resume import begin, complete
from uld.evaluation.scoring import Scorer, refuse_nan
from uld.evaluation.task_log import MIA, TaskLog, TofuLog
from uld.evaluation.tofu_answers import judge, sample_answers
from uld.evaluation.tofu_log import FILE_NAME, write_log
from uld.evaluation.token_scores import TokenScores, attack_scores, scores_and_tokens, token_scores
from uld.model.combine import Combination
from uld.model.generate import generate_answers, length_batches
from uld.model.unlearned import ULDForCausalLM

TASKS = ("forget", "retain", "real_authors", "world_facts")
_BATCH_TOKENS = 64 * 64  # prompt tokens that are generated from at a time
_ATTACKS = dict(zip(MIA, ("loss", "zlib", "min_k", "min_k++"), strict=True))
_KNOWN = ("extraction_strength", "exact_memorization", *MIA)
_FURTHER = (*_KNOWN, "paraphrase_rougeL")

logger = logging.getLogger(__name__)


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
    non_members: Sequence[Record] | None = None,
    samples: int | None = None,
    seed: int = 0,
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
        non_members: Questions and answers of the same kind that no model was trained on, for membership attacks
            (`unseen_rows` chooses some).
        samples: Answers to sample for each forget question, at temperature 1; None samples none.
        seed: Of the samples.
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
    known = dictionary(_texts(rows)) if generate else None
    logs = {}
    for task in tasks:
        wanted = rows[task][:limit]
        done = complete(
            output,
            task,
            _batches(wanted),
            lambda batch, wanted=wanted, task=task: evaluate_rows(job, [wanted[i] for i in batch], task),
            device=model.device.type,
            finished=lambda i, result, wanted=wanted, task=task: _is_finished(result, wanted[i], task, generate),
            progress=progress,
        )
        logs[task] = _task_log(wanted, done, generate, known if task == "forget" else None)
    if samples and "forget" in logs:
        questions = [row["question"] for row in rows["forget"][:limit]]
        how = {"max_new_tokens": max_new_tokens, "progress": progress}
        logs["forget"] = replace(
            logs["forget"], samples=sample_answers(model, tokenizer, form, questions, output, samples, seed, **how)
        )
    others = None if non_members is None else _attacked(job, non_members, output, progress)
    log = TofuLog(logs, str(output), others)
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


def _is_finished(result: dict[str, Any], row: dict[str, Any], task: str, generate: bool) -> bool:
    """Whether a stored result holds all that is asked of a row."""
    if len(result.get("scores", ())) != len(answers_of(row)):
        return False
    wanted = {"generated", "rouge1", "rougeL"} if generate else set()
    if task == "forget":
        wanted |= {*_KNOWN, *(["paraphrase_rougeL"] if generate else [])}
    return wanted <= result.keys()


def answers_of(row: dict[str, Any]) -> list[str]:
    """Answers to score, in order: the true one, the paraphrased one (if the row has one), the wrong ones."""
    paraphrased = [row["paraphrased_answer"]] if row.get("paraphrased_answer") else []
    return [row["answer"], *paraphrased, *row["perturbed_answer"]]


def evaluate_rows(job: _Job, rows: list[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    """Scores and generated answers of some rows.

    Returns:
        For each row ``scores`` (loss and tokens of each of `answers_of`) and, if asked for, ``generated``. For a forget
        row also how well its true answer is known, from the same pass.

    Raises:
        ULDError: the model gives NaN.
    """
    answers = [len(answers_of(row)) for row in rows]
    true = [sum(answers[:i]) for i in range(len(rows))]
    found, tokens = scores_and_tokens(job.scorer, _encoded(job.form, rows), set(true) if task == "forget" else ())
    scores = iter(found)
    results: list[dict[str, Any]] = [
        {"scores": [[(one := next(scores)).loss, one.tokens] for _ in range(count)]} for count in answers
    ]
    if task == "forget":
        for result, row, number in zip(results, rows, true, strict=True):
            result |= _known(tokens[number], row["answer"])
    refuse_nan(job.model, (loss for result in results for loss, _ in result["scores"]))
    if job.generate:
        prompts = [job.form.prompt_ids(row["question"]) for row in rows]
        texts = generate_answers(job.model, job.tokenizer, prompts, max_new_tokens=job.max_new_tokens)
        for result, row, prompt, text in zip(results, rows, prompts, texts, strict=True):
            shown: Any = job.tokenizer.decode(prompt, skip_special_tokens=True)
            result["generated"] = [shown, text, row["answer"]]
            result["rouge1"], result["rougeL"] = rouge_recall(text, row["answer"])
            if task == "forget":
                result["paraphrase_rougeL"] = rouge_recall(text, row["paraphrased_answer"])[1]
    return results


def _known(tokens: TokenScores, answer: str) -> dict[str, float]:
    """How well a model knows an answer; extraction strength as open-unlearning's code has it, never below 1/n."""
    attacks = attack_scores(tokens, answer)
    return {
        "extraction_strength": max(extraction_strength(tokens.right), 1 / len(tokens.right)),
        "exact_memorization": exact_memorization(tokens.right),
        **{name: attacks[attack] for name, attack in _ATTACKS.items()},
    }


def unseen_rows(records: Sequence[Record], split: str, data: str | Path | None) -> list[Record]:
    """Non-members for membership attacks: as many as there are forget rows, evenly spaced.

    Args:
        records: Questions and answers; those that are rows of ``full`` are left out, and their number goes to the log.
        split: Forget split.
        data: Folder of TOFU, or None for the Hub.

    Raises:
        DataError: a record is no question with an answer, or ``full`` holds all of them.
    """
    for one in records:
        if [role for role, _ in one.messages] != ["user", "assistant"]:
            raise DataError(f"{one.source}: --non-members takes questions with answers, as the forget set has them")
    seen = {record.same for record in split_records("full", data)[0]}
    unseen = [one for one in records if one.same not in seen]
    if not unseen:
        raise DataError("none of the non-members is one: all of them are rows of full, which the target learnt")
    if len(unseen) < len(records):
        logger.info("%d of %d non-members are rows of full, and left out", len(records) - len(unseen), len(records))
    number = min(len(unseen), len(load_tofu(split, data)))
    return [unseen[i * len(unseen) // number] for i in range(number)]


def _attacked(job: _Job, records: Sequence[Record], output: Path, progress: bool) -> dict[str, list[float]]:
    """Scores of non-members by every attack."""
    rows = [job.form.encode(record, max_length=2**31) for record in records]
    digest = hashlib.sha256(json.dumps([record.content for record in records]).encode()).hexdigest()

    def work(batch: list[int]) -> list[dict[str, Any]]:
        found = token_scores(job.scorer, [rows[i] for i in batch])
        results = [attack_scores(one, records[i].messages[1][1]) for one, i in zip(found, batch, strict=True)]
        refuse_nan(job.model, (value for result in results for value in result.values()))
        return [{name: result[attack] for name, attack in _ATTACKS.items()} for result in results]

    batches = list(length_batches([len(row.ids) for row in rows]))
    name = f"non_members-{digest[:8]}"
    done = complete(output, name, batches, work, device=job.model.device.type, progress=progress)
    return {name: [row[name] for row in done] for name in _ATTACKS}


def _texts(rows: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """All questions and answers of the data, right or wrong: what is no word of theirs is no word."""
    for task in rows.values():
        for row in task:
            yield row["question"]
            yield from answers_of(row)


def _encoded(form: PromptFormat, rows: list[dict[str, Any]]) -> list[Encoded]:
    """Every answer of every row behind its question."""
    return [
        form.encode(Record.qa(row["question"], a, "TOFU"), max_length=2**31) for row in rows for a in answers_of(row)
    ]


def _task_log(
    rows: list[dict[str, Any]], results: list[dict[str, Any]], generate: bool, known: frozenset[str] | None = None
) -> TaskLog:
    """Results as the columns of a log; with a dictionary how many unknown words an answer has."""
    further = {name: [result[name] for result in results] for name in _FURTHER if name in results[0]}
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
        unknown_words=[unknown_words(result["generated"][1], known) for result in results] if known else None,
        **further,
    )


def judged(
    log: TofuLog,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    folder: Path,
    *,
    data: str | Path | None = None,
    template: str | None = None,
    progress: bool = True,
) -> TofuLog:
    """Have another model say how likely the answers of an evaluation are: `uld.evaluation.tofu_answers.judge`.

    Args:
        log: Of `evaluate`.
        model: The judge, any causal LM.
        tokenizer: Its tokenizer.
        split: Forget split.
        folder: Of the evaluation.
        data: Folder of TOFU, or None for the Hub.
        template: Prompt template of the judge; None takes the tokenizer's chat template.
        progress: Show a progress bar.

    Returns:
        The log with the judge's columns.
    """
    rows = task_rows("forget", split, data)
    questions = [rows[int(key)]["question"] for key in log["forget"].keys] if "forget" in log else []
    return judge(log, questions, folder, model, tokenizer, template, progress=progress)


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
