"""The demo: world, models, unlearning, a check, before and after, all by the ordinary parts of the package."""

import contextlib
import os
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uld.checking.result import CheckResult, Shown, several
from uld.checking.run import check
from uld.data.record import Record
from uld.data.tofu import load_tofu
from uld.demo.models import MicroSettings, make_models
from uld.demo.world import World, write_world
from uld.errors import ArtifactError, ULDError
from uld.runs.files import writing
from uld.training.config import read_preset, train_config
from uld.training.run import train

SPLIT = "forget10"
MAX_NEW_TOKENS = 48
_SHOWN = 4
_EPOCHS_BETWEEN_LINES = 5


@dataclass(frozen=True)
class DemoSize:
    """How large the demo is.

    Attributes:
        people: Inhabitants of the world; the last tenth is to be forgotten.
        evaluated: People to be kept whom the evaluation asks about.
        micro: Size and training of the two models.
        training: Settings of the unlearning that differ from the preset ``demo``.
    """

    people: int = 50
    evaluated: int = 5
    micro: MicroSettings = field(default_factory=MicroSettings)
    training: Mapping[str, Any] = field(default_factory=dict)


def default_cache() -> Path:
    """Where the demo keeps its world and models: ``$XDG_CACHE_HOME/uld/demo`` or ``~/.cache/uld/demo``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uld" / "demo"


def run_demo(
    output: str | None,
    cache: str | None,
    seed: int,
    say: Callable[[str], None],
    *,
    size: DemoSize | None = None,
    progress: bool = True,
) -> Path:
    """Run the demo.

    Args:
        output: Run folder; None takes a new one under ``runs/``.
        cache: Folder of the world and the models; None takes `default_cache`.
        seed: Chooses the world.
        say: Takes each line to show.
        size: How large; None takes the usual size.
        progress: Show a progress bar while unlearning.

    Returns:
        The run folder.

    Raises:
        ULDError: a folder cannot be written, or is taken.
    """
    size = size or DemoSize()
    started = time.perf_counter()
    home = Path(cache) if cache else default_cache()
    if output is not None and Path(output).exists() and (not Path(output).is_dir() or any(Path(output).iterdir())):
        raise ArtifactError(f"{output} exists already: choose another folder (--output)")
    with writing(home):
        world = write_world(home / f"world-{seed}", seed, people=size.people, evaluated=size.evaluated)
        say(f"1. An invented world of {world.people} people. To be forgotten: {', '.join(world.forget)}.")
        say("2. A micro model that knows them all, and one that never met those to be forgotten.")
        target, retain_only = make_models(world, home, lambda line: _tell(line, say), settings=size.micro)
    with _run_folder(output) as run:
        say("3. Unlearning: an assistant learns what is to be forgotten; its logits are subtracted from the target's.")
        places = {"target": str(target), "output": str(run), "split": SPLIT}
        places |= {"data": str(world.folder), "augmented": str(world.folder)}
        settings = read_preset("demo") | dict(size.training) | places
        result = train(train_config([("preset demo", settings)]), progress=progress)
        say(
            f"   {result.steps} steps in {result.seconds:.0f} s; adapter of {result.weights_bytes / 1024:.0f} KiB, "
            "the target is as it was"
        )
        say("4. A check: the same questions to the model before, to the model after, and to the one that never knew.")
        found = _check(world, run, retain_only)
        _show(found, say)
    say(f"Done in {time.perf_counter() - started:.0f} s. Ask it yourself:")
    say(f'  uld generate -m {run} --compare "{found.answers["forget"][0].question}"')
    return run


def _tell(line: str, say: Callable[[str], None]) -> None:
    """Pass on every fifth line of a model's training, ``NAME: epoch N of M, loss L``."""
    number = line.partition("epoch ")[2].split(" ")[0]
    if not number.isdigit() or int(number) % _EPOCHS_BETWEEN_LINES == 0:
        say(f"   {line}")


@contextmanager
def _run_folder(output: str | None) -> Iterator[Path]:
    """The folder to train into: the one named, or the first free ``runs/demo-N``, made to keep others off it."""
    if output is not None:
        yield Path(output)
        return
    number = 1
    while True:
        path = Path("runs") / f"demo-{number}"
        try:
            with writing(path.parent):
                path.parent.mkdir(exist_ok=True)
            path.mkdir()
            break
        except FileExistsError:
            number += 1
        except OSError as error:
            raise ULDError(f"cannot make {path}: {error.strerror} (name a folder with --output)") from error
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.rmdir()  # only if nothing came to be in it


def _check(world: World, run: Path, retain_only: Path) -> CheckResult:
    """Ask all three models what is to be forgotten, in words that were trained on and in others, and what is kept."""
    forget = load_tofu(f"{SPLIT}_perturbed", world.folder)
    return check(
        run,
        forget=_asked(forget, "question", "answer"),
        held_out=_asked(forget, "paraphrased_question", "paraphrased_answer"),
        retain=_asked(load_tofu("retain_perturbed", world.folder), "question", "answer"),
        retain_model=retain_only,
        output=run / "eval" / "check",
        max_new_tokens=MAX_NEW_TOKENS,
        progress=False,
    )


def _asked(rows: Sequence[Mapping[str, Any]], question: str, answer: str) -> list[Record]:
    return [Record.qa(row[question], row[answer]) for row in rows]


def _show(found: CheckResult, say: Callable[[str], None]) -> None:
    """The check's numbers, a row a model, its verdict, and some answers before and after."""
    say(f"\n{several(found)}\n\n{found.verdicts()}\n")
    for name, title in (("forget", "Forgotten"), ("retain", "Kept")):
        some = found.answers[name]
        say("\n".join(side_by_side(title, some[:: max(1, len(some) // _SHOWN)][:_SHOWN])) + "\n")
    say("A model of this size answers nonsense where it does not know; so does the one that never knew.\n")


def side_by_side(title: str, answers: Sequence[Shown], width: int | None = None) -> list[str]:
    """Lines that show answers before and after in two columns under each question.

    Args:
        title: Stands above the left column.
        answers: Of one run.
        width: Columns of the terminal; None asks it.
    """
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 120)
    half = max(20, (width - 6) // 2)
    lines = [f"{title + ', before':<{half + 4}}| after"]
    for one in answers:
        lines.append(f"? {textwrap.shorten(one.question, max(20, width - 2), placeholder=' …')}")
        both = (one.before, *one.now)
        left, right = (textwrap.wrap(" ".join(text.split()), half) or ["(nothing)"] for text in both)
        for i in range(max(len(left), len(right))):
            one, other = (column[i] if i < len(column) else "" for column in (left, right))
            lines.append(f"    {one:<{half}}| {other}".rstrip())
    return lines
