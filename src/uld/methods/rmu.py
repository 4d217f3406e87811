"""RMU: hidden states of a middle layer go to a random direction on the forget set and stay as they are on the rest.

``mean (h − c·u)²`` at each token of the forget answers, u a random unit vector with entries ≥ 0, drawn once, and
``mean (h − h₀)²`` on retain rows, h₀ the frozen model's states, the mean over the width (Li et al. 2024,
arXiv 2403.03218). Trained are the last matrices of the MLPs of the tapped layer and the two before it. c, the retain
weight and the learning rate are the paper's for a 7 B model; the right c depends on how large the states are.
"""

from typing import Any

import torch
from torch import Tensor, nn

from uld.errors import ULDError
from uld.methods.registry import Loss, Method, register
from uld.methods.side import Side
from uld.methods.terms import ON_TARGET


def mean_square(states: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference over the width, at each position (the distance of RMU, arXiv 2403.03218).

    Args:
        states: ``(positions, width)``.
        wanted: The same, or broadcast to it.

    Returns:
        ``(positions,)`` fp32 ≥ 0, in squared units of the states.
    """
    return ((states.float() - wanted.float()) ** 2).mean(-1)


def direction(width: int, seed: int) -> Tensor:
    """u: ``(width,)`` of length 1, its entries drawn from [0, 1) before."""
    drawn = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm()


def forget(side: Side, *, steering: float = 6.5, seed: int = 0) -> Tensor:
    """`mean_square` of the tapped states and ``steering`` times the random direction."""
    states = side.layer()
    return mean_square(states, steering * direction(states.shape[-1], seed).to(states.device)).sum()


def retain(side: Side) -> Tensor:
    """`mean_square` of the tapped states and the frozen model's."""
    return mean_square(side.layer(), side.frozen_layer()).sum()


def tap(total: int, *, layer: int = -1) -> int:
    """The layer, counted from 0; −1 is the paper's 7 of 32, scaled to the depth.

    Raises:
        ULDError: there is no such layer.
    """
    if not -1 <= layer < total:
        raise ULDError(f"--option layer={layer}: the target has {total} layers, counted from 0")
    return round(7 / 32 * total) if layer == -1 else layer


def restrict(model: Any, *, layer: int = -1) -> None:
    """Train only the last matrices of the MLPs of the tapped layer and the two before it.

    Raises:
        ULDError: a layer has no MLP of plain matrices.
    """
    from uld.model.assistant import decoder_layers

    layers = decoder_layers(model)[1]
    last = tap(len(layers), layer=layer)
    model.requires_grad_(False)
    for one in layers[max(0, last - 2) : last + 1]:
        _down_projection(one).weight.requires_grad_(True)  # type: ignore[union-attr]


def _down_projection(layer: nn.Module) -> nn.Module:
    """The last matrix of a decoder layer: its attention comes first and its MLP last, in every family."""
    parts = [[one for one in part.modules() if _is_matrix(one)] for part in layer.children()]
    parts = [matrices for matrices in parts if matrices]
    if len(parts) < 2:
        raise ULDError(
            f"{type(layer).__name__} has no MLP of plain matrices after its attention, of which rmu trains the last: "
            "choose another method (uld ls methods)"
        )
    return parts[-1][-1]


def _is_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return weight is not None and weight.dim() == 2


register(
    Method(
        "rmu",
        "Hidden states of a middle layer sent to a random direction on forget answers, kept on retain rows.",
        "https://arxiv.org/abs/2403.03218",
        "target",
        Loss("forget", forget),
        Loss("retain", retain, frozen=True),
        defaults=ON_TARGET | {"batch_size": 64, "learning_rate": 5e-5, "retain_weight": 1200.0},
        tap=tap,
        restrict=restrict,
        formula="mean (h − c · u)² + β · mean (h − h₀)² on retain, h after one layer, u a random unit vector; "
        "three MLP matrices are trained",
        notes={"steering": "c", "seed": "of u", "layer": "7 of 32, scaled to the depth"},
    )
)
