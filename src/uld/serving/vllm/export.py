"""``export``: from runs to a checkpoint that vLLM reads.

The target's weight files are linked, and nothing of them is held: for the fingerprints its first layers are read tensor
by tensor. What is written beside them is a config, the tokenizer, and the runs' LoRA and gates.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft.tuners.lora import LoraLayer, ParamWrapper
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig

from uld.errors import ArtifactError, ULDError, explained
from uld.model.adapters import load_adapter
from uld.model.assistant import build_assistant, decoder_layers
from uld.model.causal_lm import load_config, skeleton_of
from uld.model.checkpoint import WEIGHTS, WEIGHTS_INDEX, file_of, json_of, of_weights
from uld.model.combine import Combination
from uld.model.gate import gate_of
from uld.model.load import load_tokenizer
from uld.model.stored import combination_of
from uld.model.vocabulary import own_ids, refuse_foreign
from uld.runs.digests import ADAPTER_WEIGHTS, GATE_WEIGHTS
from uld.runs.files import new_folder
from uld.runs.hub import run_folder
from uld.runs.manifest import (
    ADAPTER,
    PAIR,
    CombinationSettings,
    Manifest,
    file_digest,
    fingerprint,
    refuse_changed,
)
from uld.runs.places import refuse_sources
from uld.serving.vllm import ARCHITECTURE
from uld.serving.vllm.checkpoint import ASSISTANTS, ENTRY, Export, Part, gate_name, lora_name
from uld.serving.vllm.prompts import for_vllm


def export(
    runs: Sequence[str | Path],
    output: str | Path,
    *,
    target: str | None = None,
    tokenizer: str | None = None,
    template: str | None = None,
    date: str | None = None,
    copy: bool = False,
    trust_remote_code: bool = False,
    **changes: Any,
) -> Path:
    """Write the checkpoint of one run, or of several runs of one target.

    Args:
        runs: Run folders.
        output: Folder; made, or empty.
        target: Where the target is now, if not where it was.
        tokenizer: Another place to take the tokenizer from.
        template: Prompt template for chat requests; default: the first run's, else the chat template.
        date: Day for a chat template with a clock; default: the first run's.
        copy: Copy the target's weight files, so that the folder can be moved; else they are hard links, or symbolic
            ones where those cannot be.
        trust_remote_code: Run the target's code.
        changes: Settings that take the place of the runs' own (`Combination`).

    Returns:
        The folder.

    Raises:
        ULDError: a run that vLLM cannot serve, another target, a folder that holds something, a full disk.
    """
    output = Path(output)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise ArtifactError(f"{output} holds something already: name another folder")
    refuse_sources(output, {"RUN": runs})
    folders = [run_folder(one) or Path(one) for one in runs]
    manifests = [Manifest.read(folder) for folder in folders]
    for folder, manifest in zip(folders, manifests, strict=True):
        _refuse(folder, manifest)
    settings = [combination_of(one, folder, changes) for one, folder in zip(manifests, folders, strict=True)]
    place = str(target or manifests[0].target)
    hub = {"revision": manifests[0].target_revision} if place == manifests[0].target else {}
    config = load_config(place, trust_remote_code=trust_remote_code, **hub)
    whole = skeleton_of(place, config, trust_remote_code)
    shards = _shards(place, **hub)
    if reason := of_weights(next(iter(shards.values())).parent, whole):
        raise ULDError(f"the target {place} cannot be used: {reason}")
    stored = {name for path in shards.values() for name in _names(path)}
    parts, tensors = [], {}
    shared: set[str] = set()
    for folder, manifest, how in zip(folders, manifests, settings, strict=True):
        skeleton = build_assistant(whole, manifest.num_layers)
        own = {name for name, _ in skeleton.named_parameters()}
        if missing := sorted(own - stored):
            raise ULDError(f"vLLM cannot serve a target whose files have no {missing[0]}: {place} names it otherwise")
        shared |= own
        if (found := fingerprint(_read(shards, own))) != manifest.target_fingerprint:
            raise ArtifactError(
                f"{folder} belongs to another target: it was trained on {manifest.target} with fingerprint "
                f"{manifest.target_fingerprint}, but {place} has {found}"
            )
        for one, adapter in zip(how.parts, _adapters(folder, manifest), strict=True):
            if adapter is not None:
                tensors |= _weights(build_assistant(whole, manifest.num_layers), adapter, len(parts))
            gate = adapter is not None and (adapter / GATE_WEIGHTS).is_file()
            parts.append(_part(folder, manifest, one, gate))
    source = tokenizer or folders[0]
    found = load_tokenizer(source, date=date or manifests[0].date, trust_remote_code=trust_remote_code)
    refuse_foreign(own_ids(found), config.get_text_config(decoder=True).vocab_size, str(source))
    for_vllm(found, template or manifests[0].template)
    layers = decoder_layers(whole)[0]
    raw = json_of(place, "config.json", **hub)
    with new_folder(output, replace=True) as folder:
        _write(folder, shards, place, copy, hub)
        assistants = folder / ASSISTANTS
        assistants.parent.mkdir()
        save_file(tensors, str(assistants), metadata={"format": "pt"})
        entry = Export(
            version=version("uld-llm"),
            target=place,
            architecture=(raw.get("architectures") or [type(whole).__name__])[0],
            layers=layers,
            weights=file_digest(assistants),
            unshared=sorted(name for name in stored - shared if not name.startswith(f"{layers}.")),
            parts=parts,
        )
        raw |= {"architectures": [ARCHITECTURE], ENTRY: json.loads(entry.model_dump_json())}
        (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        found.save_pretrained(folder)
        _generation(place, **hub).save_pretrained(folder)
    return output


def _refuse(folder: Path, manifest: Manifest) -> None:
    """Refuse runs that have no place in the architecture, or weights that were not trained.

    Raises:
        ULDError: says why.
    """
    if manifest.trains == "target":
        where = (
            "LoRA on all of the target: merge it (uld.load, then save_pretrained)"
            if (folder / ADAPTER).exists()
            else ("an ordinary model: vllm serve takes its folder as it is")
        )
        raise ULDError(f"{folder} has no assistant, as {manifest.method} trained the target itself; it holds {where}")
    if manifest.small is not None:
        raise ULDError(
            f"{folder} was trained by {manifest.method} with small models beside the target ({manifest.small}), and "
            "uld serves only assistants of the target's own layers with vLLM: use --engine transformers"
        )
    refuse_changed(folder, manifest)


def _adapters(folder: Path, manifest: Manifest) -> list[Path | None]:
    """The adapter of each model that takes part; None of one that is the target's layers as they are."""
    if manifest.trains == "offset":
        return [folder / ADAPTER, None]
    return [folder / ADAPTER / side for side in PAIR] if manifest.trains == "pair" else [folder / ADAPTER]


