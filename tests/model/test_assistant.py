import copy
import json
import logging
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from uld.errors import ULDError
from uld.model.assistant import (
    add_lora,
    build_assistant,
    check_head,
    decoder_layers,
    default_num_layers,
    head_logits,
    slice_config,
)
from uld.model.causal_lm import load_config, load_sliced, load_target
from uld.model.weights import save_adapter

IDS = torch.tensor([[1, 5, 9, 13, 4, 8, 21, 30, 17, 6, 11, 25]])


def plain_slice(target: PreTrainedModel, num_layers: int) -> PreTrainedModel:
    """The first layers as a model of its own with tensors of its own: a copy of the target without the other layers."""
    model = copy.deepcopy(target)
    name, layers = decoder_layers(model)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layers[:num_layers])
    model.config.num_hidden_layers = num_layers
    return model


@torch.no_grad()
def logits(model, ids=IDS):
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize(("total", "expected"), [(1, 1), (3, 1), (4, 1), (5, 2), (22, 6), (32, 8), (80, 20)])
def test_a_quarter_of_the_layers_rounded_up(total, expected):
    assert default_num_layers(total) == expected


def test_slice_config_cuts_what_is_given_per_layer_and_nothing_else(make_target):
    config = make_target("gemma2", num_layers=4, eos_token_id=[2, 3, 4, 5]).config
    assert config.layer_types == ["sliding_attention", "full_attention"] * 2
    before = config.to_dict()
    sliced = slice_config(config, 3)
    changed = {key for key, value in sliced.to_dict().items() if value != before[key]}
    assert changed == {"num_hidden_layers", "layer_types"}
    assert sliced.num_hidden_layers == 3
    assert sliced.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    assert config.to_dict() == before


def test_without_a_number_k_is_a_quarter(make_target):
    target = make_target(num_layers=5)
    assert slice_config(target.config, None).num_hidden_layers == 2
    assert len(decoder_layers(build_assistant(target))[1]) == 2


@pytest.mark.parametrize("num_layers", [0, -1, 6])
def test_k_out_of_range_is_refused(make_target, num_layers):
    target = make_target(num_layers=5)
    with pytest.raises(ULDError, match=rf"num_layers \(K\) is {num_layers}, but the target has 5 layers.*--num-layers"):
        build_assistant(target, num_layers)


def test_the_assistant_shares_every_tensor_with_the_target(family, make_target):
    target = make_target(family)
    assistant = add_lora(build_assistant(target, 2), rank=4, alpha=8)
    of_target = {name: tensor for name, tensor in target.state_dict(keep_vars=True).items()}
    of_target |= dict(target.named_buffers())  # also those that are not stored, such as rotary tables
    seen = 0
    for name, tensor in [*assistant.named_parameters(remove_duplicate=False), *assistant.named_buffers()]:
        if "lora_" in name:
            assert tensor.requires_grad and tensor.dtype == torch.float32
            continue
        original = of_target[name.removeprefix("base_model.model.").replace(".base_layer", "")]
        assert tensor is original and tensor.data_ptr() == original.data_ptr(), name
        assert not tensor.requires_grad
        seen += 1
    assert seen > 12


def test_sharing_survives_a_move_to_another_dtype(make_target):
    target = make_target("gemma2")
    assistant = build_assistant(target, 2)
    target.to(torch.bfloat16)
    for name, tensor in assistant.named_parameters():
        assert tensor.dtype == torch.bfloat16 and tensor.data_ptr() == target.get_parameter(name).data_ptr()


def test_the_assistant_is_the_first_layers_of_the_target(family, make_target):
    target = make_target(family)
    for num_layers in (1, 2, 5):
        assert torch.equal(logits(build_assistant(target, num_layers)), logits(plain_slice(target, num_layers)))
    assert torch.equal(logits(build_assistant(target, 5)), logits(target))


def test_lora_changes_the_assistant_and_leaves_the_target_alone(family, make_target, make_unlearned):
    target = make_target(family)
    before, modules = logits(target), [type(m) for m in target.modules()]
    assistant = make_unlearned(target, 2).assistant
    plain = logits(plain_slice(target, 2))
    assert not torch.allclose(logits(assistant), plain, atol=0.1)
    assert torch.equal(logits(target), before)
    assert [type(m) for m in target.modules()] == modules
    with assistant.disable_adapter():
        assert torch.equal(logits(assistant), plain)


def test_lora_is_on_every_linear_of_the_layers_and_not_on_the_head(family, make_target):
    assistant = build_assistant(make_target(family), 2)
    name, layers = decoder_layers(assistant)
    linears = {f"{name}.{path}" for path, m in layers.named_modules() if isinstance(m, torch.nn.Linear)}
    peft = add_lora(assistant, rank=3, alpha=6)
    adapted = {
        path.split("base_model.model.")[1].split(".lora_A")[0]
        for path, _ in peft.named_parameters()
        if "lora_A" in path
    }
    assert adapted == linears and len(linears) >= 8
    assert {p.shape[0] for path, p in peft.named_parameters() if "lora_A" in path} == {3}


