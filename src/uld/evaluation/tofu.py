"""TOFU: run a model over the four task sets and write the per-sample log that all aggregates follow from.

Every row is written as soon as it is done, so that a stopped evaluation goes on where it was. Source: Maini et al.
2024, arXiv 2401.06121; definitions in `uld.evaluation.metrics`.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld.artifact import ArtifactError, write_text, writing
from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.data.tofu import check_split, load_tofu
from uld.evaluation.metrics import rouge_recall
from uld.evaluation.scoring import Scorer, generate_answers, length_batches
from uld.evaluation.tofu_log import FILE_NAME, TaskLog, TofuLog, write_log
from uld.logits import Combination
from uld.modeling import ULDForCausalLM

TASKS = ("forget", "retain", "real_authors", "world_facts")
_GENERATION_BUDGET = 64 * 64  # prompt tokens of a generation batch


def task_rows(task: str, split: str, data: str | Path | None, limit: int | None = None) -> list[dict[str, Any]]:
    """Rows of a task set: the perturbed version of the split.

    Args:
        task: One of `TASKS`.
        split: ``forget01``, ``forget05`` or ``forget10``.
        data: Folder of TOFU, or None for the Hub.
        limit: First rows only (TOFU's own logs hold 300).
    """
    check_split(split)
    name = {"forget": split}.get(task, task)
    return load_tofu(f"{name}_perturbed", data)[:limit]


def describe(model: PreTrainedModel, **settings: Any) -> dict[str, Any]:
    """What decides an evaluation's numbers, as written beside its log."""
    about: dict[str, Any] = {"model": str(model.name_or_path)}
    if isinstance(model, ULDForCausalLM):
        about |= {"combination": vars(model.combination)}
        if model.manifest is not None:
            about |= {"target": model.manifest.target, "method": model.manifest.method}
            about["run"] = hashlib.sha256(model.manifest.model_dump_json().encode()).hexdigest()
    return about | settings


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
        limit: First rows of each task set only.
        progress: Show a progress bar.

    Returns:
        The log, also written to ``output`` in the format of TOFU's authors.

    Raises:
        ULDError: missing data, or a folder with the results of other settings.
    """
    output = Path(output)
    form = PromptFormat(tokenizer, template)
    rows = {task: task_rows(task, split, data, limit) for task in tasks}
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    about = describe(
        model,
        split=split,
        template=form.template,
        generate=generate,
        max_new_tokens=max_new_tokens,
        limit=limit,
        data=digest,
    )
    _claim(output, about)
    logs = {}
    for task in tasks:
        done = _run_task(model, tokenizer, form, task, rows[task], output, generate, max_new_tokens, progress)
        logs[task] = _task_log(rows[task], done, generate)
    log = TofuLog(logs, source=str(output))
    with writing(output):
        write_log(log, output / FILE_NAME)
    return log


def _claim(output: Path, about: dict[str, Any]) -> None:
    """Take a folder for one evaluation; refuse one that holds another's rows."""
    path = output / "settings.json"
    text = json.dumps(about, indent=2) + "\n"
    if path.is_file():
        if json.loads(path.read_text()) != json.loads(text):
            raise ArtifactError(
                f"{output} holds an evaluation of another model or with other settings: name another folder with "
                "--output, or remove it"
            )
        return
    if output.exists() and any(output.iterdir()):
        raise ArtifactError(f"{output} is not empty and holds no evaluation: name another folder with --output")
    write_text(path, text)


def _run_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    form: PromptFormat,
    task: str,
    rows: list[dict[str, Any]],
    output: Path,
    generate: bool,
    max_new_tokens: int,
    progress: bool,
) -> list[dict[str, Any]]:
    """Score and generate what is missing; return one result a row."""
    from tqdm import tqdm

    path = output / f"{task}.jsonl"
    results = _finished(path)
    todo = [i for i in range(len(rows)) if i not in results]
    pad: Any = tokenizer.pad_token_id
    scorer = Scorer(model, int(pad or 0))
    lengths = [len(form.prompt_ids(rows[i]["question"])) + len(rows[i]["answer"]) // 2 for i in todo]
    bar = tqdm(total=len(rows), initial=len(results), desc=task, unit="row", disable=not progress or not todo)
    with writing(output), bar, path.open("a", buffering=1) as file:
        for batch in length_batches(lengths, _GENERATION_BUDGET):
            chosen = [todo[i] for i in batch]
            for i, result in zip(
                chosen,
                evaluate_rows(model, tokenizer, form, scorer, [rows[i] for i in chosen], generate, max_new_tokens),
                strict=True,
            ):
                results[i] = result
                file.write(json.dumps({"row": i, **result}) + "\n")
            bar.update(len(chosen))
    return [results[i] for i in range(len(rows))]


def _finished(path: Path) -> dict[int, dict[str, Any]]:
    """Rows of an earlier, stopped evaluation; a line that a kill cut short is dropped from the file."""
    results: dict[int, dict[str, Any]] = {}
    if not path.is_file():
        return results
    lines = path.read_text().splitlines()
    for line in lines:
        try:
            result = json.loads(line)
            results[result.pop("row")] = result
        except ValueError:
            continue
    write_text(path, "".join(json.dumps({"row": i, **result}) + "\n" for i, result in results.items()))
    return results


def answers_of(row: dict[str, Any]) -> list[str]:
    """Answers to score, in order: the true one, the paraphrased one (if the row has one), the wrong ones."""
    paraphrased = [row["paraphrased_answer"]] if "paraphrased_answer" in row else []
    return [row["answer"], *paraphrased, *row["perturbed_answer"]]


def evaluate_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    form: PromptFormat,
    scorer: Scorer,
    rows: list[dict[str, Any]],
    generate: bool,
    max_new_tokens: int,
) -> list[dict[str, Any]]:
    """Scores and generated answers of some rows.

    Returns:
        For each row ``scores`` (loss and tokens of each of `answers_of`) and, if asked for, ``generated``.
    """
    encoded = [
        form.encode(Record.qa(row["question"], answer, "TOFU"), max_length=2**31)
        for row in rows
        for answer in answers_of(row)
    ]
    scores = iter(scorer.score(encoded)[0])
    results: list[dict[str, Any]] = [
        {"scores": [[(one := next(scores)).loss, one.tokens] for _ in answers_of(row)]} for row in rows
    ]
    if generate:
        prompts = [form.prompt_ids(row["question"]) for row in rows]
        texts = generate_answers(model, tokenizer, prompts, max_new_tokens=max_new_tokens)
        for result, row, prompt, text in zip(results, rows, prompts, texts, strict=True):
            shown: Any = tokenizer.decode(prompt, skip_special_tokens=True)
            result["generated"] = [shown, text, row["answer"]]
            result["rouge1"], result["rougeL"] = rouge_recall(text, row["answer"])
    return results


def _task_log(rows: list[dict[str, Any]], results: list[dict[str, Any]], generate: bool) -> TaskLog:
    """Results as the columns of a log."""
    first_wrong = [2 if "paraphrased_answer" in row else 1 for row in rows]
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
    pad: Any = tokenizer.pad_token_id
    scorer = Scorer(model, int(pad or 0), combinations)
    logs: list[dict[str, TaskLog]] = [{} for _ in combinations]
    for task in tasks:
        rows = task_rows(task, split, data, limit)
        encoded = [form.encode(Record.qa(row["question"], a, "TOFU"), 2**31) for row in rows for a in answers_of(row)]
        for log, scores in zip(logs, scorer.score(encoded), strict=True):
            each = iter(scores)
            results = [{"scores": [[(one := next(each)).loss, one.tokens] for _ in answers_of(row)]} for row in rows]
            log[task] = _task_log(rows, results, generate=False)
    return [TofuLog(log, source="grid") for log in logs]
