"""TOFU's rows: which there are, what is asked of a model on them, and the columns of a log that this comes to.

Source: Maini et al. 2024, arXiv 2401.06121; definitions in `uld.evaluation.metrics`.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from uld.data.prompt import Encoded, PromptFormat
from uld.data.record import DataError, Record
from uld.data.tofu import check_split, load_tofu, split_records
from uld.evaluation.benchmark import Row, Subject, Task, by_length, digest
from uld.evaluation.memorization import exact_memorization, extraction_strength
from uld.evaluation.metrics import rouge_recall
from uld.evaluation.reading import unknown_words
from uld.evaluation.scoring import refuse_nan
from uld.evaluation.task_log import MIA, TaskLog
from uld.evaluation.token_scores import TokenScores, attack_scores, scores_and_tokens
from uld.model.generate import BATCH_TOKENS

TASKS = ("forget", "retain", "real_authors", "world_facts")
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


def is_finished(result: dict[str, Any], row: dict[str, Any], task: str, generate: bool) -> bool:
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


def evaluate_rows(subject: Subject, rows: list[Row], task: str, max_new_tokens: int | None) -> list[dict[str, Any]]:
    """Scores and generated answers of some rows.

    Returns:
        For each row ``scores`` (loss and tokens of each of `answers_of`) and, if asked for, ``generated``. For a forget
        row also how well its true answer is known, from the same pass.

    Raises:
        ULDError: the model gives NaN.
    """
    answers = [len(answers_of(row)) for row in rows]
    true = [sum(answers[:i]) for i in range(len(rows))]
    found, tokens = scores_and_tokens(
        subject.scorer, encoded(subject.form, rows), set(true) if task == "forget" else ()
    )
    scores = iter(found)
    results: list[dict[str, Any]] = [
        {"scores": [[(one := next(scores)).loss, one.tokens] for _ in range(count)]} for count in answers
    ]
    if task == "forget":
        for result, row, number in zip(results, rows, true, strict=True):
            result |= _known(tokens[number], row["answer"])
    refuse_nan(subject.model, (loss for result in results for loss, _ in result["scores"]))
    if max_new_tokens is not None:
        prompts = [subject.form.prompt_ids(row["question"]) for row in rows]
        answered = subject.written(prompts, [max_new_tokens] * len(rows))
        for result, row, prompt, written in zip(results, rows, prompts, answered, strict=True):
            shown: Any = subject.tokenizer.decode(prompt, skip_special_tokens=True)
            text = written.text
            result |= {"generated": [shown, text, row["answer"]], **written.row}
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


def attacked(subject: Subject, records: Sequence[Record]) -> Task[tuple[Record, Encoded]]:
    """Scores of non-members by every attack."""
    rows = [(record, subject.form.encode(record, max_length=2**31)) for record in records]

    def work(some: list[tuple[Record, Encoded]]) -> list[Row]:
        found = subject.token_scores([row for _, row in some])
        results = [attack_scores(one, record.messages[1][1]) for one, (record, _) in zip(found, some, strict=True)]
        refuse_nan(subject.model, (value for result in results for value in result.values()))
        return [{name: result[attack] for name, attack in _ATTACKS.items()} for result in results]

    file = f"non_members-{digest([record.exact for record in records])[:8]}"
    return Task("non_members", rows, work, by_length([len(row.ids) for _, row in rows], BATCH_TOKENS), file=file)


def texts(rows: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """All questions and answers of the data, right or wrong: what is no word of theirs is no word."""
    for task in rows.values():
        for row in task:
            yield row["question"]
            yield from answers_of(row)


def encoded(form: PromptFormat, rows: list[dict[str, Any]]) -> list[Encoded]:
    """Every answer of every row behind its question."""
    return [
        form.encode(Record.qa(row["question"], a, "TOFU"), max_length=2**31) for row in rows for a in answers_of(row)
    ]


def task_log(
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
        question=[row["question"] for row in rows] if generate else None,
        unknown_words=[unknown_words(result["generated"][1], known) for result in results] if known else None,
        **further,
    )