def test_head_logits_is_what_the_model_itself_computes(family, make_target):
    model = make_target(family)
    hidden = model.get_decoder()(input_ids=IDS, use_cache=False).last_hidden_state
    torch.testing.assert_close(head_logits(model, hidden), model(IDS).logits)
    check_head(model)


def test_a_head_that_does_something_else_is_refused(make_target):
    model = make_target()
    forward = model.forward
    model.forward = lambda **inputs: type(out := forward(**inputs))(logits=out.logits * 2)
    with pytest.raises(ULDError, match="LlamaForCausalLM computes its logits in a way that uld does not know"):
        check_head(model)


def test_a_model_that_is_no_stack_of_layers_is_refused(make_target):
    model = make_target()
    model.config.num_hidden_layers = 7
    with pytest.raises(ULDError, match="has no list of 7 decoder layers"):
        decoder_layers(model)


# Loading


@pytest.mark.parametrize("shard_size", ["10GB", "20KB"])
def test_load_sliced_equals_the_first_layers(family, make_target, tmp_path, shard_size):
    target = make_target(family)
    target.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "20KB")
    sliced = load_sliced(tmp_path, 2)
    assert torch.equal(logits(sliced), logits(plain_slice(target, 2)))
    assert len(decoder_layers(sliced)[1]) == sliced.config.num_hidden_layers == 2
    assert sliced.name_or_path == str(tmp_path) and not sliced.training


def test_load_sliced_takes_a_dtype(make_target, tmp_path):
    make_target().save_pretrained(tmp_path)
    assert load_sliced(tmp_path, 1).dtype == torch.float32
    assert load_sliced(tmp_path, 1, dtype="bfloat16").dtype == torch.bfloat16
    assert load_sliced(tmp_path).config.num_hidden_layers == 2  # a quarter of five


def shards_by_depth(folder: Path, layers: str, num_layers: int) -> tuple[set[str], set[str]]:
    """Shards that hold something which the first layers need, and the others."""
    weights = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {
        shard
        for name, shard in weights.items()
        if not name.startswith(layers) or int(name.removeprefix(layers).split(".")[0]) < num_layers
    }
    return needed, set(weights.values()) - needed


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"not safetensors")])
def test_shards_of_deeper_layers_are_never_opened(family, make_target, tmp_path, damage):
    target = make_target(family)
    target.save_pretrained(tmp_path, max_shard_size="20KB")
    _, deeper = shards_by_depth(tmp_path, decoder_layers(target)[0] + ".", 2)
    assert len(deeper) >= 3
    for shard in deeper:
        damage(tmp_path / shard)
    assert torch.equal(logits(load_sliced(tmp_path, 2)), logits(plain_slice(target, 2)))


def test_a_missing_shard_of_the_first_layers_is_named(make_target, tmp_path):
    make_target().save_pretrained(tmp_path, max_shard_size="20KB")
    needed, _ = shards_by_depth(tmp_path, "model.layers.", 2)
    gone = sorted(needed)[0]
    (tmp_path / gone).unlink()
    with pytest.raises(ULDError, match=f"{tmp_path.name}': it lacks {gone}"):
        load_sliced(tmp_path, 2)


def test_of_a_single_file_only_the_first_layers_tensors_are_read(make_target, tmp_path, monkeypatch):
    target = make_target()
    target.save_pretrained(tmp_path)
    import transformers.modeling_utils as loading

    opened, read = loading.safe_open, set()

    class Slice:
        def __init__(self, name, inner):
            self.name, self.inner = name, inner

        def __getitem__(self, index):
            read.add(self.name)
            return self.inner[index]

        def __getattr__(self, name):
            return getattr(self.inner, name)

    class File:
        def __init__(self, *args, **kwargs):
            self.inner = opened(*args, **kwargs)

        def __enter__(self):
            self.inner.__enter__()
            return self

        def __exit__(self, *error):
            return self.inner.__exit__(*error)

        def get_slice(self, name):
            return Slice(name, self.inner.get_slice(name))

        def get_tensor(self, name):
            read.add(name)
            return self.inner.get_tensor(name)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    monkeypatch.setattr(loading, "safe_open", File)
    load_sliced(tmp_path, 2)
    assert read == set(plain_slice(target, 2).state_dict())
    read.clear()
    load_target(tmp_path)
    assert read == set(target.state_dict())


