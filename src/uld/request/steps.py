"""The steps of a request: each with the command that does the same, and what says that it is done."""

import functools
import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uld.augment.asker import endpoint_asker, local_asker
from uld.augment.generate import Unusable, Wanted
from uld.augment.items import row
from uld.augment.output import FILES, REPORT
from uld.augment.run import Result, augment_by_rules
from uld.checking.asked import Asked
from uld.checking.questions import Item, Questions, question_of
from uld.checking.run import ask_target
from uld.data.documents import read_sources
from uld.data.prompt import TOO_LONG, PromptFormat
from uld.data.record import refuse_equal
from uld.errors import ULDError
from uld.evaluation.choosing import OverBudget
from uld.evaluation.held_out import file_probes
from uld.evaluation.pipe import Candidate
from uld.evaluation.tuning import tune
from uld.model.device import DTYPES, best_device
from uld.model.load import load
from uld.request import material
from uld.request.settings import PARAPHRASES, WRONG_ANSWERS, Request
from uld.request.training import form_of, settings_of, train_settings
from uld.runs.files import write_text
from uld.runs.hub import run_folder
from uld.runs.manifest import RUN_SETTINGS, TUNE, Manifest, is_run
from uld.text.json_text import dumps
from uld.training.config import TrainConfig
from uld.training.draw import draw_rows
from uld.training.run import train
from uld.training.settings import setting_fields

