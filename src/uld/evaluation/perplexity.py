"""Perplexity of texts and of answers, per token, word and byte, as EleutherAI's lm-eval defines it.

A text is read in windows of the model's length, one behind the other; every token is predicted once, the first of a
window from the last token of the window before it, the first of the text from the beginning-of-sequence token.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld.data.prompt import Encoded, PromptFormat
from uld.data.record import Record
from uld.errors import ULDError
from uld.evaluation.scoring import Scorer, refuse_nan
from uld.model.context import readable_tokens

_OVERFLOW = 709.0  # above, exp is no float


@dataclass(frozen=True, slots=True)
class Perplexity:
    """What a model thinks of some texts or answers; the sum of two is that of both.

    Attributes:
        loss: Summed negative log-likelihood, nats.
        tokens: Tokens that were predicted.
        words: Words of the texts: what stands between blanks, as lm-eval's wikitext counts; 0 where it is not known.
        bytes: Of the texts in UTF-8; 0 where it is not known.
        cut: Answers that are longer than the model reads, of which only the first tokens count.
    """

    loss: float
    tokens: int
    words: int = 0
    bytes: int = 0
    cut: int = 0

    def __add__(self, other: "Perplexity") -> "Perplexity":
        """Of both; words and bytes are known where both know them."""
        known = bool(self.words and other.words)
        return Perplexity(
            self.loss + other.loss,
            self.tokens + other.tokens,
            known * (self.words + other.words),
            known * (self.bytes + other.bytes),
            self.cut + other.cut,
        )

    def to_dict(self) -> dict[str, float]:
        """``exp(loss / n)`` for n tokens, words and bytes, as far as they are known.

        Those of words and bytes compare models of different tokenizers. Beside them ``cut``, where answers were.
        """
        counts = {"token": self.tokens, "word": self.words, "byte": self.bytes}
        found = {name: _exp(self.loss / count) for name, count in counts.items() if count}
        return found | ({"cut": self.cut} if self.cut else {})


def text_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    context: int = 1,
) -> Perplexity:
    """Perplexity of whole texts, with the default settings that of lm-eval's ``loglikelihood_rolling``.

    Args:
        model: Any causal LM.
        tokenizer: Its tokenizer.
        texts: Each is read on its own.
        max_length: Tokens of a window; default: as many as the model can read, by its config.
        context: Tokens that every window but the first has before those that it predicts, at least 1.

    Raises:
        ULDError: a text of no token, a context that leaves a window nothing to predict, a tokenizer that has neither
            beginning nor end of sequence, or a model that gives NaN.
    """
    length = max_length or readable_tokens(model, tokenizer)
    if not 1 <= context <= length:
        raise ULDError(f"context must lie between 1 and the {length} tokens of a window, not {context}")
    prefix: Any = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if prefix is None:
        raise ULDError("the tokenizer has no token that begins or ends a sequence: nothing predicts a text's first one")
    rows: list[Encoded] = []
    for text in texts:
        marked = text.startswith(str(tokenizer.decode(prefix)))  # lm-eval then adds no second beginning of sequence
        ids = tokenizer(text, verbose=False, add_special_tokens=not marked).input_ids
        if not ids:
            raise ULDError("a text of no token has no perplexity")
        rows += _windows([prefix, *ids], length, context)
    words = sum(len(re.split(r"\s+", text)) for text in texts)
    return _scored(model, tokenizer, rows, words, sum(len(text.encode()) for text in texts))


def perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], template: str | None = None
) -> Perplexity:
    """Perplexity of records: of texts every token, of the others the answers behind their prompts, as far as they fit.

    Args:
        model: Any causal LM.
        tokenizer: Its tokenizer.
        records: At least one.
        template: Prompt template of the questions; None takes the tokenizer's chat template.

    Raises:
        ULDError: see `text_perplexity`, and a record that the template cannot format.
    """
    texts = [record.text for record in records if record.text is not None]
    asked = [record for record in records if record.text is None]
    parts = [text_perplexity(model, tokenizer, texts)] if texts else []
    if asked:
        rows, cut = PromptFormat(tokenizer, template).encode_all(asked, readable_tokens(model, tokenizer))
        parts.append(replace(_scored(model, tokenizer, rows), cut=cut))
    return sum(parts[1:], parts[0])


def _windows(ids: list[int], length: int, context: int) -> list[Encoded]:
    """A text, the token before it first, as windows that predict every other token once."""
    rows, done = [], 1
    while done < len(ids):
        end = min(done + length - (context - 1 if rows else 0), len(ids))
        start = max(0, end - length - 1)  # the last window, too, sees as much as a window holds
        rows.append(Encoded(ids[start:end], [False] * (done - start) + [True] * (end - done)))
        done = end
    return rows


def _scored(model: Any, tokenizer: Any, rows: list[Encoded], words: int = 0, size: int = 0) -> Perplexity:
    scores = Scorer.of(model, tokenizer).score(rows)[0]
    refuse_nan(model, (score.loss for score in scores))
    return Perplexity(sum(score.loss for score in scores), sum(score.tokens for score in scores), words, size)


def _exp(value: float) -> float:
    return math.exp(value) if value < _OVERFLOW else math.inf
