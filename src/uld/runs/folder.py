"""A run folder while training works in it: who may start there, the lock, the checkpoints, and what is left behind.

`uld.runs.manifest` says what a finished run holds; this module guards the way there.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from uld.errors import ArtifactError
from uld.runs.card import CARD, CHECK
from uld.runs.files import present, remove_folder, sweep, write_text, writing
from uld.runs.locks import LOCK, is_held, locked
from uld.runs.manifest import (
    ADAPTER,
    CHECKPOINTS,
    EPOCHS,
    MANIFEST,
    METRICS,
    RETAIN_DRAWN,
    ROUNDS,
    RUN_SETTINGS,
    TUNE,
    DataFile,
    file_digest,
)

STARTED = "started.json"  # beside the checkpoints, see `Started`
BEFORE = "before"  # beside the checkpoints: ``uld.json`` and adapter of the finished run that more rounds follow
TEACHER = "teacher"  # beside the checkpoints: the run that a method learns from, removed with them
COMPLETE = "complete.json"  # in a checkpoint: the digest of every other file, written last
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
TOKENIZER_FILES |= {"chat_template.jinja", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model"}
CHAT_TEMPLATES = "additional_chat_templates"  # a folder: of a tokenizer that has several
_UNFINISHED = {METRICS, RETAIN_DRAWN, CHECKPOINTS, EPOCHS, "runs"}  # runs: what an experiment tracker writes
_FINISHED = {"config.json", "generation_config.json", "eval", CHAT_TEMPLATES} | TOKENIZER_FILES


@dataclass(frozen=True)
class Layout:
    """What a command writes into its folder, besides weights.

    Attributes:
        command: As users type it.
        settings: The file of settings: there from the start, removed last.
        finished: The file that marks a finished folder: written last, removed first.
        rest: Names of everything else.
    """

    command: str
    settings: str
    finished: str
    rest: frozenset[str]

    @property
    def names(self) -> frozenset[str]:
        """Every name."""
        return self.rest | {self.settings, self.finished}


RUN = Layout(
    "uld train",
    RUN_SETTINGS,
    MANIFEST,
    frozenset({ADAPTER, CARD, CHECK, ROUNDS, TUNE, "tune.png"} | _UNFINISHED | _FINISHED),
)
MODEL = Layout("uld finetune", "finetune.yaml", "finetune.json", frozenset(_UNFINISHED | _FINISHED))


class UnresumableError(ArtifactError):
    """A stopped run cannot be continued, or not like this; it can be started over."""


class Started(BaseModel):
    """What a training was started on; a run that goes on elsewhere would be a mixture of two.

    Attributes:
        target: Folder or Hub id of the model that training started from, for messages.
        target_fingerprint: `uld.runs.manifest.fingerprint` of its weights.
        data: Files that are trained on.
    """

    target: str
    target_fingerprint: str
    data: dict[str, list[DataFile]]


def check_output(output: Path, layout: Layout = RUN, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that is in use, holds something else, or does not fit what is asked.

    Args:
        output: The run folder, which need not exist.
        layout: What the command writes.
        resume: Whether the run in it is to be continued.
        overwrite: Whether the run in it may be replaced.

    Raises:
        ArtifactError: what is in the way and which flag mends it.
    """
    if output.exists() and not output.is_dir():
        raise ArtifactError(f"{output} is a file: choose another folder (--output)")
    names = present(output)
    finished, unfinished = layout.finished in names, layout.settings in names
    if resume:
        if finished:
            raise ArtifactError(f"{output} holds a finished run: there is nothing to resume")
        if not unfinished:
            raise ArtifactError(f"{output} holds no run to resume: leave out --resume")
    elif overwrite:
        if strange := sorted(name for name in names - layout.names if not _is_weights(name)):
            raise ArtifactError(
                f"{output} holds {strange[0]}, which is not part of a run of {layout.command}: move it away, or choose "
                "another folder (--output)"
            )
        if names and not finished and not unfinished:
            raise ArtifactError(
                f"{output} holds a model that {layout.command} did not write: choose another folder (--output)"
            )
    elif finished:
        raise ArtifactError(f"{output} holds a finished run: choose another folder, or replace it with --overwrite")
    elif unfinished:
        raise ArtifactError(
            f"{output} holds an unfinished run: continue it with --resume, or start over with --overwrite"
        )
    elif names:
        raise ArtifactError(
            f"{output} is not empty and holds no run of {layout.command}: choose another folder (--output)"
        )


def check_resumable(output: Path, layout: Layout = RUN, *, more: bool = False) -> None:
    """Refuse a folder that holds no run to resume; a finished one may still have to be tidied, or get ``more``.

    Raises:
        ArtifactError: what is in the way and which flag mends it.
    """
    with writing(output):
        if not more and not needs_tidying(output, layout):
            check_output(output, layout, resume=True, overwrite=False)


def needs_tidying(output: Path, layout: Layout = RUN) -> bool:
    """Whether a run is finished but for what is removed behind the file that says so."""
    return (output / layout.finished).is_file() and ((output / CHECKPOINTS).exists() or (output / LOCK).exists())


