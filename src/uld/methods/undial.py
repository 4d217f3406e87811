"""UNDIAL and deliberate imagination: the model is distilled from itself with the memorised token's logit lowered.

``CE(softmax(l₀ − γ·1[y]), softmax(l))`` at every token of the forget answers (Dong et al. 2024, arXiv 2402.10052).
``di`` is the same loss under the name of the paper's first version, as in Table 8 of arXiv 2406.08607.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from uld.methods.registry import Loss, Method, register
from uld.methods.side import Side
from uld.methods.terms import GD, ON_TARGET

PAPER = "https://arxiv.org/abs/2402.10052"


def self_distillation(logits: Tensor, labels: Tensor, frozen: Tensor, strength: float) -> Tensor:
    """Cross-entropy from the frozen model with the label's logit lowered: ``CE(softmax(l₀ − γ·1[label]), softmax(l))``.

    Deliberate imagination / UNDIAL, Eq. 2–3 of arXiv 2402.10052.

    Args:
        logits: ``(positions, vocab)`` of the model in training.
        labels: ``(positions,)`` tokens to forget.
        frozen: ``(positions, vocab)`` of the model before training.
        strength: γ ≥ 0, in logits.

    Returns:
        ``(positions,)`` fp32 ≥ 0.
    """
    lowered = torch.zeros_like(frozen, dtype=torch.float32).scatter_(-1, labels[:, None], strength)
    wanted = (frozen.float() - lowered).softmax(-1)
    return F.cross_entropy(logits.float(), wanted, reduction="none")


def forget(side: Side, *, strength: float = 10.0) -> Tensor:
    """`self_distillation` at every position."""
    return side.each_frozen(lambda logits, labels, frozen: self_distillation(logits, labels, frozen, strength)).sum()


FORGET = Loss("forget", forget, frozen=True)

register(
    Method(
        "undial",
        "Self-distillation with the memorised token's logit lowered, gradient descent on retain rows.",
        PAPER,
        "target",
        FORGET,
        GD,
        defaults=ON_TARGET | {"batch_size": 64},
        formula="that of `di` + β · CE on retain",
        notes={"strength": "γ"},
    )
)
register(
    Method(
        "di",
        "Deliberate imagination: self-distillation with the memorised token's logit lowered.",
        PAPER,
        "target",
        FORGET,
        defaults=ON_TARGET,
        formula="CE(softmax(l₀ − γ · 1[y]), softmax(l))",
        notes={"strength": "γ"},
    )
)
