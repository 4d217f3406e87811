"""Scoring: log-likelihoods of given answers, and greedy answers, in batches sorted by length.

Works on any causal LM of transformers. Rows become trees of tokens, in which what several rows begin with (a prompt,
and as much of the answers as they share) stands once and is computed once. Logits are made in pieces and only for the
tokens that carry a score. For an unlearned model many settings of the combination are scored from one forward, because
target and assistant logits do not depend on them.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld.assistant import base_model, check_head, head_logits
from uld.data.prompt import Encoded
from uld.errors import ULDError
from uld.logits import Combination, combine_all, label_losses
from uld.losses import cross_entropy
from uld.modeling import ULDForCausalLM

_LENGTH_MULTIPLE = 16
_BATCH_TOKENS = 1024
_TREE_TOKENS = 1024  # a token attends to a whole tree, so its cost grows with the tree
_HEAD_ROWS = 1024  # positions of one product with the head
_CACHED_BYTES = 2 * 2**20  # logits worked on at a time: few enough to stay in the processor's cache
_NEVER = 2**31 - 1

PLAIN_DECODING: dict[str, Any] = {
    **{"repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0},
    **{"no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0},
    **{"min_length": 0, "min_new_tokens": None, "exponential_decay_length_penalty": None},
    **{"penalty_alpha": None, "guidance_scale": None},
}
"""For ``generate``: undoes what a model's ``generation_config.json`` may ask for beyond its own probabilities. Tokens
that it may never say (``suppress_tokens``, ``bad_words_ids``) are the model's own, and stay."""

Measure = Callable[[Sequence[Tensor], Tensor], Tensor]


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


@dataclass(slots=True)
class _Tree:
    """Rows as one sequence of nodes, each a token behind its parent, depth first.

    So the nodes below node i are those from i up to ``ends[i]``, and its ancestors are the nodes before it that have
    not ended. A row's last token is no node, as nothing follows from it.

    Attributes:
        ids: Token of each node.
        depths: Its position in its rows.
        ends: First node after those below it.
        labels: Each scored token once, as the node that predicts it and the token itself; and its number.
        uses: Row and number of each scored token of the rows.
        path: Nodes of the row that was added last.
    """

    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    labels: dict[tuple[int, int], int] = field(default_factory=dict)
    uses: list[tuple[int, int]] = field(default_factory=list)
    path: list[int] = field(default_factory=list)

    def known(self, row: Encoded) -> int:
        """How many of a row's first tokens are those of the row that was added last."""
        count = 0
        for node, token in zip(self.path, row.ids[:-1], strict=False):
            if self.ids[node] != token:
                break
            count += 1
        return count

    def add(self, number: int, row: Encoded) -> None:
        """Add a row; of all rows, the one before must be the one that it shares most tokens with."""
        known, size = self.known(row), len(self.ids)
        for node in self.path[known:]:
            self.ends[node] = size
        new = row.ids[known:-1]
        self.path[known:] = range(size, size + len(new))
        self.ids += new
        self.depths += range(known, known + len(new))
        self.ends += [_NEVER] * len(new)
        for node, label, learnt in zip(self.path, row.ids[1:], row.learn[1:], strict=True):
            if learnt:
                self.uses.append((number, self.labels.setdefault((node, label), len(self.labels))))


