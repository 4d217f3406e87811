import pytest
import torch
from transformers import Gemma4ForCausalLM, Gemma4TextConfig, GPT2Config, GPT2LMHeadModel

from uld.errors import ULDError
from uld.model.assistant import build_assistant, slice_config
from uld.model.causal_lm import load_sliced
from uld.model.slicing import settle

SIZE = {
    "vocab_size": 34,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
}


def test_what_layers_work_out_from_their_number_is_as_in_the_whole(make_target, tmp_path):
    target = make_target("llama", num_layers=4)
    part = build_assistant(target, 2)
    for layer in target.model.layers:  # as a family does whose residuals are scaled by depth
        layer.residual_scale = 1 / 4
    for layer in part.model.layers:
        layer.residual_scale = 1 / 2
    assert settle(dict(target.named_modules()), part, "model.layers") is None
    assert [layer.residual_scale for layer in part.model.layers] == [1 / 4, 1 / 4]


def test_inputs_for_each_layer_from_one_tensor_are_refused_by_name(tmp_path):
    target = Gemma4ForCausalLM(Gemma4TextConfig(**SIZE, hidden_size_per_layer_input=8, vocab_size_per_layer_input=34))
    target.save_pretrained(tmp_path)
    for cut in (lambda: build_assistant(target, 2), lambda: load_sliced(tmp_path, 2)):
        with pytest.raises(ULDError, match=r"Gemma4ForCausalLM cannot stand alone: .*embed_tokens_per_layer"):
            cut()


@pytest.mark.parametrize(("keep", "shared"), [(2, 0), (4, 0), (5, 1), (6, 2)])
def test_the_last_layers_of_the_target_that_share_keys_are_counted_from_its_end(keep, shared):
    config = Gemma4TextConfig(**SIZE, hidden_size_per_layer_input=0, num_kv_shared_layers=2)
    assert slice_config(config, keep).num_kv_shared_layers == shared


def test_a_head_that_is_called_a_decoder_is_not_taken_for_one():
    from transformers import AutoModelForCausalLM, ModernBertDecoderConfig

    from uld.model.assistant import check_head, text_decoder

    size = {"vocab_size": 34, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3}
    model = AutoModelForCausalLM.from_config(
        ModernBertDecoderConfig(**size, num_attention_heads=4, pad_token_id=0)
    ).eval()
    assert text_decoder(model) is model.model
    with pytest.raises(ULDError, match="computes its logits in a way"):
        check_head(model)


def test_a_scale_by_the_number_of_a_layer_is_kept():
    config = GPT2Config(vocab_size=34, n_embd=32, n_layer=4, n_head=4, scale_attn_by_inverse_layer_idx=True)
    target = GPT2LMHeadModel(config).eval()
    ids = torch.arange(4, 12)[None]
    part = build_assistant(target, 3)
    target.transformer.h = target.transformer.h[:3]
    target.config.n_layer = 3
    assert torch.equal(part(ids, use_cache=False).logits, target(ids, use_cache=False).logits)