def _part(folder: Path, manifest: Manifest, how: Combination, gate: bool) -> Part:
    return Part(
        run=folder.resolve().name,
        num_layers=manifest.num_layers,
        fingerprint=manifest.target_fingerprint,
        combination=CombinationSettings(**vars(how)),
        gate=gate,
    )


def _weights(skeleton: Any, adapter: Path, number: int) -> dict[str, Tensor]:
    """LoRA and gate of an adapter, under their names in the checkpoint.

    Args:
        skeleton: The assistant's layers without weights.
        adapter: Folder.
        number: Of the part.

    Raises:
        ULDError: the adapter is damaged, or on what vLLM has in another form.
    """
    with warnings.catch_warnings():  # nothing is copied into tensors that have no memory, which torch says of each
        warnings.filterwarnings("ignore", ".*copying from a non-meta parameter.*", UserWarning)
        model = load_adapter(skeleton, adapter)
    given = load_file(str(adapter / ADAPTER_WEIGHTS))
    tensors = {}
    for name, layer in model.get_base_model().named_modules():  # type: ignore[union-attr]
        if not isinstance(layer, LoraLayer) or ".base_layer" in name:
            continue
        if isinstance(layer, ParamWrapper):
            raise ULDError(
                f"{adapter} has LoRA on the experts {name}, which uld cannot give to vLLM: use --engine transformers"
            )
        dtype: Any = layer.lora_A["default"].weight.dtype  # type: ignore[union-attr]
        down, up = (given[f"base_model.model.{name}.lora_{side}.weight"].to(dtype).float() for side in "AB")
        up = up * layer.scaling["default"]
        if getattr(layer, "fan_in_fan_out", False):  # stored as (in, out)
            down, up = up.T, down.T
        weight = f"{name}.weight"
        tensors[lora_name(number, "a", weight)] = down.contiguous()
        tensors[lora_name(number, "b", weight)] = up.contiguous()
    if gate_of(model) is not None:
        tensors |= {gate_name(number, name): one for name, one in load_file(str(adapter / GATE_WEIGHTS)).items()}
    return tensors


def _shards(place: str, **hub: Any) -> dict[str, Path]:
    """The target's weight files by name.

    Raises:
        ULDError: there are none in safetensors, or one is missing.
    """
    with explained(f"cannot read the weights of {place}"):
        single, index = file_of(place, WEIGHTS, **hub), json_of(place, WEIGHTS_INDEX, **hub)
        names = [WEIGHTS] if single is not None else sorted(set((index or {}).get("weight_map", {}).values()))
        found = {name: file_of(place, name, **hub) for name in names}
    if not found or None in found.values():
        lacking = next((name for name, path in found.items() if path is None), f"{WEIGHTS} or {WEIGHTS_INDEX}")
        raise ULDError(f"the target {place} lacks {lacking}: vLLM reads safetensors")
    return found  # type: ignore[return-value]


def _names(path: Path) -> list[str]:
    with explained(f"cannot read {path}"), safe_open(path, framework="pt") as file:
        return list(file.keys())


def _read(shards: dict[str, Path], wanted: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Tensors by name, one after the other."""
    for path in shards.values():
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (it is no mapping)
                if name in wanted:
                    yield name, file.get_tensor(name)


def _write(folder: Path, shards: dict[str, Path], place: str, copy: bool, hub: dict[str, Any]) -> None:
    """Put the target's weight files into a folder, as links or copies, with their index."""
    for name, path in shards.items():
        real = path.resolve()
        if copy:
            shutil.copyfile(real, folder / name)
            continue
        try:
            os.link(real, folder / name)
        except OSError:  # another file system, or one without hard links
            (folder / name).symlink_to(real)
    if WEIGHTS not in shards:
        index = file_of(place, WEIGHTS_INDEX, **hub)
        shutil.copyfile(str(index), folder / WEIGHTS_INDEX)


def _generation(place: str, **hub: Any) -> GenerationConfig:
    """How the target says that it should be asked."""
    raw = json_of(place, "generation_config.json", **hub)
    return GenerationConfig.from_dict(raw) if raw else GenerationConfig()