LEAST_DRAWN = 128
DRAWN_LENGTH = 144
"""Tokens of a drawn row, at most: enough to keep ordinary talk as it is (docs/results/smollm2, *chat*)."""
CHECK, KNOWN = "check", "known.json"
SHARED = ("dtype", "tokenizer", "template", "date")
"""Settings that every command with a model takes as well."""
KEPT = "asked in what must stay"
"""Why a question that was made cannot be used: it would have to be forgotten and to be kept."""
BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Shares of the retain answers' probability that tuning may lose: the first that any setting keeps."""
ASKING = "ask about the texts"
REWORDING = "find other words and wrong answers"
DRAWING = "draw from the model what must stay"
KNOWING = "ask the model what it knows"
TRAINING = "train the assistant"
TUNING = "choose margin, floor and α"
CHECKING = "check"
"""Names of the steps that take time, in their order."""


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: For people.
        command: Words behind ``uld`` that do the same; none where no command does.
        done: Whether its result is there.
        run: Does it, from where it was stopped; returns what came of it in a few words.
    """

    name: str
    command: tuple[str, ...]
    done: Callable[[], bool]
    run: Callable[[], str]


def steps(request: Request, *, progress: bool = True) -> Iterator[Step]:
    """The steps in order; later ones look at the files of earlier ones, so take them one at a time.

    Args:
        request: What is asked for.
        progress: Whether trainings and checks show theirs.
    """
    if any(record.text is not None for record in read_sources(request.documents)[0]):
        yield _asking(request)
    yield _gathering(request)
    yield _rewording(request)
    yield _holding_back(request)
    if rows := to_draw(request):
        yield _drawing(request, rows)
    yield _splitting(request)
    yield _asking_target(request, progress)
    yield _training(request, progress)
    if material.untunable(request.work) is None:
        yield _tuning(request, progress)


def _asking(request: Request) -> Step:
    source = request.documents[0] if len(request.documents) == 1 else str(request.work / material.DOCUMENTS)
    folder = request.work / material.ASKED
    wanted = Wanted(0, 0, request.questions)

    def run() -> str:
        if len(request.documents) > 1:
            material.write_rows(Path(source), (row(one) for one in read_sources(request.documents)[0]))
        made = _augment(request, source, folder, wanted)
        return f"{made.kept.get(FILES['asked'], 0)} questions{_left_out(made)}"

    words = ("augment", source, *request.source.words(), "--ask", "--questions", str(request.questions))
    words += ("--paraphrases", "0", "--wrong-answers", "0", "--output", str(folder), *_seed(request))
    return Step(ASKING, words, (folder / REPORT).is_file, run)


def _gathering(request: Request) -> Step:
    def run() -> str:
        records, questions = material.gather(request.documents, request.work)
        return f"{records} records, {questions} of them questions"

    return Step("put documents and questions together", (), (request.work / material.FORGET).is_file, run)


def _rewording(request: Request) -> Step:
    source, folder = str(request.work / material.FORGET), request.work / material.REWORDED
    wanted = Wanted(PARAPHRASES + 1, 2 * WRONG_ANSWERS, 0)

    def run() -> str:
        made = _augment(request, source, folder, wanted)
        told, wrong = (made.kept.get(FILES[side], 0) for side in ("paraphrases", "wrong"))
        return f"{told} paraphrases, {wrong} wrong answers{_left_out(made)}"

    words = ("augment", source, *request.source.words(), "--paraphrases", str(wanted.paraphrases))
    words += ("--wrong-answers", str(wanted.wrong_answers), "--output", str(folder), *_seed(request))
    return Step(REWORDING, words, (folder / REPORT).is_file, run)


def _unusable(request: Request) -> Unusable:
    """Tells of a row that was made why it could not be trained on, or not be checked."""
    form, room = functools.cache(lambda: form_of(request)), settings_of(request)["max_length"]
    kept = {question_of(record) for record in read_sources(request.retain)[0]}
    return lambda record: KEPT if question_of(record) in kept else form().too_long(record, room)


def _left_out(made: Result) -> str:
    """How many rows could not be used, in words; candidates that are no other words are nothing to speak of."""
    counts = Counter({KEPT: 0})
    for reasons in made.dropped.values():
        counts.update({reason: number for reason, number in reasons.items() if reason.startswith((KEPT, TOO_LONG))})
    told = [f"{number} {reason}" for reason, number in counts.items() if number]
    return f" (left out: {', '.join(told)})" if told else ""


def _augment(request: Request, source: str, folder: Path, wanted: Wanted) -> Result:
    """What ``uld augment`` does, without what could not be used."""
    unusable = _unusable(request)
    local = request.source.local
    if local is not None:
        trusted = bool(request.settings.get("trust_remote_code"))
        asker = local_asker(
            local,
            lambda: _placed(*load(local, trust_remote_code=trusted)),
            template_of(local),
            seed=request.seed,
        )
    elif request.source.model is not None:
        asker = endpoint_asker(request.source.endpoint(), request.seed)
    else:
        return augment_by_rules(source, folder, wanted, seed=request.seed, unusable=unusable)
    return asker.augment(source, folder, wanted, unusable=unusable)


def template_of(place: str) -> str | None:
    """The template that a run was trained with; None for an ordinary model."""
    folder = run_folder(place)
    return None if folder is None else Manifest.read(folder).template


def _holding_back(request: Request) -> Step:
    def run() -> str:
        questions, held = material.hold_back(request.work)
        return f"{held} other wordings of {questions} questions"

    return Step("hold wordings back", (), (request.work / material.HELD_OUT).is_file, run)


def to_draw(request: Request) -> int:
    """Retain rows to draw for a request."""
    if request.draw is not None:
        return request.draw
    forget = read_sources([str(request.work / material.FORGET)])[0]
    given = material.parts(read_sources(request.retain)[0])
    return rows_drawn(len(forget), len(given))


def rows_drawn(forget: int, given: int) -> int:
    """Retain rows to draw where nothing is said.

    Given ones protect what is like them, and hardly ordinary talk (docs/results/smollm2), so some are always drawn.

    Args:
        forget: Records to forget.
        given: Records that were given to stay.
    """
    return max(LEAST_DRAWN, forget - given)


def _drawing(request: Request, rows: int) -> Step:
    path = request.work / material.DRAWN
    length = min(DRAWN_LENGTH, settings_of(request)["max_length"])
    sources = (*request.documents, *material.asked_about(request.work))

    def run() -> str:
        model, tokenizer = _target(request)
        form = PromptFormat(tokenizer, request.settings.get("template"))
        drawn = draw_rows(model, form, read_sources(sources)[0], rows, seed=request.seed, max_length=length)
        write_text(path, drawn.to_jsonl())
        return f"{len(drawn.records)} rows"

    words = ("draw", "--model", request.target, *(word for one in sources for word in ("--forget", one)))
    words += ("--rows", str(rows), "--max-length", str(length), "--output", str(path))
    words += (*_seed(request), *model_words(request))
    return Step(DRAWING, () if "revision" in request.settings else words, path.is_file, run)


def _splitting(request: Request) -> Step:
    def run() -> str:
        drawn = request.work / material.DRAWN
        records = read_sources([*request.retain, *([str(drawn)] if drawn.is_file() else [])])[0]
        refuse_equal(read_sources([str(request.work / material.FORGET)])[0], records)
        trained, held = material.split_retain(material.parts(records), request.work)
        return f"{trained} rows to train on, {held} held back"

    return Step("hold some of what must stay back", (), (request.work / material.RETAIN).is_file, run)


def questions_of(request: Request) -> Questions:
    """What the check asks: everything to be forgotten, other wordings of it, and what must stay."""
    return Questions.read(**material.asked(request.work))  # type: ignore[arg-type]


def _asking_target(request: Request, progress: bool) -> Step:
    path, rows = request.work / KNOWN, request.work / material.KNOWN

    def run() -> str:
        target = Candidate(request.target, lambda: _target(request))
        folder, template = request.work / CHECK, request.settings.get("template")
        asked = Asked(questions_of(request))
        known = ask_target(asked, target, folder, template=template, progress=progress)
        sets = asked.questions.sets
        material.write_rows(rows, (_asked_again(sets["forget"][i]) for i in known["forget"]))
        write_text(path, dumps({name: (len(one), len(sets[name])) for name, one in known.items()}) + "\n")
        told = {"forget": "of what must go", "held_out": "of it in other words"}
        found = [f"{len(known[name])} of {len(sets[name])} {what}" for name, what in told.items() if name in known]
        return f"the model knows {', '.join(found)}"

    return Step(KNOWING, (), lambda: path.is_file() and rows.is_file(), run)


def _asked_again(item: Item) -> dict[str, Any]:
    """An item as a line of a file from which it is asked in the same way: a passage as a text, to be cut in two."""
    return {"text": item.question + item.answer} if item.passage else row(item.record)


def _training(request: Request, progress: bool) -> Step:
    output = Path(request.output)
    config = train_settings(request)

    def run() -> str:
        result = train(config, resume=(output / RUN_SETTINGS).is_file(), progress=progress)
        return f"{result.steps} steps in {result.seconds:.0f} s"

    words = ["train"]
    for one in setting_fields(TrainConfig):
        value = getattr(config, one.name)
        if value != one.default:
            words += _flags(one.name, value)
    return Step(TRAINING, tuple(words), lambda: is_run(output), run)


def _tuning(request: Request, progress: bool) -> Step:
    output = Path(request.output)
    probes, retain = (request.work / name for name in (material.PROBES, material.RETAIN_HELD_OUT))
    read = {"trained": material.KNOWN, "ordinary": material.RETAIN}
    files = {flag: str(path) for flag, name in read.items() if (path := request.work / name).stat().st_size}

    def run() -> str:
        model, tokenizer = _placed(*load(output, **loading(request)))
        asked, kept = file_probes(probes, retain)
        how = {"budget": BUDGETS, "aim": "read", "progress": progress}
        how |= {flag: read_sources([file])[0] for flag, file in files.items()}
        try:
            choice = tune(output, model, tokenizer, asked, kept, **how)  # type: ignore[arg-type]
        except OverBudget as error:
            raise ULDError(
                f"{error.found}: this assistant takes what must stay along; start again in another folder with more "
                "epochs (--set epochs=N) or more of what must stay (--retain), or tune by hand with a larger budget: "
                f"uld {shlex.join(words)}"
            ) from error
        point = choice.point
        return f"α {point.weight:g}, margin {point.margin:.3g}, floor {point.floor:.2g}: {choice.reason}"

    words = ("tune", str(output), "--forget", str(probes), "--retain", str(retain))
    words += ("--aim", "read", *(word for flag, file in files.items() for word in (f"--{flag}", file)))
    words += ("--budget", ",".join(f"{one:g}" for one in BUDGETS))
    words += tuple(model_words(request))
    return Step(TUNING, words, lambda: is_tuned(output), run)


def is_tuned(run: Path) -> bool:
    """Whether what tuning chose is what the run says: where the disk was full in between, it is to be tuned again."""
    try:
        point = json.loads((run / TUNE).read_text(encoding="utf-8"))["point"]
        own = Manifest.read(run).combination.model_dump()
        return all(own[name] == point[name] for name in ("weight", "filter", "margin", "floor"))
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is damaged
        return False


def loading(request: Request) -> dict[str, Any]:
    """How the target and the run are loaded."""
    how = {name: request.settings[name] for name in ("tokenizer", "date") if name in request.settings}
    if (dtype := DTYPES[request.settings.get("dtype", "auto")]) != "auto":
        how["dtype"] = dtype
    return how | {"trust_remote_code": bool(request.settings.get("trust_remote_code"))}


def model_words(request: Request) -> list[str]:
    """The same and the template, as commands that load a model are told."""
    words = [word for name in SHARED if name in request.settings for word in _flags(name, request.settings[name])]
    return [*words, *(["--trust-remote-code"] if request.settings.get("trust_remote_code") else [])]


def _target(request: Request) -> tuple[Any, Any]:
    """The target, where it computes fastest, and its tokenizer."""
    revision = {"revision": request.settings["revision"]} if "revision" in request.settings else {}
    return _placed(*load(request.target, **loading(request), **revision))


def _placed(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    return model.to(best_device()), tokenizer


def _seed(request: Request) -> tuple[str, ...]:
    return ("--seed", str(request.seed)) if request.seed else ()


def _flags(name: str, value: Any) -> list[str]:
    """A setting as words of the command line."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, tuple):
        return [word for one in value for word in (f"--{flag}", str(one))]
    return [f"--{flag}", f"{value:g}" if isinstance(value, float) else str(value)]
