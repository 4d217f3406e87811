"""Scoring: log-likelihoods of given answers, in batches sorted by length.

Works on any causal LM of transformers. Rows become trees of tokens, in which what several rows begin with (a prompt,
and as much of the answers as they share) stands once and is computed once. Logits are made in pieces and only for the
tokens that carry a score. For an unlearned model many settings of the combination are scored from one forward, because
target and assistant logits do not depend on them.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld.data.prompt import Encoded
from uld.errors import ULDError
from uld.evaluation.trees import NEVER, Tree, Trust, alike, batch_inputs, grow, tree_mask
from uld.methods.losses import cross_entropy
from uld.model.assistant import base_model, check_head, head_logits, text_decoder
from uld.model.combine import Combination, combine_all
from uld.model.context import check_positions, context_length
from uld.model.generate import BATCH_TOKENS, LENGTH_MULTIPLE, length_batches
from uld.model.label_losses import label_losses
from uld.model.unlearned import ULDForCausalLM
from uld.model.vocabulary import embedding_rows, refuse_foreign
from uld.text.progress import bar

_TREE_TOKENS = 1024
_HEAD_ROWS = 1024  # positions of one product with the head
_CACHED_BYTES = 2 * 2**20  # logits worked on at a time: few enough to stay in the processor's cache

Measure = Callable[[Sequence[Tensor], Tensor, Tensor], Tensor]


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
            combinations: For an unlearned model, the settings to score, each for all of its assistants; None takes its
                own.

        Raises:
            ULDError: combinations for an ordinary model, or one that does not go with the model's own.
        """
        if combinations is not None and not isinstance(model, ULDForCausalLM):
            raise ULDError("an ordinary model has no combination to vary: score a run")
        self.model: Any = model
        self.pad_token_id = pad_token_id
        self.combinations = list(combinations) if combinations is not None else None
        for how in self.combinations or ():
            self.model.settings_under(how)
        self.parts: list[Any] = [model]
        if isinstance(model, ULDForCausalLM):
            self.parts = [model.target, *map(base_model, model.assistants)]
        try:
            for part in self.parts:
                check_head(part)
            self.plain_head = True
        except (ULDError, AttributeError, TypeError):
            self.plain_head = False  # an unusual head: its own forward makes the logits, at every position
        self.trust = Trust(self.parts, pad_token_id)

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
    def score(self, rows: Sequence[Encoded], shown: str | None = None) -> list[list[Score]]:
        """Score the learnt tokens of each row.

        Args:
            rows: Encoded prompts with answers; what several rows begin with is computed once.
            shown: Name of the progress line; None: none.

        Returns:
            For each combination (one for an ordinary model) a score a row, in the given order.
        """
        losses = torch.zeros(len(self.settings), len(rows), dtype=torch.float64)
        counts = [sum(row.learn[1:]) for row in rows]
        with bar(len(rows), shown, "row") as line:
            for number, found in self.measure(rows, self.label_losses):
                losses.index_add_(1, number, found.double())
                line.update(len(number.unique()))
        return [[Score(loss, count) for loss, count in zip(one, counts, strict=True)] for one in losses.tolist()]

    @torch.inference_mode()
    def measure(
        self, rows: Sequence[Encoded], piece: Measure, marked: Collection[int] = ()
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Measure something of every learnt token, on logits that are made in pieces.

        Args:
            rows: As in `score`.
            piece: From the logits of target and assistants (those of an ordinary model alone), ``(positions, vocab)``
                each, the true tokens ``(positions,)``, and whether each is one of a marked row ``(positions,)``, to
                ``(values, positions)``.
            marked: Numbers of rows of which ``piece`` wants to know more.

        Yields:
            For each batch the row of every learnt token ``(tokens,)``, and its values ``(values, tokens)``. A row is
            whole within a batch, and its tokens are in order.
        """
        refuse_foreign((max(row.ids) for row in rows), embedding_rows(self.parts[0]), self.parts[0].name_or_path)
        longest = max((len(row.ids) for row in rows), default=0)
        check_positions(self.parts, longest - 1, f"a row of {longest} tokens")
        waiting = {number: row for number, row in enumerate(rows) if True in row.learn[1:]}
        while waiting:
            for trees in self._batches(waiting):
                found = self._measured(trees, piece, marked)
                if found is None:  # trees are to be smaller from now on
                    break
                yield found
                for number, _, _ in (row for tree in trees for row in tree.rows):
                    del waiting[number]

    def _batches(self, rows: Mapping[int, Encoded]) -> Iterator[list[Tree]]:
        """Rows in trees in batches; what is too long for a tree apart, so that it is read without a mask of ours."""
        trees = grow(rows, self.trust.longest, self.trust.largest, _TREE_TOKENS)
        bare = [tree for tree in trees if len(tree.rows[0][1].ids) > self.trust.longest]
        for part in (bare, [tree for tree in trees if len(tree.rows[0][1].ids) <= self.trust.longest]):
            for batch in length_batches([len(tree.ids) for tree in part], BATCH_TOKENS if self.trust.pads else 1):
                yield [part[i] for i in batch]

    def mean_loss(self, row: Encoded) -> Tensor:
        """Mean loss of a row's learnt tokens as something to take gradients of, under the first combination.

        Holds the logits of that row's learnt tokens.

        Args:
            row: With at least one learnt token behind its first.

        Returns:
            A scalar, nats a token.
        """
        trees = grow({0: row}, 0, 0, 0)
        return self._pieced(trees, self._states(self._inputs(trees)), self.label_losses)[1][0].mean()

    @property
    def settings(self) -> list[list[Combination]]:
        """For each combination to score, that of every assistant."""
        if not isinstance(self.model, ULDForCausalLM):
            return [[]]
        if self.combinations is None:
            return [self.model.combinations]
        return [self.model.settings_under(how) for how in self.combinations]

    @property
    def longest(self) -> int:
        """Tokens of the longest row that may share a tree, as far as is known; 0 where the model takes no trees."""
        return self.trust.longest

    def _measured(self, trees: Sequence[Tree], piece: Measure, marked: Collection[int]) -> tuple[Tensor, Tensor] | None:
        """Measure the learnt tokens of some trees; None where they are not as their rows are alone."""
        try:
            states = self._states(self._inputs(trees))
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError, ValueError):  # a family may have a table for masks of a certain size
            if not any(tree.branches for tree in trees):
                raise
            self.trust.lower(None, max(len(tree.ids) for tree in trees if tree.branches))
            return None
        for tree, place, row, last in self.trust.doubtful(trees):
            alone = self._alone(row, masked=False)
            if not alike([one[place, tree.nodes_of(last)] for one in states], alone):
                under_mask = tree.branches and alike(self._alone(row, masked=True), alone)
                self.trust.lower(None if under_mask else len(row.ids), len(tree.ids))
                return None
        self.trust.prove(trees)
        return self._pieced(trees, states, piece, marked)

    def _inputs(self, trees: Sequence[Tree]) -> dict[str, Tensor]:
        most = min(context_length(part) for part in self.parts) if self.trust.pads else 0
        return batch_inputs(trees, self.pad_token_id, self.parts[0].dtype, self.model.device, LENGTH_MULTIPLE, most)

    def _alone(self, row: Encoded, masked: bool) -> list[Tensor]:
        """States of one row as it stands ``(tokens, width)``, of each model; perhaps with a mask that says no more."""
        ids = torch.tensor([row.ids[:-1]], device=self.model.device)
        inputs = {"input_ids": ids}
        if masked:
            inputs["position_ids"] = torch.arange(ids.shape[1], device=ids.device)[None]
            inputs["attention_mask"] = tree_mask(torch.full_like(ids, NEVER), self.parts[0].dtype)
        return [one[0] for one in _states_of(self.model, inputs, self.plain_head)]

    def _pieced(
        self, trees: Sequence[Tree], states: Sequence[Tensor], piece: Measure, marked: Collection[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """Measure what the states of some trees say of their learnt tokens."""
        scored = [(i, node, label) for i, tree in enumerate(trees) for node, label in tree.labels]
        row, node, labels = torch.tensor(scored, device=self.model.device).unbind(1)
        chosen = [one[row, node] for one in states]
        uses, start = [], 0
        for tree in trees:
            uses += [(number, start + label) for number, label in tree.uses]
            start += len(tree.labels)
        number, place = torch.tensor(uses).unbind(1)
        marks = torch.zeros(len(scored), dtype=torch.bool)
        marks[[position for row, position in uses if row in marked]] = True
        how = (chosen, labels, marks.to(labels.device))
        found = self._pieces(*how, piece) if self.plain_head else piece(*how)
        return number, found.cpu()[:, place]

    def _states(self, inputs: dict[str, Any]) -> list[Tensor]:
        """What the head makes logits of or, where it is unusual, logits: ``(batch, tokens, …)`` of each model."""
        return self._hidden(inputs) if self.plain_head else _states_of(self.model, inputs, plain_head=False)

    def _hidden(self, inputs: dict[str, Any]) -> list[Tensor]:
        """Final hidden states of the model, or of target and assistants: ``(batch, tokens, hidden)`` each."""
        return _states_of(self.model, inputs, plain_head=True)

    def _pieces(self, hidden: Sequence[Tensor], labels: Tensor, marks: Tensor, measure: Measure) -> Tensor:
        """Values at each position ``(values, positions)``, head and measure in pieces."""
        pieces = []
        for start in range(0, len(labels), _HEAD_ROWS):
            part = slice(start, start + _HEAD_ROWS)
            logits = self._heads([one[part] for one in hidden])
            size = max(1, _CACHED_BYTES // (4 * logits[0].shape[-1]))
            split = (one.split(size) for one in (labels[part], marks[part], *logits))
            for label, mark, *piece in zip(*split, strict=True):
                pieces.append(measure(piece, label, mark))
        return torch.cat(pieces, 1)

    def _heads(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Logits of each model from its final hidden states."""
        if isinstance(self.model, ULDForCausalLM):
            return self.model.heads(hidden)
        return [head_logits(self.model, one) for one in hidden]

    def label_losses(self, logits: Sequence[Tensor], labels: Tensor, _: Tensor | None = None) -> Tensor:
        """Loss of the true tokens under each combination ``(combinations, positions)``, nats: a `Measure`."""
        target, *assistants = logits
        if not assistants:
            return cross_entropy(target, labels)[None]
        if len(assistants) == 1:
            return label_losses(target, assistants[0], labels, [one[0] for one in self.settings])
        return torch.stack([cross_entropy(combine_all(target, assistants, one), labels) for one in self.settings])


def _states_of(model: Any, inputs: dict[str, Any], plain_head: bool) -> list[Tensor]:
    """Final hidden states, or logits, of a model or of target and assistants: ``(batch, tokens, …)`` each."""
    if isinstance(model, ULDForCausalLM):
        return (model.all_hidden if plain_head else model.all_logits)(use_cache=False, **inputs)
    if plain_head:
        return [text_decoder(model)(use_cache=False, **inputs).last_hidden_state]
    return [model(use_cache=False, **inputs).logits]


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
