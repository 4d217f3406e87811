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
import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from uld.errors import ULDError
from uld.gate import gate_of

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
_HUB = ("revision", "token", "cache_dir", "local_files_only")


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
    shared = dict(target.named_modules())
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
    files = {"revision": revision} | {name: kwargs[name] for name in _HUB if name in kwargs}
    config = load_config(target, trust_remote_code=trust_remote_code, **files)
    sliced = slice_config(config, num_layers)
    index_file = _file(target, WEIGHTS_INDEX, **files)
    if index_file is None:
        _file(target, WEIGHTS, **files)  # downloaded here, where its progress is shown
        with quiet_transformers():
            return _from_pretrained(
                target, sliced, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code, **kwargs
            )
    index = json.loads(index_file.read_text())
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(sliced, trust_remote_code=trust_remote_code)
    deeper = _deeper_layer_prefixes(skeleton, sliced.num_hidden_layers, config)
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if not k.startswith(deeper)}
    with tempfile.TemporaryDirectory(prefix="uld-slice-") as folder:
        for shard in set(index["weight_map"].values()):
            path = _file(target, shard, **files)
            if path is None:
                raise ULDError(f"{str(target)!r} lacks {shard}, which holds tensors of its first layers")
            Path(folder, shard).symlink_to(path.resolve())
        Path(folder, WEIGHTS_INDEX).write_text(json.dumps(index))
        config.save_pretrained(folder)
        with quiet_transformers():
            model = _from_pretrained(folder, sliced, name=str(target), dtype=dtype, **kwargs)
    model.name_or_path = model.config.name_or_path = str(target)
    return model


def _file(target: str | Path, name: str, **hub: Any) -> Path | None:
    """Path of a file of a model folder or Hub model, downloaded if need be; None where there is none."""
    found = cached_file(str(target), name, _raise_exceptions_for_missing_entries=False, **hub)
    return None if found is None else Path(str(found))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Leave out transformers' progress bars and warnings, such as its table of tensors that are left on purpose."""
    log = transformers.utils.logging
    verbosity, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bar:
            log.enable_progress_bar()


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Leave out a warning that PEFT causes by asking transformers for an attribute of an older name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def load_config(target: str | Path, **hub: Any) -> PreTrainedConfig:
    """`AutoConfig.from_pretrained` with one clear sentence when the model cannot be found.

    Raises:
        ULDError: no such folder or Hub model.
    """
    try:
        return AutoConfig.from_pretrained(str(target), **hub)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ULDError(f"cannot load a model from {str(target)!r}: {first}") from error


def load_target(target: str | Path, *, dtype: str | torch.dtype = "auto", **kwargs: Any) -> PreTrainedModel:
    """Load a whole causal LM from a folder or the Hub.

    Raises:
        ULDError: the model cannot be found or read.
    """
    hub = {name: kwargs[name] for name in (*_HUB, "trust_remote_code") if name in kwargs}
    return _from_pretrained(target, load_config(target, **hub), dtype=dtype, **kwargs)


def _from_pretrained(target: str | Path, config: PreTrainedConfig, *, name: str = "", **kwargs: Any) -> PreTrainedModel:
    """Load weights into the architecture that the config says; missing weights are an error, surplus ones are not.

    Args:
        target: Where the files are.
        config: The architecture.
        name: What the user calls the place, for messages.
        kwargs: Handed to ``from_pretrained``.
    """
    name = name or str(target)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(target), config=config, output_loading_info=True, **kwargs
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ULDError(
            f"cannot load a causal language model from {name!r}: {str(error).strip().splitlines()[0]}"
        ) from error
    model, info = loaded
    if info["missing_keys"]:
        raise ULDError(
            f"{name!r} lacks {len(info['missing_keys'])} tensors of {type(model).__name__}, "
            f"the first is {sorted(info['missing_keys'])[0]}"
        )
    return model.eval()


def _deeper_layer_prefixes(skeleton: PreTrainedModel, num_layers: int, config: PreTrainedConfig) -> tuple[str, ...]:
    """Checkpoint-key prefixes of layers K…L−1."""
    name = decoder_layers(skeleton)[0]
    total = config.get_text_config(decoder=True).num_hidden_layers
    return tuple(f"{name}.{i}." for i in range(num_layers, total)) or ("\0",)


def base_model(model: Any) -> Any:
    """A causal LM without PEFT's wrapper, if it has one."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The name and the list of a model's decoder layers.

    Raises:
        ULDError: the model has no list of ``num_hidden_layers`` modules.
    """
    total = model.config.get_text_config(decoder=True).num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            return name, module
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
    """Put trainable LoRA on the assistant's linears (all of the K layers, never the head), by PEFT.

    Args:
        assistant: From `build_assistant` or `load_sliced`.
        rank: r, number of rows of each LoRA pair.
        alpha: LoRA scale; the update is ``alpha / rank · B A x``.
        dropout: Dropout on the LoRA input.
        target_modules: PEFT's ``target_modules``.

    Returns:
        A `PeftModel` whose only trainable parameters are LoRA's, in fp32.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules,
        task_type="CAUSAL_LM",  # type: ignore[arg-type]
    )
    with quiet_peft():
        return get_peft_model(assistant, config)  # type: ignore[return-value]


def head_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits from final (normed) hidden states: the head and what the config puts behind it.

    Args:
        model: Causal LM.
        hidden: ``(..., hidden)`` output of the decoder, after its final norm.

    Returns:
        ``(..., vocab)``.
    """
    config = model.config.get_text_config(decoder=True)
    head: Any = model.get_output_embeddings()
    logits = head(hidden)
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
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
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    expected = model(input_ids=ids, use_cache=False).logits
    if not torch.allclose(head_logits(model, hidden), expected, rtol=1e-2, atol=1e-2):
        raise ULDError(
            f"{type(model).__name__} computes its logits in a way that uld does not know, so it cannot be trained on"
        )
    return hidden.shape[-1]
