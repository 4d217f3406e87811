"""WGA: gradient ascent, each token weighted with its own probability.

``p^β log p`` of each token of the forget answers, the weight without gradient, gradient descent on retain rows (Wang et
al. 2025, arXiv 2502.19301, where β is called α).
"""

from torch import Tensor

from uld.methods.losses import cross_entropy
from uld.methods.registry import Loss, Method, register
from uld.methods.side import Side
from uld.methods.terms import GD, ON_TARGET


def weighted_ascent(logits: Tensor, labels: Tensor, saturation: float, importance: float = 0.0) -> Tensor:
    """Gradient ascent with a weight that has no gradient: ``p^β₁ (1 − p)^β₂ log p``, p the label's probability.

    β₁ leaves tokens alone that are forgotten already (WGA, arXiv 2502.19301), β₂ those that are certain (SatImp,
    arXiv 2505.11953).

    Args:
        logits: ``(positions, vocab)``.
        labels: ``(positions,)`` token ids.
        saturation: β₁ ≥ 0.
        importance: β₂ ≥ 0.

    Returns:
        ``(positions,)`` fp32 ≤ 0.
    """
    log_p = -cross_entropy(logits, labels)
    known = log_p.detach()
    return known.exp() ** saturation * (-known.expm1()) ** importance * log_p


def forget(side: Side, *, beta: float = 1.0) -> Tensor:
    """`weighted_ascent` at every position."""
    return side.total(lambda logits, labels: weighted_ascent(logits, labels, beta))


register(
    Method(
        "wga",
        "Gradient ascent weighted with each token's probability, gradient descent on retain rows.",
        "https://arxiv.org/abs/2502.19301",
        "target",
        Loss("forget", forget),
        GD,
        defaults=ON_TARGET | {"batch_size": 64},
        formula="p^β′ log p, the weight without gradient, + β · CE on retain",
        notes={"beta": "β′"},
    )
)
