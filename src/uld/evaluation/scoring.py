"""Scoring: log-likelihoods of given answers, and greedy answers, in batches sorted by length.

Works on any causal LM of transformers; for an unlearned model several settings of the combination can be scored from
one forward, because target and assistant logits do not depend on them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld.assistant import check_head, head_logits
from uld.data.prompt import Encoded
from uld.errors import ULDError
from uld.logits import Combination, combine
from uld.losses import cross_entropy
from uld.modeling import ULDForCausalLM

_LENGTH_MULTIPLE = 16
_BATCH_TOKENS = 4096
_CHUNK_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True)
class Score:
    """Log-likelihood of one answer.

    Attributes:
        loss: Summed negative log-likelihood, nats.
        tokens: Answer tokens, end-of-sequence included.
    """

    loss: float
    tokens: int

    @property
    def avg_loss(self) -> float:
        """Mean loss a token, nats."""
        return self.loss / self.tokens


class Scorer:
    """Scores answers with one model under one or several combinations."""

    def __init__(
        self, model: PreTrainedModel, pad_token_id: int, combinations: Sequence[Combination] | None = None
    ) -> None:
        """Choose the model.

        Args:
            model: Any causal LM.
            pad_token_id: Fills short rows.
            combinations: For an unlearned model, the settings to score; None takes its own.

        Raises:
            ULDError: combinations for an ordinary model.
        """
        unlearned = isinstance(model, ULDForCausalLM)
        if combinations is not None and not unlearned:
            raise ULDError("an ordinary model has no combination to vary: score a run")
        self.model: Any = model
        self.pad_token_id = pad_token_id
        self.combinations = list(combinations) if combinations is not None else None
        parts: list[Any] = [model.target, model.assistant.get_base_model()] if unlearned else [model]  # type: ignore[union-attr]
        try:
            for part in parts:
                check_head(part)
            self.parts = parts
        except ULDError:
            self.parts = []  # an unusual head: its own forward makes the logits, at every position

    @torch.inference_mode()
    def score(self, rows: Sequence[Encoded]) -> list[list[Score]]:
        """Score the learnt tokens of each row.

        Args:
            rows: Encoded prompts with answers.

        Returns:
            For each combination (one for an ordinary model) a score a row, in the given order.
        """
        settings = len(self.combinations) if self.combinations is not None else 1
        found: list[list[Score | None]] = [[None] * len(rows) for _ in range(settings)]
        for batch in length_batches([len(row.ids) for row in rows]):
            for setting, scores in enumerate(self._batch([rows[i] for i in batch])):
                for i, score in zip(batch, scores, strict=True):
                    found[setting][i] = score
        return [[score for score in scores if score is not None] for scores in found]

    def _batch(self, rows: Sequence[Encoded]) -> Iterator[list[Score]]:
        device = self.model.device
        width = -(-max(len(row.ids) for row in rows) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        ids = torch.full((len(rows), width), self.pad_token_id)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        learn = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            mask[i, : len(row.ids)] = 1
            learn[i, : len(row.ids)] = torch.tensor(row.learn)
        row_of, column = learn[:, 1:].nonzero(as_tuple=True)  # position t predicts token t + 1
        labels = ids[row_of, column + 1].to(device)
        index = (row_of * width + column).to(device)
        losses = self._losses(ids.to(device), mask.to(device), index, labels)
        counts = torch.bincount(row_of, minlength=len(rows)).tolist()
        for values in losses:
            sums = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, row_of, values.double().cpu())
            yield [Score(loss, count) for loss, count in zip(sums.tolist(), counts, strict=True)]

    def _losses(self, ids: Tensor, mask: Tensor, index: Tensor, labels: Tensor) -> list[Tensor]:
        """Loss at each indexed position, a tensor a combination."""
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        if not self.parts:
            sources = self._full_logits(inputs, index)
            return [cross_entropy(logits, labels) for logits in sources]
        hidden = [part.get_decoder()(**inputs).last_hidden_state.flatten(0, 1)[index] for part in self.parts]
        vocab = self.parts[0].get_output_embeddings().weight.shape[0]
        size = max(64, _CHUNK_BYTES // (4 * vocab))
        pieces = []
        for start in range(0, len(index), size):
            logits = [head_logits(part, h[start : start + size]) for part, h in zip(self.parts, hidden, strict=True)]
            pieces.append([cross_entropy(one, labels[start : start + size]) for one in self._combined(logits)])
        return [torch.cat(parts) for parts in zip(*pieces, strict=True)]

    def _combined(self, logits: list[Tensor]) -> Iterator[Tensor]:
        if len(logits) == 1:
            yield logits[0]
            return
        for how in self.combinations if self.combinations is not None else [self.model.combination]:
            yield combine(logits[0], logits[1], how)

    def _full_logits(self, inputs: dict[str, Any], index: Tensor) -> list[Tensor]:
        if not isinstance(self.model, ULDForCausalLM):
            return [self.model(**inputs).logits.flatten(0, 1)[index]]
        both = [one.flatten(0, 1)[index] for one in self.model.both_logits(None, **inputs)]
        return list(self._combined(both))


def length_batches(lengths: Sequence[int], budget: int = _BATCH_TOKENS) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first (so that too little memory shows at once).

    Args:
        lengths: Tokens of each row.
        budget: Padded tokens of a batch; a longer row makes a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        width = -(-lengths[order[start]] // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        size = max(1, budget // width)
        yield order[start : start + size]
        start += size


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    **options: Any,
) -> list[str]:
    """Answers to prompts of one batch, padded on the left and stopped at end-of-sequence.

    Args:
        model: Any causal LM.
        tokenizer: Its tokenizer.
        prompts: Token ids.
        max_new_tokens: Most tokens of an answer.
        options: Handed to ``generate``; greedy unless they say otherwise.

    Returns:
        The answers' text without special tokens and surrounding blanks.
    """
    pad: Any = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    settings = {"do_sample": False, "num_beams": 1, "pad_token_id": pad, **options}
    out: Any = model.generate(  # type: ignore[operator]
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        **settings,
    )
    texts: Any = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    return [text.strip() for text in texts]
