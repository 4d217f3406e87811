"""What a config says is read under the family's own names, from a config and from the dictionary of one."""

import pytest
from transformers import (
    AutoConfig,
    BloomConfig,
    CTRLConfig,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    MptConfig,
    PreTrainedConfig,
    RecurrentGemmaConfig,
    RwkvConfig,
    XGLMConfig,
)

from uld.model.config import ULDConfig
from uld.model.fields import field, number

# family, layers, width, heads, positions
CONFIGS = {
    "llama": (LlamaConfig(num_hidden_layers=3, hidden_size=32, num_attention_heads=4, max_position_embeddings=99), 99),
    "gpt2": (GPT2Config(n_layer=3, n_embd=32, n_head=4, n_positions=99), 99),
    "ctrl": (CTRLConfig(n_layer=3, n_embd=32, n_head=4, n_positions=99), 99),
    "mpt": (MptConfig(n_layers=3, d_model=32, n_heads=4, max_seq_len=99), 99),
    "xglm": (XGLMConfig(num_layers=3, d_model=32, attention_heads=4, max_position_embeddings=99), 99),
    "rwkv": (RwkvConfig(num_hidden_layers=3, hidden_size=32, context_length=99), 99),
    "bloom": (BloomConfig(n_layer=3, hidden_size=32, n_head=4), None),
    "gpt_neo": (
        GPTNeoConfig(
            num_layers=3,
            hidden_size=32,
            num_heads=4,
            max_position_embeddings=99,
            attention_types=[[["global"], 3]],
        ),
        99,
    ),
    "gemma3": (
        Gemma3Config(
            text_config=Gemma3TextConfig(
                num_hidden_layers=3, hidden_size=32, num_attention_heads=4, max_position_embeddings=99
            ).to_dict()
        ),
        99,
    ),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_a_field_has_one_name_whatever_the_family_calls_it(family):
    config, positions = CONFIGS[family]
    written = config.get_text_config(decoder=True).to_dict()
    for form in (config, written):
        assert field(form, "num_hidden_layers") == 3
        assert field(form, "hidden_size") == 32
        assert field(form, "max_position_embeddings") == positions
        assert field(form, "vocab_size") == config.get_text_config(decoder=True).vocab_size
    assert field(config, "no_such_field") is None and field(config, "no_such_field", 7) == 7


@pytest.mark.parametrize("family", CONFIGS)
def test_an_unlearned_model_says_what_its_target_says(family, tmp_path):
    config, positions = CONFIGS[family]
    made = ULDConfig.of(config, 2)
    made.save_pretrained(tmp_path)
    text = config.get_text_config(decoder=True)
    older = ULDConfig(target="t", target_config=text.to_dict(), num_layers=2)  # as runs were written without `of`
    for one in (made, AutoConfig.from_pretrained(tmp_path), older):
        assert (one.num_hidden_layers, one.hidden_size, one.vocab_size) == (3, 32, text.vocab_size)
        assert getattr(one, "max_position_embeddings", None) == positions
        assert one.eos_token_id == text.eos_token_id and one.bos_token_id == text.bos_token_id


def test_a_family_that_transformers_does_not_know_is_answered_for_as_well():
    class Remote(PreTrainedConfig):
        model_type = "of_a_remote_place"
        attribute_map = {"num_hidden_layers": "depth", "max_position_embeddings": "reach"}  # noqa: RUF012

        def __init__(self, **kwargs):
            self.depth, self.reach = 3, 99
            super().__init__(**kwargs)

    made = ULDConfig.of(Remote(), 2)
    assert (made.num_hidden_layers, made.max_position_embeddings) == (3, 99)


def test_a_number_is_a_number():
    assert number(MptConfig(logit_scale="inv_sqrt_d_model"), "logit_scale") is None
    assert number(RecurrentGemmaConfig(logits_soft_cap=30.0), "final_logit_softcapping") == 30.0
    assert number(LlamaConfig(), "logit_scale") is None
