"""Direct preference optimisation: an alternative answer ("I don't know") is preferred to the one to forget.

``−(2/β) log σ(β [log π(y_w)/π₀(y_w) − log π(y_l)/π₀(y_l)])`` (Rafailov et al. 2023, arXiv 2305.18290; as a baseline of
unlearning in arXiv 2404.05868 and 2406.08607).
"""

import torch.nn.functional as F
from torch import Tensor

from uld.methods.registry import Loss
from uld.methods.side import Side
from uld.methods.terms import family, positive


def dpo(wanted: Tensor, wanted_frozen: Tensor, unwanted: Tensor, unwanted_frozen: Tensor, beta: float) -> Tensor:
    """Direct preference optimisation of an alternative answer over the one to forget (Eq. 7 of arXiv 2305.18290).

    ``−(2/β) log σ(β [(log π(y_w) − log π₀(y_w)) − (log π(y_l) − log π₀(y_l))])``: scaled by 2/β like `npo`, which is
    what remains without the wanted answer (arXiv 2404.05868, Section 3).

    Args:
        wanted: ``(rows,)`` summed log-likelihood of the alternative answers, nats.
        wanted_frozen: The same under the model before training.
        unwanted: ``(rows,)`` of the answers to forget.
        unwanted_frozen: The same under the model before training.
        beta: β > 0.

    Returns:
        ``(rows,)`` fp32 ≥ 0.
    """
    margin = (wanted - wanted_frozen) - (unwanted - unwanted_frozen)
    return -2 / beta * F.logsigmoid(beta * margin)


def forget(side: Side, *, beta: float = 0.1) -> Tensor:
    """`dpo` of every forget row and its alternative."""
    other = side.alternative
    assert other is not None
    return dpo(
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
    formula="−(2/β′) log σ(β′ (log (π/π₀)(y′) − log (π/π₀)(y))), y′ the alternative",
    notes={"beta": "β′"},
)
