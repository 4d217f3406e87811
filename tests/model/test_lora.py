import logging

import pytest
import torch
from torch import nn
from transformers import (
    DeepseekV3Config,
    GptOssConfig,
    JambaConfig,
    PhimoeConfig,
    Qwen3MoeConfig,
)

from uld.errors import ULDError
from uld.model.adapters import load_adapter
from uld.model.assistant import add_lora, build_assistant
from uld.model.lora import adapted
from uld.model.weights import save_adapter

SIZE = {
    "vocab_size": 34,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"moe_intermediate_size": 8}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
CONFIGS = {
    "gpt_oss": lambda: GptOssConfig(**SIZE, num_local_experts=4, head_dim=8),
    "phimoe": lambda: PhimoeConfig(**SIZE, num_local_experts=4),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SIZE, **MOE, num_experts=4, head_dim=8, mlp_only_layers=[0]),
    "jamba": lambda: JambaConfig(
        **SIZE, num_experts=4, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4, mamba_dt_rank=4
    ),
    "deepseek": lambda: DeepseekV3Config(
        **SIZE,
        **MOE,
        **LATENT,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        n_shared_experts=1,
        first_k_dense_replace=1,
    ),
}


def model_of(name):
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_experts_and_dense_linears_have_lora_whatever_they_are_called(name):
    model = model_of(name)
    linears = {f"{path}.weight" for path, one in model.named_modules() if type(one) is nn.Linear and "layers" in path}
    stacks = {path for path, one in model.named_parameters() if one.dim() == 3 and "experts" in path}
    have = adapted(add_lora(build_assistant(model, 2), rank=4, alpha=8))
    unread = {path for path in linears if "dt_proj" in path}  # Jamba multiplies with its weight and never calls it
    assert stacks
    assert have == linears - unread | stacks


def test_a_stack_of_experts_shares_out_the_rank_at_the_same_scale():
    assistant = add_lora(build_assistant(model_of("gpt_oss"), 1), rank=8, alpha=24)
    experts = assistant.get_submodule("base_model.model.model.layers.0.mlp.experts")
    linear = assistant.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert experts.r["default"] == 2 and linear.r["default"] == 8
    assert experts.scaling["default"] == linear.scaling["default"] == 3
    assert add_lora(build_assistant(model_of("gpt_oss"), 1), rank=2, alpha=6).base_model.model.model.layers[
        0
    ].mlp.experts.r == {"default": 1}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_on_experts_is_read_as_it_was_written(name, tmp_path):
    model = model_of(name)
    assistant = add_lora(build_assistant(model, 2), rank=4, alpha=8).eval()
    ids = torch.arange(4, 16)[None]
    with torch.no_grad():
        before = assistant(ids).logits
        for path, parameter in assistant.named_parameters():
            if "lora_B" in path:
                parameter.normal_(0, 0.3)
        changed = assistant(ids).logits
    save_adapter(assistant, tmp_path / "adapter", "target")
    again = load_adapter(build_assistant(model, 2), tmp_path / "adapter").eval()
    assert not torch.allclose(before, changed, atol=1e-2)
    torch.testing.assert_close(again(ids).logits, changed)


def test_dropout_leaves_experts_out_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        have = adapted(add_lora(build_assistant(model_of("gpt_oss"), 2), rank=4, alpha=8, dropout=0.1))
    assert not any("experts" in name for name in have) and have
    assert "LoRA leaves out" in caplog.text and "mlp.experts.gate_up_proj" in caplog.text


def test_where_all_is_covered_nothing_is_said(make_target, caplog):
    with caplog.at_level(logging.WARNING):
        add_lora(build_assistant(make_target("llama"), 2), rank=4, alpha=8)
    assert not caplog.text


def test_a_model_that_cannot_be_run_is_refused_in_one_sentence(make_target, monkeypatch):
    model = build_assistant(make_target("llama"), 2)

    def fail(*args, **kwargs):  # as torch does where a device has no kernel for an operator
        raise NotImplementedError("no kernel for this\nand more")

    monkeypatch.setattr(model.model.layers[1], "forward", fail)
    with pytest.raises(ULDError, match=r"^LlamaForCausalLM cannot be trained with LoRA: no kernel for this$"):
        add_lora(model, rank=4, alpha=8)