def tidy(output: Path) -> None:
    """Remove what a finished run does not hold: the pickles of its checkpoints."""
    with writing(output):
        remove_folder(output / CHECKPOINTS)
        sweep(output)


def refuse_other_inputs(output: Path, started: Started) -> None:
    """Make sure that a run is continued on the model and the data that it was started with, and note them if new.

    Files are known by what is in them, wherever they are now.

    Raises:
        UnresumableError: the model or a data file has changed since, or the note is damaged.
    """
    path = output / CHECKPOINTS / STARTED
    with writing(path.parent):
        there = path.exists()
    if there:
        try:
            before = Started.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise UnresumableError(f"{path} is damaged: start over with --overwrite") from error
        if before.target_fingerprint != started.target_fingerprint:
            model = f"the target {started.target}" if started.target else "the model that these settings give"
            raise UnresumableError(f"{model} is not the one that the run in {output} was started on")
        known = {(name, file.sha256) for name, files in before.data.items() for file in files}
        now = [(name, file) for name, files in started.data.items() for file in files]
        if changed := [file for name, file in now if (name, file.sha256) not in known]:
            raise UnresumableError(
                f"{changed[0].path} has changed since the run in {output} was started: start over with --overwrite"
            )
    write_text(path, started.model_dump_json(indent=2) + "\n")


def refuse_busy(folder: Path) -> None:
    """Look whether another process works in a folder, without leaving a trace.

    Raises:
        ArtifactError: one does.
    """
    if is_held(folder / LOCK):
        raise _busy(folder)


def _busy(folder: Path) -> ArtifactError:
    return ArtifactError(f"another run is working in {folder}: wait for it to end, or choose another folder (--output)")


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Hold a run folder that exists for this process alone.

    Raises:
        ArtifactError: another process works in it, or it cannot be written.
    """
    with ExitStack() as stack:
        with writing(folder):
            mine = stack.enter_context(locked(folder / LOCK))
        if not mine:
            raise _busy(folder)
        yield


@contextmanager
def held(
    output: Path, layout: Layout = RUN, *, resume: bool = False, overwrite: bool = False, more: bool = False
) -> Iterator[None]:
    """Hold a run folder for this process alone, cleared if it is to be replaced; ``more`` resumes a finished run.

    A folder that did not exist before and in which nothing came to be worth keeping (no checkpoint) goes again when
    the block fails.

    Raises:
        ArtifactError: another process works in it, or `check_output` refuses it.
    """
    existed = output.exists()
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    with working_in(output):
        if not more:
            check_output(output, layout, resume=resume, overwrite=overwrite)
        for folder in (output, output / CHECKPOINTS, output / EPOCHS, output / ROUNDS):
            sweep(folder)
        if overwrite:
            _clear(output, layout)
        try:
            yield
        except BaseException:
            if (
                not existed
                and not last_checkpoint(output / CHECKPOINTS)
                and not (output / CHECKPOINTS / TEACHER).exists()
                and present(output) <= _UNFINISHED | {layout.settings}
            ):
                with suppress(OSError):
                    _clear(output, layout)
                    _leave(output)
            raise


def _leave(output: Path) -> None:
    """Remove a folder that holds nothing but our lock."""
    if [path.name for path in output.iterdir()] == [LOCK]:
        (output / LOCK).unlink()
        output.rmdir()


def _is_weights(name: str) -> bool:
    """Whether a file holds weights of a whole model, or says in which file which are."""
    return name.startswith("model") and name.endswith((".safetensors", ".safetensors.index.json"))


def _clear(output: Path, layout: Layout) -> None:
    """Remove a run's own files, what marks it as finished first: a kill leaves an unfinished run, not a broken one."""
    weights = [path.name for path in output.iterdir() if _is_weights(path.name)]
    for name in (layout.finished, *sorted(layout.rest), *weights, layout.settings):
        path = output / name
        remove_folder(path) if path.is_dir() else path.unlink(missing_ok=True)


def seal(checkpoint: Path) -> None:
    """Mark a checkpoint as complete: what is not sealed, or not as it was sealed, is never continued from."""
    write_text(checkpoint / COMPLETE, json.dumps(_digests(checkpoint), indent=2) + "\n")


def _is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint holds the files that it was sealed with, each as it was."""
    try:
        digests = json.loads((checkpoint / COMPLETE).read_bytes())
        return digests == _digests(checkpoint) and bool(digests)
    except (OSError, ValueError, RecursionError):
        return False


def _digests(checkpoint: Path) -> dict[str, str]:
    """Digest of every file of a checkpoint but the seal."""
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file())
    return {str(path.relative_to(checkpoint)): file_digest(path) for path in files if path.name != COMPLETE}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; one that a kill cut short is passed over."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    newest_first = sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)
    return next((path for path in newest_first if _is_complete(path)), None)


def drop_incomplete(folder: Path) -> None:
    """Remove checkpoints that a kill cut short, so that they are not counted among those to keep."""
    with writing(folder):
        for path in folder.glob("checkpoint-*"):
            if not _is_complete(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
