"""Runs to a checkpoint that vLLM reads: what it holds, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import uld
from uld.data.prompt import PromptFormat
from uld.errors import ArtifactError, DiskFullError, ULDError
from uld.model.assistant import base_model, decoder_layers
from uld.model.combine import Combination
from uld.serving.vllm.checkpoint import ASSISTANTS, Export, Kept, load_assistants
from uld.serving.vllm.export import export

HOW = Combination(weight=float("inf"), margin=0.5, floor=0.01)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The target's weights as the checkpoint holds them."""
    return {name: one for path in folder.glob("*.safetensors") for name, one in load_file(path).items()}


def entry_of(folder: Path) -> Export:
    return Export.read(json.loads((folder / "config.json").read_text())["uld"], str(folder))


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("llama"), how=HOW)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export([run, run], tmp_path_factory.mktemp("exported") / "out")


def test_the_targets_files_are_linked_and_the_rest_is_small(run: Path, exported: Path):
    target = run.parent / "target"
    for path in target.glob("*.safetensors"):
        assert (exported / path.name).samefile(path)
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["ULDForVLLM"]
    own = json.loads((target / "config.json").read_text())
    assert {name: config[name] for name in own if name != "architectures"} == {
        name: value for name, value in own.items() if name != "architectures"
    }
    assert not (exported / "uld.json").exists()


def test_how_the_runs_are_combined_is_inside(exported: Path):
    entry = entry_of(exported)
    assert [part.how for part in entry.parts] == [HOW, HOW]
    assert [part.run for part in entry.parts] == ["run", "run"]
    assert entry.architecture == "LlamaForCausalLM"


def test_an_assistants_layers_are_the_targets_with_lora_added(run: Path, exported: Path):
    kept, stored = Kept(entry_of(exported)), load_file(exported / ASSISTANTS)
    assert dict(kept.passing(weights_of(exported).items())).keys() == weights_of(exported).keys()
    kept.verify(str(exported))
    model, _ = uld.load(run)
    merged = base_model(model.assistant.merge_and_unload())
    wanted = {name: one for name, one in merged.state_dict().items() if name.startswith(decoder_layers(merged)[0])}
    for number in (0, 1):
        found = dict(kept.of_part(number, stored))
        assert found.keys() == wanted.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-6)
    assert any(not torch.equal(wanted[name], weights_of(exported)[name]) for name in wanted)


def test_shards_keep_their_index(make_run, tmp_path: Path):
    run = make_run(tmp_path)
    target = tmp_path / "target"
    weights = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for name, own in shards.items():
        save_file({one: weights[one] for one in own}, target / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {one: name for name, own in shards.items() for one in own}}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    (target / "other.safetensors").write_bytes(b"none of the target's")
    out = export([run], tmp_path / "out", copy=True)
    assert {path.name for path in out.glob("*.safetensors")} == set(shards)
    assert not any((out / name).samefile(target / name) for name in shards)
    assert json.loads((out / "model.safetensors.index.json").read_text()) == index


def test_prompts_are_those_of_training(make_run, tmp_path: Path, letters):
    from transformers import AutoTokenizer

    out = export([make_run(tmp_path)], tmp_path / "own")
    found = AutoTokenizer.from_pretrained(out)
    asked = [{"role": "user", "content": "who is it?"}]
    ids = found.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert ids == PromptFormat(letters).prompt_ids("who is it?")
    out = export([tmp_path / "run"], tmp_path / "named", template='to {question}:\\n"so {answer}')
    found = AutoTokenizer.from_pretrained(out)
    asked += [{"role": "assistant", "content": "x"}, {"role": "user", "content": " why? "}]
    ids = found.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    form = PromptFormat(letters, 'to {question}:\\n"so {answer}')
    assert ids == form.prompt_ids([(one["role"], one["content"]) for one in asked])


def test_a_target_that_was_changed_is_noticed(exported: Path):
    weights = weights_of(exported)
    weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"] * 1.1
    kept = Kept(entry_of(exported))
    list(kept.passing(weights.items()))
    with pytest.raises(ArtifactError, match="not those of the target that run was trained on"):
        kept.verify(str(exported))


def test_damaged_weights_are_neither_exported_nor_loaded(run: Path, exported: Path, tmp_path: Path):
    folder = shutil.copytree(exported, tmp_path / "exported")
    entry = entry_of(folder)
    assert load_assistants(folder, entry).keys() == load_file(exported / ASSISTANTS).keys()
    path = folder / ASSISTANTS
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"assistants\.safetensors is damaged or another checkpoint's: export"):
        load_assistants(folder, entry)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"lacks uld/assistants\.safetensors"):
        load_assistants(folder, entry)
    own = shutil.copytree(run, tmp_path / "run") / "adapter" / "adapter_model.safetensors"
    save_file({name: one * 2 for name, one in load_file(own).items()}, own, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors"):
        export([tmp_path / "run"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_version_of_the_format_is_refused(exported: Path):
    entry = json.loads((exported / "config.json").read_text())["uld"]
    with pytest.raises(ArtifactError, match=r"another version of uld \(.*, format 2\).*export it again"):
        Export.read(entry | {"format": 2}, "out")
    with pytest.raises(ArtifactError, match=r"damaged at uld.parts"):
        Export.read({name: value for name, value in entry.items() if name != "parts"}, "out")
    with pytest.raises(ArtifactError, match="no checkpoint that uld has exported"):
        Export.read(None, "out")


def test_a_folder_that_holds_something_is_left_alone(run: Path, tmp_path: Path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ArtifactError, match="holds something already"):
        export([run], tmp_path)
    with pytest.raises(ArtifactError, match="holds something already"):
        export([run], tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    assert export([run], tmp_path / "empty").exists()


def test_a_full_disk_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("uld.serving.vllm.export.save_file", full)
    with pytest.raises(DiskFullError, match="is full"):
        export([run], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_no_place_for_a_checkpoint(run: Path):
    before = sorted(run.rglob("*"))
    with pytest.raises(ULDError, match=r"lies in .*, which is read"):
        export([run], run / "exported")
    assert sorted(run.rglob("*")) == before


def test_runs_of_different_targets_are_refused(run: Path, make_run, tmp_path: Path):
    other = make_run(tmp_path, seed=1)
    with pytest.raises(ArtifactError, match="belongs to another target"):
        export([run, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_trained_the_target_is_refused(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    manifest = json.loads((run / "uld.json").read_text())
    (tmp_path / "run" / "uld.json").write_text(json.dumps(manifest | {"trains": "target", "method": "npo"}))
    with pytest.raises(ULDError, match="npo trained the target itself"):
        export([tmp_path / "run"], tmp_path / "out")
