"""What a model writes behind prompts, in batches sorted by length: greedy unless it is asked for otherwise."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from uld.errors import ULDError
from uld.model.context import check_positions
from uld.model.unlearned import ULDForCausalLM
from uld.model.vocabulary import embedding_rows, refuse_foreign

BATCH_TOKENS = 1024
"""Padded tokens of a batch."""
LENGTH_MULTIPLE = 16
"""Lengths are padded to a multiple of this: every new shape costs a kernel build on a CPU."""

PLAIN_DECODING: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "exponential_decay_length_penalty": None,
    "penalty_alpha": None,
    "guidance_scale": None,
    "watermarking_config": None,
    "max_time": None,
}
"""For ``generate``: undoes what a model's ``generation_config.json`` may ask for beyond its own probabilities. Tokens
that it may never say (``suppress_tokens``, ``bad_words_ids``) are the model's own, and stay."""

SAMPLING: dict[str, Any] = {
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "top_h": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
"""For ``generate``: the model's own distribution, whatever its generation config asks for."""


_LIKELIEST = 1024


def nucleus(scores: Tensor, share: Tensor) -> Tensor:
    """The likeliest tokens that together have a share p of the probability, and no others (Holtzman et al. 2020).

    Only as many tokens are sorted as are needed: of a large vocabulary that is a small part.

    Args:
        scores: Logits, ``(tokens, vocab)``.
        share: p of each, ``(tokens, 1)``, above 0; at 1 every token stays.

    Returns:
        Scores with minus infinity elsewhere. The likeliest token always stays.
    """
    total, number = scores.logsumexp(-1, keepdim=True), _LIKELIEST
    while True:
        likeliest, places = scores.topk(min(number, scores.shape[-1]))
        chances = (likeliest - total).exp()
        before = chances.cumsum(-1) - chances
        if number >= scores.shape[-1] or bool(((before[:, -1:] >= share) | (share >= 1)).all()):
            break
        number *= 8
    beyond = before >= share
    beyond[:, 0] = False
    found = torch.full_like(scores, -torch.inf).scatter(-1, places, likeliest.masked_fill(beyond, -torch.inf))
    return torch.where(share >= 1, scores, found)


class TopP(LogitsProcessor):
    """`nucleus` for ``generate``, whose own sorts the whole vocabulary at every token."""

    def __init__(self, share: float) -> None:
        """Keep this share, in (0, 1]."""
        self.share = share

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``(rows, vocab)`` to such scores."""
        return nucleus(scores, torch.full_like(scores[:, :1], self.share))


def end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end an answer: those of the model's generation config, and the tokenizer's end of sequence.

    A checkpoint may name no token, or that of the model which it was made of, and has yet learnt to end its answers as
    its tokenizer does.
    """
    end: Any = tokenizer.eos_token_id
    return _own_ends(model) | (frozenset() if end is None else {end})


def name_ends(model: Any, ends: Iterable[int]) -> None:
    """Have a model's generation config name these tokens as well among those that end an answer."""
    own = _own_ends(model)
    if more := own.union(ends) - own:
        every = sorted(own | more)
        model.generation_config.eos_token_id = every if len(every) > 1 else every[0]


def _own_ends(model: Any) -> frozenset[int]:
    own: Any = model.generation_config.eos_token_id
    return frozenset(one for one in (own if isinstance(own, list) else [own]) if one is not None)


def last_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens behind which an answer of `generate_ids` holds nothing more: what ends one, and padding.

    Without a padding token its place is taken by token 0, which then stands behind an end alone and may be a word.
    """
    pad: Any = tokenizer.pad_token_id
    return end_ids(model, tokenizer) | (frozenset() if pad is None else {pad})


@dataclass(frozen=True, slots=True)
class Written:
    """What a model wrote behind one prompt.

    Attributes:
        raw: As text without special tokens.
        ids: As tokens, up to what ended it.
        end: The token that ended it; None where it was cut.
    """

    raw: str
    ids: list[int]
    end: int | None

    @classmethod
    def of(cls, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]) -> "Written":
        """Take apart a row of `generate_ids`; ``ends`` are those of `last_ids`."""
        raw: Any = tokenizer.decode(list(ids), skip_special_tokens=True)
        stop = next((i for i, token in enumerate(ids) if token in ends), None)
        return cls(raw, list(ids[:stop]), None if stop is None else ids[stop])

    @property
    def text(self) -> str:
        """The text without surrounding blanks."""
        return self.raw.strip()

    @property
    def row(self) -> dict[str, Any]:
        """What is kept of it beside the text, for a model that is to judge it (`uld.evaluation.judged`)."""
        return {"written": self.raw, "ids": self.ids, "end": self.end}


def length_batches(
    lengths: Sequence[int], budget: int = BATCH_TOKENS, multiple: int = LENGTH_MULTIPLE
) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first (so that too little memory shows at once).

    Args:
        lengths: Tokens of each row.
        budget: Padded tokens of a batch; a longer row makes a batch of its own.
        multiple: Rows are padded to a multiple of this.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        width = max(1, -(-lengths[order[start]] // multiple)) * multiple
        size = max(1, budget // width)
        yield order[start : start + size]
        start += size


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    **options: Any,
) -> list[str]:
    """Answers to prompts of one batch: `generate_ids` as text.

    Args:
        model: Any causal LM.
        tokenizer: Its tokenizer.
        prompts: Token ids.
        max_new_tokens: Most tokens of an answer.
        options: See `generate_ids`.

    Returns:
        The answers' text without special tokens and surrounding blanks.
    """
    out = generate_ids(model, tokenizer, prompts, max_new_tokens=max_new_tokens, **options)
    texts: Any = tokenizer.batch_decode(out, skip_special_tokens=True)
    return [text.strip() for text in texts]


@torch.inference_mode()
def generate_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    **options: Any,
) -> Tensor:
    """What a model writes behind prompts of one batch, padded on the left and stopped at end-of-sequence.

    Args:
        model: Any causal LM.
        tokenizer: Its tokenizer.
        prompts: Token ids.
        max_new_tokens: Most tokens of an answer.
        options: Handed to ``generate``; greedy and `PLAIN_DECODING` unless they say otherwise.

    Returns:
        ``(prompts, new tokens)`` token ids; an answer that ended early is filled with padding.

    Raises:
        ULDError: a prompt and its new tokens are more than the model has positions for, or its generation config asks
            for a package that is missing.
    """
    pad: Any = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    refuse_foreign([pad, *map(max, prompts)], embedding_rows(model), str(model.name_or_path))
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    if not isinstance(model, ULDForCausalLM):  # which looks after that itself
        check_positions(
            [model], width + max_new_tokens - 1, f"a prompt of {width} tokens with {max_new_tokens} new ones"
        )
    ends = sorted(end_ids(model, tokenizer)) or None
    settings = {"do_sample": False, "num_beams": 1, "pad_token_id": pad, "eos_token_id": ends}
    settings |= {**PLAIN_DECODING, **options}
    try:
        out: Any = model.generate(  # type: ignore[operator]
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            **settings,
        )
    except ImportError as error:  # a generation config may ask for a quantized cache, and that for a package
        raise ULDError(f"{model.name_or_path} cannot generate here: {str(error).strip().splitlines()[0]}") from error
    return out[:, width:]
