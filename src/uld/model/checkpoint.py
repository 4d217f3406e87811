"""A checkpoint before its weights are loaded: its files, and why it cannot be used as a target, in words.

The reasons come from its files, its config and the headers of its weights; nothing here loads weights or imports a
model's code. A reason comes back, or None.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from safetensors import safe_open
from torch import nn
from transformers.utils.hub import cached_file

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
_LAYER_COUNT = re.compile(r"(n|num)_(\w+_)?layers?")
_MOST_LAYERS = 10_000  # configs make a list entry a layer, so a count beyond all reason must be seen before
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


def file_of(target: str | Path, name: str, **hub: Any) -> Path | None:
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


def json_of(target: str | Path, name: str, **hub: Any) -> Any:
    """What a JSON file of a model holds; None where there is no such file."""
    path = file_of(target, name, **hub)
    return None if path is None else json.loads(path.read_text(encoding="utf-8"))


def of_files(config: Any, adapter: Any, manifest: Any) -> str | None:
    """Why the files of a folder are no model.

    Args:
        config: What ``config.json`` holds; None: there is none.
        adapter: The same of ``adapter_config.json``.
        manifest: The same of ``uld.json``.
    """
    kind = config.get("model_type") if isinstance(config, Mapping) else None
    if kind == "uld" or (config is None and manifest is not None):
        named = [one.get("target") for one in (manifest, config) if isinstance(one, Mapping)]
        target = next((one for one in named if isinstance(one, str) and one), "named in its uld.json")
        return f"it is a finished run, not a model: its target is {target}"
    if adapter is not None:
        if config is not None:
            return (
                "a PEFT adapter lies beside its weights (adapter_config.json), and an assistant must share the weights "
                "alone: merge the adapter (PeftModel.merge_and_unload, then save_pretrained), or move it away"
            )
        base = adapter.get("base_model_name_or_path") if isinstance(adapter, Mapping) else None
        return (
            f"it is a PEFT adapter, not a model: merge it into its base{f' {base}' if base else ''} "
            "(PeftModel.merge_and_unload, then save_pretrained) and name the merged model"
        )
    if config is not None and not isinstance(config, Mapping):
        return "its config.json is not one JSON object"
    return _of_numbers(config or {})


def _of_numbers(config: Mapping[str, Any]) -> str | None:
    for name, value in config.items():
        if isinstance(value, Mapping) and (reason := _of_numbers(value)):
            return reason
        if isinstance(value, float) and math.isnan(value):
            return f"its config.json says NaN for {name}"
        tokens = (value if isinstance(value, list) else [value]) if name.endswith("_token_id") else []
        if any(isinstance(one, bool) for one in tokens):
            return f"its config.json says {value} for {name}, which is no token"
        if isinstance(value, bool) or not isinstance(value, int | float) or not _LAYER_COUNT.fullmatch(name):
            continue
        if not 0 <= value <= _MOST_LAYERS:
            return f"its config.json says {value} for {name}"
    return None


def of_config(config: Any) -> str | None:
    """Why a config is none of a decoder-only language model."""
    if config.is_encoder_decoder:
        return "it is an encoder-decoder model, and only decoder-only models can be used"
    text = config.get_text_config(decoder=True)
    for name, what in (("num_hidden_layers", "layers"), ("vocab_size", "tokens")):
        value = getattr(text, name, None)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            said = "no number" if value is None else repr(value)
            return f"its config.json gives {said} of {what} ({name}): only decoder-only language models can be used"
    return None


def layers_of(model: Any) -> tuple[str, nn.ModuleList] | None:
    """The name and the list of a model's decoder layers: ``num_hidden_layers`` modules; None where there is none."""
    total = model.config.get_text_config(decoder=True).num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == total:
            return name, module
    return None


def of_weights(folder: Path, skeleton: Any, keep: int | None = None) -> str | None:
    """Why the safetensors of a folder are not a model's, from their headers alone.

    Args:
        folder: Where they are; of shards only those are opened that hold something which is read.
        skeleton: The whole model on the meta device.
        keep: Layers that are read; None: all.
    """
    found = layers_of(skeleton)
    if found is None or not os.path.isdir(folder) or getattr(skeleton.config, "quantization_config", None) is not None:
        return None  # quantised weights have shapes and dtypes of their own
    layers, total = found[0], len(found[1])
    keep = total if keep is None else keep
    deeper = re.compile(rf"{re.escape(layers)}\.(\d+)\.")
    ignored = skeleton._keys_to_ignore_on_load_unexpected or ()
    wanted = skeleton.state_dict()

    def number(name: str) -> int:
        found = deeper.match(name)
        return int(found[1]) if found else -1

    files = [folder / WEIGHTS]
    if not files[0].is_file():
        if not (folder / WEIGHTS_INDEX).is_file():
            return None
        shards = _weight_map(folder / WEIGHTS_INDEX)
        if isinstance(shards, str):
            return shards
        files = sorted({folder / shard for name, shard in shards.items() if not keep <= number(name) < total})
    for path in files:
        if not path.is_file():
            return f"it lacks {path.name}, which holds tensors that are needed"
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (it is no mapping)
                if number(name) >= total and not any(re.search(one, name) for one in ignored):
                    return f"{path.name} holds {name}, but its config.json says {total} layers"
                if name not in wanted or number(name) >= keep:
                    continue
                part, own = file.get_slice(name), wanted[name]
                if list(own.shape) != part.get_shape():
                    return f"{name} is {part.get_shape()} in {path.name}, but {list(own.shape)} by its config.json"
                if own.is_floating_point() and part.get_dtype() not in _FLOATS:
                    return f"{name} is of dtype {part.get_dtype()} in {path.name}, which a weight cannot be"
    return None


def _weight_map(path: Path) -> dict[str, str] | str:
    """The index of shards, or why it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return f"{path.name} is damaged"
    texts = isinstance(found, dict) and all(isinstance(shard, str) for shard in found.values())
    if not texts or any(Path(shard).name != shard for shard in found.values()):
        return f"{path.name} does not say which file of the folder holds which tensor"
    return found
