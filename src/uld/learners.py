"""What a method trains, loaded: an assistant, the target itself, or a small model behind a frozen target."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from uld.artifact import fingerprint
from uld.assistant import add_lora, build_assistant, check_head, decoder_layers, load_sliced, load_target
from uld.config import RunConfig, TrainConfig
from uld.errors import ULDError
from uld.methods.registry import Method, own_options
from uld.objective import Learner, OffsetLearner

LORA_RANK = 32
_ADAPTER_WEIGHTS = "adapter_model.safetensors"


def make_learner(config: TrainConfig, method: Method, options: Mapping[str, Any], dtype: str) -> Learner:
    """Load what a method trains, with the frozen model that its losses ask.

    Args:
        config: Settings of the run.
        method: The method.
        options: Its options, from `Method.read_options`.
        dtype: ``bf16``, ``fp32`` or ``auto``; a target without LoRA is always trained in fp32 (under bf16: autocast).

    Raises:
        ULDError: a model cannot be loaded, or does not fit the other.
    """
    if method.trains == "target":
        learner = _target_learner(config, method, options, dtype)
    elif method.trains == "offset":
        learner = _offset_learner(config, dtype)
    else:
        sliced = _load(config, dtype, config.num_layers)
        prints = {"target": fingerprint(sliced.named_parameters())}
        learner = Learner(with_lora(sliced, config))
        learner.fingerprints = prints
    check_head(learner.base)
    if method.tap is not None:
        total = learner.base.config.get_text_config(decoder=True).num_hidden_layers
        tapped = method.tap(total, **own_options(method.tap, options))
        learner.tap(tapped)
        # No gradient comes to what is behind, and DDP would wait for it.
        decoder_layers(learner.base)[1][tapped + 1 :].requires_grad_(False)
    return learner


def _load(config: TrainConfig, dtype: str, num_layers: int | None = None, whole: bool = False) -> PreTrainedModel:
    """The target's first layers, or all of it."""
    settings: dict[str, Any] = {
        "dtype": {"bf16": "bfloat16", "fp32": "float32"}.get(dtype, "auto"),
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
    }
    return load_target(config.target, **settings) if whole else load_sliced(config.target, num_layers, **settings)


def with_lora(model: PreTrainedModel, config: RunConfig) -> PeftModel:
    """LoRA on a model; with gradient checkpointing, if asked for."""
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()  # without it no gradient reaches LoRA through checkpointed layers
    return add_lora(model, rank=config.lora_rank or LORA_RANK, alpha=config.lora_alpha, dropout=config.lora_dropout)


def _target_learner(config: TrainConfig, method: Method, options: Mapping[str, Any], dtype: str) -> Learner:
    if config.num_layers is not None:
        raise ULDError(f"--num-layers is for an assistant, and {method.name} trains the target itself: leave it out")
    model = _load(config, dtype if config.lora_rank is not None else "fp32", whole=True)
    prints = {"target": fingerprint(model.named_parameters())}
    if config.lora_rank is not None:
        learner = Learner(with_lora(model, config))
        learner.fingerprints = prints
        return learner
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if method.restrict is not None:
        method.restrict(model, **own_options(method.restrict, options))
    frozen = None
    if any(loss.frozen for loss in method.losses):
        frozen = _load(config, dtype, whole=True).requires_grad_(False)
    learner = Learner(model, frozen)
    learner.fingerprints = prints
    return learner


def _offset_learner(config: TrainConfig, dtype: str) -> Learner:
    target = _load(config, dtype, whole=True).requires_grad_(False)
    if config.small is None:
        small = build_assistant(target, config.num_layers)
        prints = {"target": fingerprint(small.named_parameters())}
    else:
        small = load_target(config.small, dtype=target.dtype, trust_remote_code=config.trust_remote_code)
        mine, theirs = (m.config.get_text_config(decoder=True).vocab_size for m in (small, target))
        if mine != theirs:
            raise ULDError(
                f"{config.small} has a vocabulary of {mine} tokens and the target one of {theirs}: their logits cannot "
                "be added; choose a small model of the target's family with --small, or leave it out"
            )
        prints = {"target": fingerprint(target.named_parameters()), "small": fingerprint(small.named_parameters())}
    learner = OffsetLearner(with_lora(small, config), target, 1.0 if config.weight is None else config.weight)
    learner.fingerprints = prints
    return learner


def bytes_needed(learner: Learner) -> dict[str, int]:
    """Bytes that training holds besides activations: weights, frozen copy, gradients and AdamW's two moments."""
    parameters = list(learner.parameters())
    trained = [p for p in parameters if p.requires_grad]
    frozen = [p for model in learner.frozen_models for p in model.parameters()]
    own = {id(p) for p in parameters}
    size = sum(p.numel() * p.element_size() for p in trained)
    return {
        "weights": sum(p.numel() * p.element_size() for p in parameters),
        "frozen": sum(p.numel() * p.element_size() for p in {id(p): p for p in frozen if id(p) not in own}.values()),
        "gradients": size,
        "optimizer": 2 * size,
    }


def save_weights(model: Any, folder: Path) -> None:
    """Write what is trained: LoRA in PEFT's format, or a whole model in transformers'."""
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder), save_embedding_layers=False)
    else:
        model.save_pretrained(folder)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Read back what `save_weights` wrote."""
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_file(str(folder / _ADAPTER_WEIGHTS)))
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
