import pytest
import torch
from transformers import AutoModelForCausalLM, OpenAIGPTConfig, Qwen3NextConfig

import uld.training.probe
from uld.errors import ULDError
from uld.model.assistant import add_lora, build_assistant
from uld.training.config import TrainConfig
from uld.training.learners import Learner
from uld.training.probe import probe
from uld.training.run import train

SMALL = {"vocab_size": 34, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 32}


def learner_of(target, num_layers=2):
    return Learner(add_lora(build_assistant(target, num_layers), rank=4, alpha=8))


def test_what_works_is_left_as_it_was(make_target, family):
    learner = learner_of(make_target(family))
    learner.train()
    before = {name: one.clone() for name, one in learner.named_parameters()}
    flags = {name: one.requires_grad for name, one in learner.named_parameters()}
    modes = {name: one.training for name, one in learner.named_modules()}
    numbers = torch.get_rng_state()
    probe(learner, answers=True)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert {name: one.training for name, one in learner.named_modules()} == modes
    for name, one in learner.named_parameters():
        assert torch.equal(one, before[name]) and one.requires_grad == flags[name] and one.grad is None


@pytest.mark.parametrize("lora", [True, False])
def test_a_target_that_is_trained_itself_needs_no_cache(lora):
    model = AutoModelForCausalLM.from_config(OpenAIGPTConfig(**SMALL)).eval()
    learner = learner_of(model, 3) if lora else Learner(model)
    probe(learner, answers=False)
    with pytest.raises(ULDError, match=r"^OpenAIGPTLMHeadModel cannot be unlearned: .*cache"):
        probe(learner_of(model), answers=True)


def test_first_layers_without_keys_are_told_to_be_too_few():
    size = {"vocab_size": 34, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 4, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
    linear = {
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    }
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    experts["shared_expert_intermediate_size"] = 8
    model = AutoModelForCausalLM.from_config(Qwen3NextConfig(**size, **heads, **linear, **experts)).eval()
    with pytest.raises(ULDError, match=r"^Qwen3NextForCausalLM cannot be unlearned: .*--num-layers"):
        probe(learner_of(model, 2), answers=True)
    probe(learner_of(model, 4), answers=True)


def broken(kind):
    """A forward of a layer that is right for one row at once, and wrong in one way."""

    def change(plain):
        def forward(hidden, *args, **kwargs):
            out = plain(hidden, *args, **kwargs)
            if kind == "cache" and hidden.shape[1] == 1:
                return out + 1
            if kind == "rows" and len(hidden) > 1:
                return out + out.roll(1, 0)
            if kind == "gradient":
                return out.detach()
            if kind == "nan" and torch.is_grad_enabled():
                return out * torch.nan
            if kind == "crash" and hidden.shape[1] == 1:
                raise IndexError("nothing there")
            return out

        return forward

    return change


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("cache", "cannot be unlearned: its cache changes its answers"),
        ("rows", "cannot be trained: padding on the right"),
        ("gradient", "cannot be trained: "),
        ("nan", "cannot be trained: its loss or gradients are not finite"),
        ("crash", r"cannot be unlearned: answering with a cache ends in IndexError \(nothing there\)"),
    ],
)
def test_each_thing_that_does_not_work_has_its_sentence(make_target, monkeypatch, kind, says):
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    learner = learner_of(make_target("llama"))
    plain = LlamaDecoderLayer.forward

    def forward(self, *args, **kwargs):
        return broken(kind)(lambda *a, **k: plain(self, *a, **k))(*args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", forward)
    with pytest.raises(ULDError, match=f"^LlamaForCausalLM {says}"):
        probe(learner, answers=True)


def test_an_adapter_that_would_not_be_found_again_is_refused(make_target, monkeypatch):
    def renamed(model, tensors):
        return plain(model, {name.replace("q_proj", "query"): one for name, one in tensors.items()})

    plain = uld.training.probe.set_peft_model_state_dict
    monkeypatch.setattr(uld.training.probe, "set_peft_model_state_dict", renamed)
    with pytest.raises(ULDError, match=r"^LlamaForCausalLM cannot be trained: PEFT would not find \S+q_proj\.lora_A"):
        probe(learner_of(make_target("llama")), answers=True)


def test_nothing_is_written_for_a_model_that_does_not_work(task, tmp_path, monkeypatch):
    def refuse(learner, *, answers):
        raise ULDError("no")

    monkeypatch.setattr(uld.training.run, "probe", refuse)
    with pytest.raises(ULDError, match=r"^no$"):
        train(TrainConfig(**task.settings(tmp_path / "run")), progress=False)
    assert not (tmp_path / "run").exists()
