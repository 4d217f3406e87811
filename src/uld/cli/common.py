"""What all commands share: how they print, and the options that choose and change a model."""

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from uld.data.clock import DATE, check_date
from uld.errors import ULDError, flag
from uld.model.device import DTYPES
from uld.runs.values import PAIRED, CountFromZero, Rule, bounds
from uld.training.settings import is_first_process

_RULES = f"{', '.join(one for one in get_args(Rule) if one not in PAIRED)}; of a pair: {', '.join(PAIRED)}"
_LONGEST_ID = 192  # an owner and a name of 96 letters at most


def _option(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="Model")


COMBINATION = ("rule", "weight", "margin", "floor", "filter", "min_tokens", "outside", "rank_tokens")
"""The options that change how logits are combined: the fields of `uld.model.combine.Combination`."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The options that choose and change a model: a flag a field, in the order of ``--help`` (see `with_model`)."""

    model: Annotated[str, _option("Run folder, model folder or Hub id.", "--model", "-m")] = ""
    target: Annotated[str | None, _option("Where the run's target is now, if not where it was.")] = None
    rule: Annotated[str | None, _option(f"Override the run's rule: {_RULES}.")] = None
    weight: Annotated[float | None, _option("Override the run's α.")] = None
    margin: Annotated[float | None, _option("Override the run's margin, nats (suppress).")] = None
    floor: Annotated[float | None, _option("Override the run's floor φ, 0–1 (suppress).")] = None
    filter: Annotated[float | None, _option("Override the run's τ.")] = None
    min_tokens: Annotated[float | None, _option("Override the filter's least share.")] = None
    outside: Annotated[
        str | None,
        _option(
            "Override: keep or mask. A masked token has probability 0, so an answer that holds one has an infinite "
            "loss (1e999 in logs)."
        ),
    ] = None
    rank_tokens: Annotated[
        int | None,
        typer.Option(help="Override the run's k (rank).", **bounds(CountFromZero), rich_help_panel="Model"),
    ] = None
    dtype: Annotated[str, _option("auto (as stored), bf16, fp16 or fp32.")] = "auto"
    device: Annotated[str | None, _option("cpu, cuda, mps …; default: the best there is.")] = None
    tokenizer: Annotated[str | None, _option("Folder or Hub id of the tokenizer; default: the model's.")] = None
    template: Annotated[
        str | None,
        _option("Prompt template, by name or inline; default: the run's, else the chat template."),
    ] = None
    date: Annotated[
        str | None,
        _option(
            "Day (2024-12-31) that a chat template with a clock writes into the prompt; default: the run's, else "
            f"{DATE} or the day that the template is fixed to."
        ),
    ] = None
    trust_remote_code: Annotated[bool, _option("Run code that comes with the checkpoint.", "--trust-remote-code")] = (
        False
    )

    def check(self, flag: str = "--model") -> str:
        """Refuse what can be told to be wrong before anything is loaded.

        Args:
            flag: What the user typed the model behind.

        Returns:
            The device: the one that was asked for, or the best there is.

        Raises:
            ULDError: an unknown dtype or device, a date that is none, or a folder that does not exist.
        """
        if self.dtype not in DTYPES:
            raise ULDError(f"--dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        check_date(self.date)
        if not self.model:
            raise ULDError(f"name a run or a model with {flag}")
        _refuse_mistyped(self.model, flag, "run or model")
        _refuse_mistyped(self.target, "--target", "target")
        _refuse_mistyped(self.tokenizer, "--tokenizer", "tokenizer")
        return _usable(self.device)

    def beside(self, model: str, flag: str, *shared: str) -> "ModelOptions":
        """Options of another model that stands beside this one, checked; asked on the same date.

        Args:
            model: The other model.
            flag: What the user typed it behind.
            shared: Fields that it takes over beside dtype, device and trust in remote code.

        Raises:
            ULDError: see `check`.
        """
        names = ("dtype", "device", "trust_remote_code", *shared)
        date = self._asked(model, "date") or self._asked(self.model, "date")
        other = ModelOptions(model=model, date=date, **{name: getattr(self, name) for name in names})
        other.check(flag)
        return other

    def load(self, runs: Sequence[str] = (), *, revision: str | None = None) -> tuple[Any, Any]:
        """Load the run or the model, on the best device.

        Args:
            runs: Several runs of one target, to be loaded together in place of ``model``.
            revision: Of a model on the Hub.

        Returns:
            Model in evaluation mode and tokenizer.

        Raises:
            ULDError: see `check`, and what `uld.model.load.load` raises.
        """
        device = self.check()
        from uld.model.load import load

        hide_loading()
        options = ("target", "tokenizer", "date", *COMBINATION)
        given = {name: value for name in options if (value := getattr(self, name)) is not None}
        if self.trust_remote_code:
            given["trust_remote_code"] = True
        if revision is not None:
            given["revision"] = revision
        loaded, tokenizer = load(runs or self.model, dtype=DTYPES[self.dtype], **given)
        try:
            return loaded.to(device), tokenizer  # type: ignore[arg-type]
        except RuntimeError as error:
            raise ULDError(f"cannot use --device {device}: {str(error).splitlines()[0]}") from error

    def candidate(self) -> Any:
        """The model as a benchmark takes it: loaded when its turn comes, and how it is asked."""
        from uld.evaluation.pipe import Candidate

        return Candidate(self.model, self.load, self.prompt_template())

    @property
    def changed(self) -> dict[str, Any]:
        """What changes a model's numbers, by name: part of the name of an evaluation's folder where it is not None."""
        named = {name: getattr(self, name) for name in COMBINATION}
        named |= {"dtype": None if self.dtype == "auto" else self.dtype}
        return named | {"template": self.template, "date": self.date}

    def prompt_template(self) -> str | None:
        """The template to ask the model with: the one that was given, or that the run was trained with, if any.

        Raises:
            ULDError: the run's ``uld.json`` is damaged.
        """
        return self._asked(self.model, "template")

    def _asked(self, model: str, name: str) -> str | None:
        """How to ask a model: as it was said, or as the run was trained, if it is one."""
        from uld.runs.hub import manifest_of

        given = getattr(self, name)
        return given if given is not None else getattr(manifest_of(model), name, None)


def hide_loading() -> None:
    """Leave out transformers' bars: loading is no step that people wait for."""
    import transformers

    transformers.utils.logging.disable_progress_bar()


def refuse_without_assistant(run: str) -> None:
    """Refuse what takes nothing from a target's answers, before anything is loaded.

    Raises:
        ULDError: no finished run, or one that trained the target itself.
    """
    from uld.runs.hub import manifest_of

    if (manifest := manifest_of(run)) is None:
        raise ULDError(
            f"{run} is not a finished run, and only a run takes anything from answers: name the folder of one"
        )
    if manifest.trains == "target":
        raise ULDError(
            f"{run} holds a target that {manifest.method} has trained, with no assistant that takes anything from its "
            "answers: name a run that has one"
        )


def with_model(*skipped: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options that choose a model, and hand them over as its keyword argument ``options``.

    A parameter of the command's own takes the place of the shared option of the same name.

    Args:
        skipped: Fields of `ModelOptions` that the command has no use for.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(command).parameters
        shared = inspect.signature(ModelOptions).parameters
        added = [shared[name] for name in shared if name not in own and name not in skipped]
        return spliced(command, "options", added, lambda given: ModelOptions(**given))

    return decorate


def spliced(
    command: Callable[..., Any], slot: str, added: Sequence[inspect.Parameter], made: Callable[[dict[str, Any]], Any]
) -> Callable[..., Any]:
    """A command with options in place of its parameter ``slot``, whose value is made of them, by name."""
    own = inspect.signature(command).parameters
    parameters = [part for one in own.values() for part in (added if one.name == slot else [one])]

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        return command(**{slot: made({one.name: given.pop(one.name) for one in added})}, **given)

    signature = inspect.Signature([one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters])
    run.__signature__ = signature  # type: ignore[attr-defined]
    return run


def say(text: str = "", *, err: bool = False) -> None:
    """Print a line: what was asked for on standard output, comments on standard error (see `uld.text.terminal`)."""
    print(text, file=sys.stderr if err else sys.stdout, flush=True)


def evaluation_folder(
    options: ModelOptions, benchmark: str, output: str | None, changed: Mapping[str, Any] | None = None
) -> Path:
    """Where a log goes: inside a run; beside the user for an ordinary model. What was changed is part of the name.

    Args:
        options: The model, and what of it was changed.
        benchmark: What is measured.
        output: The folder that the user wants instead.
        changed: Other settings by name; None stands for the default.

    Raises:
        ULDError: there is a file in its place.
    """
    from uld.evaluation.pipe import default_folder

    named = options.changed | dict(changed or {})
    folder = Path(output) if output else default_folder(options.model, benchmark, named)
    if taken := [path for path in (folder, *folder.parents) if path.is_file()]:
        raise ULDError(f"{taken[0]} is a file: name another folder with --output")
    return folder


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Say how to continue when an evaluation is interrupted.

    Raises:
        ULDError: it was.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not folder.exists():  # nothing is done yet
            raise
        raise ULDError(f"interrupted: {folder} holds what is done, and the same command continues from there") from None


Output = Annotated[str | None, typer.Option("--output", help="Folder for the log; default: in the run, or eval/.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


def show_result(result: Any, folder: Path | None, as_json: bool) -> None:
    """Print a result, one with ``to_dict`` and ``table``, and where its logs are; the first process does."""
    if not is_first_process():
        return
    from uld.text.json_text import dumps

    say(dumps(result.to_dict(), indent=2) if as_json else result.table())
    if folder is not None and not as_json:
        say(f"Logs and results: {folder}")


def numbers(text: str | None, flag: str) -> list[float]:
    """Numbers separated by commas; none where the flag was not given.

    Raises:
        ULDError: something else stands there.
    """
    if text is None:
        return []
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ULDError(f"{flag} must be a number, or several separated by commas, not {text!r}") from error


def _usable(device: str | None) -> str:
    """The device that was asked for, or the best there is."""
    import torch

    from uld.model.device import best_device

    if device is None:
        return best_device()
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ULDError(f"--device must be cpu, cuda, cuda:1, mps or the like, not {device!r}") from error
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise ULDError(f"cannot use --device {device}: {str(error).splitlines()[0]}") from error
    return device


def refuse_absent(documents: Iterable[str | None], **models: str | None) -> None:
    """Tell of places that are not there at once, before what reads them is imported.

    Args:
        documents: Files, folders and Hub data sets.
        models: Folders and Hub ids, each by the setting that names it.

    Raises:
        ULDError: see `uld.data.documents.read_sources`, or says what the flag takes.
    """
    from uld.data.documents import refuse_missing

    for name, place in models.items():
        _refuse_mistyped(place or None, flag(name), "target" if name == "target" else "model")
    refuse_missing(documents)


def _refuse_mistyped(place: str | None, flag: str, what: str) -> None:
    """Tell at once that a folder does not exist, rather than ask the Hub for a model of that name."""
    if place is None:
        return
    from os.path import exists, isdir, isfile  # unlike Path's, they say no to a name that is too long

    is_hub_id = len(place) <= _LONGEST_ID and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place) and not place.startswith(".")
    beside_folders = Path(place).parent != Path() and isdir(Path(place).parent)
    if not place or (not exists(place) and (not is_hub_id or beside_folders)):
        raise ULDError(f"there is no {what} in {place or repr(place)}: {flag} takes a folder or a Hub id")
    if isfile(place):
        raise ULDError(f"{place} is a file: {flag} takes a folder or a Hub id")
