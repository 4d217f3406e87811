"""The assistant: the target's first K layers as a causal language model of their own, LoRA on top.

Everything but LoRA is the target's: the assistant's skeleton is built on the meta device and every leaf module that
holds tensors (embedding, linears, norms, rotary tables, head) is the target's own module object. So an assistant costs
its LoRA matrices, on any device and in any dtype, also after ``.to()``, and also when the target is quantised.

Nothing here depends on the name of a model family: a decoder is an embedding, a list of layers, a final norm and a
head, found through its config and modules.

Source: Ji et al. 2024, arXiv 2406.08607, Section 3.2.
"""

import copy
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from uld.errors import ULDError
from uld.model.checkpoint import (
    layers_of,
)
from uld.model.fields import number
from uld.model.gate import gate_of
from uld.model.lora import acting_linears, adapted, expert_stacks, from_layer, left_out, put_lora
from uld.model.slicing import settle

logger = logging.getLogger(__name__)

_LEAST_MOST_RANK = 64  # tiny models are also trained with the usual ranks


def default_num_layers(total: int) -> int:
    """K when the user names none: a quarter of the target's layers, rounded up (the paper: 8 of 32)."""
    return math.ceil(total / 4)


def slice_config(config: PreTrainedConfig, num_layers: int | None) -> PreTrainedConfig:
    """Config of the first K layers: the layer count and every per-layer list are cut, the rest is the target's.

    Args:
        config: The target's config (its text config, where it is composite).
        num_layers: K in 1…L; None takes `default_num_layers`.

    Returns:
        A new config.

    Raises:
        ULDError: K is not between 1 and the target's number of layers.
    """
    text = config.get_text_config(decoder=True)
    total = text.num_hidden_layers
    keep = default_num_layers(total) if num_layers is None else num_layers
    if not 1 <= keep <= total:
        raise ULDError(
            f"num_layers (K) is {keep}, but the target has {total} layers: "
            f"choose K between 1 and {total} (--num-layers)"
        )
    sliced = copy.deepcopy(text)
    for name, value in vars(text).items():
        per_layer = isinstance(value, list) and len(value) == total
        if per_layer and not name.endswith(("token_id", "token_ids")):  # there may be as many end tokens as layers
            setattr(sliced, name, value[:keep])
    sliced.num_hidden_layers = keep
    if shared := getattr(text, "num_kv_shared_layers", 0):  # the last so many layers use the keys of earlier ones
        sliced.num_kv_shared_layers = max(0, keep - (total - shared))
    return sliced


def build_assistant(target: PreTrainedModel, num_layers: int | None = None) -> PreTrainedModel:
    """The target's first K layers as a causal LM that shares every weight with it.

    Args:
        target: Any decoder-only causal LM of transformers, on any device; it is not changed.
        num_layers: K; None takes a quarter of the layers, rounded up.

    Returns:
        A causal LM of the target's class with K layers whose parameters *are* the target's.

    Raises:
        ULDError: K is out of range, or the target is not laid out as one decoder-only model.
    """
    config = slice_config(target.config, num_layers)
    if type(config) is not type(target.config):
        raise ULDError(f"{type(target).__name__} is more than a text decoder: only decoder-only models can be used")
    with torch.device("meta"):
        assistant = type(target)._from_config(
            config, dtype=target.dtype, attn_implementation=target.config._attn_implementation
        )
    shared = {  # of a model with LoRA, the modules below it
        name.replace(".base_layer", ""): module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        for name, module in target.named_modules()
    }
    settle_first(shared, assistant)
    for name, module in list(assistant.named_modules()):
        tensors = list(module.named_parameters(recurse=False)) + list(module.named_buffers(recurse=False))
        if not tensors:
            continue
        if name not in shared:
            raise ULDError(
                f"the target's {type(target).__name__} has no module {name!r}: its first layers cannot stand alone"
            )
        if any(True for _ in module.children()):
            _share_own_tensors(module, shared[name])
        else:
            parent, _, leaf = name.rpartition(".")
            setattr(assistant.get_submodule(parent), leaf, shared[name])
    missing = [name for name, tensor in [*assistant.named_parameters(), *assistant.named_buffers()] if tensor.is_meta]
    if missing and not any(t.is_meta for t in target.parameters()):
        raise ULDError(f"some tensors of the target's {type(target).__name__} could not be shared with an assistant")
    if missing and not all(t.is_meta for t in target.parameters()):  # of a target without weights only shapes are asked
        raise ULDError(
            f"{missing[0]} of the target is not in memory (device_map offloads it), and the assistant shares it: keep "
            f"the embedding, the first {config.num_hidden_layers} layers, the final norm and the head on a device"
        )
    assistant.eval()
    return assistant


