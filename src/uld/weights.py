"""What is trained as files: an adapter, those of a pair, or a whole model; and a method's last step on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from uld.artifact import write_lora
from uld.digests import ADAPTER_WEIGHTS
from uld.errors import ULDError
from uld.gate import load_gate, save_gate
from uld.methods.registry import Method, own_options


def adapters_of(model: Any) -> dict[str, PeftModel]:
    """The adapters of what is trained, by the folder in which each lies below that of all; none of a whole model."""
    if isinstance(model, nn.ModuleDict):
        return dict(model.items())  # type: ignore[arg-type]
    return {"": model} if isinstance(model, PeftModel) else {}


def save_weights(model: Any, folder: Path) -> None:
    """Write what is trained: LoRA in PEFT's format, or a whole model in transformers'."""
    for name, part in adapters_of(model).items():
        write_lora(part, folder / name)
        save_gate(part, folder / name)
    if not adapters_of(model):
        model.save_pretrained(folder)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Read back what `save_weights` wrote."""
    for name, part in adapters_of(model).items():
        set_peft_model_state_dict(part, load_file(str(folder / name / ADAPTER_WEIGHTS)))
        load_gate(part, folder / name)
    if adapters_of(model):
        return
    stored = {
        name: tensor
        for path in sorted(folder.glob("model*.safetensors"))
        for name, tensor in load_file(str(path)).items()
    }
    missing, surplus = model.load_state_dict(stored, strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if surplus or set(missing) - tied:
        raise ULDError(f"{folder} does not hold the weights of this model")


@torch.no_grad()
def finish_weights(model: Any, before: PreTrainedModel | None, method: Method, options: Mapping[str, Any]) -> None:
    """Apply a method's last step to what was trained, in place.

    Args:
        model: As trained.
        before: The target as it was; None for LoRA, whose update starts from 0.
        method: With a ``finish``.
        options: Its options.
    """
    assert method.finish is not None
    own = own_options(method.finish, options)
    start = dict(before.named_parameters()) if before is not None else {}
    for name, parameter in model.named_parameters():
        if before is not None:
            parameter.copy_(method.finish(parameter, start[name].to(parameter), **own))
        elif "lora_B" in name:
            parameter.copy_(method.finish(parameter, torch.zeros_like(parameter), **own))
