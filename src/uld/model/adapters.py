"""Adapters from disk: put on the model that they were trained on, and on no other."""

import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PeftModelForCausalLM, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from uld.errors import ArtifactError, explained
from uld.model.assistant import build_assistant
from uld.model.causal_lm import HUB, load_config, load_sliced, load_target
from uld.model.gate import load_gate
from uld.model.lora import quiet_peft
from uld.runs.digests import ADAPTER_CONFIG, ADAPTER_WEIGHTS, first_broken
from uld.runs.manifest import ADAPTER, PAIR, Manifest, fingerprint, refuse_changed

_OURS = {  # what may differ from PEFT's defaults: the rest would change weights that are the target's, or run regexes
    *("task_type", "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"),
    *("r", "lora_alpha", "lora_dropout", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"),
    "target_parameters",
    *("modules_to_save", "layers_to_transform", "fan_in_fan_out", "init_lora_weights", "inference_mode"),
}
_ROOT = "base_model.model."
_PATTERN = re.compile(r"(\.\*\\\.)?[\w.]+")  # a name, or any module that ends in one, as PEFT writes it for experts


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Put a saved LoRA adapter on a model; nothing of the model itself is changed, whatever the files say.

    Raises:
        ArtifactError: it is missing or damaged, holds NaN, is more than LoRA, or was made for other layers.
    """
    what = f"the adapter in {folder} cannot be loaded"
    with explained(what, ArtifactError):
        tensors = load_file(str(folder / ADAPTER_WEIGHTS))
    if broken := first_broken(tensors.items()):
        raise ArtifactError(f"{what}: {broken} holds NaN or infinite numbers")
    config = _lora_config(folder, tensors, what)
    with explained(what, ArtifactError), quiet_peft():
        # LoRA in the target's dtype: as many bytes as are needed, and no casts in every layer.
        adapter = PeftModelForCausalLM(model, config, autocast_adapter_dtype=False)
        wanted = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    for name in sorted(wanted.keys() ^ tensors.keys()):
        whose = "is not in its file" if name in wanted else "has no place in the model: it was made for other layers"
        raise ArtifactError(f"{what}: {name} {whose}")
    for name, tensor in wanted.items():
        if tensor.shape != tensors[name].shape:
            raise ArtifactError(f"{what}: {name} is {list(tensors[name].shape)}, and has to be {list(tensor.shape)}")
    with explained(what, ArtifactError):
        set_peft_model_state_dict(adapter, tensors)
        load_gate(adapter, folder)
    return adapter.eval()


def _lora_config(folder: Path, tensors: dict[str, Tensor], what: str) -> LoraConfig:
    """The adapter's own settings, if they are those of plain LoRA that touches nothing but itself.

    Raises:
        ArtifactError: which setting is none.
    """

    def refuse(name: str, value: Any) -> None:
        raise ArtifactError(f"{what}: its {ADAPTER_CONFIG} says {name} {str(value)[:80]!r}, which no run has")

    with explained(f"{what}: {ADAPTER_CONFIG}", ArtifactError):
        given: Any = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if not isinstance(given, dict):
        raise ArtifactError(f"{what}: its {ADAPTER_CONFIG} is not one JSON object")
    for name, own in (("peft_type", "LORA"), ("task_type", "CAUSAL_LM")):
        if given.get(name) != own:
            refuse(name, given.get(name))
    plain = LoraConfig(task_type="CAUSAL_LM").to_dict()  # type: ignore[arg-type]
    for name, value in given.items():
        if name in plain and name not in _OURS and value not in (plain[name], None, [], {}):
            refuse(name, value)
    if isinstance(start := given.get("init_lora_weights"), str) and start not in ("gaussian", "orthogonal"):
        refuse("init_lora_weights", start)
    patterns = {name: given.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
    for name, value in patterns.items():
        if not isinstance(value, dict) or not all(_PATTERN.fullmatch(key) for key in value):
            refuse(name, value)
    longest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    for rank in (given.get("r"), *patterns["rank_pattern"].values()):
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= longest:
            refuse("r", rank)  # before PEFT makes tensors of it
    for alpha in (given.get("lora_alpha"), *patterns["alpha_pattern"].values()):
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            refuse("lora_alpha", alpha)
    own = {name: value for name, value in given.items() if name in _OURS & plain.keys() and name != "peft_type"}
    # The tensors say where LoRA is, so that no pattern from a file is matched; all of them are overwritten by theirs.
    own |= {"init_lora_weights": True, "inference_mode": True}
    if isinstance(own.get("target_modules"), str):
        own["target_modules"] = sorted({name.removeprefix(_ROOT).rpartition(".lora_")[0] for name in tensors})
    with explained(what, ArtifactError):
        return LoraConfig(**own)


def verify_target(assistant: PreTrainedModel, manifest: Manifest, place: str, **trust: Any) -> None:
    """Refuse a target whose shared tensors are not those that the adapter was trained on.

    Args:
        assistant: From `build_assistant` or `load_sliced`, before LoRA is added.
        manifest: The run's.
        place: Where the target came from, for the message.
        trust: ``trust_remote_code``, as the target was loaded.

    Raises:
        ArtifactError: names both fingerprints.
    """
    hub = trust | {"revision": manifest.target_revision if place == manifest.target else None}
    read = partial(load_sliced, num_layers=manifest.num_layers)
    found = _fingerprint(assistant, manifest.target_fingerprint, place, read, **hub)
    if found != manifest.target_fingerprint:
        raise ArtifactError(
            f"the adapter belongs to another target: it was trained on {manifest.target} with fingerprint "
            f"{manifest.target_fingerprint}, but {place} has {found}"
        )


def _fingerprint(
    model: PreTrainedModel, wanted: str | None, place: str, read: Callable[..., PreTrainedModel], **hub: Any
) -> str | None:
    """The fingerprint of a model as it is stored.

    Args:
        model: As it was loaded.
        wanted: The fingerprint that it should have; also given back for one that cannot be compared.
        place: Where it came from.
        read: Loads it from there as it is stored.
        hub: Revision, ``trust_remote_code`` and the like, as it was loaded.
    """
    quantised = _quantised(model.config)
    if quantised and _quantised(load_config(place, **hub)):
        return wanted  # weights that are stored in few bits have bytes of their own: only names can be compared
    found = "" if quantised else fingerprint(model.named_parameters())
    if found != wanted and (quantised or model.dtype == torch.float16):
        # Fewer bits cannot hold every value of a bf16 or fp32 checkpoint, so the checkpoint itself is asked.
        found = fingerprint(read(place, **hub).named_parameters())
    return found


def _quantised(config: Any) -> bool:
    """Whether weights are held in few bits, as they are stored or as they were loaded."""
    return getattr(config, "quantization_config", None) is not None


def small_pair(
    target: PreTrainedModel, manifest: Manifest, folder: Path, place: str, **trust: Any
) -> list[PreTrainedModel | PeftModel]:
    """The two small models of an Offset run or a pair, which share every weight but LoRA.

    Of Offset the trained one, and the same before training; of a pair the one of the retain side, and the one of the
    forget side. The logits of the first are added, those of the second subtracted.

    Args:
        target: The run's target, loaded.
        manifest: The run's.
        folder: The run folder.
        place: Where the target came from, for messages.
        trust: ``trust_remote_code``, for both.

    Raises:
        ULDError: the target or the small model is not the run's.
    """
    if manifest.small is None:
        frozen = build_assistant(target, manifest.num_layers)
        verify_target(frozen, manifest, place, **trust)
    else:
        hub = trust | {"revision": manifest.target_revision if place == manifest.target else None}
        refuse_other_model("target", target, manifest.target_fingerprint, place, **hub)
        frozen = load_target(manifest.small, dtype=target.dtype, **trust).to(target.device)  # type: ignore[arg-type]
        refuse_other_model("small model", frozen, manifest.small_fingerprint, manifest.small, **trust)
    if manifest.trains == "offset":
        return [load_adapter(build_assistant(frozen, manifest.num_layers), folder / ADAPTER), frozen]
    return [load_adapter(build_assistant(frozen, manifest.num_layers), folder / ADAPTER / side) for side in PAIR]


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
    refuse_changed(folder, manifest)
    if not (folder / ADAPTER).exists():
        model = load_target(folder, **kwargs)
        if broken := first_broken(model.named_parameters()):
            raise ArtifactError(f"the weights in {folder} cannot be used: {broken} holds NaN or infinite numbers")
        return model
    place = str(target or manifest.target)
    if kwargs.get("revision") is None and place == manifest.target:
        kwargs["revision"] = manifest.target_revision
    model = load_target(place, **kwargs)
    hub = {name: kwargs[name] for name in (*HUB, "trust_remote_code") if name in kwargs}
    refuse_other_model("target", model, manifest.target_fingerprint, place, **hub)
    merged: Any = load_adapter(model, folder / ADAPTER).merge_and_unload()  # type: ignore[operator]
    return merged.eval()


def refuse_other_model(what: str, model: PreTrainedModel, wanted: str | None, place: str, **hub: Any) -> None:
    """Refuse a whole model that a run was not trained with, however many bits its weights were loaded in.

    Raises:
        ArtifactError: names both fingerprints.
    """
    refuse_other(what, _fingerprint(model, wanted, place, load_target, **hub), wanted, place)


def refuse_other(what: str, found: str | None, wanted: str | None, place: str) -> None:
    """Refuse weights that a run was not trained with.

    Raises:
        ArtifactError: names both fingerprints.
    """
    if found != wanted:
        raise ArtifactError(
            f"the run belongs to another {what}: it was trained with fingerprint {wanted}, but {place} has {found}"
        )
