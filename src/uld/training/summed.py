"""A loss summed over many positions, with the logits of few of them in memory and none of them made twice.

A sum is all that is asked for, so what each position adds to the gradient is known as soon as its loss is: the forward
pass computes it at once, a piece of the positions at a time, and the backward pass only multiplies. Recomputing the
logits there, as checkpointing does, would cost another product with the head.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def summed(
    loss: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    fixed: Sequence[Tensor],
    parameters: Sequence[nn.Parameter],
    size: int,
) -> Tensor:
    """Sum a loss over all positions.

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
                value = loss(*parts, *(one[piece] for one in fixed)).sum()
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
