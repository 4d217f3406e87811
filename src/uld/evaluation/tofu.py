"""TOFU: run a model over the four task sets and write the per-sample log that all aggregates follow from.

Every row is written as soon as it is done, so that a stopped evaluation goes on where it was. Source: Maini et al.
2024, arXiv 2401.06121; definitions in `uld.evaluation.metrics`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld.data.documents import Source, read_records
from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.data.tofu import check_split
from uld.errors import ULDError
from uld.evaluation.benchmark import Benchmark, Found, Other, Row, Subject, Task, by_length, digest
from uld.evaluation.judged import judged
from uld.evaluation.pipe import run
from uld.evaluation.reading import dictionary
from uld.evaluation.scoring import Scorer
from uld.evaluation.task_log import MIA, TaskLog, TofuLog
from uld.evaluation.tofu_answers import Classifier, classified, sampled
from uld.evaluation.tofu_log import FILE_NAME, read_log, write_log
from uld.evaluation.tofu_result import TofuResult, aggregate
from uld.evaluation.tofu_rows import (
    TASKS,
    answers_of,
    attacked,
    encoded,
    evaluate_rows,
    is_finished,
    task_log,
    task_rows,
    texts,
    unseen_rows,
)
from uld.model.combine import Combination
from uld.model.unlearned import ULDForCausalLM
from uld.runs.rows import CLAIM
from uld.runs.values import Count, Seed, given

_BEYOND = {"samples": ("samples",), "judged": ("judged_loss", "judged_tokens"), "clean": ("clean",)}  # of a task


@dataclass
class Tofu(Benchmark):
    """The task sets of a split, and what goes beyond them.

    Attributes:
        split: Forget split.
        data: Folder of TOFU, or None for the Hub.
        generate: Whether to generate answers (without them there is no ROUGE).
        max_new_tokens: Most tokens of a generated answer.
        limit: First rows of each task set only (TOFU's own logs hold 300).
        non_members: Questions and answers of the same kind that no model was trained on, for membership attacks: files,
            or records; `unseen_rows` chooses some.
        samples: Answers to sample for each forget question, at temperature 1; None samples none.
        seed: Of the samples.
        fluency_model: Text classifier that says which answers are no gibberish.
        fluency_label: What it calls an answer that is fine.
        retain_log: Log of a retain-only model; one that is run beside this model takes its place.
        target_log: Log of the target before unlearning.
        sets: Task sets to run, of `TASKS`.
    """

    others: ClassVar[Mapping[str, Other]] = {
        "retain_model": Other("retain", shared=("template",), judges=True),
        "base_model": Other(alike=False, judges=True),
    }
    in_name = ("max_new_tokens",)
    documents = ("non_members",)

    split: str = "forget10"
    data: str | Path | None = None
    generate: bool = True
    max_new_tokens: Count = 200
    limit: Count | None = None
    non_members: Source | Sequence[Source] | None = None
    samples: Count | None = None
    seed: Seed = 0
    fluency_model: str | None = None
    fluency_label: str = "clean"
    retain_log: str | Path | TofuLog | None = None
    target_log: str | Path | TofuLog | None = None
    sets: Sequence[str] = TASKS

    def __post_init__(self) -> None:
        """Read the logs, the non-members and the classifier.

        Raises:
            ULDError: one cannot be read, there is no such split or task set, or a number is out of range.
        """
        super().__post_init__()
        self.sets = given("sets", self.sets, tuple)
        if unknown := [one for one in self.sets if one not in TASKS]:
            raise ULDError(f"sets must be some of {', '.join(TASKS)}, not {unknown[0]!r}")
        check_split(self.split)
        self.name = f"tofu-{self.split}"
        self.retained, self.before = (log_on(log, self.split) for log in (self.retain_log, self.target_log))
        self.unseen = None
        if self.non_members:
            self.unseen = unseen_rows(read_records(self.non_members), self.split, self.data)
        self.classifier = None if self.fluency_model is None else Classifier(self.fluency_model, self.fluency_label)

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        """Rows of each task set."""
        return {task: task_rows(task, self.split, self.data) for task in self.sets}

    @cached_property
    def words(self) -> frozenset[str]:
        """The words of the data."""
        return dictionary(texts(self.rows))

    def settings(self, subject: Subject) -> dict[str, Any]:
        """The split, its rows, and how long an answer may be."""
        return {"split": self.split, "max_new_tokens": self.max_new_tokens, "data": digest(self.rows)}

    @cached_property
    def retain_only(self) -> "Tofu":
        """What a retain-only model is asked: what the model under test should have forgotten."""
        own = Tofu(self.split, self.data, False, self.max_new_tokens, self.limit, sets=("forget",))
        own.unseen = self.unseen
        return own

    def beside(self, role: str) -> "Tofu | None":
        """A base model only judges."""
        return self.retain_only if role == "retain_model" else None

    def tasks(self, subject: Subject, found: Found) -> Iterator[Task[Any]]:
        """The task sets, then what was asked for beyond them."""
        for task in self.sets:
            rows = self.rows[task][: self.limit]
            yield Task(
                task,
                rows,
                lambda some, task=task: evaluate_rows(
                    subject, some, task, self.max_new_tokens if self.generate else None
                ),
                _batches(rows),
                finished=lambda row, result, task=task: is_finished(result, row, task, self.generate),
            )
        if self.samples and "forget" in self.sets:
            yield sampled(subject, self._questions(), self.samples, self.seed, self.max_new_tokens)
        if self.unseen is not None:
            yield attacked(subject, self.unseen)
        if self.classifier is not None and (answers := self._answers(found)):
            self.classifier.model.to(subject.model.device)
            yield classified(self.classifier, answers)

    def judged(self, judge: Subject, found: Found) -> Iterable[Task[Any]]:
        """How likely another model finds the answers to forget questions."""
        answers = self._answers(found)
        asked = [Record.qa(question, "", f"answer {i}") for i, question in enumerate(self._questions())]
        return [judged(judge, asked, answers, found["forget"])] if answers else []

    def _answers(self, found: Found) -> list[str]:
        """The answers to them; none where nothing is generated."""
        return [row["generated"][1] for row in found.get("forget", [])] if self.generate else []

    def _questions(self) -> list[str]:
        """The forget questions that are asked."""
        return [row["question"] for row in self.rows["forget"][: self.limit]]

    def log(self, found: Found) -> None:
        """Write the log, in the format of TOFU's authors."""
        write_log(self.log_of(found), found.folder / FILE_NAME)

    def log_of(self, found: Found) -> TofuLog:
        """Results as a log.

        An answer that the model cannot give (probability 0, as ``outside=mask`` makes some) has an infinite loss, in
        files the JSON number ``1e999``.
        """
        logs = {}
        for task in self.sets:
            words = self.words if self.generate and task == "forget" else None
            logs[task] = task_log(self.rows[task][: self.limit], found[task], self.generate, words)
        beyond: dict[str, Any] = {
            column: [row[column] for row in found[task]]
            for task, columns in _BEYOND.items()
            for column in columns
            if task in found
        }
        if beyond:
            logs["forget"] = replace(logs["forget"], **beyond)
        others = {name: [row[name] for row in found["non_members"]] for name in MIA} if self.unseen else None
        return TofuLog(logs, str(found.folder), others)

    def summarise(self, found: Found, others: Mapping[str, Found] | None = None) -> TofuResult:
        """From results and logs to the numbers of a TOFU table."""
        theirs = (others or {}).get("retain_model")
        retained = self.retained if theirs is None else self.retain_only.log_of(theirs)
        return aggregate(self.log_of(found), retained, self.before)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    output: str | Path,
    *,
    template: str | None = None,
    tasks: Sequence[str] = TASKS,
    progress: bool = True,
    **settings: Any,
) -> TofuLog:
    """The log of a loaded model: `uld.evaluation.pipe.run` on `Tofu`.

    Args:
        model: Any causal LM.
        tokenizer: Its tokenizer.
        split: Forget split.
        output: Folder for the log; rows already in it are not computed again.
        template: Prompt template; None takes the tokenizer's chat template.
        tasks: Task sets to run.
        progress: Show a progress bar.
        settings: Other fields of `Tofu`.

    Raises:
        ULDError: missing data, a model that gives NaN, or a folder with the results of other settings.
    """
    benchmark = Tofu(split, sets=tasks, **settings)
    return benchmark.log_of(run(benchmark, Subject(model, tokenizer, template), output, progress=progress))


