"""What a benchmark is: its rows, its work on them, and its numbers. `uld.evaluation.pipe` does the rest."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar, get_args, get_origin

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld.data.prompt import Encoded, PromptFormat
from uld.evaluation.result import Result
from uld.evaluation.scoring import Scorer
from uld.evaluation.token_scores import TokenScores, token_scores
from uld.model.context import context_length
from uld.model.generate import Written, generate_ids, last_ids, length_batches
from uld.runs.rows import RowFile
from uld.runs.values import given

_PROMPT_TOKENS = 64 * 64  # prompt tokens that are generated from at a time

R = TypeVar("R")
Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A loaded model, how it is asked, and what its rows are made and scored with.

    Attributes:
        model: Any causal LM.
        tokenizer: Its tokenizer.
        template: Prompt template; None takes the tokenizer's chat template.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: str | None = None

    @cached_property
    def form(self) -> PromptFormat:
        """Makes prompts and tokens."""
        return PromptFormat(self.tokenizer, self.template)

    @cached_property
    def scorer(self) -> Scorer:
        """Made when the first row needs it."""
        return Scorer.of(self.model, self.tokenizer)

    @cached_property
    def context(self) -> int:
        """Tokens that the model has positions for."""
        return context_length(self.model)

    def token_scores(self, rows: Sequence[Encoded]) -> list[TokenScores]:
        """What the model thinks of every learnt token of some rows."""
        return token_scores(self.scorer, rows)

    def answers(self, questions: Sequence[str], max_new_tokens: int) -> list[str]:
        """Greedy answers to some questions."""
        prompts = [self.form.prompt_ids(question) for question in questions]
        return [one.text for one in self.written(prompts, [max_new_tokens] * len(prompts))]

    def written(self, prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[Written]:
        """What the model writes behind some prompts, greedily.

        Args:
            prompts: Token ids.
            lengths: Most tokens of each answer.
        """
        ends = last_ids(self.model, self.tokenizer)
        found = generate_ids(self.model, self.tokenizer, prompts, max_new_tokens=max(lengths)).tolist()
        return [Written.of(ids[:most], self.tokenizer, ends) for ids, most in zip(found, lengths, strict=True)]


@dataclass(frozen=True)
class Task(Generic[R]):
    """Rows of one kind, and what is done to them.

    Attributes:
        name: What its results are found under.
        rows: What there is to do, in order.
        work: From some rows to a result each, a dictionary of plain JSON types.
        batches: Numbers of the rows that are done at a time (`by_length`, `in_order`); the same in every process.
        finished: Whether the stored result of a row holds all that is wanted.
        file: Name of its file; default: its own.
    """

    name: str
    rows: Sequence[R]
    work: Callable[[list[R]], list[Row]]
    batches: Sequence[list[int]]
    finished: Callable[[R, Row], bool] = lambda row, result: True
    file: str | None = None

    def results(self, folder: Path, device: str, progress: bool = True) -> list[Row]:
        """The result of every row, in order: those that the folder lacks are computed.

        A row's last digits depend on the rows that it is padded with, so a batch with a missing row is computed whole:
        the numbers are the same however often it was stopped. Under ``torchrun`` every process calls this and takes its
        share.

        Args:
            folder: Where the rows are kept.
            device: Kind of the model's device.
            progress: Show a progress bar.

        Raises:
            ArtifactError: the folder cannot be written, or another evaluation is writing to it.
        """
        processes, name = PartialState(cpu=device == "cpu"), self.file or self.name
        with RowFile.of(folder, name, processes.process_index) as file:
            share = self.batches[processes.process_index :: processes.num_processes]
            known = RowFile.read(folder, name) | file.rows  # the first process has what was merged before
            self._fill(file, known, share, name if progress and processes.is_main_process else None)
            processes.wait_for_everyone()
            if processes.is_main_process:
                file.merge([i for batch in self.batches for i in batch])
        processes.wait_for_everyone()
        done = RowFile.read(folder, name)
        return [done[i] for i in range(len(self.rows))]

    def _fill(self, file: RowFile, known: Mapping[int, Row], batches: Sequence[list[int]], shown: str | None) -> None:
        """Compute the rows of some batches that are not known; ``shown`` names the progress bar."""
        from uld.text.progress import bar

        numbers = [i for batch in batches for i in batch]
        todo = {i for i in numbers if i not in known or not self.finished(self.rows[i], known[i])}
        if not todo:
            return
        with bar(len(numbers), shown, "row", done=len(numbers) - len(todo)) as line:
            for batch in batches:
                if missing := todo.intersection(batch):
                    for i, result in zip(batch, self.work([self.rows[i] for i in batch]), strict=True):
                        if i in missing:
                            file.add(i, result)
                    line.update(len(missing))


def by_length(lengths: Sequence[int], tokens: int = _PROMPT_TOKENS) -> list[list[int]]:
    """Row numbers in batches of about as many tokens, rows of similar length together.

    Args:
        lengths: Tokens of each row, or about as many.
        tokens: Of a batch.
    """
    return list(length_batches(lengths, tokens))


def in_order(rows: int, size: int) -> list[list[int]]:
    """Row numbers in batches of one size, in order."""
    return [list(range(start, min(start + size, rows))) for start in range(0, rows, size)]


def digest(data: Any) -> str:
    """Digest of what a benchmark asks, plain JSON types, for its `Benchmark.settings`."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


