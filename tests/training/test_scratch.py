"""A small Llama from nothing and its tokenizer."""

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.errors import ConfigError
from uld.training.config import FinetuneConfig
from uld.training.scratch import check_sizes, llama_config, texts_of, train_tokenizer

RECORDS = [
    Record.qa("Who wrote the red book?", "Ada Quill wrote it in 1931."),
    Record.qa("Who wrote the blue book?", "Bo Larch wrote it in 1952."),
    Record(prompt="The green book ", completion="is by Cy Moor."),
    Record(text="Old books are kept in a tower. Nobody reads them."),
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(texts_of(RECORDS), 300, 128)


def test_it_learns_from_every_form_of_record():
    assert list(texts_of(RECORDS)) == [
        "Question: Who wrote the red book?\nAnswer: Ada Quill wrote it in 1931.",
        "Question: Who wrote the blue book?\nAnswer: Bo Larch wrote it in 1952.",
        "The green book is by Cy Moor.",
        "Old books are kept in a tower. Nobody reads them.",
    ]


@pytest.mark.parametrize("text", ["Who wrote the red book?", "  two blanks, a\ttab\n", "naïve 漢字 🙂", "</s >"])
def test_any_text_comes_back_whole(tokenizer, tmp_path, text):
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert one.decode(one(text, add_special_tokens=False).input_ids) == text


def test_it_cuts_what_it_was_trained_on_into_fewer_pieces(tokenizer):
    known, unknown = "Who wrote the red book?", "Zyx qvrk pff umj bgn wud?"
    assert len(tokenizer(known).input_ids) < len(known) / 2
    assert len(tokenizer(unknown).input_ids) > 0.9 * len(unknown)
    assert 259 < len(tokenizer) <= 300


def test_the_chat_template_gives_the_form_that_prompts_have(tokenizer):
    row = PromptFormat(tokenizer).encode(RECORDS[0], 128)
    assert tokenizer.decode(row.ids) == "<s>Question: Who wrote the red book?\nAnswer: Ada Quill wrote it in 1931.</s>"
    assert (row.ids[0], row.ids[-1]) == (1, 2)
    learnt = [token for token, wanted in zip(row.ids, row.learn, strict=True) if wanted]
    assert tokenizer.decode(learnt) == " Ada Quill wrote it in 1931.</s>"


def test_the_same_text_gives_the_same_tokenizer(tokenizer):
    again = train_tokenizer(texts_of(RECORDS), 300, 128)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_the_config_is_what_the_settings_say(tokenizer):
    sizes = {"hidden_size": 24, "num_heads": 3, "num_layers": 2, "intermediate_size": 40, "max_length": 64}
    model = LlamaForCausalLM(llama_config(FinetuneConfig(scratch=True, **sizes), tokenizer))
    config = model.config
    assert (config.hidden_size, config.head_dim, config.num_hidden_layers, config.intermediate_size) == (24, 8, 2, 40)
    assert config.max_position_embeddings == 64 and config.vocab_size == len(tokenizer)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert model.get_input_embeddings().weight.data_ptr() != model.get_output_embeddings().weight.data_ptr()
    with torch.no_grad():
        assert model(torch.tensor([[1, 5]])).logits.shape == (1, 2, len(tokenizer))


def test_a_given_tokenizer_may_leave_room_but_needs_its_own(tokenizer):
    tokens = len(tokenizer)
    given = {"scratch": True, "tokenizer": "some"}
    assert llama_config(FinetuneConfig(**given), tokenizer).vocab_size == tokens
    assert llama_config(FinetuneConfig(**given, vocab_size=tokens + 5), tokenizer).vocab_size == tokens + 5
    with pytest.raises(ConfigError, match=f"--vocab-size {tokens - 1} is too small: some has {tokens} tokens"):
        llama_config(FinetuneConfig(**given, vocab_size=tokens - 1), tokenizer)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 64, "num_heads": 3}, "--hidden-size 64 cannot be shared by 3 attention heads"),
        ({"hidden_size": 63, "num_heads": 7}, "multiple of 14"),
        ({"hidden_size": 64}, "by 3 attention heads"),
        ({"vocab_size": 258}, "--vocab-size 258 is too small: 256 bytes and 3 special tokens take 259"),
    ],
)
def test_sizes_that_do_not_fit_each_other(sizes, message):
    with pytest.raises(ConfigError, match=message):
        check_sizes(FinetuneConfig(scratch=True, **sizes))