def settle_first(whole: Mapping[str, nn.Module], part: PreTrainedModel) -> None:
    """`uld.model.slicing.settle`, with a sentence where it cannot.

    Raises:
        ULDError: something in the first layers depends on how many there are.
    """
    if (odd := settle(whole, part, decoder_layers(part)[0])) is not None:
        raise ULDError(
            f"the first layers of {type(part).__name__} cannot stand alone: {odd} depends on the number of layers"
        )


def _share_own_tensors(module: nn.Module, source: nn.Module) -> None:
    """Give a container module that holds tensors directly the source's own tensor objects."""
    for name in list(module._parameters):
        module._parameters[name] = source._parameters[name]
    for name in list(module._buffers):
        module._buffers[name] = source._buffers[name]


def base_model(model: Any) -> Any:
    """A causal LM without PEFT's wrapper, if it has one."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The name and the list of a model's decoder layers.

    Raises:
        ULDError: the model has no list of ``num_hidden_layers`` modules.
    """
    if (found := layers_of(model)) is not None:
        return found
    total = model.config.get_text_config(decoder=True).num_hidden_layers
    raise ULDError(
        f"{type(model).__name__} has no list of {total} decoder layers: only decoder-only models can be used"
    )


def refuse_lora(layers: nn.ModuleList, rank: int, last: int | None) -> None:
    """Refuse LoRA that these layers have no room for; they need no weights.

    Raises:
        ULDError: more layers than there are, or too large a rank.
    """
    refuse_more_layers(last, len(layers))
    sizes = [size for one in layers.parameters() if one.dim() == 2 for size in one.shape]
    if rank > (most := max([*sizes, _LEAST_MOST_RANK])):
        raise ULDError(f"--lora-rank {rank} is more than the model's matrices have room for: give at most {most}")


def refuse_more_layers(last: int | None, total: int) -> None:
    """Refuse LoRA on more of an assistant's last layers than it has.

    Raises:
        ULDError: says how many there are.
    """
    if last is not None and last > total:
        raise ULDError(f"--lora-layers is {last}, but the assistant has {total} layers: give at most so many")


