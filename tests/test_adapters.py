"""Targets that a method has trained, read back: from their own weights, or from LoRA on the target."""

import pytest
import torch

import uld.adapters
from uld.artifact import ArtifactError, Manifest
from uld.config import TrainConfig
from uld.loading import load
from uld.training import train


@pytest.fixture(scope="module")
def with_lora(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "x"
    settings = task.settings(folder, lora_rank=4, learning_rate=0.02)
    del settings["num_layers"]
    train(TrainConfig.of("ga+gd", **settings), progress=False)
    return folder


def test_lora_on_the_target_is_merged_into_it(with_lora, task):
    model, _ = load(with_lora)
    target, _ = load(task.target)
    assert type(model) is type(target)
    before = dict(target.named_parameters())
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed and all("_proj" in name for name in changed)


def test_the_targets_revision_is_the_runs(with_lora, monkeypatch):
    manifest = Manifest.read(with_lora).model_copy(update={"target_revision": "abc"})
    asked = []
    find = uld.adapters.load_target

    def watch(place, revision=None, **kwargs):
        asked.append(revision)
        return find(place, **kwargs)

    monkeypatch.setattr(uld.adapters, "load_target", watch)
    uld.adapters.load_trained_target(with_lora, manifest)
    assert asked == ["abc"]


def test_another_target_is_refused(with_lora, make_target, tmp_path):
    make_target("llama").save_pretrained(tmp_path / "other")
    with pytest.raises(ArtifactError, match="the run belongs to another target"):
        load(with_lora, target=tmp_path / "other")