def test_loading_says_nothing_and_leaves_verbosity_as_it_was(make_target, tmp_path, capfd):
    make_target().save_pretrained(tmp_path / "one")
    make_target().save_pretrained(tmp_path / "many", max_shard_size="20KB")
    log, said = transformers.utils.logging, []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    log.add_handler(handler)
    verbosity, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    try:
        log.set_verbosity_info()
        log.enable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            capfd.readouterr()
            for place in ("one", "many"):
                sliced = load_sliced(tmp_path / place, 2)
                out = capfd.readouterr()
                assert "Loading weights" not in out.err and not out.out
                assert not any("UNEXPECTED" in message for message in said)
                assert log.get_verbosity() == log.INFO and log.is_progress_bar_enabled()
            add_lora(sliced, rank=2, alpha=2)
        log.disable_progress_bar()
        with pytest.raises(ULDError):
            load_sliced(tmp_path / "one", 9)
        load_sliced(tmp_path / "one", 2)
        assert not log.is_progress_bar_enabled()
    finally:
        log.remove_handler(handler)
        log.set_verbosity(verbosity)
        if bar:
            log.enable_progress_bar()


def test_what_cannot_be_loaded_is_said_in_one_sentence(make_target, tmp_path):
    with pytest.raises(ULDError, match=r"cannot load a model from '.*nowhere'"):
        load_config(tmp_path / "nowhere")
    with pytest.raises(ULDError, match="cannot load a model from"):
        load_sliced(tmp_path, 1)
    make_target().save_pretrained(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for load in (load_sliced, load_target):
        with pytest.raises(ULDError, match=r"cannot load a causal language model from '.*cut'") as caught:
            load(tmp_path / "cut")
        assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(ULDError, match=r"cannot load a causal language model from '.*cut'"):
        load_target(tmp_path / "cut")


def test_missing_tensors_are_refused(make_target, tmp_path):
    from safetensors.torch import load_file, save_file

    make_target().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ULDError, match=r"lacks 1 tensors of LlamaForCausalLM, the first is model\.layers\.1\.mlp"):
        load_sliced(tmp_path, 2)
    load_sliced(tmp_path, 1)


def test_another_peft_user_can_load_the_adapter(family, make_target, make_unlearned, tmp_path):
    target = make_target(family)
    target.save_pretrained(tmp_path / "target")
    assistant = make_unlearned(target, 2).assistant
    (tmp_path / "adapter").mkdir()
    save_adapter(assistant, tmp_path / "adapter", str(tmp_path / "target"))
    theirs = PeftModel.from_pretrained(load_sliced(tmp_path / "target", 2), tmp_path / "adapter")
    torch.testing.assert_close(logits(theirs), logits(assistant))
    assert theirs.peft_config["default"].base_model_name_or_path == str(tmp_path / "target")
    assert {path.suffix for path in (tmp_path / "adapter").iterdir()} <= {".json", ".safetensors"}
    for path in (tmp_path / "adapter").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path.name


@pytest.mark.slow
def test_loading_a_slice_needs_memory_for_the_slice(make_target, tmp_path):
    """Peak memory of a process that loads 1 of 24 layers stays far below the checkpoint's size."""
    big = {"num_layers": 24, "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
    make_target(num_key_value_heads=4, **big).save_pretrained(tmp_path, max_shard_size="10GB")
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size > 90e6
    code = (
        "import resource, sys; from uld.model.causal_lm import load_sliced, load_target\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "load_sliced(sys.argv[1], 1)\n"
        "print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 0.5 * size


def test_remote_code_is_used_where_it_is_allowed(make_target, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    make_target().save_pretrained(tmp_path, max_shard_size="20KB")  # shards are loaded by way of another folder
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    target = load_target(tmp_path, trust_remote_code=True)
    assert type(target).__name__ == "OwnModel"
    sliced = load_sliced(tmp_path, 2, trust_remote_code=True)
    assert type(sliced).__name__ == type(build_assistant(target, 2)).__name__ == "OwnModel"
    assert torch.equal(logits(sliced), logits(build_assistant(target, 2)))


def test_a_plain_reload_of_the_target_is_not_disturbed(make_target, tmp_path):
    target = make_target()
    target.save_pretrained(tmp_path)
    build_assistant(target, 2)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(target))


def test_a_rank_that_no_matrix_has_room_for_and_modules_that_are_not_there_are_refused():
    target = LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    )
    for rank in (2**32, 10**5):
        with pytest.raises(ULDError, match=f"--lora-rank {rank} is more than the model's matrices have room for"):
            add_lora(build_assistant(target, 1), rank=rank, alpha=8)
    for modules in ("(", "nothing_of_the_kind", ["neither_this"]):
        with pytest.raises(ULDError, match="LlamaForCausalLM cannot be trained with LoRA: "):
            add_lora(build_assistant(target, 1), rank=2, alpha=8, target_modules=modules)
