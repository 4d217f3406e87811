"""General ability: any task of EleutherAI's lm-eval on a loaded model, and on the target as it was before.

The tasks, prompts, few-shot examples, metrics and result files are lm-eval's own; this module keeps each finished task,
so that an evaluation can be stopped, and sets the two models side by side.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld.data.prompt import PromptFormat
from uld.errors import ArtifactError, ULDError
from uld.evaluation.harness_result import HarnessResult, before_and_after
from uld.evaluation.harness_tasks import Tasks, first_words
from uld.evaluation.lm_eval_model import ULDLM
from uld.evaluation.paired import RESAMPLES
from uld.evaluation.resume import describe
from uld.evaluation.scoring import refuse_nan
from uld.runs.files import new_folder, write_text
from uld.runs.rows import claim
from uld.runs.values import Count, CountFromZero, Length, given, given_or_none
from uld.text.json_text import dumps

_MERGED = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Tasks,
    output: str | Path,
    *,
    before: PreTrainedModel | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
    batch_size: int = 8,
    max_length: int | None = None,
    log_samples: bool = False,
    progress: bool = True,
) -> HarnessResult:
    """Run tasks on a model, or go on with an evaluation that was stopped: a finished task is not run again.

    Args:
        model: Any causal LM.
        tokenizer: Its tokenizer.
        tasks: From `harness_tasks.load_tasks`.
        output: Folder of the results: ``after/`` and ``before/`` in lm-eval's files, ``tasks/`` for finished tasks.
        before: The model to compare with, `ULDForCausalLM.target` for an unlearned one; None for none.
        num_fewshot: Examples in a prompt; default: as the task says, else none.
        limit: First documents of each task only.
        apply_chat_template: Ask in the tokenizer's chat template, examples as turns of the conversation.
        batch_size: Rows of a batch.
        max_length: Tokens that the model reads at once; default: by its config.
        log_samples: Write every prompt and answer, too.
        progress: Show lm-eval's progress bars.

    Raises:
        ULDError: a number out of range, no chat template, no such examples, a task that lm-eval cannot run so, a model
            that gives NaN, a folder with the results of another model or other settings, or one that cannot be written.
    """
    num_fewshot = given_or_none("num_fewshot", num_fewshot, CountFromZero)
    limit = given_or_none("limit", limit, Count)
    batch_size = given("batch_size", batch_size, Count)
    max_length = given_or_none("max_length", max_length, Length)
    if apply_chat_template and not tokenizer.chat_template:
        raise ULDError("the tokenizer has no chat template: leave --apply-chat-template out")
    tasks.check(num_fewshot)
    output = Path(output)
    asked = {"num_fewshot": num_fewshot, "limit": limit, "apply_chat_template": apply_chat_template}
    template = tokenizer.chat_template if apply_chat_template else None
    about = describe(model, PromptFormat(tokenizer, "plain"), **asked, max_length=max_length, chat_template=template)
    claim(output, about | {"benchmark": "harness"})
    sides: dict[str, dict[str, Any]] = {}
    for side, one in (("before", before), ("after", model)):
        if one is None:
            continue
        lm = ULDLM(one, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length)
        units = []
        for name in tasks.loaded:
            path = output / "tasks" / f"{re.sub(r'[^A-Za-z0-9.-]', '_', name)}.{side}.json"
            digest = tasks.digest(name, num_fewshot, limit)
            unit = _finished(path, digest, log_samples)
            if unit is None:
                unit = _run(lm, name, tasks.manager, asked | {"batch_size": batch_size}, log_samples, progress)
                unit |= {"digest": digest}
                write_text(path, dumps(unit) + "\n")
            units.append(unit)
        sides[side] = _merged(units)
        _write_results(output / side, sides[side], lm, apply_chat_template)
    return before_and_after(sides["after"], sides.get("before"), tasks.aggregations())


def _finished(path: Path, digest: str, with_samples: bool) -> dict[str, Any] | None:
    """A task's results as they were stored; None where there are none, or none of the same questions."""
    try:
        unit = json.loads(path.read_text(encoding="utf-8"))
        return unit if unit["digest"] == digest and (unit["samples"] or not with_samples) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _run(
    lm: ULDLM, name: str, manager: Any, settings: dict[str, Any], log_samples: bool, progress: bool
) -> dict[str, Any]:
    """One task on one model: lm-eval's results, the values of documents, samples if wanted, and how long it took."""
    from lm_eval import simple_evaluate

    run: Any = simple_evaluate  # its decorator hides its arguments
    start = time.perf_counter()
    try:
        with _stdout_kept(progress), _quiet_git():
            found = run(
                lm,
                tasks=[name],
                task_manager=manager,
                fewshot_as_multiturn=settings["apply_chat_template"],
                bootstrap_iters=RESAMPLES,
                log_samples=True,
                **settings,
            )
    except (ValueError, AssertionError, OverflowError) as error:
        raise ULDError(f"lm-eval cannot run the task {name}: {first_words(error) or type(error).__name__}") from error
    samples = found.pop("samples")
    refuse_nan(lm.model, _likelihoods(samples))
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    for task, rows in samples.items():
        for row in rows:
            for metric in row["metrics"]:
                values = scores.setdefault(task, {}).setdefault(f"{metric},{row['filter']}", {})
                values[str(row["doc_id"])] = row[metric]
    unit = {"results": found, "scores": scores, "samples": samples if log_samples else {}}
    return _plain(unit | {"seconds": time.perf_counter() - start})


