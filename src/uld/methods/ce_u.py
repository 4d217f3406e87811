"""CE-U: the model is taught its own distribution without the token to forget.

``CE(softmax(l with l[y] = −∞), softmax(l))`` at each token of the forget answers but the first, the distribution on the
left without gradient; no retain loss (Yang 2025, arXiv 2503.01224). The mean is over all tokens of the answers, those
left out included.
"""

from typing import TYPE_CHECKING

from uld import losses
from uld.methods.registry import Loss, Method, register
from uld.methods.terms import ON_TARGET

if TYPE_CHECKING:
    from torch import Tensor

    from uld.objective import Side


def forget(side: "Side", *, skip: int = 1) -> "Tensor":
    """`uld.losses.cross_entropy_unlearning` at every position but the first ``skip`` of each answer."""
    counts = side.row.bincount(minlength=side.rows)
    place = counts.cumsum(0).sub(counts)[side.row].neg() + side.row.new_ones(side.row.shape).cumsum(0) - 1
    return side.each(losses.cross_entropy_unlearning).masked_fill(place < skip, 0.0).sum()


register(
    Method(
        "ce-u",
        "Distillation of the model's own distribution without the token to forget.",
        "https://arxiv.org/abs/2503.01224",
        "target",
        Loss("forget", forget),
        defaults=ON_TARGET,
    )
)
