r"""A small Llama with random weights, and a byte-level BPE tokenizer that is trained on the text it will learn.

Both are ordinary Hugging Face objects. Prompts have the form ``<s>Question: …\nAnswer: …</s>``, which the tokenizer
carries as its chat template.
"""

from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from uld.data.record import Record
from uld.errors import ConfigError
from uld.training.config import SCRATCH, FinetuneConfig

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")
"""Padding, beginning and end; their ids are their places."""
CHAT_TEMPLATE = """\
{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + 'Question: ' + (m['content'] | trim) + '
Answer:' }}{% else %}{{ ' ' + (m['content'] | trim) + eos_token }}{% endif %}{% endfor %}"""
VOCAB_SIZE = 4096
_LEAST_VOCAB = len(SPECIAL_TOKENS) + 256  # every byte is a token


def check_sizes(config: FinetuneConfig) -> None:
    """Refuse sizes that do not fit each other.

    Raises:
        ConfigError: which, and how to mend them.
    """
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_heads")
    if hidden % heads or hidden // heads % 2:
        raise ConfigError(
            f"--hidden-size {hidden} cannot be shared by {heads} attention heads of an even width each: make it a "
            f"multiple of {2 * heads}, or change --num-heads"
        )
    if config.tokenizer is None and config.vocab_size is not None and config.vocab_size < _LEAST_VOCAB:
        raise ConfigError(
            f"--vocab-size {config.vocab_size} is too small: 256 bytes and {len(SPECIAL_TOKENS)} special tokens take "
            f"{_LEAST_VOCAB}"
        )


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer.

    Args:
        texts: What it shall cut well; anything else it can cut, too, into bytes if need be.
        vocab_size: Tokens, at most; a small text gives fewer.
        max_length: Tokens that its model can read.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    pad, bos, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
    )


def texts_of(records: Iterable[Record]) -> Iterator[str]:
    """What a tokenizer is trained on: every record in the form in which a prompt has it."""
    for record in records:
        if record.text is not None:
            yield record.text
        elif record.prompt is not None:
            yield f"{record.prompt}{record.completion}"
        else:
            words = {"user": "Question", "assistant": "Answer"}
            yield "\n".join(f"{words.get(role, role)}: {content.strip()}" for role, content in record.messages)


def llama_config(config: FinetuneConfig, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """The architecture that the settings ask for: Llama with untied embeddings.

    Raises:
        ConfigError: the vocabulary has no room for the tokenizer's tokens.
    """
    tokens = len(tokenizer)  # type: ignore[arg-type]
    vocab = tokens if config.tokenizer is None else config.vocab_size or tokens
    if vocab < tokens:
        raise ConfigError(
            f"--vocab-size {vocab} is too small: {config.tokenizer} has {tokens} tokens; leave it out, or raise it"
        )
    heads = _size(config, "num_heads")
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=_size(config, "hidden_size"),
        intermediate_size=_size(config, "intermediate_size"),
        num_hidden_layers=_size(config, "num_layers"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=config.max_length,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,  # type: ignore[arg-type]
        bos_token_id=tokenizer.bos_token_id,  # type: ignore[arg-type]
        eos_token_id=tokenizer.eos_token_id,  # type: ignore[arg-type]
    )


def _size(config: FinetuneConfig, name: str) -> int:
    """A size of the model, or its default."""
    value = getattr(config, name)
    return SCRATCH[name] if value is None else value
