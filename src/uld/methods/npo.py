"""Negative preference optimisation: ``−(2/β) log σ(−β (log π − log π₀))`` of each forget answer.

Bounded, and gradient ascent as β → 0 (Zhang et al. 2024, arXiv 2404.05868).
"""

import torch.nn.functional as F
from torch import Tensor

from uld.methods.registry import Loss
from uld.methods.side import Side
from uld.methods.terms import family, positive


def npo(log_likelihood: Tensor, frozen: Tensor, beta: float) -> Tensor:
    """Negative preference optimisation: ``−(2/β) log σ(−β (log π − log π₀))`` (Eq. 3 of arXiv 2404.05868).

    Its gradient goes to that of gradient ascent as β → 0; for β > 0 it is bounded from below by 0.

    Args:
        log_likelihood: ``(rows,)`` summed log-likelihood of each answer, nats.
        frozen: ``(rows,)`` the same under the model before training.
        beta: β > 0, inverse temperature.

    Returns:
        ``(rows,)`` fp32 ≥ 0.
    """
    return -2 / beta * F.logsigmoid(-beta * (log_likelihood - frozen))


def forget(side: Side, *, beta: float = 0.1) -> Tensor:
    """`npo` of every forget row."""
    return npo(side.log_likelihood(), side.frozen_log_likelihood, positive(beta)).sum()


family(
    "npo",
    "Negative preference optimisation on forget answers",
    "https://arxiv.org/abs/2404.05868",
    Loss("forget", forget, per="row", reference=True),
    formula="−(2/β′) log σ(−β′ log (π/π₀)(y))",
    notes={"beta": "β′"},
)
