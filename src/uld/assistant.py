"""The assistant: the target's first K layers as a causal language model of their own, LoRA on top.

Everything but LoRA is the target's: the assistant's skeleton is built on the meta device and every leaf module that
holds tensors (embedding, linears, norms, rotary tables, head) is the target's own module object. So an assistant costs
its LoRA matrices, on any device and in any dtype, also after ``.to()``, and also when the target is quantised.

Nothing here depends on the name of a model family: a decoder is an embedding, a list of layers, a final norm and a
head, found through its config and modules.

Source: Ji et al. 2024, arXiv 2406.08607, Section 3.2.
"""

import copy
import json
import logging
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from uld.checkpoint import (
    WEIGHTS,
    WEIGHTS_INDEX,
    file_of,
    json_of,
    layers_of,
    of_config,
    of_files,
    of_weights,
    quiet_transformers,
)
from uld.errors import ULDError, explained, is_out_of_memory
from uld.fields import number
from uld.gate import gate_of
from uld.lora import acting_linears, adapted, expert_stacks, left_out, put_lora
from uld.slicing import settle

logger = logging.getLogger(__name__)

HUB = ("revision", "token", "cache_dir", "local_files_only")
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
    _settle(shared, assistant)
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
    if any(t.is_meta for t in [*assistant.parameters(), *assistant.buffers()]) and not any(
        t.is_meta for t in target.parameters()
    ):
        raise ULDError(f"some tensors of the target's {type(target).__name__} could not be shared with an assistant")
    assistant.eval()
    return assistant


def _settle(whole: Mapping[str, nn.Module], part: PreTrainedModel) -> None:
    """`uld.slicing.settle`, with a sentence where it cannot."""
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


