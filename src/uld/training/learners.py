"""What a method trains: an assistant, the target itself, a small model behind a frozen target, or a pair of them.

A `uld.training.learner.Learner` runs it and the frozen model that it started from; `make_learner` loads it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from uld.errors import ULDError
from uld.methods.registry import Method, get_method, own_options
from uld.model.assistant import (
    add_lora,
    base_model,
    build_assistant,
    check_head,
    decoder_layers,
    head_logits,
)
from uld.model.causal_lm import load_sliced, load_target
from uld.model.device import DTYPES
from uld.model.gate import add_gate
from uld.runs.manifest import PAIR, fingerprint
from uld.training.config import RunConfig, TrainConfig
from uld.training.learner import Learner, States
from uld.training.lower import without_dropout

LORA_RANK = 32


class OffsetLearner(Learner):
    """A frozen target whose logits a small model changes: ``l + α (la − la₀)`` (Eq. 11 of arXiv 2406.08607).

    The small model is trained through the combined logits; la₀ is the small model before training.
    """

    def __init__(
        self, model: PeftModel, target: Any, weight: float, fingerprints: Mapping[str, str] | None = None
    ) -> None:
        """Take the small model (with LoRA), the target, α, and fingerprints as for `Learner`."""
        super().__init__(model, fingerprints=fingerprints)
        self._target = (target,)
        self.weight = weight

    @property
    def frozen_models(self) -> list[Any]:
        """The target."""
        return list(self._target)

    def states(self, ids: Tensor, mask: Tensor, rows: Mapping[str, Tensor] | None = None) -> States:
        """A pass of all three models."""
        target, base = self._target[0], self.base
        with torch.no_grad():
            large, _ = self._pass(target, ids, mask)
            with self.model.disable_adapter(), without_dropout(base):
                before, _ = self._pass(base, ids, mask)
        after, _ = self._pass(base, ids, mask)

        def head(large: Tensor, after: Tensor, before: Tensor) -> Tensor:
            with torch.no_grad():
                fixed = head_logits(target, large).float() - self.weight * head_logits(base, before).float()
            return fixed + self.weight * head_logits(base, after).float()

        return States((large, after, before), head, self.vocab)

    @torch.no_grad()
    def frozen_states(self, ids: Tensor, mask: Tensor, trained: States | None = None) -> States:
        """Before training la = la₀, so the combined model is the target."""
        target = self._target[0]
        hidden = self._pass(target, ids, mask)[0] if trained is None else trained.hidden[0]
        return States((hidden,), lambda h: head_logits(target, h), self.vocab)


class PairLearner(Learner):
    """Two small models of one base, each trained on the rows of its own side; they share every weight but LoRA."""

    model: nn.ModuleDict

    @property
    def parts(self) -> list[Any]:
        """Both, in the order of `PAIR`."""
        return [self.model[side] for side in PAIR]

    def states(self, ids: Tensor, mask: Tensor, rows: Mapping[str, Tensor] | None = None) -> States:
        """A pass of each model over its rows; without ``rows`` the first reads all of them."""
        if rows is None:
            return super().states(ids, mask)
        hidden = None
        for side in PAIR:
            mine = rows[side]
            none = not bool(mine.any())
            chosen = torch.arange(len(mine), device=mine.device) == 0 if none else mine
            found = self._pass(base_model(self.model[side]), ids[chosen], mask[chosen])[0]
            if hidden is None:
                hidden = found.new_zeros(len(ids), ids.shape[1], found.shape[-1])
            if none:  # DDP waits for a gradient of every parameter, if only of 0
                hidden = hidden + 0 * found.sum()
            else:
                hidden = hidden.index_put((mine,), found.unflatten(0, (-1, ids.shape[1])))
        assert hidden is not None
        return States((hidden.flatten(0, 1),), lambda h: head_logits(self.base, h), self.vocab, self.base)


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
    elif method.trains == "pair":
        small, prints = _small_model(config, dtype)
        twin = build_assistant(small, small.config.get_text_config(decoder=True).num_hidden_layers)
        models = {side: trainable(one, config, lora=True) for side, one in zip(PAIR, (small, twin), strict=True)}
        learner = PairLearner(nn.ModuleDict(models), fingerprints=prints)
    else:
        every = method.every_layer or config.lora_layers is not None
        sliced = _load(config, dtype, config.num_layers, whole=every and config.num_layers is None)
        prints = {"target": fingerprint(sliced.named_parameters())}
        learner = Learner(trainable(sliced, config, lora=True, last=config.lora_layers), fingerprints=prints)
    width = check_head(learner.base)
    if config.gate:
        add_gate(learner.model, width)
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
        "dtype": DTYPES[dtype],
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
    }
    return load_target(config.target, **settings) if whole else load_sliced(config.target, num_layers, **settings)


def trainable(
    model: PreTrainedModel, config: RunConfig, *, lora: bool, last: int | None = None
) -> PreTrainedModel | PeftModel:
    """A model as it is trained: with LoRA or with all of its weights, with gradient checkpointing if asked for.

    Args:
        model: Is changed in place.
        config: Settings.
        lora: Whether it gets LoRA.
        last: On so many of its layers, the last ones; default: on all.
    """
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora:
            model.enable_input_require_grads()  # without it no gradient reaches LoRA through checkpointed layers
    if not lora:
        return model
    rank = config.lora_rank or LORA_RANK
    return add_lora(model, rank=rank, alpha=config.lora_alpha, dropout=config.lora_dropout, last=last)


def _target_learner(config: TrainConfig, method: Method, options: Mapping[str, Any], dtype: str) -> Learner:
    if config.num_layers is not None and (method.teacher is None or get_method(method.teacher).every_layer):
        raise ULDError(f"--num-layers is for an assistant, and {method.name} trains the target itself: leave it out")
    lora = config.lora_rank is not None
    model = _load(config, dtype if lora else "fp32", whole=True)
    prints = {"target": fingerprint(model.named_parameters())}
    if method.restrict is not None and not lora:
        method.restrict(model, **own_options(method.restrict, options))
    frozen = None
    if any(loss.frozen for loss in method.losses) and method.teacher is None and not lora:
        frozen = _load(config, dtype, whole=True).requires_grad_(False)
    return Learner(trainable(model, config, lora=lora), frozen, prints)


def _offset_learner(config: TrainConfig, dtype: str) -> Learner:
    target = _load(config, dtype, whole=True).requires_grad_(False)
    small, prints = _small_model(config, dtype, target)
    model: Any = trainable(small, config, lora=True)
    return OffsetLearner(model, target, 1.0 if config.weight is None else config.weight, prints)


def _small_model(
    config: TrainConfig, dtype: str, target: PreTrainedModel | None = None
) -> tuple[PreTrainedModel, dict[str, str]]:
    """The small model that the user names, or the target's first layers, and fingerprints as for `Learner`.

    Args:
        config: Settings of the run.
        dtype: As for `make_learner`.
        target: The target, where it is loaded: the first layers are then its own.

    Raises:
        ULDError: a model cannot be loaded, or the small one has another vocabulary.
    """
    if config.small is None:
        small = (
            _load(config, dtype, config.num_layers) if target is None else build_assistant(target, config.num_layers)
        )
        return small, {"target": fingerprint(small.named_parameters())}
    target = _load(config, dtype, whole=True) if target is None else target
    small = load_target(config.small, dtype=target.dtype, trust_remote_code=config.trust_remote_code)
    mine, theirs = (m.config.get_text_config(decoder=True).vocab_size for m in (small, target))
    if mine != theirs:
        raise ULDError(
            f"{config.small} has a vocabulary of {mine} tokens and the target one of {theirs}: their logits cannot "
            "be added; choose a small model of the target's family with --small, or leave it out"
        )
    return small, {"target": fingerprint(target.named_parameters()), "small": fingerprint(small.named_parameters())}


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


def memory_note(learner: Learner, method: Method) -> str:
    """What will be held in memory, in one sentence."""
    needed = bytes_needed(learner)
    parts = ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in needed.items())
    names = {"target": "the target itself", "pair": "two small models beside the target"}
    what = names.get(method.trains, "a small model beside the target")
    return f"{method.name} trains {what}: {sum(needed.values()) / 2**20:,.0f} MiB besides activations ({parts})"


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
