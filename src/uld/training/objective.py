"""What a training minimises, and how it is computed: tokens in, sums of losses out.

A `Term` is a loss and the rows that it falls on. A `BatchSide` is what a loss sees of these rows: positions, rows,
logits of what is trained (`uld.training.learner.Learner`) and of the frozen model. Logits are made only where a
loss falls, a chunk at a time, never as a ``(batch, tokens, vocab)`` block. Of a loss that is summed over its positions
the gradient is found with the loss; else chunks are recomputed in the backward pass.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uld.data.collate import ALTERNATIVE, FORGET, LEARN, RETAIN, Collator, Row
from uld.data.prompt import Encoded
from uld.methods.losses import FrozenPositionLoss, PositionLoss, cross_entropy
from uld.methods.registry import Method, own_options
from uld.methods.side import Side
from uld.model.fields import number
from uld.text.progress import bar
from uld.training.learner import Learner, States

_CHUNK_BYTES = 128 * 2**20  # fp32 logits of one chunk
_CACHE_BYTES = 24 * 2**20  # the same on a processor, where nothing is recomputed: what its cache holds is read faster
_REFERENCE_ROWS = 32
_POSITION_MULTIPLE = 64  # few shapes of the gathered positions: each costs a kernel build on a CPU


class BatchSide(Side):
    """The rows of a batch that are on one side, as a loss sees them."""

    def __init__(
        self, states: States, batch: Mapping[str, Tensor], side: int, frozen: Callable[[Tensor], States] | None
    ) -> None:
        """Cut a side out of a batch.

        Args:
            states: The learner's pass over the whole batch.
            batch: ``input_ids``, ``labels``, ``kind`` ``(batch, tokens)``, ``side`` and ``reference`` ``(batch,)``.
            side: `FORGET`, `RETAIN`, `ALTERNATIVE` or `LEARN`.
            frozen: Makes the frozen model's pass over the rows of a boolean mask ``(batch,)``.
        """
        kind = batch["kind"]
        self._states, self._frozen, self._mask = states, frozen, batch["side"] == side
        self._tokens = kind.shape[1]
        index = (kind.flatten() == side).nonzero().squeeze(1)
        self._index = index
        self.labels = batch["labels"].flatten()[index]
        self._rank = self._mask.cumsum(0) - 1
        self.row = self._rank[index // self._tokens]
        self.rows = int(self._mask.sum())
        self.frozen_log_likelihood = batch["reference"][self._mask]
        self.alternative = None

    def total(self, loss: PositionLoss) -> Tensor:
        """Sum of a loss over all positions."""
        if loss is cross_entropy and (fused := _fused_cross_entropy(self._states)) is not None:
            index, valid = self._padded(self._index)
            labels = self._padded(self.labels)[0]
            return fused(self._states.hidden[0][index], labels.masked_fill(~valid, -100))
        states = self._states
        if states.parameters is None:
            return self.each(loss).sum()
        index, valid = self._padded(self._index)

        def value(*inputs: Tensor) -> Tensor:
            *hidden, labels, counts = inputs
            return loss(states.head(*hidden), labels).masked_fill(~counts, 0.0)

        inputs, fixed = [one[index] for one in states.hidden], [self._padded(self.labels)[0], valid]
        cached = self._index.device.type == "cpu"
        return _summed(value, inputs, fixed, states.parameters, self._piece(_CACHE_BYTES if cached else _CHUNK_BYTES))

    def each(self, loss: PositionLoss) -> Tensor:
        """A loss at every position: ``(positions,)`` fp32."""
        return self._each(lambda logits, labels, _: loss(logits, labels), None)

    def each_frozen(self, loss: FrozenPositionLoss) -> Tensor:
        """A loss that also sees the frozen model's logits, at every position: ``(positions,)`` fp32."""
        return self._each(loss, self._frozen_pass())

    def log_likelihood(self) -> Tensor:
        """Summed log-likelihood of each answer: ``(rows,)`` fp32, nats."""
        return self.by_row(-self.each(cross_entropy))

    def by_row(self, values: Tensor) -> Tensor:
        """Sum values of the positions ``(positions,)`` within each row: ``(rows,)``."""
        return values.new_zeros(self.rows).index_add(0, self.row, values)

    @property
    def lengths(self) -> Tensor:
        """Number of positions of each row: ``(rows,)`` fp32."""
        return self.by_row(torch.ones_like(self.labels, dtype=torch.float32))

    def layer(self) -> Tensor:
        """Hidden states after the tapped layer at every position: ``(positions, width)``."""
        assert self._states.layer is not None, "the method taps no layer"
        return self._states.layer[self._index]

    def frozen_layer(self) -> Tensor:
        """The frozen model's hidden states after the tapped layer: ``(positions, width)``."""
        states, index = self._frozen_pass()
        assert states.layer is not None, "the method taps no layer"
        return states.layer[index]

    def _frozen_pass(self) -> tuple[States, Tensor]:
        """The frozen model's pass over this side's rows, and the positions in it."""
        assert self._frozen is not None, "the method did not say that it needs the frozen model"
        return self._frozen(self._mask), self.row * self._tokens + self._index % self._tokens

    def _piece(self, size: int) -> int:
        """Positions whose logits have so many bytes together."""
        positions = size // (4 * self._states.vocab) // _POSITION_MULTIPLE * _POSITION_MULTIPLE
        return max(_POSITION_MULTIPLE, positions)

    def _padded(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values of the positions, padded to few lengths, and which of them are real."""
        count = len(values)
        padded = -(-max(count, 1) // _POSITION_MULTIPLE) * _POSITION_MULTIPLE
        values = torch.cat([values, values.new_zeros(padded - count)])
        return values, torch.arange(padded, device=values.device) < count

    def _each(self, loss: Callable[..., Tensor], frozen: tuple[States, Tensor] | None) -> Tensor:
        """A loss at every position, head and loss in chunks that are recomputed in the backward pass."""
        states = self._states
        index, labels = self._padded(self._index)[0], self._padded(self.labels)[0]
        other = self._padded(frozen[1])[0] if frozen is not None else None
        models = len(states.hidden)

        def part(*inputs: Tensor) -> Tensor:
            before = None
            if frozen is not None:
                with torch.no_grad():
                    before = frozen[0].logits(inputs[-1])
            return loss(states.head(*inputs[:models]), inputs[models], before)

        size = self._piece(_CHUNK_BYTES)
        pieces = []
        for start in range(0, len(index), size):
            piece = slice(start, start + size)
            inputs = [*(one[index[piece]] for one in states.hidden), labels[piece]]
            inputs += [other[piece]] if other is not None else []
            many = len(index) > size
            pieces.append(checkpoint(part, *inputs, use_reentrant=False) if many else part(*inputs))
        return torch.cat(pieces)[: len(self._index)]


@torch.no_grad()
def frozen_log_likelihoods(
    learner: Learner, rows: Sequence[Encoded], pad_token_id: int, *, progress: bool = False
) -> list[float]:
    """Log-likelihood of each row's answer under the model before training.

    Args:
        learner: Before its first step.
        rows: Prompts with answers.
        pad_token_id: Fills short rows.
        progress: Show how far that is.

    Returns:
        Nats, one a row, in the given order.
    """
    collate = Collator(pad_token_id)
    found = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    device = next(learner.parameters()).device
    with bar(len(order), "reference answers", "row", shown=progress) as line:
        for start in range(0, len(order), _REFERENCE_ROWS):
            some = order[start : start + _REFERENCE_ROWS]
            batch = {name: tensor.to(device) for name, tensor in collate([Row(rows[i], LEARN) for i in some]).items()}
            states = learner.frozen_states(batch["input_ids"], batch["attention_mask"])
            values = BatchSide(states, batch, LEARN, None).log_likelihood().tolist()
            for i, value in zip(some, values, strict=True):
                found[i] = value
            line.update(len(some))
    return found


@dataclass(frozen=True)
class Term:
    """A loss, the side that it falls on, and its weight among the others.

    Attributes:
        name: What it is called in logs.
        side: `FORGET`, `RETAIN` or `LEARN`.
        value: Takes the `Side` and gives the sum of the loss over it, a scalar in nats.
        per: What the sum is divided by: the side's positions or its rows.
        alternative: The side of the alternative answers to these rows, if they bring some.
        weight: What its mean is multiplied by.
        weight_name: What the weight is called in logs, if it changes.
        reweigh: New weight after a step: ``(weight, mean loss of the step, epochs trained)``.
    """

    name: str
    side: int
    value: Callable[[Any], Tensor]
    per: Literal["position", "row"] = "position"
    alternative: int | None = None
    weight: float = 1.0
    weight_name: str = ""
    reweigh: Callable[[float, float, float], float] | None = None


def terms_of(method: Method, options: Mapping[str, Any] | None = None, retain_weight: float = 1.0) -> list[Term]:
    """What a method minimises: its forget loss, and its retain loss if it has one.

    Args:
        method: The method.
        options: Values for the keyword arguments of its functions; the rest have their defaults.
        retain_weight: β, weight of the retain loss.
    """

    def bound(function: Callable[..., Any]) -> Callable[..., Any]:
        return partial(function, **own_options(function, options or {}))

    other = ALTERNATIVE if method.alternatives else None
    terms = [Term("forget_loss", FORGET, bound(method.forget.value), method.forget.per, other)]
    if method.retain is not None and method.retain_name is not None:
        reweigh = None if method.reweigh is None else bound(method.reweigh)
        retain = Term(method.retain_name, RETAIN, bound(method.retain.value), method.retain.per)
        terms.append(replace(retain, weight=retain_weight, weight_name="retain_weight", reweigh=reweigh))
    return terms


class Objective(nn.Module):
    """A learner and the terms of its loss: tokens in, loss sums out, so that DDP sees one forward."""

    def __init__(self, learner: Any, terms: Sequence[Term]) -> None:
        """Join what is trained and what is minimised.

        Args:
            learner: A `Learner`, or the model of one.
            terms: The losses.
        """
        super().__init__()
        self.learner = learner if isinstance(learner, Learner) else Learner(learner)
        self.terms = tuple(terms)

    @property
    def model(self) -> Any:
        """What is trained, with PEFT's wrapper if it has one."""
        return self.learner.model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        kind: Tensor,
        side: Tensor,
        reference: Tensor,
    ) -> Tensor:
        """Sum each loss over its side.

        Args:
            input_ids: ``(batch, tokens)``.
            attention_mask: ``(batch, tokens)``.
            labels: ``(batch, tokens)``, the next token at each position.
            kind: ``(batch, tokens)``: no loss, or the side of the loss at each position.
            side: ``(batch,)``: the same for the whole row.
            reference: ``(batch,)``: log-likelihood of the row's answer under the model before training, nats, or NaN.

        Returns:
            ``(terms,)`` fp32: the sum of each loss, in nats.
        """
        states = self.learner.states(input_ids, attention_mask, {"forget": side == FORGET, "retain": side == RETAIN})
        batch = {"labels": labels, "kind": kind, "side": side, "reference": reference}

        def frozen(rows: Tensor) -> States:
            if not rows.any():  # a side without a row here: any row will do, none of its positions is asked for
                rows = torch.arange(len(rows), device=rows.device) == 0
            return self.learner.frozen_states(input_ids[rows], attention_mask[rows], states.of_rows(rows))

        sums = []
        for term in self.terms:
            seen = BatchSide(states, batch, term.side, frozen)
            if term.alternative is not None:
                seen.alternative = BatchSide(states, batch, term.alternative, frozen)
            sums.append(term.value(seen).float())
        return torch.stack(sums)


