"""Direct preference optimisation: an alternative answer ("I don't know") is preferred to the one to forget.

``−(2/β) log σ(β [log π(y_w)/π₀(y_w) − log π(y_l)/π₀(y_l)])`` (Rafailov et al. 2023, arXiv 2305.18290; as a baseline of
unlearning in arXiv 2404.05868 and 2406.08607).
"""

from typing import TYPE_CHECKING

from uld import losses
from uld.methods.registry import Loss
from uld.methods.terms import family, positive

if TYPE_CHECKING:
    from torch import Tensor

    from uld.objective import Side


def forget(side: "Side", *, beta: float = 0.1) -> "Tensor":
    """`uld.losses.dpo` of every forget row and its alternative."""
    other = side.alternative
    assert other is not None
    return losses.dpo(
        other.log_likelihood(),
        other.frozen_log_likelihood,
        side.log_likelihood(),
        side.frozen_log_likelihood,
        positive(beta),
    ).sum()


FORGET = Loss("forget", forget, per="row", reference=True)

family(
    "dpo",
    'Preference of "I don\'t know" over forget answers',
    "https://arxiv.org/abs/2305.18290",
    FORGET,
    alternatives="also",
)
