"""Divergence Decoding: two small models, one that learns the forget set and one that learns the retain set.

Both are fine-tuned in the ordinary way, ``CE(forget answers)`` the one and ``CE(retain answers)`` the other; what they
disagree about steers the target (Merchant and Levy 2026, arXiv 2605.31293): *linear* is
``l + α (l_retain − l_forget)``, *rank* puts the k tokens with the largest ``l_forget − l_retain`` to the target's k-th
largest logit. A run of the one can be loaded with the other's rule. The small models are LoRA on the target's first
layers, or on a model of the user's of the same vocabulary. *Distilled* is the target after learning from such a run:
``KL`` from the steered target at each token of the forget answers, at a temperature T and times T².
"""

from typing import Any

from torch import Tensor

from uld.methods.losses import kl
from uld.methods.registry import Loss, Method, register
from uld.methods.side import Side
from uld.methods.terms import GD, ON_TARGET, positive, remember, taught

PAPER = "https://arxiv.org/abs/2605.31293"
FORGET = Loss("forget", remember)
ON_PAIR: dict[str, Any] = {"batch_size": 64, "retain_weight": 1.0, "paraphrases": 0, "wrong_answers": 0}


def teach(
    *, alpha: float = 1.5, temperature: float = 1.5, teacher_rate: float = 1e-3, teacher_epochs: int = 10
) -> dict[str, Any]:
    """α, learning rate and epochs of the run that teaches."""
    positive(temperature, "temperature", "the temperature")
    return taught(alpha, teacher_rate, teacher_epochs)


def distil(side: Side, *, temperature: float = 1.5) -> Tensor:
    """``T² KL(softmax(t / T) ‖ softmax(l / T))`` at every position, t the steered target's logits."""

    def loss(logits: Tensor, labels: Tensor, frozen: Tensor) -> Tensor:
        return kl(logits.float() / temperature, labels, frozen.float() / temperature)

    return temperature**2 * side.each_frozen(loss).sum()


register(
    Method(
        "dd",
        "Divergence Decoding: two small models learn forget and retain rows; their difference steers the target.",
        PAPER,
        "pair",
        FORGET,
        GD,
        defaults=ON_PAIR | {"rule": "offset", "weight": 1.5},
        formula="CE(y) for the one, CE of retain for the other; then l + α (l_retain − l_forget)",
    )
)
register(
    Method(
        "dd-rank",
        "Divergence Decoding by rank: the tokens that the forget model favours most lose their lead.",
        PAPER,
        "pair",
        FORGET,
        GD,
        defaults=ON_PAIR | {"rule": "rank", "rank_tokens": 20},
        formula="that of `dd`; then the k tokens with the largest l_forget − l_retain get the k-th largest l",
    )
)
register(
    Method(
        "dd-distilled",
        "Divergence Decoding distilled: the target learns what it says when a run of dd steers it.",
        PAPER,
        "target",
        Loss("forget", distil, frozen=True),
        defaults=ON_TARGET | {"learning_rate": 4e-5},
        teacher="dd",
        teach=teach,
        formula="T² · KL(softmax(t / T) ‖ softmax(l / T)), t the logits of a target that `dd` steers",
        notes={
            "alpha": "of that run",
            "teacher_rate": "of that run",
            "teacher_epochs": "of that run",
            "temperature": "T",
        },
    )
)
