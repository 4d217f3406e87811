"""A check from beginning to end: the target and the retain-only model once, then every run; numbers, gate, reports."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uld.checking.asked import Asked
from uld.checking.questions import Questions, Sources
from uld.checking.questions import places as places_of
from uld.checking.report import write_reports
from uld.checking.result import Asking, CheckResult, RunResult, untested
from uld.checking.thresholds import RETAIN_ONLY, TARGET, read_thresholds, refuse_unmeasured
from uld.checking.work import Work, one_template, refuse_unknown, shown
from uld.errors import DataError, ULDError
from uld.evaluation import pipe
from uld.evaluation.benchmark import slug
from uld.evaluation.pipe import Candidate
from uld.model.causal_lm import load_config
from uld.model.combine import Combination
from uld.model.device import best_device
from uld.model.load import load
from uld.model.stored import combination_of
from uld.runs.files import absent, remove_empty, remove_folder
from uld.runs.hub import manifest_of, run_folder
from uld.runs.machine import library_versions
from uld.runs.manifest import Manifest
from uld.runs.places import refuse_sources
from uld.runs.rows import claim, give_up
from uld.runs.values import Count, given, given_or_none
from uld.training.settings import is_first_process

Tell = Callable[[str], None]


def check(
    runs: str | Path | Sequence[str | Path],
    *,
    forget: Sources,
    retain: Sources,
    held_out: Sources | None = None,
    ordinary: Sources | None = None,
    retain_model: str | Path | None = None,
    target: str | Path | None = None,
    thresholds: str | Path | Mapping[str, str] | None = None,
    output: str | Path | None = None,
    max_new_tokens: int = 128,
    limit: int | None = None,
    template: str | None = None,
    progress: bool = True,
    **how: Any,
) -> CheckResult:
    """Did a run forget your documents, and does the rest still work? What ``uld check`` does, from Python.

    Args:
        runs: One or several run folders of one target; ordinary models also, with ``target``.
        forget: What must be gone: files, folders or Hub data sets of questions with answers or of texts, or records.
        retain: What must still be there.
        held_out: What must be gone, in wordings that were not trained on.
        ordinary: More answers or texts whose common words give nothing away; nothing of them is asked.
        retain_model: A model that never saw the documents, to stand beside.
        target: The model before unlearning; default: the one that the first run names.
        thresholds: YAML file, or texts by the names of measures; default: those of the package.
        output: Folder for rows and reports; default: in the run, or ``eval/`` for several.
        max_new_tokens: Most tokens of an answer.
        limit: Most questions of each set, spread evenly over it.
        template: Prompt template; default: the first run's, else the chat template.
        progress: Show progress bars.
        how: Handed to `uld.load` for every model (``dtype``, …); what overrides a combination (``weight``, …), for
            the runs alone.

    Returns:
        The result: ``result.passed``, ``result.table()``, ``result.to_dict()``. The folder holds the same as
        ``report.html``, ``summary.md``, ``junit.xml`` and ``result.json``.

    Raises:
        ULDError: whatever is wrong with a setting, a file or a model; also an output that is, or lies in, what is read.
    """
    max_new_tokens = given("max_new_tokens", max_new_tokens, Count)
    limit = given_or_none("limit", limit, Count)
    if output is not None:
        read = {"forget": forget, "retain": retain, "held_out": held_out, "ordinary": ordinary}
        named = {name: places_of(sources) for name, sources in read.items()}
        named["thresholds"] = [thresholds] if isinstance(thresholds, str | Path) else []
        refuse_sources(output, named, by="output")
    several = list(runs) if isinstance(runs, Iterable) and not isinstance(runs, str) else [runs]
    places = [given("runs", one, str) for one in several]
    combined = {name: how.pop(name, None) for name in Combination.__dataclass_fields__}
    changed = combined | {"template": template, "date": how.get("date"), "limit": limit}
    origin = origin_of(places, None if target is None else str(target), how.pop("date", None))
    refuse_combined(places, combined)
    if retain_model is not None and run_folder(retain_model) is None:
        load_config(retain_model, trust_remote_code=how.get("trust_remote_code"))

    def at(place: str, **more: Any) -> Candidate:
        def loaded() -> Any:
            own = {name: one for name, one in (how | more).items() if one is not None}
            model, tokenizer = load(place, date=origin.date, **own)
            return model.to(best_device()), tokenizer  # type: ignore[arg-type]

        return Candidate(place, loaded, template)

    return carry_out(
        Asked(Questions.read(forget, retain, held_out, limit, ordinary), max_new_tokens),
        [at(one, target=origin.target_of(one), **combined) for one in places],
        at(origin.target, revision=origin.revision),
        None if retain_model is None else at(str(retain_model), tokenizer=None),  # it has its own
        thresholds=thresholds,
        folder=Path(output) if output else default_folder(places, forget, changed),
        progress=progress,
    )


def ask_target(
    asked: Asked, target: Candidate, folder: Path, *, template: str | None = None, progress: bool = True
) -> dict[str, list[int]]:
    """Ask the target alone, before there is a run; a check in the same folder continues from there.

    Args:
        asked: The questions.
        target: The model before unlearning.
        folder: For rows.
        template: Prompt template of the run to come.
        progress: Show progress bars.

    Returns:
        For every set of questions the numbers of those that the target knows.

    Raises:
        DataError: it knows next to nothing: there is nothing to forget.
    """
    if is_first_process():
        claim(folder, asked.about, "check")
    counted = asked.counted(Work(asked, folder, target, template, progress).of_target())
    refuse_unknown(asked, counted, target.place)
    return counted


def default_folder(places: Sequence[str], forget: Sources, changed: Mapping[str, Any] | None = None) -> Path:
    """Where a check goes: inside of its run; beside the user for several.

    Args:
        places: Of the runs.
        forget: Gives the folder its name.
        changed: What becomes part of the name where it is not None.
    """
    first = next(iter(forget), "") if isinstance(forget, Sequence) and not isinstance(forget, str) else forget
    stem = Path(first).stem if isinstance(first, str | Path) else ""
    name = f"check-{stem}" if stem else "check"
    return pipe.default_folder(places[0], name, changed or {}) if len(places) == 1 else Path("eval") / slug(name)


@dataclass(frozen=True)
class Origin:
    """What some runs were made of, and how they are asked.

    Attributes:
        target: Their target.
        revision: Its revision on the Hub.
        date: Day that every model is asked on; None where no run names one.
        runs: Those of the places that are runs; the others are ordinary models.
    """

    target: str
    revision: str | None
    date: str | None
    runs: frozenset[str]

    def target_of(self, place: str) -> str | None:
        """The target that a place is loaded with; None for an ordinary model."""
        return self.target if place in self.runs else None


def origin_of(places: Sequence[str], target: str | None = None, date: str | None = None) -> Origin:
    """Look at what is to be checked, before anything is loaded.

    Args:
        places: Run folders, ordinary models, and Hub ids of either.
        target: As it was given; None takes the one that the first run names.
        date: As it was given; None takes the one that the runs were trained with.

    Raises:
        ULDError: no run, one twice, a folder that is neither a run nor a model, none that names a target, or runs of
            different targets or dates.
    """
    if not places:
        raise ULDError("name at least one run to check")
    if twice := [one for i, one in enumerate(places) if one in places[:i]]:
        raise ULDError(f"{twice[0]} is named twice: name each run once")
    found = {place: manifest_of(place) for place in places}
    manifests = {place: one for place, one in found.items() if one is not None}
    for place in found.keys() - manifests.keys():
        if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
            raise ULDError(f"{place} is neither a finished run nor a model: leave it out")
    shared: dict[tuple[str, int], tuple[str, str]] = {}
    for place, one in manifests.items():
        first, known = shared.setdefault((one.trains, one.num_layers), (place, one.target_fingerprint))
        if one.target_fingerprint != known:
            raise ULDError(f"{place} belongs to another target than {first}: check runs of one target at a time")
    if manifests:
        first, own = next(iter(manifests.items()))
        for place, one in manifests.items():
            if date is None and one.date != own.date:
                raise ULDError(
                    f"{place} was trained on another date than {first}: check it by itself, or name one for all of "
                    "them with --date"
                )
        target, date = target or own.target, date or own.date
    if target is None:
        raise ULDError(f"{places[0]} is an ordinary model, not a run: name the model that it was made of with --target")
    revision = next((one.target_revision for one in manifests.values() if one.target == target), None)
    return Origin(target, revision, date, frozenset(manifests))


def refuse_combined(places: Sequence[str], changes: Mapping[str, Any]) -> None:
    """Refuse settings that a run cannot be combined by, before the target has answered everything.

    Args:
        places: Of the runs; ordinary models among them are told of when they are loaded.
        changes: Settings of a combination that take the place of a run's own where they are not None.

    Raises:
        ULDError: see `uld.model.stored.combination_of`.
    """
    for place in places:
        if (folder := run_folder(place)) is not None and (manifest := Manifest.read(folder)).trains != "target":
            combination_of(manifest, folder, changes)


def carry_out(
    asked: Asked,
    runs: Sequence[Candidate],
    target: Candidate,
    retain_model: Candidate | None = None,
    *,
    thresholds: str | Path | Mapping[str, str] | None = None,
    folder: Path,
    progress: bool = True,
    tell: Tell = lambda _: None,
) -> CheckResult:
    """`check`, of models that are loaded when their turn comes.

    Args:
        asked: The questions.
        runs: At least one.
        target: The model before unlearning.
        retain_model: One that never saw the documents.
        thresholds: See `check`.
        folder: For rows and reports.
        progress: Show progress bars.
        tell: Told which model's turn it is.

    Raises:
        ULDError: see `check`.
    """
    sets = asked.questions.sets
    gate, text = read_thresholds(thresholds, retain_only=retain_model is not None, held_out="held_out" in sets)
    template = one_template(runs)
    made = absent(folder)
    if is_first_process():
        claim(folder, asked.about)
    work = Work(asked, folder, target, template, progress)
    total = len(runs) + 1 + (retain_model is not None)
    with _given_up_in_vain(folder, made):
        tell(f"1 of {total}: the target, {target.place}")
        before = work.of_target()
        counted = asked.counted(before)
        try:
            refuse_unknown(asked, counted, target.place)
        except DataError:
            if made and is_first_process():
                remove_folder(folder)  # the files will be others
            raise
    never = None
    if retain_model is not None:
        tell(f"2 of {total}: the retain-only model, {retain_model.place}")
        never = work.of(retain_model, folder / RETAIN_ONLY)
    both = {TARGET: before} | ({} if never is None else {RETAIN_ONLY: never})
    others = {name: asked.summarise(one, {TARGET: before}).values for name, one in both.items()}
    results, now = [], []
    names = [slug(run.place) for run in runs]
    left_out: dict[str, None] = {}
    for i, run in enumerate(runs):
        tell(f"{total - len(runs) + 1 + i} of {total}: {run.place}")
        again = names[:i].count(names[i])  # ../x and x have one name as a file
        own = folder / f"run-{names[i]}{f'-again-{again}' if again else ''}"
        now.append(work.of(run, own, is_target_made=True))
        values = asked.summarise(now[-1], {TARGET: before}).values
        if thresholds is None:  # what nobody asked for by name is left out, and the report says so
            left_out |= {one.name: None for one in gate if not one.is_measured(values, others)}
        else:
            refuse_unmeasured(gate, values, others, run.place)
        asked_for = [one for one in gate if one.name not in left_out]
        verdicts = [one.judge(values[one.name], others) for one in asked_for]
        results.append(RunResult(run.place, values, verdicts, work.changed.get(run.place, {})))
    asking = {
        name: Asking(len(items), len(counted[name]), tuple(one.path for one in asked.questions.files[name]))
        for name, items in sets.items()
    }
    result = CheckResult(
        runs=results,
        others=others,
        places={TARGET: target.place} | ({} if retain_model is None else {RETAIN_ONLY: retain_model.place}),
        asked=asking,
        untested=untested(asking, retain_model is not None, asked.max_new_tokens, list(left_out)),
        folder=str(folder),
        answers={name: shown(asked, name, before, never, now, counted[name]) for name in sets},
        machine=library_versions(),
    )
    write_reports(result, text, folder)
    return result


@contextmanager
def _given_up_in_vain(folder: Path, made: Sequence[Path]) -> Iterator[None]:
    """Where a check is refused before it has a row, leave nothing of it.

    Args:
        folder: Of the check, claimed.
        made: Those of it and the folders above it that were not there before.
    """
    try:
        yield
    except ULDError:
        if is_first_process():
            if folder.is_dir():
                give_up(folder)
            remove_empty(made)
        raise
