"""A run folder while training works in it: who may start there, the lock, the checkpoints, and what is left behind.

`uld.artifact` says what a finished run holds; this module guards the way there.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from uld.artifact import (
    ADAPTER,
    CHECKPOINTS,
    EPOCHS,
    MANIFEST,
    METRICS,
    RETAIN_DRAWN,
    ArtifactError,
    DataFile,
    file_digest,
    write_text,
    writing,
)
from uld.config import (
    ConfigError,
    FinetuneConfig,
    RunConfig,
    TrainConfig,
    finetune_config,
    flag,
    read_yaml,
    setting_fields,
    train_config,
)

LOCK = ".lock"
STARTED = "started.json"  # beside the checkpoints, see `Started`
COMPLETE = "complete.json"  # in a checkpoint: the digest of every other file, written last
_TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
_TOKENIZER |= {"chat_template.jinja", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model"}
_UNFINISHED = {METRICS, RETAIN_DRAWN, CHECKPOINTS, EPOCHS, "runs"}  # runs: what an experiment tracker writes
_FINISHED = {"config.json", "generation_config.json", "eval"} | _TOKENIZER


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
    TrainConfig.FILE,
    MANIFEST,
    frozenset({ADAPTER, "tune.json", "tune.png"} | _UNFINISHED | _FINISHED),
)
MODEL = Layout("uld finetune", FinetuneConfig.FILE, "finetune.json", frozenset(_UNFINISHED | _FINISHED))


class Started(BaseModel):
    """What a training was started on; a run that goes on elsewhere would be a mixture of two.

    Attributes:
        target: Folder or Hub id of the model that training started from, for messages.
        target_fingerprint: `uld.artifact.fingerprint` of its weights.
        data: Files that are trained on.
    """

    target: str
    target_fingerprint: str
    data: dict[str, list[DataFile]]


def refuse_taken(config: RunConfig, *, resume: bool, overwrite: bool) -> None:
    """Refuse an output folder that another process works in, that holds something else, or another run to resume.

    Args:
        config: Settings of the training that is asked for.
        resume: Whether the run in the folder is to be continued.
        overwrite: Whether it may be replaced.

    Raises:
        ULDError: what is in the way and which flag mends it.
    """
    if resume and overwrite:
        raise ConfigError("--resume continues a run and --overwrite replaces it: give one or the other")
    output = Path(config.output)
    refuse_busy(output)
    check_output(output, MODEL if isinstance(config, FinetuneConfig) else RUN, resume=resume, overwrite=overwrite)
    if resume:
        stored = stored_finetuning(output) if isinstance(config, FinetuneConfig) else stored_settings(output)
        refuse_other_settings(output, config, stored)


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
    names = {path.name for path in output.iterdir() if not path.name.startswith(".")} if output.exists() else set()
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


def refuse_other_settings(output: Path, config: RunConfig, stored: RunConfig) -> None:
    """Make sure that a run is continued under the settings that it was started with; only its folder may move.

    Raises:
        ArtifactError: names the first setting that differs.
    """
    for field in setting_fields(type(config)):
        now, then = getattr(config, field.name), getattr(stored, field.name)
        if now != then and field.name != "output":
            raise ArtifactError(
                f"{flag(field.name)} is {now}, but the run in {output} was started with {then}: leave it out, or start "
                "over with --overwrite"
            )


def stored_settings(output: Path) -> TrainConfig:
    """The settings that a run was started with."""
    path = output / TrainConfig.FILE
    return train_config([(str(path), read_yaml(path))])


def stored_finetuning(output: Path) -> FinetuneConfig:
    """The settings that a finetuning was started with."""
    path = output / FinetuneConfig.FILE
    return finetune_config([(str(path), read_yaml(path))])


def refuse_other_inputs(output: Path, started: Started) -> None:
    """Make sure that a run is continued on the model and the data that it was started with, and note them if new.

    Raises:
        ArtifactError: the model or a data file has changed since.
    """
    path = output / CHECKPOINTS / STARTED
    if path.exists():
        before = Started.model_validate_json(path.read_text(encoding="utf-8"))
        if before.target_fingerprint != started.target_fingerprint:
            model = f"the target {started.target}" if started.target else "the model that these settings give"
            raise ArtifactError(f"{model} is not the one that the run in {output} was started on")
        known = [file for files in before.data.values() for file in files]
        if changed := [file for files in started.data.values() for file in files if file not in known]:
            raise ArtifactError(
                f"{changed[0].path} has changed since the run in {output} was started: start over with --overwrite"
            )
    write_text(path, started.model_dump_json(indent=2) + "\n")


def refuse_busy(folder: Path) -> None:
    """Look whether another process works in a folder, without leaving a trace.

    Raises:
        ArtifactError: one does.
    """
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return
    try:
        _lock(handle, folder)
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    """Lock an open lock file; the lock goes with the process, however it ends."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # One that ended just now has removed the file that we opened: its name is no longer ours to hold.
        same = os.fstat(handle).st_ino == os.stat(folder / LOCK).st_ino
    except OSError:
        same = False
    if not same:
        raise ArtifactError(
            f"another run is working in {folder}: wait for it to end, or choose another folder (--output)"
        )


