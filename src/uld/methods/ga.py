"""Gradient ascent: ``log π(y|x)`` of the forget answers is minimised, token by token.

Not bounded from below: without a retain loss the model collapses (Jang et al. 2022, arXiv 2210.01504; TOFU's baseline,
Maini et al. 2024, arXiv 2401.06121). ``ga+kl`` is what TOFU calls KL minimisation (so does ``kl-min``), ``ga+gd`` its
gradient difference.
"""

from typing import TYPE_CHECKING

from uld import losses
from uld.methods.registry import Loss
from uld.methods.terms import family

if TYPE_CHECKING:
    from torch import Tensor

    from uld.objective import Side


def forget(side: "Side") -> "Tensor":
    """``Σ log p(token)`` over the forget answers."""
    return side.each(losses.gradient_ascent).sum()


FORGET = Loss("forget", forget)

family("ga", "Gradient ascent on forget answers", "https://arxiv.org/abs/2210.01504", FORGET)
