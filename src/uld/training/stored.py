"""The settings that a run folder was started with, and whether a call with these settings may work in it."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from uld.errors import ConfigError, flag
from uld.runs.files import copy_folder, new_folder, write_text, writing
from uld.runs.folder import (
    BEFORE,
    MODEL,
    RUN,
    STARTED,
    Layout,
    Started,
    UnresumableError,
    check_output,
    check_resumable,
    refuse_busy,
)
from uld.runs.manifest import ADAPTER, CHECKPOINTS, MANIFEST, Manifest, is_run, refuse_changed
from uld.runs.places import refuse_sources
from uld.training.config import FinetuneConfig, RunConfig, TrainConfig, read_yaml, setting_fields
from uld.training.settings import C, layered

_MAY_CHANGE = ("output", "save_steps")  # settings that decide nothing of what a run comes to


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
    refuse_sources(output, sources_of(config), clears=overwrite)
    with writing(output):
        refuse_busy(output)
        if not resume:
            check_output(output, layout_of(config), resume=False, overwrite=overwrite)
    if resume:
        more = finished_before(config) is not None
        check_resumable(output, layout_of(config), more=more)
        may = {"rounds", "keep_epochs"} if more and is_run(output) else set()
        refuse_other_settings(output, config, stored(type(config), output), may)


def sources_of(config: RunConfig) -> dict[str, Sequence[str]]:
    """Files and folders that the settings name to be read, by their flags."""
    given = {flag(name): getattr(config, name, ()) for name in ("forget", "retain", "augment", "augmented", "file")}
    return {name: (one,) if isinstance(one, str) else one or () for name, one in given.items()}


def layout_of(config: RunConfig) -> Layout:
    """What the command of these settings writes."""
    return MODEL if isinstance(config, FinetuneConfig) else RUN


def refuse_other_settings(output: Path, config: RunConfig, before: RunConfig, may: Collection[str] = ()) -> None:
    """Make sure that a run is continued under the settings that it was started with, but for its folder and its saving.

    Args:
        output: The run folder.
        config: Settings now.
        before: Settings then.
        may: Names of further settings that may be others.

    Raises:
        UnresumableError: names the first setting that differs.
    """
    for field in setting_fields(type(config)):
        now, then = getattr(config, field.name), getattr(before, field.name)
        if now != then and field.name not in (*_MAY_CHANGE, *may):
            raise UnresumableError(
                f"{flag(field.name)} is {now}, but the run in {output} was started with {then}: leave it out, or start "
                "over with --overwrite"
            )


def resumed(config: C, layers: Sequence[tuple[str, Mapping[str, Any]]]) -> C:
    """The settings that a run was started with, and over them those that a layer names.

    Raises:
        ULDError: there is no run to continue.
    """
    output = Path(config.output)
    if not (output / layout_of(config).settings).is_file():
        check_resumable(output, layout_of(config))
    named = {name: getattr(config, name) for _, layer in layers for name, value in layer.items() if value is not None}
    chosen = replace(stored(type(config), output), **named)
    check_resumable(output, layout_of(config), more=finished_before(chosen) is not None)
    return chosen


def finished_before(config: RunConfig) -> Manifest | None:
    """The ``uld.json`` of a finished run that is to get more rounds, or is getting them; None where there is none."""
    if not isinstance(config, TrainConfig) or not config.rounds:
        return None
    output = Path(config.output)
    if is_run(output):
        manifest = Manifest.read(output)
        return manifest if config.rounds > len(manifest.training.get("rounds", ())) else None
    before = output / CHECKPOINTS / BEFORE
    return Manifest.read(before) if is_run(before) else None


def note_before(output: Path) -> None:
    """Keep what a finished run was until it has got its rounds: its adapter, how it was combined, what it read.

    Raises:
        ArtifactError: its weights are not those that were trained, or the folder cannot be written.
    """
    if not is_run(output):
        return
    manifest = Manifest.read(output)
    refuse_changed(output, manifest)
    started = Started.model_validate(manifest, from_attributes=True)
    with new_folder(output / CHECKPOINTS / BEFORE, replace=True) as folder:
        copy_folder(output / ADAPTER, folder / ADAPTER)
        shutil.copyfile(output / MANIFEST, folder / MANIFEST)
        write_text(output / CHECKPOINTS / STARTED, started.model_dump_json(indent=2) + "\n")


def stored(kind: type[C], output: Path) -> C:
    """The settings that a run, or a finetuning, was started with."""
    path = output / kind.FILE
    return layered(kind, [(str(path), read_yaml(path))])


def stored_settings(output: Path) -> TrainConfig:
    """The settings that a run was started with."""
    return stored(TrainConfig, output)
