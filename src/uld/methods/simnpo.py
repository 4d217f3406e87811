"""SimNPO: negative preference optimisation per token and without a reference model.

``−(2/β) log σ(−(β/|y|) log π(y|x) − γ)`` of each forget answer, gradient descent on retain rows (Fan et al. 2024,
arXiv 2410.07163). open-unlearning puts its margin δ inside β: γ = −β δ. It weighs the forget loss with 0.125 and the
retain loss with 1, which is a retain weight of 8.
"""

import torch.nn.functional as F
from torch import Tensor

from uld.methods.registry import Loss, Method, register
from uld.methods.side import Side
from uld.methods.terms import GD, ON_TARGET, positive


def simnpo(log_likelihood: Tensor, lengths: Tensor, beta: float, gamma: float) -> Tensor:
    """SimNPO: `npo` without a frozen model, per token: ``−(2/β) log σ(−(β/|y|) log π − γ)`` (arXiv 2410.07163).

    It is `npo` of β/|y| and ``log π₀ = −γ |y| / β``, divided by ``|y|``.

    Args:
        log_likelihood: ``(rows,)`` summed log-likelihood of each answer, nats.
        lengths: ``(rows,)`` tokens of each answer; a row without any counts as one of length 1.
        beta: β > 0.
        gamma: γ ≥ 0, the margin.

    Returns:
        ``(rows,)`` fp32 ≥ 0.
    """
    return -2 / beta * F.logsigmoid(-beta * log_likelihood / lengths.clamp_min(1) - gamma)


def forget(side: Side, *, beta: float = 4.5, gamma: float = 0.0) -> Tensor:
    """`simnpo` of every forget row."""
    return simnpo(side.log_likelihood(), side.lengths, positive(beta), gamma).sum()


register(
    Method(
        "simnpo",
        "Negative preference optimisation per token and without a reference model, gradient descent on retain rows.",
        "https://arxiv.org/abs/2410.07163",
        "target",
        Loss("forget", forget, per="row"),
        GD,
        defaults=ON_TARGET | {"batch_size": 64, "retain_weight": 8.0},
        formula="−(2/β′) log σ(−(β′/|y|) log π(y) − γ) + β · CE on retain",
        notes={"beta": "β′", "gamma": "γ"},
    )
)