@contextmanager
def held(output: Path, layout: Layout = RUN, *, resume: bool = False, overwrite: bool = False) -> Iterator[None]:
    """Hold a run folder for this process alone, cleared if it is to be replaced.

    A folder that did not exist before and in which nothing came to be worth keeping (no checkpoint) goes again when
    the block fails.

    Raises:
        ArtifactError: another process works in it, or `check_output` refuses it.
    """
    existed = output.exists()
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        handle = os.open(output / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(handle, output)
        check_output(output, layout, resume=resume, overwrite=overwrite)
        if overwrite:
            _clear(output, layout)
        try:
            yield
        except BaseException:
            left = {path.name for path in output.iterdir()}
            if (
                not existed
                and not last_checkpoint(output / CHECKPOINTS)
                and left <= _UNFINISHED | {LOCK, layout.settings}
            ):
                shutil.rmtree(output, ignore_errors=True)
            raise
        (output / LOCK).unlink(missing_ok=True)
    finally:
        os.close(handle)


def _is_weights(name: str) -> bool:
    """Whether a file holds weights of a whole model, or says in which file which are."""
    return name.startswith("model") and name.endswith((".safetensors", ".safetensors.index.json"))


def _clear(output: Path, layout: Layout) -> None:
    """Remove a run's own files, what marks it as finished first: a kill leaves an unfinished run, not a broken one."""
    weights = [path.name for path in output.iterdir() if _is_weights(path.name)]
    for name in (layout.finished, *sorted(layout.rest), *weights, layout.settings):
        path = output / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def seal(checkpoint: Path) -> None:
    """Mark a checkpoint as complete: what is not sealed, or not as it was sealed, is never continued from."""
    digests = {path.name: file_digest(path) for path in sorted(checkpoint.iterdir()) if path.name != COMPLETE}
    write_text(checkpoint / COMPLETE, json.dumps(digests, indent=2) + "\n")


def _is_complete(checkpoint: Path) -> bool:
    """Whether every file of a checkpoint is as it was sealed."""
    try:
        digests = json.loads((checkpoint / COMPLETE).read_text())
        return all(file_digest(checkpoint / name) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        return False


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; one that a kill cut short is passed over."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    newest_first = sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)
    return next((path for path in newest_first if _is_complete(path)), None)


def drop_incomplete(folder: Path) -> None:
    """Remove checkpoints that a kill cut short, so that they are not counted among those to keep."""
    with suppress(OSError):
        for path in folder.glob("checkpoint-*"):
            if not _is_complete(path):
                shutil.rmtree(path, ignore_errors=True)
