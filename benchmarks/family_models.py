"""Tiny random models of the families of transformers, for ``benchmarks/families.py`` and its test.

Four layers, a vocabulary of 38, windows of 8 tokens where a family has windows: a text of a dozen tokens then crosses
everything that a family does.
"""

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

VOCAB = 38
CORE = ("gpt2", "bloom", "mpt", "gptj", "gemma3", "deepseek_v3", "gpt_oss", "lfm2", "phimoe", "openai_gpt")
"""Families that the default tests take, one for each thing that a family may do otherwise."""

_TOKENS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_PLAIN: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    **_TOKENS,
}
_GROUPED = _PLAIN | {"num_key_value_heads": 2}
_HEADS8 = _GROUPED | {"head_dim": 8}
_SHORT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.2,
    **_TOKENS,
}
_OPT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "init_std": 0.2,
    **_TOKENS,
}
_STATES: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 4, **_TOKENS}
_ALTERNATE = ["sliding_attention", "full_attention"] * 2
_LINEAR: dict[str, Any] = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_DEEPSEEK: dict[str, Any] = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
_WINDOW = {"sliding_window": 8}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _GROUPED),
    "llama, tied": ("Llama", _GROUPED | {"tie_word_embeddings": True}),
    "mistral": ("Mistral", _GROUPED | _WINDOW),
    "ministral": ("Ministral", _HEADS8 | _WINDOW),
    "gpt2": ("GPT2", _SHORT),
    "gpt2, scaled by layer": (
        "GPT2",
        _SHORT | {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    ),
    "gpt_bigcode": ("GPTBigCode", _SHORT),
    "gptj": ("GPTJ", _SHORT | {"rotary_dim": 4}),
    "codegen": ("CodeGen", _SHORT | {"rotary_dim": 4}),
    "gpt_neo": (
        "GPTNeo",
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "window_size": 8,
            "attention_types": [[["global", "local"], 2]],
            "initializer_range": 0.2,
            **_TOKENS,
        },
    ),
    "gpt_neox": ("GPTNeoX", _PLAIN),
    "opt": ("OPT", _OPT | {"word_embed_proj_dim": 32}),
    "opt, projected": ("OPT", _OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "falcon": ("Falcon", _PLAIN),
    "falcon, new": ("Falcon", _PLAIN | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, alibi": (
        "Falcon",
        _PLAIN | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "bloom": (
        "Bloom",
        {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 4, "n_head": 4, "initializer_range": 0.2, **_TOKENS},
    ),
    "mpt": (
        "Mpt",
        {
            "vocab_size": VOCAB,
            "d_model": 32,
            "n_layers": 4,
            "n_heads": 4,
            "max_seq_len": 64,
            "initializer_range": 0.2,
            **_TOKENS,
        },
    ),
    "gemma": ("Gemma", _HEADS8),
    "gemma2": ("Gemma2", _HEADS8 | _WINDOW | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3Text", _HEADS8 | _WINDOW | {"query_pre_attn_scalar": 8, "layer_types": _ALTERNATE}),
    "gemma3n": (
        "Gemma3nText",
        _HEADS8
        | _WINDOW
        | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB, "num_kv_shared_layers": 2}
        | {"laurel_rank": 4, "altup_num_inputs": 2, "layer_types": _ALTERNATE, "intermediate_size": [48] * 4}
        | {"activation_sparsity_pattern": [0.0] * 4},
    ),
    "gemma4": (
        "Gemma4Text",
        _HEADS8 | _WINDOW | {"layer_types": _ALTERNATE, "hidden_size_per_layer_input": 0, "global_head_dim": 8},
    ),
    "gemma4, inputs for each layer": ("Gemma4Text", _HEADS8 | _WINDOW | {"layer_types": _ALTERNATE}),
    "vaultgemma": ("VaultGemma", _HEADS8 | _WINDOW),
    "recurrent_gemma": (
        "RecurrentGemma",
        _GROUPED | {"lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"]},
    ),
    "qwen2": ("Qwen2", _GROUPED),
    "qwen2, windows": (
        "Qwen2",
        _GROUPED | {"use_sliding_window": True, "max_window_layers": 2, **_WINDOW},
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        _GROUPED | _EXPERTS | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
    "qwen3": ("Qwen3", _HEADS8),
    "qwen3_moe": ("Qwen3Moe", _HEADS8 | _EXPERTS | {"moe_intermediate_size": 16, "decoder_sparse_step": 1}),
    "qwen3_moe, some dense": (
        "Qwen3Moe",
        _HEADS8 | _EXPERTS | {"moe_intermediate_size": 16, "mlp_only_layers": [0, 2]},
    ),
    "qwen3_next": (
        "Qwen3Next",
        _HEADS8 | _EXPERTS | _LINEAR | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
    "qwen3_next, linear first": (
        "Qwen3Next",
        _HEADS8
        | _EXPERTS
        | _LINEAR
        | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
        | {"layer_types": ["linear_attention"] * 3 + ["full_attention"]},
    ),
    "qwen3_5": ("Qwen3_5Text", _HEADS8 | _LINEAR),
    "mixtral": ("Mixtral", _GROUPED | _LOCAL | _WINDOW),
    "olmo": ("Olmo", _GROUPED),
    "olmo2": ("Olmo2", _GROUPED),
    "olmo3": ("Olmo3", _GROUPED | _WINDOW),
    "olmoe": ("Olmoe", _GROUPED | _EXPERTS),
    "phi": ("Phi", _PLAIN),
    "phi3": ("Phi3", _GROUPED),
    "phimoe": ("Phimoe", _GROUPED | _LOCAL | {"sliding_window": None}),
    "stablelm": ("StableLm", _GROUPED),
    "stablelm, parallel": ("StableLm", _GROUPED | {"qk_layernorm": True, "use_parallel_residual": True}),
    "cohere": ("Cohere", _GROUPED | {"logit_scale": 0.5, "tie_word_embeddings": True}),
    "cohere, normed": ("Cohere", _GROUPED | {"use_qk_norm": True}),
    "cohere2": ("Cohere2", _HEADS8 | _WINDOW),
    "granite": (
        "Granite",
        _GROUPED
        | {"logits_scaling": 2.0, "embedding_multiplier": 3.0}
        | {"residual_multiplier": 0.5, "attention_multiplier": 0.3},
    ),
    "granitemoe": ("GraniteMoe", _GROUPED | _LOCAL | {"logits_scaling": 2.0}),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        _GROUPED | _LOCAL | _MAMBA | {"shared_intermediate_size": 16, "layer_types": ["mamba", "attention"] * 2},
    ),
    "starcoder2": ("Starcoder2", _GROUPED),
    "smollm3": ("SmolLM3", _GROUPED),
    "glm": ("Glm", _HEADS8),
    "glm4": ("Glm4", _HEADS8),
    "nemotron": ("Nemotron", _GROUPED),
    "nemotron_h": (
        "NemotronH",
        _HEADS8 | {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8},
    ),
    "persimmon": ("Persimmon", _PLAIN),
    "exaone4": ("Exaone4", _HEADS8 | _WINDOW | {"sliding_window_pattern": 2}),
    "helium": ("Helium", _HEADS8),
    "arcee": ("Arcee", _GROUPED),
    "apertus": ("Apertus", _GROUPED),
    "ernie4_5": ("Ernie4_5", _HEADS8),
    "seed_oss": ("SeedOss", _HEADS8),
    "hunyuan_v1_dense": ("HunYuanDenseV1", _HEADS8),
    "diffllama": ("DiffLlama", _GROUPED),
    "nanochat": ("NanoChat", _GROUPED),
    "gpt_oss": ("GptOss", _HEADS8 | _LOCAL | _WINDOW),
    "deepseek_v2": ("DeepseekV2", _GROUPED | _DEEPSEEK),
    "deepseek_v3": ("DeepseekV3", _GROUPED | _DEEPSEEK),
    "llama4": (
        "Llama4Text",
        _HEADS8
        | {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48, "attention_chunk_size": 16},
    ),
    "laguna": ("Laguna", _HEADS8 | _EXPERTS | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}),
    "kimi_linear": ("KimiLinear", _GROUPED | _EXPERTS | {"moe_intermediate_size": 16}),
    "minimax": ("MiniMax", _HEADS8 | _LOCAL),
    "xglm": (
        "XGLM",
        {
            "vocab_size": VOCAB,
            "d_model": 32,
            "ffn_dim": 48,
            "num_layers": 4,
            "attention_heads": 4,
            "max_position_embeddings": 64,
            "init_std": 0.2,
            "decoder_start_token_id": 2,
            **_TOKENS,
        },
    ),
    "biogpt": ("BioGpt", _PLAIN),
    "openai_gpt": ("OpenAIGPT", _SHORT),
    "ctrl": ("CTRL", _SHORT | {"dff": 48}),
    "cpmant": (
        "CpmAnt",
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "dim_head": 8,
            "dim_ff": 48,
            "num_hidden_layers": 4,
            "prompt_types": 4,
            "prompt_length": 4,
            "segment_types": 4,
        },
    ),
    "modernbert_decoder": (
        "ModernBertDecoder",
        _PLAIN | {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 8},
    ),
    "mamba": ("Mamba", _STATES | {"time_step_rank": 4}),
    "mamba2": ("Mamba2", _STATES | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    "falcon_mamba": ("FalconMamba", _STATES | {"time_step_rank": 4}),
    "falcon_h1": (
        "FalconH1",
        _HEADS8 | _MAMBA | {"mamba_d_ssm": 32, "mamba_n_heads": 4},
    ),
    "rwkv": (
        "Rwkv",
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "attention_hidden_size": 32,
            "num_hidden_layers": 4,
            "context_length": 64,
            "intermediate_size": 48,
            **_TOKENS,
        },
    ),
    "jamba": (
        "Jamba",
        _GROUPED
        | _EXPERTS
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2}
        | {"mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    ),
    "lfm2": (
        "Lfm2",
        _GROUPED
        | {"block_dim": 32, "block_ff_dim": 48, "conv_L_cache": 3}
        | {"layer_types": ["conv", "full_attention"] * 2},
    ),
    "bamba": ("Bamba", _GROUPED | _MAMBA | {"attn_layer_indices": [1, 3]}),
}


def tiny(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model of a family, in evaluation mode, whose matrices are large enough to say something."""
    name, settings = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() >= 2 and not parameter.std() >= 0.05:
                    parameter.normal_(0, 0.2)
    return model
