"""Adapters from disk: put on the model that they were trained on, and on no other."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

from uld.artifact import ADAPTER, ArtifactError, Manifest, fingerprint
from uld.assistant import build_assistant, load_sliced, load_target, quiet_peft
from uld.gate import load_gate


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Put a saved adapter on a model.

    Raises:
        ArtifactError: it is missing or damaged, or made for other layers.
    """
    try:
        with quiet_peft():
            warnings.filterwarnings("error", "Found missing adapter keys")
            # LoRA in the target's dtype: as many bytes as are needed, and no casts in every layer.
            adapted = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False)
            load_gate(adapted, folder)
            return adapted
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, UserWarning, SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtifactError(f"the adapter in {folder} cannot be loaded: {first}") from error


def verify_target(assistant: PreTrainedModel, manifest: Manifest, place: str) -> None:
    """Refuse a target whose shared tensors are not those that the adapter was trained on.

    Args:
        assistant: From `build_assistant` or `load_sliced`, before LoRA is added.
        manifest: The run's.
        place: Where the target came from, for the message.

    Raises:
        ArtifactError: names both fingerprints.
    """
    if getattr(assistant, "is_quantized", False):
        return  # quantised weights have bytes of their own: the name of the target is all that can be compared
    found = fingerprint(assistant.named_parameters())
    if found != manifest.target_fingerprint and assistant.dtype == torch.float16:
        # fp16 cannot hold every value of a bf16 or fp32 checkpoint, so the checkpoint itself is asked.
        revision = manifest.target_revision if place == manifest.target else None
        stored = load_sliced(place, manifest.num_layers, revision=revision)
        found = fingerprint(stored.named_parameters())
    if found != manifest.target_fingerprint:
        raise ArtifactError(
            f"the adapter belongs to another target: it was trained on {manifest.target} with fingerprint "
            f"{manifest.target_fingerprint}, but {place} has {found}"
        )


def offset_pair(
    target: PreTrainedModel, manifest: Manifest, folder: Path, place: str
) -> list[PreTrainedModel | PeftModel]:
    """The trained small model of an Offset run, and the same before training; they share every weight but LoRA.

    Args:
        target: The run's target, loaded.
        manifest: The run's.
        folder: The run folder.
        place: Where the target came from, for messages.

    Raises:
        ULDError: the target or the small model is not the run's.
    """
    if manifest.small is None:
        frozen = build_assistant(target, manifest.num_layers)
        verify_target(frozen, manifest, place)
    else:
        refuse_other("target", fingerprint(target.named_parameters()), manifest.target_fingerprint, place)
        frozen = load_target(manifest.small, dtype=target.dtype).to(target.device)  # type: ignore[arg-type]
        refuse_other("small model", fingerprint(frozen.named_parameters()), manifest.small_fingerprint, manifest.small)
    trained = build_assistant(frozen, manifest.num_layers)
    return [load_adapter(trained, folder / ADAPTER), frozen]


def load_trained_target(
    folder: Path, manifest: Manifest, target: str | Path | None = None, **kwargs: Any
) -> PreTrainedModel:
    """The target as a method left it: from the run's own weights, or from its LoRA, merged into the target.

    Args:
        folder: The run folder.
        manifest: The run's.
        target: Where the target is now, if not where it was; not used for a run that holds whole weights.
        kwargs: Handed to ``from_pretrained``.

    Raises:
        ULDError: the target is another one, or the weights cannot be read.
    """
    if not (folder / ADAPTER).exists():
        return load_target(folder, **kwargs)
    place = str(target or manifest.target)
    if kwargs.get("revision") is None and place == manifest.target:
        kwargs["revision"] = manifest.target_revision
    model = load_target(place, **kwargs)
    refuse_other("target", fingerprint(model.named_parameters()), manifest.target_fingerprint, place)
    merged: Any = load_adapter(model, folder / ADAPTER).merge_and_unload()  # type: ignore[operator]
    return merged.eval()


def refuse_other(what: str, found: str, wanted: str | None, place: str) -> None:
    """Refuse weights that a run was not trained with.

    Raises:
        ArtifactError: names both fingerprints.
    """
    if found != wanted:
        raise ArtifactError(
            f"the run belongs to another {what}: it was trained with fingerprint {wanted}, but {place} has {found}"
        )
