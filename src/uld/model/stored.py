"""What a stored run brings to an unlearned model: how it is combined, and its assistants."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from uld.errors import ConfigError, ULDError
from uld.model.adapters import load_adapter, small_pair, verify_target
from uld.model.assistant import build_assistant
from uld.model.causal_lm import load_target
from uld.model.combine import Combination
from uld.runs.manifest import ADAPTER, MANIFEST, Manifest, refuse_changed


def combination_of(manifest: Manifest, folder: Path, changes: Mapping[str, Any]) -> Combination:
    """How a run is combined.

    Args:
        manifest: Of the run.
        folder: Where it is.
        changes: Settings that take the place of its own where they are not None.

    Raises:
        ULDError: it has no assistant, was changed after training, or a setting does not go with it.
    """
    try:
        stored = Combination(**manifest.combination.model_dump())
    except ULDError as error:
        raise ULDError(f"{folder / MANIFEST} is damaged: {error}") from error
    how = stored.override(**changes)
    if manifest.trains == "target":
        raise ULDError(f"{folder} holds a target that {manifest.method} has trained, not an assistant: use uld.load")
    if how.paired != (manifest.trains in ("offset", "pair")):
        raise ULDError(f"{folder} was trained by {manifest.method}: the rule {how.rule} does not go with it (--rule)")
    refuse_changed(folder, manifest)
    return how


def target_of(folder: Path, place: str, **kwargs: Any) -> PreTrainedModel:
    """The target of a run.

    Args:
        folder: Of the run.
        place: Where the target is.
        kwargs: See `uld.model.causal_lm.load_target`.

    Raises:
        ULDError: it cannot be loaded from there, or so.
    """
    try:
        return load_target(place, **kwargs)
    except ConfigError:
        raise
    except ULDError as error:
        raise ULDError(f"{error}; if the target of {folder} is elsewhere now, name it with --target") from error


def assistants_of(manifest: Manifest, folder: Path, target: PreTrainedModel, place: str, **trust: Any) -> list[Any]:
    """The trained models of a run: its assistant, or two small models.

    Args:
        manifest: Of the run.
        folder: Where it is.
        target: Loaded.
        place: Where the target is.
        trust: Whether to run the target's code.

    Raises:
        ULDError: another target, or what is stored does not fit it.
    """
    if manifest.trains in ("offset", "pair"):
        return list(small_pair(target, manifest, folder, place, **trust))
    try:
        assistant = build_assistant(target, manifest.num_layers)
    except ULDError as error:
        raise ULDError(f"{folder}: {error}") from error
    verify_target(assistant, manifest, place, **trust)
    return [load_adapter(assistant, folder / ADAPTER)]
