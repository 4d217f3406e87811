"""Negative preference optimisation: ``−(2/β) log σ(−β (log π − log π₀))`` of each forget answer.

Bounded, and gradient ascent as β → 0 (Zhang et al. 2024, arXiv 2404.05868).
"""

from typing import TYPE_CHECKING

from uld import losses
from uld.methods.registry import Loss
from uld.methods.terms import family, positive

if TYPE_CHECKING:
    from torch import Tensor

    from uld.objective import Side


def forget(side: "Side", *, beta: float = 0.1) -> "Tensor":
    """`uld.losses.npo` of every forget row."""
    return losses.npo(side.log_likelihood(), side.frozen_log_likelihood, positive(beta)).sum()


family(
    "npo",
    "Negative preference optimisation on forget answers",
    "https://arxiv.org/abs/2404.05868",
    Loss("forget", forget, per="row", reference=True),
)
