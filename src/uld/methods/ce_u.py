"""CE-U: the model is taught its own distribution without the token to forget.

``CE(softmax(l with l[y] = −∞), softmax(l))`` at each token of the forget answers but the first, the distribution on the
left without gradient; no retain loss (Yang 2025, arXiv 2503.01224). The mean is over all tokens of the answers, those
left out included.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from uld.methods.registry import Loss, Method, register
from uld.methods.side import Side
from uld.methods.terms import ON_TARGET


def cross_entropy_unlearning(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy from the model itself without the label: ``CE(softmax(l with l[label] = −∞), softmax(l))``.

    CE-U, arXiv 2503.01224. The distribution on the left has no gradient.

    Args:
        logits: ``(positions, vocab)``, of at least two tokens.
        labels: ``(positions,)`` tokens to forget.

    Returns:
        ``(positions,)`` fp32 ≥ 0.
    """
    x = logits.float()
    wanted = x.detach().scatter(-1, labels[:, None], -torch.inf).softmax(-1)
    return F.cross_entropy(x, wanted, reduction="none")


def forget(side: Side, *, skip: int = 1) -> Tensor:
    """`cross_entropy_unlearning` at every position but the first ``skip`` of each answer."""
    counts = side.row.bincount(minlength=side.rows)
    place = counts.cumsum(0).sub(counts)[side.row].neg() + side.row.new_ones(side.row.shape).cumsum(0) - 1
    return side.each(cross_entropy_unlearning).masked_fill(place < skip, 0.0).sum()


register(
    Method(
        "ce-u",
        "Distillation of the model's own distribution without the token to forget.",
        "https://arxiv.org/abs/2503.01224",
        "target",
        Loss("forget", forget),
        defaults=ON_TARGET,
        formula="CE(softmax(l with l[y] = −∞), softmax(l)), not at the first tokens",
        notes={"skip": "tokens"},
    )
)