def load_sliced(
    target: str | Path,
    num_layers: int | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load only the embedding, the first K layers, the final norm and the head of a checkpoint.

    Tensors of deeper layers are never read, and shards that hold nothing else are neither downloaded nor opened.
    The result is an ordinary model: `peft.PeftModel.from_pretrained(load_sliced(...), adapter)` works on it.

    Args:
        target: Folder or Hub id of a causal LM with safetensors weights.
        num_layers: K; None takes a quarter of the layers, rounded up.
        dtype: Dtype of the weights; ``auto`` keeps the checkpoint's.
        revision: Hub revision.
        trust_remote_code: Run code that comes with the checkpoint.
        kwargs: Handed to ``from_pretrained`` (``device_map``, ``quantization_config``, …).

    Returns:
        A causal LM with K layers.

    Raises:
        ULDError: the model cannot be found or K is out of range.
    """
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    files = {"revision": revision} | {name: kwargs[name] for name in HUB if name in kwargs}
    config = load_config(target, trust_remote_code=trust_remote_code, **files)
    sliced = slice_config(config, num_layers)
    skeleton = _skeleton(target, config, trust_remote_code)
    if type(sliced) is not type(skeleton.config):
        raise ULDError(
            f"{str(target)!r} is a {type(skeleton).__name__}, which is more than a text decoder (it also reads images "
            "or sound): only decoder-only language models can be used"
        )
    keep, total = sliced.num_hidden_layers, skeleton.config.num_hidden_layers
    what = f"the first {keep} layers of {str(target)!r} cannot stand alone (--num-layers)"
    modules = dict(skeleton.named_modules())
    with explained(what), torch.device("meta"):
        first = AutoModelForCausalLM.from_config(sliced, trust_remote_code=trust_remote_code)
    _settle(modules, first)
    with explained(_cannot_load(target)):
        index_file = file_of(target, WEIGHTS_INDEX, **files)
        single = file_of(target, WEIGHTS, **files)  # downloaded here, where its progress is shown
    _refuse_odd_weights(target, skeleton, keep)
    if index_file is None or single is not None:
        with quiet_transformers():
            model = _from_pretrained(target, sliced, skeleton, dtype=dtype, **hub, **kwargs)
        _settle(modules, model)
        return model
    with explained(_cannot_load(target)):
        index = json.loads(index_file.read_text(encoding="utf-8"))
        deeper = tuple(f"{decoder_layers(skeleton)[0]}.{i}." for i in range(keep, total)) or ("\0",)
        index["weight_map"] = {k: v for k, v in index["weight_map"].items() if not k.startswith(deeper)}
        shards = {shard: file_of(target, shard, **files) for shard in sorted(set(index["weight_map"].values()))}
    with tempfile.TemporaryDirectory(prefix="uld-slice-") as folder:
        for shard, path in shards.items():
            if path is None:
                raise ULDError(f"{_cannot_load(target)}: it lacks {shard}, which holds tensors of its first layers")
            Path(folder, shard).symlink_to(path.resolve())
        Path(folder, WEIGHTS_INDEX).write_text(json.dumps(index))
        config.save_pretrained(folder)
        with quiet_transformers():
            kwargs |= {"trust_remote_code": trust_remote_code, "dtype": dtype}
            model = _from_pretrained(folder, sliced, skeleton, name=str(target), **kwargs)
    _settle(modules, model)
    model.name_or_path = model.config.name_or_path = str(target)
    return model


def load_config(target: str | Path, *, trust_remote_code: bool | None = False, **hub: Any) -> PreTrainedConfig:
    """The config of a decoder-only language model in a folder or on the Hub.

    Args:
        target: Folder or Hub id.
        trust_remote_code: Run code that comes with it. Always handed on: left out, transformers would ask a terminal.
        hub: Revision and the like.

    Raises:
        ULDError: no such folder or Hub model, or it is none of a decoder-only language model.
    """
    what = f"cannot load a model from {str(target)!r}"
    if os.path.isfile(target) or (os.path.isabs(target) and not os.path.isdir(target)):
        raise ULDError(f"{what}: it is {'a file' if os.path.isfile(target) else 'no folder'}")
    with explained(what):
        files = [json_of(target, name, **hub) for name in ("config.json", "adapter_config.json", "uld.json")]
    if (reason := of_files(*files)) is None:
        with explained(what):
            config = AutoConfig.from_pretrained(str(target), trust_remote_code=bool(trust_remote_code), **hub)
        if (reason := of_config(config)) is None:
            return config
    raise ULDError(f"{what}: {reason}")


def load_target(
    target: str | Path, *, dtype: str | torch.dtype = "auto", trust_remote_code: bool | None = False, **kwargs: Any
) -> PreTrainedModel:
    """Load a whole causal LM from a folder or the Hub.

    Raises:
        ULDError: the model cannot be found or read.
    """
    hub = {name: kwargs[name] for name in HUB if name in kwargs}
    trust = bool(trust_remote_code)
    config = load_config(target, trust_remote_code=trust, **hub)
    skeleton = _skeleton(target, config, trust)
    _refuse_odd_weights(target, skeleton)
    return _from_pretrained(target, config, skeleton, dtype=dtype, trust_remote_code=trust, **kwargs)


def _cannot_load(target: str | Path) -> str:
    return f"cannot load a causal language model from {str(target)!r}"


def _skeleton(target: str | Path, config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """The whole model without a byte of weights: a config that makes no model is found out before they are read."""
    with explained(_cannot_load(target)), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def _refuse_odd_weights(target: str | Path, skeleton: PreTrainedModel, keep: int | None = None) -> None:
    """Refuse weights in a folder that are damaged or not those that the config says; of K layers, only what is read.

    Raises:
        ULDError: with the first reason.
    """
    with explained(_cannot_load(target)):
        if reason := of_weights(Path(target), skeleton, keep):
            raise ULDError(f"{_cannot_load(target)}: {reason}")


def _from_pretrained(
    target: str | Path, config: PreTrainedConfig, skeleton: PreTrainedModel, *, name: str = "", **kwargs: Any
) -> PreTrainedModel:
    """Load weights into the architecture that the config says; missing weights are an error, surplus ones are not.

    Args:
        target: Where the files are.
        config: The architecture.
        skeleton: The whole model on the meta device.
        name: What the user calls the place, for messages.
        kwargs: Handed to ``from_pretrained``.
    """
    name = name or str(target)
    with explained(_cannot_load(name)):
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(target), config=config, output_loading_info=True, **kwargs
            )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            size = sum(one.numel() * one.element_size() for one in skeleton.parameters())
            raise ULDError(
                f"{name!r} does not fit into memory: all of its weights are {size / 2**30:,.2f} GiB as "
                f"{str(skeleton.dtype).removeprefix('torch.')} (--dtype bf16 takes two bytes a weight)"
            ) from error
    model, info = loaded
    if info["missing_keys"]:
        raise ULDError(
            f"{name!r} lacks {len(info['missing_keys'])} tensors of {type(model).__name__}, "
            f"the first is {sorted(info['missing_keys'])[0]}"
        )
    return model.eval()


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


def add_lora(
    assistant: PreTrainedModel,
    *,
    rank: int,
    alpha: int,
    dropout: float = 0.0,
    target_modules: str | list[str] = "all-linear",
) -> PeftModel:
    """Put trainable LoRA on the assistant's linears and experts (all of the K layers, never the head), by PEFT.

    Args:
        assistant: From `build_assistant` or `load_sliced`.
        rank: r, number of rows of each LoRA pair; the experts of a layer that are one parameter share it out.
        alpha: LoRA scale; the update is ``alpha / rank · B A x``.
        dropout: Dropout on the LoRA input. With it, experts that are one parameter get no LoRA.
        target_modules: PEFT's ``target_modules``; ``all-linear``: what `uld.lora` finds.

    Returns:
        A `PeftModel` whose only trainable parameters are LoRA's, in fp32.

    Raises:
        ULDError: a rank that no matrix of the layers has room for, or a model that cannot take LoRA.
    """
    layers, modules = decoder_layers(assistant)
    settings = {"rank": rank, "alpha": alpha, "dropout": dropout}
    sizes = [size for one in modules.parameters() if one.dim() == 2 for size in one.shape]
    if rank > (most := max([*sizes, _LEAST_MOST_RANK])):
        raise ULDError(f"--lora-rank {rank} is more than the model's matrices have room for: give at most {most}")
    try:
        if target_modules != "all-linear":
            return put_lora(assistant, target_modules, {}, **settings)  # type: ignore[arg-type]  # PEFT also takes a regex
        linears = acting_linears(assistant, layers)
        stacks = {} if dropout else expert_stacks(assistant, layers)
        model = put_lora(assistant, linears, stacks, **settings)
        # PEFT takes some linears, by their names, for experts of an older layout, and leaves them out.
        taken = [name for name in linears if f"{name}.weight" not in adapted(model)]
        if taken and not dropout:
            linears = [name for name in linears if name not in taken]
            model = put_lora(model.unload(), linears, stacks | {f"{one}.weight": 1 for one in taken}, **settings)  # type: ignore
    except Exception as error:  # whatever a family's forward or PEFT comes upon
        first = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise ULDError(f"{type(assistant).__name__} cannot be trained with LoRA: {first}") from error
    if (sentence := left_out(model, layers)) is not None:
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
    logits, gate = head_logits(base_model(assistant), hidden), gate_of(assistant)
    return logits if gate is None else gate.apply_to(logits, hidden)


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