def add_lora(
    assistant: PreTrainedModel,
    *,
    rank: int,
    alpha: int,
    dropout: float = 0.0,
    last: int | None = None,
    target_modules: str | list[str] = "all-linear",
) -> PeftModel:
    """Put trainable LoRA on the assistant's linears and experts (of its layers, never the head), by PEFT.

    Args:
        assistant: From `build_assistant` or `load_sliced`.
        rank: r, number of rows of each LoRA pair; the experts of a layer that are one parameter share it out.
        alpha: LoRA scale; the update is ``alpha / rank · B A x``.
        dropout: Dropout on the LoRA input. With it, experts that are one parameter get no LoRA.
        last: LoRA on so many of the layers, the last ones; default: on all K.
        target_modules: PEFT's ``target_modules``; ``all-linear``: what `uld.model.lora` finds.

    Returns:
        A `PeftModel` whose only trainable parameters are LoRA's, in fp32.

    Raises:
        ULDError: a rank that no matrix of the layers has room for, more layers than there are, or a model that cannot
            take LoRA.
    """
    layers, modules = decoder_layers(assistant)
    refuse_lora(modules, rank, last)
    first = 0 if last is None else len(modules) - last
    settings = {"rank": rank, "alpha": alpha, "dropout": dropout}
    try:
        if target_modules != "all-linear":
            return put_lora(assistant, target_modules, {}, **settings)  # type: ignore[arg-type]  # PEFT also takes a regex
        linears = from_layer(first, acting_linears(assistant, layers), layers)
        stacks = {} if dropout else expert_stacks(assistant, layers)
        stacks = {name: stacks[name] for name in from_layer(first, stacks, layers)}
        model = put_lora(assistant, linears, stacks, **settings)
        # PEFT takes some linears, by their names, for experts of an older layout, and leaves them out.
        have = adapted(model)
        taken = [name for name in linears if f"{name}.weight" not in have]
        if taken and not dropout:
            linears = [name for name in linears if name not in taken]
            model = put_lora(model.unload(), linears, stacks | {f"{one}.weight": 1 for one in taken}, **settings)  # type: ignore
    except Exception as error:  # whatever a family's forward or PEFT comes upon
        first = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise ULDError(f"{type(assistant).__name__} cannot be trained with LoRA: {first}") from error
    if (sentence := left_out(model, layers, first)) is not None:
        logger.warning("%s", sentence)
    return model


def text_decoder(model: Any) -> Any:
    """The part of a causal LM from embedding to final norm, without the head: its child that holds the layers."""
    child, _, inner = decoder_layers(model)[0].partition(".")
    return model.get_submodule(child) if inner else model.get_decoder()


def head_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits from final (normed) hidden states: the head and what the config puts behind it.

    Args:
        model: Causal LM.
        hidden: ``(..., hidden)`` output of the decoder, after its final norm.

    Returns:
        ``(..., vocab)``.
    """
    head: Any = model.get_output_embeddings()
    logits = head(hidden)
    if (scale := number(model.config, "logit_scale")) is not None:
        logits = logits * scale
    if (divisor := number(model.config, "logits_scaling")) is not None:
        logits = logits / divisor
    if (cap := number(model.config, "final_logit_softcapping")) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def gated_logits(assistant: Any, hidden: Tensor) -> Tensor:
    """An assistant's logits from its final normed states, through its gate if it has one.

    Args:
        assistant: Causal LM, or a `PeftModel` of one.
        hidden: ``(..., width)``.

    Returns:
        ``(..., vocab)``.
    """
    base = base_model(assistant)
    head: Any = base.get_output_embeddings()
    plain = type(head) is nn.Linear and head.bias is None  # which masks no token
    return through_gate(assistant, head_logits(base, hidden), hidden, masks=not plain)


def through_gate(assistant: Any, logits: Tensor, hidden: Tensor, *, masks: bool = True) -> Tensor:
    """Logits of the head as the assistant's gate lets them through, if it has one.

    Args:
        assistant: As for `gated_logits`.
        logits: ``(..., vocab)``.
        hidden: ``(..., width)``.
        masks: See `uld.model.gate.Gate.apply_to`.

    Returns:
        ``(..., vocab)``.
    """
    gate = gate_of(assistant)
    return logits if gate is None else gate.apply_to(logits, hidden, masks=masks)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> int:
    """Make sure that `head_logits` is what the model's own forward computes, on one token.

    Returns:
        Width of the final hidden states.

    Raises:
        ULDError: the family does something else between hidden states and logits.
    """
    ids = torch.tensor([[0, 1]], device=model.device)
    hidden = text_decoder(model)(input_ids=ids, use_cache=False).last_hidden_state
    expected = model(input_ids=ids, use_cache=False).logits
    rounding = 4 * torch.finfo(expected.dtype).eps  # the same arithmetic: a soft cap on small logits is hardly more
    size = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
    found = head_logits(model, hidden).to(expected.dtype)
    if not torch.allclose(found, expected, rtol=rounding, atol=rounding * size):
        raise ULDError(
            f"{type(model).__name__} computes its logits in a way that uld does not know, so it cannot be trained on"
        )
    return hidden.shape[-1]