class Found(dict[str, list[Row]]):
    """What came of a model's rows: results by task, and the folder that they are in."""

    def __init__(self, folder: str | Path) -> None:
        """Begin with nothing."""
        super().__init__()
        self.folder = Path(folder)


@dataclass(frozen=True)
class Other:
    """Another model that stands beside the one under test.

    Attributes:
        folder: Beginning of the name of the folder with its rows.
        alike: Whether it is asked in the template of the model under test where it has none of its own.
        shared: Options of the command that it takes over from the model under test.
        judges: Whether it says something of the other's results (`Benchmark.judged`); of several that would, the last.
    """

    folder: str = "other"
    alike: bool = True
    shared: tuple[str, ...] = ()
    judges: bool = False

    def place(self, folder: Path, model: str | Path) -> Path:
        """Where the rows of such a model go."""
        return folder / f"{self.folder}-{slug(str(model))}"


def slug(text: str) -> str:
    """A text as a file name."""
    return re.sub(r"[^\w.-]+", "_", text).strip("_.")[-150:] or "model"


class Benchmark(ABC):
    """What a benchmark is: a dataclass whose fields are its settings, and which refuses bad ones when it is made.

    A field whose type is a kind of `uld.runs.values` (``max_new_tokens: Count``) takes nothing else.
    """

    prompt: ClassVar[str | None] = None
    """The template that every model is asked in; None takes each one's own."""
    others: ClassVar[Mapping[str, Other]] = {}
    """Models that it compares with, by the name of the option (``retain_model``)."""
    in_name: ClassVar[tuple[str, ...]] = ()
    """Settings that become part of the folder's name where they are not the usual ones."""
    documents: ClassVar[tuple[str, ...]] = ()
    """Settings that name files and folders of documents, in which no results may lie: they would be read as well."""
    name: str
    """Name of the folder that results go to."""

    def __post_init__(self) -> None:
        """Bring settings to their kinds; a benchmark that has more to do when it is made does this first.

        Raises:
            ULDError: one cannot be; names it.
        """
        for one in fields(self):  # type: ignore[arg-type]
            kinds = [kind for kind in (one.type, *get_args(one.type)) if get_origin(kind) is Annotated]
            if kinds and not ((value := getattr(self, one.name)) is None and type(None) in get_args(one.type)):
                object.__setattr__(self, one.name, given(one.name, value, kinds[0]))

    @property
    def changed(self) -> dict[str, Any]:
        """Those of `in_name` that are not the usual ones."""
        return {name: one for name in self.in_name if (one := getattr(self, name)) != getattr(type(self), name)}

    @abstractmethod
    def settings(self, subject: Subject) -> dict[str, Any]:
        """All that decides the results beside the model and its prompt, as plain JSON types."""

    @abstractmethod
    def tasks(self, subject: Subject, found: Found) -> Iterable[Task[Any]]:
        """The tasks, one after the other; ``found`` has the results of those before."""

    @abstractmethod
    def summarise(self, found: Found, others: Mapping[str, Found] | None = None) -> Result:
        """From results to numbers.

        Args:
            found: Of the model under test.
            others: Of those beside it, by their names in `others`.
        """

    def beside(self, role: str) -> "Benchmark | None":
        """What another model has to do; None for nothing."""
        return self

    def judged(self, judge: Subject, found: Found) -> Iterable[Task[Any]]:
        """What another model has to say of the results of the model under test."""
        return ()

    def log(self, found: Found) -> None:  # noqa: B027 - most have nothing more to write
        """Write what is to be kept beside the rows; the first of several processes does."""