def _likelihoods(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[float]:
    """All log-likelihoods that a model gave."""
    for rows in samples.values():
        for row in rows:
            for answer in (one for answers in row["resps"] for one in answers):
                value = answer[0] if isinstance(answer, tuple) else answer
                if isinstance(value, float):
                    yield value


@contextlib.contextmanager
def _stdout_kept(progress: bool) -> Iterator[None]:
    """Keep what lm-eval prints away from the results: beside the progress bars, or nowhere."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"  # lm-eval's bootstrap forks, which a process that holds a GPU must not
    try:
        if progress:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        else:
            with (
                open(os.devnull, "w") as nowhere,
                contextlib.redirect_stdout(nowhere),
                contextlib.redirect_stderr(nowhere),
            ):
                yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


@contextlib.contextmanager
def _quiet_git() -> Iterator[None]:
    """Have lm-eval ask for a commit without git's complaint where there is no repository."""
    from lm_eval import evaluator

    theirs = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = _git_hash
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = theirs


def _git_hash() -> str | None:
    """As lm-eval asks for it, without git's complaint where there is no repository."""
    with contextlib.suppress(OSError):
        asked = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=False)
        return asked.stdout.strip() or None
    return None


def _merged(units: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several tasks' results as lm-eval would have given them for all together."""
    whole: dict[str, Any] = dict(units[-1]["results"])
    for key in _MERGED:
        parts = [unit["results"][key] for unit in units if key in unit["results"]]
        if parts:
            whole[key] = {name: value for part in parts for name, value in part.items()}
    scores = {name: values for unit in units for name, values in unit["scores"].items()}
    samples = {name: rows for unit in units for name, rows in unit["samples"].items()}
    seconds = sum(unit["seconds"] for unit in units)
    return {"results": whole, "scores": scores, "samples": samples, "seconds": seconds}


def _write_results(folder: Path, side: dict[str, Any], lm: ULDLM, apply_chat_template: bool) -> None:
    """Have lm-eval write its own files, all of them or none."""
    from lm_eval.loggers import EvaluationTracker

    with new_folder(folder, replace=True) as made:
        tracker = EvaluationTracker(output_path=str(made / "results.json"))
        general = tracker.general_config_tracker
        general.log_experiment_args(
            model_source="uld",
            model_args={"pretrained": lm.config.name_or_path or "model"},
            system_instruction=None,
            chat_template=lm.chat_template(True) if apply_chat_template else None,
            fewshot_as_multiturn=apply_chat_template,
        )
        general.start_time = time.perf_counter() - side["seconds"]
        tracker.save_results_aggregated(results=dict(side["results"]), samples=side["samples"])
        for name, rows in side["samples"].items():
            tracker.save_results_samples(task_name=name, samples=rows)
        if len(list(made.iterdir())) != 1 + len(side["samples"]):  # lm-eval only logs that it could not write
            raise ArtifactError(f"lm-eval could not write its results to {folder}: is the disk full?")


def _plain(value: Any) -> Any:
    """As it comes back from JSON, the way lm-eval writes what JSON has no word for."""
    from lm_eval.utils import handle_non_serializable

    return json.loads(json.dumps(value, default=handle_non_serializable))
