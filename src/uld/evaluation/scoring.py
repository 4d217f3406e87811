"""Scoring: log-likelihoods of given answers, and greedy answers, in batches sorted by length.

Works on any causal LM of transformers. A prompt that several answers share is computed once: its keys and values are
kept and handed to each answer. Logits are made in pieces and only at the positions that carry a score. For an unlearned
model many settings of the combination are scored from one forward, because target and assistant logits do not depend on
them.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from uld.assistant import check_head, head_logits
from uld.data.prompt import Encoded
from uld.errors import ULDError
from uld.logits import Combination, label_losses
from uld.losses import cross_entropy
from uld.modeling import ULDForCausalLM

_PROMPT_MULTIPLE = 8
_LENGTH_MULTIPLE = 16
_PROMPT_TOKENS = 4096
_BATCH_TOKENS = 4096
_HEAD_ROWS = 1024  # positions of one product with the head
_CACHED_BYTES = 2 * 2**20  # logits worked on at a time: few enough to stay in the processor's cache


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


@dataclass(frozen=True, slots=True)
class _Answer:
    """One row to score: which prompt it follows, its tokens, and which of them count."""

    row: int
    prompt: int
    ids: list[int]
    learn: list[bool]


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
        if combinations is not None and not isinstance(model, ULDForCausalLM):
            raise ULDError("an ordinary model has no combination to vary: score a run")
        self.model: Any = model
        self.pad_token_id = pad_token_id
        self.combinations = list(combinations) if combinations is not None else None
        self.base: Any = model.target if isinstance(model, ULDForCausalLM) else model
        try:
            check_head(self.base)
            self.plain_head = True
        except ULDError:
            self.plain_head = False  # an unusual head: its own forward makes the logits, at every position

    @torch.inference_mode()
    def score(self, rows: Sequence[Encoded]) -> list[list[Score]]:
        """Score the learnt tokens of each row.

        Args:
            rows: Encoded prompts with answers; rows with the same prompt are recognised and share its computation.

        Returns:
            For each combination (one for an ordinary model) a score a row, in the given order.
        """
        settings = len(self.combinations) if self.combinations is not None else 1
        losses = torch.zeros(settings, len(rows), dtype=torch.float64)
        counts = [sum(row.learn[1:]) for row in rows]
        prompts, answers = _split(rows) if self.plain_head else ([], [])
        for block in length_batches([len(prompt) for prompt in prompts], _PROMPT_TOKENS, _PROMPT_MULTIPLE):
            self._block([prompts[i] for i in block], _of(answers, block), losses)
        if not self.plain_head:
            for batch in length_batches([len(row.ids) for row in rows]):
                self._whole_rows([rows[i] for i in batch], batch, losses)
        return [[Score(loss, count) for loss, count in zip(one, counts, strict=True)] for one in losses.tolist()]

    def _block(self, prompts: Sequence[list[int]], answers: Sequence[_Answer], losses: Tensor) -> None:
        """Score answers whose prompts are few enough for one batch: prompts once, then answers by length."""
        ids, mask = _padded(prompts, self.pad_token_id, _PROMPT_MULTIPLE, left=True)
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        cache = self._new_cache()
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        last = [one[:, -1] for one in self._hidden(cache, input_ids=ids, attention_mask=mask, position_ids=positions)]
        lengths = mask.sum(-1)
        for batch in length_batches([len(answer.ids) for answer in answers]):
            chosen = [answers[i] for i in batch]
            owner = torch.tensor([answer.prompt for answer in chosen], device=ids.device)
            tokens, own = _padded([answer.ids for answer in chosen], self.pad_token_id, _LENGTH_MULTIPLE)
            tokens, own = tokens.to(ids.device), own.to(ids.device)
            place = lengths[owner, None] + torch.arange(tokens.shape[1], device=ids.device)
            hidden = self._hidden(
                _select_rows(cache, owner),
                input_ids=tokens,
                attention_mask=torch.cat([mask[owner], own], 1),
                position_ids=place,
            )
            # Position t of an answer predicts its token t + 1; the prompt's last position predicts its first token.
            shifted = [torch.cat([end[owner, None], one[:, :-1]], 1) for end, one in zip(last, hidden, strict=True)]
            learn, _ = _padded([answer.learn for answer in chosen], 0, _LENGTH_MULTIPLE)
            row, column = learn.bool().nonzero(as_tuple=True)
            row, column = row.to(ids.device), column.to(ids.device)
            found = self._losses([one[row, column] for one in shifted], tokens[row, column])
            target = torch.tensor([answer.row for answer in chosen], device=ids.device)[row].cpu()
            losses.index_add_(1, target, found.double().cpu())

    def _new_cache(self) -> Cache:
        if isinstance(self.model, ULDForCausalLM):
            return self.model.new_cache()
        return DynamicCache(config=self.model.config)

    def _hidden(self, cache: Cache, **inputs: Any) -> list[Tensor]:
        """Final hidden states of the model, or of target and assistants: ``(batch, tokens, hidden)`` each."""
        if isinstance(self.model, ULDForCausalLM):
            return self.model.all_hidden(cache, use_cache=True, **inputs)
        return [self.model.get_decoder()(past_key_values=cache, use_cache=True, **inputs).last_hidden_state]

    def _losses(self, hidden: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Loss at each position ``(combinations, positions)``, head and loss in pieces."""
        pieces = []
        for start in range(0, len(labels), _HEAD_ROWS):
            part = slice(start, start + _HEAD_ROWS)
            logits = head_logits(self.base, torch.stack([one[part] for one in hidden]))  # (models, positions, vocab)
            size = max(1, _CACHED_BYTES // (4 * logits.shape[-1]))
            for piece, label in zip(logits.split(size, 1), labels[part].split(size), strict=True):
                pieces.append(self._piece(list(piece), label))
        return torch.cat(pieces, 1)

    def _piece(self, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        if len(logits) == 1:
            return cross_entropy(logits[0], labels)[None]
        if self.combinations is not None:
            return label_losses(logits[0], logits[1], labels, self.combinations)
        return cross_entropy(self.model.combined(logits), labels)[None]

    def _whole_rows(self, rows: Sequence[Encoded], places: Sequence[int], losses: Tensor) -> None:
        """Score whole rows through the model's own forward."""
        ids, mask = _padded([row.ids for row in rows], self.pad_token_id, _LENGTH_MULTIPLE)
        inputs: dict[str, Any] = {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}
        if isinstance(self.model, ULDForCausalLM):
            logits = self.model.all_logits(None, use_cache=False, **inputs)
        else:
            logits = [self.model(use_cache=False, **inputs).logits]
        learn, _ = _padded([row.learn for row in rows], 0, _LENGTH_MULTIPLE)
        row, column = learn[:, 1:].bool().nonzero(as_tuple=True)
        labels = ids[row, column + 1].to(self.model.device)
        index = (row.to(self.model.device), column.to(self.model.device))
        found = self._piece([one[index] for one in logits], labels)
        losses.index_add_(1, torch.tensor(places)[row], found.double().cpu())


def _split(rows: Sequence[Encoded]) -> tuple[list[list[int]], list[_Answer]]:
    """Distinct prompts, and the answers behind them; a row without a prompt keeps its first token as one."""
    prompts: dict[tuple[int, ...], int] = {}
    answers = []
    for number, row in enumerate(rows):
        cut = max(1, row.learn.index(True) if True in row.learn else len(row.ids))
        prompt = prompts.setdefault(tuple(row.ids[:cut]), len(prompts))
        if cut < len(row.ids):
            answers.append(_Answer(number, prompt, row.ids[cut:], row.learn[cut:]))
    return [list(prompt) for prompt in prompts], answers


def _of(answers: Sequence[_Answer], block: Sequence[int]) -> list[_Answer]:
    """The answers to a block's prompts, their prompts numbered within the block."""
    within = {prompt: i for i, prompt in enumerate(block)}
    return [
        _Answer(answer.row, within[answer.prompt], answer.ids, answer.learn)
        for answer in answers
        if answer.prompt in within
    ]


def _padded(rows: Sequence[Sequence[int]], fill: int, multiple: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows as one tensor ``(rows, tokens)`` and its mask, padded to a multiple so that few shapes occur."""
    width = -(-max(len(row) for row in rows) // multiple) * multiple
    values = torch.full((len(rows), width), fill)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(len(row))
        values[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = 1
    return values, mask


def _select_rows(cache: Cache, rows: Tensor) -> Cache:
    """A cache of the chosen rows (which may repeat); the given one stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(rows)
    return chosen


def length_batches(
    lengths: Sequence[int], budget: int = _BATCH_TOKENS, multiple: int = _LENGTH_MULTIPLE
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
        width = -(-lengths[order[start]] // multiple) * multiple
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