class Scorer:
    """Scores answers with one model under one or several combinations."""

    def __init__(
        self, model: PreTrainedModel, pad_token_id: int, combinations: Sequence[Combination] | None = None
    ) -> None:
        """Choose the model.

        Args:
            model: Any causal LM.
            pad_token_id: Fills short rows.
            combinations: For an unlearned model, the settings to score, each for all of its assistants; None takes its
                own.

        Raises:
            ULDError: combinations for an ordinary model.
        """
        if combinations is not None and not isinstance(model, ULDForCausalLM):
            raise ULDError("an ordinary model has no combination to vary: score a run")
        self.model: Any = model
        self.pad_token_id = pad_token_id
        self.combinations = list(combinations) if combinations is not None else None
        self.parts: list[Any] = [model]
        if isinstance(model, ULDForCausalLM):
            self.parts = [model.target, *map(base_model, model.assistants)]
        try:
            for part in self.parts:
                check_head(part)
            self.plain_head = True
        except ULDError:
            self.plain_head = False  # an unusual head: its own forward makes the logits, at every position
        self.longest = min(_longest_in_a_tree(part) for part in self.parts)

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        combinations: Sequence[Combination] | None = None,
    ) -> "Scorer":
        """A scorer that pads as the tokenizer does, or with token 0 where it has no padding."""
        pad: Any = tokenizer.pad_token_id
        return cls(model, int(pad or 0), combinations)

    @torch.inference_mode()
    def score(self, rows: Sequence[Encoded]) -> list[list[Score]]:
        """Score the learnt tokens of each row.

        Args:
            rows: Encoded prompts with answers; what several rows begin with is computed once.

        Returns:
            For each combination (one for an ordinary model) a score a row, in the given order.
        """
        losses = torch.zeros(len(self.settings), len(rows), dtype=torch.float64)
        counts = [sum(row.learn[1:]) for row in rows]
        for number, found in self.measure(rows, self._label_losses):
            losses.index_add_(1, number, found.double())
        return [[Score(loss, count) for loss, count in zip(one, counts, strict=True)] for one in losses.tolist()]

    @torch.inference_mode()
    def measure(self, rows: Sequence[Encoded], piece: Measure) -> Iterator[tuple[Tensor, Tensor]]:
        """Measure something of every learnt token, on logits that are made in pieces.

        Args:
            rows: As in `score`.
            piece: From the logits of target and assistants (those of an ordinary model alone), ``(positions, vocab)``
                each, and the true tokens ``(positions,)`` to ``(values, positions)``.

        Yields:
            For each batch the row of every learnt token ``(tokens,)``, and its values ``(values, tokens)``. A row is
            whole within a batch, and its tokens are in order.
        """
        trees = _trees(rows, shared=all(len(row.ids) <= self.longest for row in rows))
        for batch in length_batches([len(tree.ids) for tree in trees]):
            yield self._batch([trees[i] for i in batch], piece)

    def mean_loss(self, row: Encoded) -> Tensor:
        """Mean loss of a row's learnt tokens as something to take gradients of, under the first combination.

        Holds the logits of that row's learnt tokens.

        Args:
            row: With at least one learnt token behind its first.

        Returns:
            A scalar, nats a token.
        """
        return self._batch(_trees([row], shared=False), self._label_losses)[1][0].mean()

    @property
    def settings(self) -> list[list[Combination]]:
        """For each combination to score, that of every assistant."""
        if not isinstance(self.model, ULDForCausalLM):
            return [[]]
        if self.combinations is None:
            return [self.model.combinations]
        assistants = len(self.model.assistants)
        return [how.parts * (assistants // len(how.parts)) for how in self.combinations]

    def _batch(self, trees: Sequence[_Tree], piece: Measure) -> tuple[Tensor, Tensor]:
        """Measure the learnt tokens of some trees."""
        device = self.model.device
        inputs: dict[str, Any] = {"input_ids": _padded([tree.ids for tree in trees], self.pad_token_id).to(device)}
        if any(min(tree.ends) < _NEVER for tree in trees):
            inputs["position_ids"] = _padded([tree.depths for tree in trees], 0).to(device)
            inputs["attention_mask"] = _tree_mask(
                _padded([tree.ends for tree in trees], _NEVER).to(device), self.parts[0].dtype
            )
        scored = [(i, node, label) for i, tree in enumerate(trees) for node, label in tree.labels]
        row, node, labels = torch.tensor(scored, device=device).unbind(1)
        if self.plain_head:
            found = self._pieces([one[row, node] for one in self._hidden(inputs)], labels, piece)
        else:
            found = piece([one[row, node] for one in self._logits(inputs)], labels)
        uses, start = [], 0
        for tree in trees:
            uses += [(number, start + label) for number, label in tree.uses]
            start += len(tree.labels)
        number, place = torch.tensor(uses).unbind(1)
        return number, found.cpu()[:, place]

    def _hidden(self, inputs: dict[str, Any]) -> list[Tensor]:
        """Final hidden states of the model, or of target and assistants: ``(batch, tokens, hidden)`` each."""
        if isinstance(self.model, ULDForCausalLM):
            return self.model.all_hidden(use_cache=False, **inputs)
        return [self.model.get_decoder()(use_cache=False, **inputs).last_hidden_state]

    def _logits(self, inputs: dict[str, Any]) -> list[Tensor]:
        if isinstance(self.model, ULDForCausalLM):
            return self.model.all_logits(use_cache=False, **inputs)
        return [self.model(use_cache=False, **inputs).logits]

    def _pieces(self, hidden: Sequence[Tensor], labels: Tensor, measure: Measure) -> Tensor:
        """Values at each position ``(values, positions)``, head and measure in pieces."""
        pieces = []
        for start in range(0, len(labels), _HEAD_ROWS):
            part = slice(start, start + _HEAD_ROWS)
            logits = self._heads([one[part] for one in hidden])
            size = max(1, _CACHED_BYTES // (4 * logits[0].shape[-1]))
            for label, *piece in zip(labels[part].split(size), *(one.split(size) for one in logits), strict=True):
                pieces.append(measure(piece, label))
        return torch.cat(pieces, 1)

    def _heads(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Logits of each model from its final hidden states."""
        if isinstance(self.model, ULDForCausalLM):
            return self.model.heads(hidden)
        return [head_logits(self.model, one) for one in hidden]

    def _label_losses(self, logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        target, *assistants = logits
        if not assistants:
            return cross_entropy(target, labels)[None]
        if len(assistants) == 1:
            return label_losses(target, assistants[0], labels, [one[0] for one in self.settings])
        return torch.stack([cross_entropy(combine_all(target, assistants, one), labels) for one in self.settings])


@torch.inference_mode()
def _longest_in_a_tree(model: Any) -> int:
    """Tokens of the longest row that may be part of a tree; 0 where the model does not follow a mask of our own.

    Twins, two nodes of one token behind one parent, tell: they must find the same.
    """
    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation not in ("sdpa", "eager"):
        return 0
    ids, ends = torch.tensor([[[0, 1, 1]], [[_NEVER, 2, _NEVER]]], device=model.device)
    depths = torch.tensor([[0, 1, 1]], device=model.device)
    inputs = {"input_ids": ids, "position_ids": depths, "attention_mask": _tree_mask(ends, model.dtype)}
    try:
        hidden = model.get_decoder()(use_cache=False, **inputs).last_hidden_state[0]
    except Exception:  # a family that takes another kind of mask refuses in its own way
        return 0
    if not torch.allclose(hidden[1], hidden[2], rtol=1e-2, atol=1e-2):
        return 0
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((window for window in windows if window), default=_NEVER)


def _trees(rows: Sequence[Encoded], shared: bool) -> list[_Tree]:
    """Rows as trees; a row joins a tree where it shares its prompt, or half of itself, and enough to be worth it."""
    trees: list[_Tree] = []
    for number in sorted(range(len(rows)), key=lambda i: rows[i].ids):
        row = rows[number]
        if True not in row.learn[1:]:
            continue
        size = len(row.ids)
        known = trees[-1].known(row) if trees and shared else 0
        enough = max(1, size / 8, min(row.learn.index(True), size / 2))
        if known < enough or len(trees[-1].ids) + size - known > max(_TREE_TOKENS, 2 * size):
            trees.append(_Tree())
        trees[-1].add(number, row)
    return trees


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows as one tensor ``(rows, tokens)``, padded on the right to a multiple so that few shapes occur."""
    width = -(-max(len(row) for row in rows) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def _tree_mask(ends: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to attention scores so that a node sees its ancestors and itself: ``(batch, 1, nodes, nodes)``."""
    place = torch.arange(ends.shape[1], device=ends.device)
    visible = (place <= place[:, None]) & (place[:, None] < ends[:, None, None])
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)


def context_length(model: PreTrainedModel) -> int:
    """Tokens that a model has positions for; a very large number where its config does not say."""
    return int(getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or _NEVER)


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
    """
    pad: Any = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    settings = {"do_sample": False, "num_beams": 1, "pad_token_id": pad, **PLAIN_DECODING, **options}
    out: Any = model.generate(  # type: ignore[operator]
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        **settings,
    )
    return out[:, width:]


def refuse_nan(model: PreTrainedModel, losses: Iterable[float]) -> None:
    """Refuse what a broken model gives.

    Raises:
        ULDError: one of the losses is NaN.
    """
    if any(math.isnan(loss) for loss in losses):
        raise ULDError(
            f"{model.name_or_path} gives NaN as the probability of an answer: load it with --dtype fp32; if that "
            "changes nothing, its weights are broken"
        )