def _summed(
    loss: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    fixed: Sequence[Tensor],
    parameters: Sequence[nn.Parameter],
    size: int,
) -> Tensor:
    """Sum a loss over all positions, with the logits of few of them in memory and none of them made twice.

    A sum is all that is asked for, so what each position adds to the gradient is known as soon as its loss is: the
    forward pass computes it at once, a piece of the positions at a time, and the backward pass only multiplies.
    Recomputing the logits there, as checkpointing does, would cost another product with the head.

    Args:
        loss: Takes a piece of each tensor of ``inputs`` and then of ``fixed``; gives ``(positions,)`` or a scalar.
        inputs: ``(positions, …)`` each, with gradients.
        fixed: ``(positions, …)`` each, without.
        parameters: All that the loss itself has to train.
        size: Positions of a piece.

    Returns:
        A scalar; its gradient goes to the inputs and the parameters.
    """
    pieces = [slice(start, start + size) for start in range(0, len(inputs[0]), size)]
    trained = [one for one in parameters if one.requires_grad]
    if torch.is_grad_enabled() and any(one.requires_grad for one in (*inputs, *trained)):
        return _Summed.apply(loss, pieces, len(inputs), tuple(fixed), *inputs, *trained)
    return torch.stack([loss(*(one[piece] for one in (*inputs, *fixed))).sum() for piece in pieces]).sum()


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        loss: Callable[..., Tensor],
        pieces: Sequence[slice],
        count: int,
        fixed: Sequence[Tensor],
        *tensors: Tensor,
    ) -> Tensor:
        inputs, parameters = tensors[:count], tensors[count:]
        gradients = [torch.empty_like(one) if one.requires_grad else None for one in inputs]
        own = [torch.zeros_like(one) for one in parameters]
        total = torch.zeros((), dtype=torch.float32, device=inputs[0].device)
        for piece in pieces:
            with torch.enable_grad():
                parts = [one[piece].detach().requires_grad_(one.requires_grad) for one in inputs]
                seen = [one.view_as(one) for one in parts]  # autograd.grad has no place for a hook on a leaf
                value = loss(*seen, *(one[piece] for one in fixed)).sum()
            asked = [*(one for one in parts if one.requires_grad), *parameters]
            found = list(torch.autograd.grad(value, asked, allow_unused=True))
            for gradient in gradients:
                if gradient is not None:
                    part = found.pop(0)
                    gradient[piece] = 0 if part is None else part
            for kept, part in zip(own, found, strict=True):
                if part is not None:
                    kept += part
            total += value.detach()
        ctx.gradients = (*gradients, *own)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        (scale,) = outputs
        gradients, ctx.gradients = ctx.gradients, None
        return (None, None, None, None, *(None if one is None else one * scale.to(one.dtype) for one in gradients))


def _fused_cross_entropy(states: States) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Liger's kernel for head and cross-entropy in one, where it is installed and can serve; otherwise None.

    It takes ``(positions, hidden)`` and ``(positions,)`` labels, −100 where there is no loss, and returns the sum.
    """
    if states.plain is None:
        return None
    head, config = states.plain.get_output_embeddings(), states.plain.config
    scaled = any(number(config, name) is not None for name in ("logit_scale", "logits_scaling"))
    if not states.hidden[0].is_cuda or scaled or type(head) is not nn.Linear or find_spec("liger_kernel") is None:
        return None
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]

    cap = number(config, "final_logit_softcapping")
    loss = LigerFusedLinearCrossEntropyLoss(ignore_index=-100, reduction="sum", softcap=cap)
    return lambda h, y: loss(head.weight, h.to(head.weight.dtype), y, head.bias)