def log_on(log: str | Path | TofuLog | None, split: str | None) -> TofuLog | None:
    """A log to compare with, read if it is named.

    Args:
        log: A file or folder, or a log; None for none.
        split: What it has to be of, if that is known.

    Raises:
        ULDError: it cannot be read, or was made on another split.
    """
    if log is None or isinstance(log, TofuLog):
        return log
    found, theirs = read_log(log), split_of(log)
    if None not in (split, theirs) and split != theirs:
        raise ULDError(f"{log} was made on {theirs}, not on {split}: evaluate both models on the same split")
    return found


def split_of(log: str | Path) -> str | None:
    """The split that a log of ours was made on; other logs do not say."""
    path = Path(log)
    try:
        return json.loads(((path if path.is_dir() else path.parent) / CLAIM).read_text(encoding="utf-8"))["split"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _batches(rows: list[dict[str, Any]]) -> list[list[int]]:
    """Row numbers in batches, the same for every process and for an evaluation that goes on after a stop.

    A row's last digits depend on the rows that it is padded with, so this gives the same numbers however it is run.
    """
    lengths = [len(row["question"]) // 4 + len(row["answer"]) // 8 + 1 for row in rows]  # about tokens; only to sort
    return by_length(lengths)


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
    progress: bool = True,
) -> list[TofuLog]:
    """Logs without generation for many settings of the combination, from one forward over the data.

    With ``progress`` a line says how far it is.

    Returns:
        One log a combination.
    """
    form = PromptFormat(tokenizer, template)
    scorer = Scorer.of(model, tokenizer, combinations)
    logs: list[dict[str, TaskLog]] = [{} for _ in combinations]
    for task in tasks:
        rows = task_rows(task, split, data)[:limit]
        for log, scores in zip(logs, scorer.score(encoded(form, rows), task if progress else None), strict=True):
            each = iter(scores)
            results = [{"scores": [[(one := next(each)).loss, one.tokens] for _ in answers_of(row)]} for row in rows]
            log[task] = task_log(rows, results, generate=False)
    return [TofuLog(log, source="grid") for log in logs]
