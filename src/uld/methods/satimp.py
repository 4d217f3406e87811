"""SatImp: gradient ascent that spares tokens which are forgotten already and those which are certain.

``p^β₁ (1 − p)^β₂ log p`` of each token of the forget answers, the weight without gradient, gradient descent on retain
rows with a tenth of the forget loss's weight (Yang et al. 2025, arXiv 2505.11953).
"""

from torch import Tensor

from uld.methods.registry import Loss, Method, register
from uld.methods.side import Side
from uld.methods.terms import GD, ON_TARGET
from uld.methods.wga import weighted_ascent


def forget(side: Side, *, beta1: float = 5.0, beta2: float = 1.0) -> Tensor:
    """`weighted_ascent` at every position."""
    return side.total(lambda logits, labels: weighted_ascent(logits, labels, beta1, beta2))


register(
    Method(
        "satimp",
        "Gradient ascent weighted by saturation and importance of each token, gradient descent on retain rows.",
        "https://arxiv.org/abs/2505.11953",
        "target",
        Loss("forget", forget),
        GD,
        defaults=ON_TARGET | {"batch_size": 64, "retain_weight": 0.1},
        formula="p^β₁ (1 − p)^β₂ log p, the weight without gradient, + β · CE on retain",
        notes={"beta1": "β₁", "beta2": "β₂"},
    )
)
