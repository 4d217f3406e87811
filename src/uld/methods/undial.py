"""UNDIAL and deliberate imagination: the model is distilled from itself with the memorised token's logit lowered.

``CE(softmax(l₀ − γ·1[y]), softmax(l))`` at every token of the forget answers (Dong et al. 2024, arXiv 2402.10052).
``di`` is the same loss under the name of the paper's first version, as in Table 8 of arXiv 2406.08607.
"""

from typing import TYPE_CHECKING

from uld import losses
from uld.methods.registry import Loss, Method, register
from uld.methods.terms import GD, ON_TARGET

if TYPE_CHECKING:
    from torch import Tensor

    from uld.objective import Side

PAPER = "https://arxiv.org/abs/2402.10052"


def forget(side: "Side", *, strength: float = 10.0) -> "Tensor":
    """`uld.losses.self_distillation` at every position."""
    return side.each_frozen(
        lambda logits, labels, frozen: losses.self_distillation(logits, labels, frozen, strength)
    ).sum()


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
    )
)
