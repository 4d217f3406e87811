"""The one pipe of every benchmark: load, do the rows, compare, keep the numbers; and `uld.evaluate`.

Whose a folder is, which rows it lacks, several processes, the models beside the one under test and the file with the
result: all of it is here, and the same for every `uld.evaluation.benchmark.Benchmark`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld.data.documents import listed
from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.errors import ULDError, flag, guess
from uld.evaluation.benchmark import Benchmark, Found, Result, Subject, Task, slug
from uld.evaluation.resume import begin
from uld.model.device import best_device
from uld.model.load import load
from uld.runs.files import write_text
from uld.runs.hub import manifest_of
from uld.runs.manifest import is_run
from uld.runs.places import refuse_sources
from uld.runs.values import shown
from uld.text.json_text import dumps
from uld.training.settings import is_first_process

BENCHMARKS = {
    "attacks": "uld.evaluation.attacks:Attacks",
    "copyright": "uld.evaluation.copyright:Copyright",
    "knowundo": "uld.evaluation.knowundo:KnowUnDo",
    "muse": "uld.evaluation.muse:Muse",
    "tofu": "uld.evaluation.tofu:Tofu",
}
"""The benchmarks that come with the package, and the class of each."""


@dataclass(frozen=True)
class Candidate:
    """A model that is loaded when its turn comes.

    Attributes:
        place: Where from.
        load: Gives model and tokenizer.
        template: Prompt template; None takes the tokenizer's chat template.
    """

    place: str
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    template: str | None = None

    def subject(self, template: str | None = None) -> Subject:
        """The loaded model, asked in its own template, else in this one."""
        return Subject(*self.load(), self.template or template)


def run(benchmark: Benchmark, subject: Subject, folder: str | Path, *, progress: bool = True) -> Found:
    """Do the rows of a benchmark with one model, or go on where that was stopped.

    Under ``torchrun`` every process calls it and takes its share of the rows.

    Args:
        benchmark: Which one.
        subject: The model, and how it is asked.
        folder: For the rows; those already in it are not computed again.
        progress: Show a progress bar.

    Raises:
        ULDError: what the benchmark refuses, a model that gives NaN, or a folder with the results of other settings.
    """
    found = Found(folder)
    form = PromptFormat(subject.tokenizer, benchmark.prompt) if benchmark.prompt else subject.form
    tasks = iter(benchmark.tasks(subject, found))
    first = [task for task in [next(tasks, None)] if task is not None]  # refuses its rows before a folder is made
    begin(folder, subject.model, form, **benchmark.settings(subject))
    _fill(found, chain(first, tasks), subject, progress)
    _log(benchmark, found)
    return found


def _fill(found: Found, tasks: Iterable[Task[Any]], subject: Subject, progress: bool) -> None:
    """Have the rows of some tasks done by a model."""
    for task in tasks:
        found[task.name] = task.results(found.folder, subject.model.device.type, progress)


def compare(
    benchmark: Benchmark,
    candidate: Candidate,
    folder: str | Path,
    others: Mapping[str, Candidate] | None = None,
    *,
    progress: bool = True,
) -> Result:
    """Run a benchmark on a model and on those that it is compared with, one after the other, and keep the numbers.

    Args:
        benchmark: Which one.
        candidate: The model under test.
        folder: For rows and ``result.json``.
        others: Models beside it, by their names in `Benchmark.others`.
        progress: Show a progress bar.

    Raises:
        ULDError: see `run`; or the folder lies in documents that are read.
    """
    named = {flag(name): listed(getattr(benchmark, name) or ()) for name in benchmark.documents}
    refuse_sources(folder, {name: [one for one in some if not isinstance(one, Record)] for name, some in named.items()})
    others = {role: others[role] for role in benchmark.others if others and role in others}
    judge = next((role for role in reversed(others) if benchmark.others[role].judges), None)
    found = run(benchmark, candidate.subject(), folder, progress=progress)
    theirs = {}
    for role, other in others.items():
        asked = benchmark.beside(role)
        if asked is None and role != judge:
            continue
        how = benchmark.others[role]
        subject = other.subject(candidate.template if how.alike else None)
        if asked is not None:
            theirs[role] = run(asked, subject, how.place(found.folder, other.place), progress=progress)
        if role == judge:
            _fill(found, benchmark.judged(subject, found), subject, progress)
            _log(benchmark, found)
    result = benchmark.summarise(found, theirs)
    write_result(result, found.folder)
    return result


def _log(benchmark: Benchmark, found: Found) -> None:
    if is_first_process():
        benchmark.log(found)


def write_result(result: Result, folder: Path) -> None:
    """Keep numbers beside what they were made from; the first of several processes does."""
    if is_first_process():
        write_text(folder / "result.json", dumps(result.to_dict(), indent=2) + "\n")


def evaluate(
    benchmark: str | Benchmark,
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    output: str | Path | None = None,
    *,
    template: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Result:
    """What ``uld eval`` does, from Python: the same rows, files and numbers.

    ``uld.evaluate("tofu", "runs/x", split="forget10", data="tofu", retain_model="retain")`` is
    ``uld eval tofu --model runs/x --split forget10 --data tofu --retain-model retain``.

    Args:
        benchmark: A name of `BENCHMARKS`, or a benchmark of your own.
        model: A run, a model's folder or Hub id; or a loaded model.
        tokenizer: Of a loaded model.
        output: Folder for rows and numbers; default: where the command puts them. A loaded model needs one.
        template: Prompt template; default: the run's, else the chat template.
        progress: Show a progress bar.
        settings: Of the benchmark, named as the command's options are, and the places of the models beside it.

    Returns:
        The numbers: ``result.table()`` shows them, ``result.to_dict()`` has them all.

    Raises:
        ULDError: whatever is wrong with a setting, a file or a model.
    """
    if not isinstance(benchmark, str | Benchmark):
        raise ULDError(f"benchmark must be one of {', '.join(BENCHMARKS)} or one of your own, not {shown(benchmark)}")
    if not isinstance(model, str | Path | torch.nn.Module):
        raise ULDError(f"model must be a run, a model's folder, a Hub id or a loaded model, not {shown(model)}")
    if isinstance(model, str | Path) and tokenizer is not None:
        raise ULDError(f"tokenizer goes with a loaded model, and {model} has its own: leave it out, or uld.load both")
    kind = find(benchmark) if isinstance(benchmark, str) else type(benchmark)
    beside = {role: settings.pop(role) for role in kind.others if role in settings}
    if not isinstance(benchmark, str) and settings:
        raise ULDError(f"a benchmark of one's own has its settings in it: leave out {', '.join(settings)}")
    made: Benchmark = _made(benchmark, kind, settings) if isinstance(benchmark, str) else benchmark
    if isinstance(model, str | Path):
        candidate = _at(model, template)
    else:
        if tokenizer is None or output is None:
            raise ULDError("a loaded model needs its tokenizer and a folder: evaluate(…, model, tokenizer, output)")
        candidate = Candidate(str(model.name_or_path), lambda: (model, tokenizer), template)
    folder = output or default_folder(candidate.place, made.name, {"template": template} | made.changed)
    others = {
        role: _at(place, template if "template" in kind.others[role].shared else None, _of_run(candidate.place, "date"))
        for role, place in beside.items()
        if place is not None
    }
    return compare(made, candidate, folder, others, progress=progress)


def _made(name: str, kind: type[Any], settings: Mapping[str, Any]) -> Benchmark:
    """A benchmark with its settings.

    Raises:
        ULDError: it has no such setting, needs another, or one of them is a bad one.
    """
    own = {one.name: one for one in fields(kind) if one.init}
    if unknown := [one for one in settings if one not in own]:
        known = [*own, *kind.others]
        raise ULDError(
            f"{name} has no setting {unknown[0]!r}{guess(unknown[0], known) or ': it has ' + ', '.join(known)}"
        )
    missing = [one.name for one in own.values() if one.default is one.default_factory is MISSING]
    if lacking := [one for one in missing if one not in settings]:
        raise ULDError(f"{name} needs {' and '.join(lacking)}")
    return kind(**settings)


def _at(place: str | Path, template: str | None, date: str | None = None) -> Candidate:
    """The model in a place, asked as it was trained unless another template is given; else on a date."""

    def loaded() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        model, tokenizer = load(place, date=_of_run(place, "date") or date)
        return model.to(best_device()), tokenizer  # type: ignore[arg-type]

    return Candidate(str(place), loaded, template if template is not None else _of_run(place, "template"))


def _of_run(place: str | Path, name: str) -> str | None:
    """How a run was asked when it was trained; None for another model."""
    return getattr(manifest_of(place), name, None)


def find(name: str) -> Any:
    """The class of a benchmark.

    Raises:
        ULDError: there is none of that name.
    """
    if name not in BENCHMARKS:
        raise ULDError(f"there is no benchmark {name!r}: choose one of {', '.join(BENCHMARKS)}")
    module, kind = BENCHMARKS[name].split(":")
    return getattr(import_module(module), kind)


def default_folder(place: str | Path, benchmark: str, changed: Mapping[str, Any]) -> Path:
    """Where results go: inside a run; beside the user for another model.

    Args:
        place: Of the model.
        benchmark: What is measured.
        changed: What becomes part of the name where it is not None.
    """
    parts = [f"-{name}-{value}" for name, value in changed.items() if value is not None]
    name = slug(benchmark + "".join(parts))
    return Path(place) / "eval" / name if is_run(place) else Path("eval") / slug(str(place)) / name
