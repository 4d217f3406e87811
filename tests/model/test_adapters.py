"""Targets that a method has trained, read back: from their own weights, or from LoRA on the target."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import uld.model.adapters
from uld.errors import ArtifactError
from uld.model.assistant import add_lora, build_assistant
from uld.model.causal_lm import load_target
from uld.model.combine import Combination
from uld.model.load import load
from uld.model.weights import save_adapter, save_model
from uld.runs.digests import weights_digests
from uld.runs.manifest import CombinationSettings, Manifest, fingerprint
from uld.training.config import TrainConfig
from uld.training.run import train


@pytest.fixture(scope="module")
def with_lora(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "x"
    settings = task.settings(folder, lora_rank=4, learning_rate=0.02)
    del settings["num_layers"]
    train(TrainConfig(method="ga+gd", **settings), progress=False)
    return folder


def test_lora_on_the_target_is_merged_into_it(with_lora, task):
    model, _ = load(with_lora)
    target, _ = load(task.target)
    assert type(model) is type(target)
    before = dict(target.named_parameters())
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed and all("_proj" in name for name in changed)


def with_numbers_beyond_fp16(place, folder):
    """A copy of a target with two weights that fp16 cannot hold as they are."""
    shutil.copytree(place, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, :2] = torch.tensor([1e-4 * (1 + 2**-7), 7e-5])
    tensors["model.embed_tokens.weight"][:4] *= 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    rounded = {name: one.half().float() for name, one in tensors.items()}
    assert fingerprint(rounded.items()) != fingerprint(tensors.items())
    return folder


@pytest.mark.parametrize("method", ["ga+gd", "offset-ga"])
def test_a_run_is_loaded_in_fp16_on_its_target_and_on_no_other(task, tmp_path, method):
    target = with_numbers_beyond_fp16(task.target, tmp_path / "target")
    settings = task.settings(tmp_path / "x", lora_rank=4, epochs=1, target=str(target))
    del settings["num_layers"]
    if method == "offset-ga":
        settings["small"] = str(with_numbers_beyond_fp16(task.target, tmp_path / "small"))
    train(TrainConfig(method=method, **settings), progress=False)
    for dtype in ("fp16", "bf16", "fp32"):
        model, _ = load(tmp_path / "x", dtype=dtype)
        assert model.dtype == {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    where = tmp_path / ("small" if method == "offset-ga" else "target")
    tensors = load_file(where / "model.safetensors")
    tensors["model.norm.weight"] += 0.5
    save_file(tensors, where / "model.safetensors", metadata={"format": "pt"})
    what = "small model" if method == "offset-ga" else "target"
    with pytest.raises(ArtifactError, match=f"the run belongs to another {what}"):
        load(tmp_path / "x", dtype="fp16")


def test_the_targets_revision_is_the_runs(with_lora, monkeypatch):
    manifest = Manifest.read(with_lora).model_copy(update={"target_revision": "abc"})
    asked = []
    find = uld.model.adapters.load_target

    def watch(place, revision=None, **kwargs):
        asked.append(revision)
        return find(place, **kwargs)

    monkeypatch.setattr(uld.model.adapters, "load_target", watch)
    uld.model.adapters.load_trained_target(with_lora, manifest)
    assert asked == ["abc"]


def test_digests_follow_what_is_written(with_lora, task, tmp_path):
    manifest = Manifest.read(with_lora)
    assert manifest.weights == weights_digests(with_lora) and len(manifest.weights) == 2
    shutil.copytree(with_lora, tmp_path / "x")
    tensors = load_file(tmp_path / "x/adapter/adapter_model.safetensors")
    save_file({name: one * 1.001 for name, one in tensors.items()}, tmp_path / "x/adapter/adapter_model.safetensors")
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors is not the file that was trained"):
        load(tmp_path / "x")
    manifest.model_copy(update={"weights": {}}).write(tmp_path / "x")
    load(tmp_path / "x")  # a run without digests


def test_a_whole_trained_target_is_sealed_and_finite(task, tmp_path):
    shutil.copytree(task.target, tmp_path / "x")
    facts = {"method": "ga", "trains": "target", "target": str(task.target), "target_fingerprint": "", "num_layers": 4}
    how = CombinationSettings(**vars(Combination()))
    digests = weights_digests(tmp_path / "x")
    assert set(digests) == {"model.safetensors", "config.json"}
    Manifest(**facts, combination=how, weights=digests).write(tmp_path / "x")
    load(tmp_path / "x")
    path = tmp_path / "x" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"][0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="not the file that was trained"):
        load(tmp_path / "x")
    Manifest(**facts, combination=how).write(tmp_path / "x")
    with pytest.raises(ArtifactError, match=r"lm_head\.weight holds NaN or infinite numbers"):
        load(tmp_path / "x")


def test_what_is_no_number_is_not_written(task, tmp_path):
    model = load_target(task.target)
    with torch.no_grad():
        model.lm_head.weight[1, 1] = float("inf")
    with pytest.raises(ArtifactError, match=r"NaN or infinite numbers \(lm_head\.weight\)"):
        save_model(model, tmp_path / "x", None)
    adapter = add_lora(build_assistant(load_target(task.target), 1), rank=2, alpha=2)
    with torch.no_grad():
        next(one for name, one in adapter.named_parameters() if "lora_B" in name).fill_(float("nan"))
    with pytest.raises(ArtifactError, match=r"NaN or infinite numbers \(.*lora_B\.weight\)"):
        save_adapter(adapter, tmp_path / "x", "t")
    assert not (tmp_path / "x").exists()


def test_a_copy_has_digests_of_its_own(make_run, tmp_path):
    run = make_run(tmp_path, num_layers=1)
    before = Manifest.read(run)
    model, _ = load(run)
    with torch.no_grad():
        next(one for name, one in model.assistant.named_parameters() if "lora_B" in name).mul_(2)
    model.save_pretrained(tmp_path / "copy")
    after = Manifest.read(tmp_path / "copy")
    assert before.weights["adapter/adapter_model.safetensors"] != after.weights["adapter/adapter_model.safetensors"]
    ids = torch.tensor([[1, 5, 6]])
    assert torch.equal(load(tmp_path / "copy", tokenizer=run)[0](ids).logits, model(ids).logits)


def test_another_target_is_refused(with_lora, make_target, tmp_path):
    make_target("llama").save_pretrained(tmp_path / "other")
    with pytest.raises(ArtifactError, match="the run belongs to another target"):
        load(with_lora, target=tmp_path / "other")
