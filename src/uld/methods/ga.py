"""Gradient ascent: ``log π(y|x)`` of the forget answers is minimised, token by token.

Not bounded from below: without a retain loss the model collapses (Jang et al. 2022, arXiv 2210.01504; TOFU's baseline,
Maini et al. 2024, arXiv 2401.06121). ``ga+kl`` is what TOFU calls KL minimisation (so does ``kl-min``), ``ga+gd`` its
gradient difference.
"""

from torch import Tensor

from uld.methods.losses import cross_entropy
from uld.methods.registry import Loss
from uld.methods.side import Side
from uld.methods.terms import family


def gradient_ascent(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-likelihood of the label, so that minimising it unlearns: ``log softmax(logits)[label]`` (arXiv 1912.03817).

    Not bounded from below. Shapes as `cross_entropy`; values ≤ 0.
    """
    return -cross_entropy(logits, labels)


def forget(side: Side) -> Tensor:
    """``Σ log p(token)`` over the forget answers."""
    return side.total(gradient_ascent)


FORGET = Loss("forget", forget)

family("ga", "Gradient ascent on forget answers", "https://arxiv.org/abs/2210.01504", FORGET, formula="log p")
