"""SimNPO: negative preference optimisation per token and without a reference model.

``−(2/β) log σ(−(β/|y|) log π(y|x) − γ)`` of each forget answer, gradient descent on retain rows (Fan et al. 2024,
arXiv 2410.07163). open-unlearning puts its margin δ inside β: γ = −β δ. It weighs the forget loss with 0.125 and the
retain loss with 1, which is a retain weight of 8.
"""

from typing import TYPE_CHECKING

from uld import losses
from uld.methods.registry import Loss, Method, register
from uld.methods.terms import GD, ON_TARGET, positive

if TYPE_CHECKING:
    from torch import Tensor

    from uld.objective import Side


def forget(side: "Side", *, beta: float = 4.5, gamma: float = 0.0) -> "Tensor":
    """`uld.losses.simnpo` of every forget row."""
    return losses.simnpo(side.log_likelihood(), side.lengths, positive(beta), gamma).sum()


register(
    Method(
        "simnpo",
        "Negative preference optimisation per token and without a reference model, gradient descent on retain rows.",
        "https://arxiv.org/abs/2410.07163",
        "target",
        Loss("forget", forget, per="row"),
        GD,
        defaults=ON_TARGET | {"batch_size": 64, "retain_weight": 8.0},
    )
)
