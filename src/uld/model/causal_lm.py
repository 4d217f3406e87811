"""A target from a folder or the Hub: its config, its first layers, or all of it."""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from uld.errors import ConfigError, ULDError, explained, guess, is_out_of_memory
from uld.model.assistant import decoder_layers, settle_first, slice_config
from uld.model.checkpoint import (
    WEIGHTS,
    WEIGHTS_INDEX,
    file_of,
    json_of,
    of_config,
    of_files,
    of_weights,
    quiet_transformers,
)
from uld.model.combine import Combination
from uld.model.device import warn_of_imitated

HUB = ("revision", "token", "cache_dir", "local_files_only")
_UNKNOWN = re.compile(r"unexpected keyword argument '(\w+)'")


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
    skeleton = skeleton_of(target, config, trust_remote_code)
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
    settle_first(modules, first)
    with explained(_cannot_load(target)):
        index_file = file_of(target, WEIGHTS_INDEX, **files)
        single = file_of(target, WEIGHTS, **files)  # downloaded here, where its progress is shown
    _refuse_odd_weights(target, skeleton, keep)
    if index_file is None or single is not None:
        with quiet_transformers():
            model = _from_pretrained(target, sliced, skeleton, dtype=dtype, **hub, **kwargs)
        settle_first(modules, model)
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
    settle_first(modules, model)
    model.name_or_path = model.config.name_or_path = str(target)
    return model


def refuse_revision(target: str | Path, revision: str | None) -> None:
    """Refuse a revision of what has none.

    Raises:
        ULDError: the target is a folder.
    """
    if revision is not None and os.path.isdir(target):
        raise ULDError(f"--revision {revision} is for a model of the Hub, and {target} is a folder here: leave it out")


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
        ULDError: the model cannot be found or read, or not with such arguments.
    """
    if kwargs.pop("config", None) is not None:
        raise ConfigError("config: a model is loaded with the config that lies beside its weights: leave it out")
    hub = {name: kwargs[name] for name in HUB if name in kwargs}
    trust = bool(trust_remote_code)
    config = load_config(target, trust_remote_code=trust, **hub)
    skeleton = skeleton_of(target, config, trust)
    _refuse_odd_weights(target, skeleton)
    return _from_pretrained(target, config, skeleton, dtype=dtype, trust_remote_code=trust, **kwargs)


def _cannot_load(target: str | Path) -> str:
    return f"cannot load a causal language model from {str(target)!r}"


def skeleton_of(target: str | Path, config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
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
        except TypeError as error:
            if (found := _UNKNOWN.search(str(error))) is None:
                raise
            known = ("target", "tokenizer", "date", "fused", "dtype", "device_map", *Combination.__dataclass_fields__)
            hint = guess(found[1], known) or ": neither has from_pretrained of transformers"
            raise ConfigError(f"there is no argument {found[1]!r} of uld.load{hint}") from error
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
    warn_of_imitated(model, name)
    return model.eval()
