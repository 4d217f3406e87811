"""WGA: gradient ascent, each token weighted with its own probability.

``p^β log p`` of each token of the forget answers, the weight without gradient, gradient descent on retain rows (Wang et
al. 2025, arXiv 2502.19301, where β is called α).
"""

from typing import TYPE_CHECKING

from uld import losses
from uld.methods.registry import Loss, Method, register
from uld.methods.terms import GD, ON_TARGET

if TYPE_CHECKING:
    from torch import Tensor

    from uld.objective import Side


def forget(side: "Side", *, beta: float = 1.0) -> "Tensor":
    """`uld.losses.weighted_ascent` at every position."""
    return side.each(lambda logits, labels: losses.weighted_ascent(logits, labels, beta)).sum()


register(
    Method(
        "wga",
        "Gradient ascent weighted with each token's probability, gradient descent on retain rows.",
        "https://arxiv.org/abs/2502.19301",
        "target",
        Loss("forget", forget),
        GD,
        defaults=ON_TARGET | {"batch_size": 64},
    )
)
