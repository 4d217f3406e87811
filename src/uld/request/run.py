"""`forget(...)`: goes through the steps of a request, from where it was stopped."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from uld.checking.questions import refuse_asked
from uld.checking.result import CheckResult
from uld.checking.run import check
from uld.checking.thresholds import read_thresholds
from uld.data.documents import listed, read_sources
from uld.data.record import Record, refuse_equal
from uld.errors import ArtifactError, ConfigError, DataError
from uld.model.assistant import build_assistant, decoder_layers, refuse_lora
from uld.model.causal_lm import load_config, refuse_revision, skeleton_of
from uld.request import material
from uld.request.plan import plan
from uld.request.settings import Request, Source
from uld.request.steps import CHECK, CHECKING, TUNING, Step, loading, model_words, steps
from uld.request.training import form_of, settings_of
from uld.runs.files import is_special, present
from uld.runs.hub import run_folder
from uld.runs.manifest import RUN_SETTINGS, is_run
from uld.runs.places import refuse_sources
from uld.runs.rows import CLAIM, claim
from uld.runs.values import given_or_none, shown
from uld.text.progress import duration
from uld.training.config import train_config
from uld.training.run import Interrupted, Unlearning
from uld.training.trainer import trainer_arguments, training_dtype

WHAT = "request"
_PIPE = "is no ordinary file, and uld forget reads it more than once: save it as a file and name that"


@dataclass(frozen=True)
class Forgotten:
    """What a request came to.

    Attributes:
        run: The run folder.
        check: What the check found, and whether the run passes.
        report: The page to read.
    """

    run: Path
    check: CheckResult
    report: Path

    @property
    def passed(self) -> bool:
        """Whether every threshold is met."""
        return self.check.passed


def forget(
    target: str | Path,
    documents: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    retain: str | Path | Sequence[str | Path] = (),
    local: str | None = None,
    model: str | None = None,
    api_base: str | None = None,
    api_key_env: str = "OPENAI_API_KEY",
    questions: int = 4,
    draw: int | None = None,
    retain_model: str | Path | None = None,
    thresholds: str | Path | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] | None = None,
    progress: bool = True,
) -> Forgotten:
    """Make a model forget documents, and check that it did: everything from questions to a report page.

    A request that was stopped continues with the same call.

    Args:
        target: The model: folder or Hub id.
        documents: What it must forget: files, folders or Hub data sets (`uld.data.documents`).
        output: The run folder to make; ``OUTPUT-request`` beside it holds what is made on the way, the documents'
            words among it.
        retain: What must stay, in the same forms.
        local: Model on this machine that asks about texts and finds other words; by default rules do (English).
        model: An endpoint's name for a model that does.
        api_base: The endpoint.
        api_key_env: Environment variable with its key.
        questions: Questions about each chunk of a text.
        draw: Retain rows to draw from the target beside those that are given; default: as many as make them as many as
            there are to forget, and always 128.
        retain_model: A model that never saw the documents, to stand beside the result.
        thresholds: File of thresholds; default: those of ``uld check``.
        seed: Of everything random.
        settings: Settings of `uld.TrainConfig` other than those for pretrained models.
        tell: Hears a line before and after every step.
        progress: Show bars of trainings and evaluations.

    Raises:
        ULDError: bad input, with nothing written; or what stopped a step, with what was done kept.
    """
    request = Request(
        target="" if target is None else str(target),
        documents=_places("documents", documents),
        output="" if output is None else str(output),
        retain=_places("retain", retain),
        source=Source(given_or_none("local", local, str), model, api_base, api_key_env),
        questions=questions,
        draw=draw,
        retain_model=None if retain_model is None else str(retain_model),
        thresholds=None if thresholds is None else str(thresholds),
        seed=seed,
        settings=settings or {},
    )
    return carry_out(request, tell=tell or (lambda _: None), progress=progress)


def _places(name: str, given: str | Path | Sequence[str | Path] | None) -> tuple[str, ...]:
    found = listed(() if given is None else given)
    if odd := [one for one in found if isinstance(one, Record)]:
        raise ConfigError(
            f"{name} must be files, folders or Hub data sets, not {shown(odd[0])}: write records to a file"
        )
    return tuple(map(str, found))


def carry_out(request: Request, *, tell: Callable[[str], None], progress: bool = True) -> Forgotten:
    """`forget`, of settings that were put together."""
    refuse_unusable(request)
    expected = plan(request)
    tell(str(expected))
    given = digests(request)
    claim(request.work, request.about() | {"files": given}, WHAT)
    done: set[str] = set()
    for step in steps(request, progress=progress):
        if not step.done() and digests(request) != given:
            raise DataError(
                f"{', '.join((*request.documents, *request.retain))}: changed while the request was carried out, and "
                "what is made so far is of what stood there before: put it back and give the same command again, or "
                "begin anew in another folder (--output)"
            )
        _take(step, f"{len(done) + 1}. {step.name}", expected.left(done), tell)
        done.add(step.name)
    if TUNING not in done:
        tell(f"{TUNING} is left out: {material.untunable(request.work)}; the run keeps what an untuned one gets")
    left = duration(expected.left({*done, TUNING}))
    tell(f"{len(done) + 1}. {CHECKING} ({left} left): {shlex.join(('uld', *check_words(request)))}")
    folder = request.work / CHECK
    found = check(
        request.output,
        **material.asked(request.work),  # type: ignore[arg-type]
        retain_model=request.retain_model,
        thresholds=request.thresholds,
        output=folder,
        template=request.settings.get("template"),
        progress=progress,
        **loading(request),
    )
    return Forgotten(Path(request.output), found, folder / "report.html")


def refuse_unusable(request: Request) -> None:
    """Look at all that a request names before anything is written: a wrong name is not to be found out at the end.

    Raises:
        ULDError: something cannot be read or does not go together, or a folder holds something else.
    """
    named = {"documents": request.documents, "retain": request.retain, "thresholds": (request.thresholds,)}
    for name, places in named.items():
        for place in places:
            if place is not None:
                _refuse_pipe(Path(place), name)
    for place in (request.output, request.work):
        refuse_sources(place, {f"--{name}": places for name, places in named.items()})
    records, kept = (read_sources(places)[0] for places in (request.documents, request.retain))
    if kept:
        refuse_equal(records, kept)
        refuse_asked(records, kept, "retain", "forget")
    trust = {"trust_remote_code": bool(request.settings.get("trust_remote_code"))}
    revision = {"revision": request.settings["revision"]} if "revision" in request.settings else {}
    refuse_revision(request.target, request.settings.get("revision"))
    _refuse_sizes(request, load_config(request.target, **trust, **revision))
    _refuse_settings(request, [*records, *kept])
    for place in (request.source.local, request.retain_model):
        if place is not None and run_folder(place) is None:
            load_config(place, **trust)
    if request.source.model is not None:
        request.source.endpoint().key()
    read_thresholds(request.thresholds, retain_only=request.retain_model is not None, held_out=True)
    output = Path(request.output)
    names = present(output)
    if names and not (request.work / CLAIM).is_file():
        what = "holds a run" if is_run(output) or RUN_SETTINGS in names else "is not empty"
        raise ArtifactError(f"{output} {what} that this request did not make: choose another folder (--output)")


def _refuse_pipe(place: Path, name: str) -> None:
    """Refuse what can be read only once.

    Raises:
        ULDError: names the flag.
    """
    if is_special(place):
        raise ConfigError(f"{place} {_PIPE} (--{name})")


def _refuse_sizes(request: Request, config: PreTrainedConfig) -> None:
    """Refuse layers and LoRA that the target has no room for, before hours of questions and drawing.

    Raises:
        ULDError: names the setting.
    """
    own = train_config([("uld forget", settings_of(request))])
    kept = own.num_layers or config.get_text_config(decoder=True).num_hidden_layers
    whole = skeleton_of(request.target, config, own.trust_remote_code)
    refuse_lora(decoder_layers(build_assistant(whole, kept))[1], own.lora_rank or 1, own.lora_layers)


def _refuse_settings(request: Request, records: Sequence[Record]) -> None:
    """Refuse settings and rows of which only the training, or what comes behind it, would say that they cannot be.

    Args:
        request: What is asked for.
        records: Of the documents, and of what must stay.

    Raises:
        ULDError: names the setting, or the row.
    """
    given = {"target": request.target, "output": request.output, "forget": request.documents}
    config = train_config([("uld forget", settings_of(request) | given)])
    if (rule := Unlearning(config).combination.rule) != "suppress":
        raise ConfigError(
            f"uld forget tunes the rule suppress, and --set rule is {rule}: leave it out, or load the run with --rule"
        )
    trainer_arguments(config, training_dtype(config))
    form_of(request).encode_all(records, config.max_length)


def digests(request: Request) -> list[str]:
    """Digests of every file that was given."""
    return [file.sha256 for file in read_sources([*request.documents, *request.retain])[1]]


def _take(step: Step, title: str, left: float, tell: Callable[[str], None]) -> None:
    """Do a step, unless it is done."""
    if step.done():
        tell(f"{title}: done before")
        return
    command = f": {shlex.join(('uld', *step.command))}" if step.command else ""
    tell(f"{title} ({duration(left)} left){command}")
    start = time.monotonic()
    try:
        found = step.run()
    except Interrupted as error:
        raise Interrupted(f"stopped in step {title}: the same command continues it") from error
    tell(f"   {found} ({time.monotonic() - start:.0f} s)")


def check_words(request: Request) -> list[str]:
    """The check as ``uld`` is told."""
    words = ["check", request.output]
    for name, path in material.asked(request.work).items():
        words += [f"--{name.replace('_', '-')}", str(path)]
    words += ["--retain-model", request.retain_model] if request.retain_model else []
    words += ["--thresholds", request.thresholds] if request.thresholds else []
    return [*words, "--output", str(request.work / CHECK), *model_words(request)]
