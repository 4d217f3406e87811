"""Divergence Decoding: two small models, one that learns the forget set and one that learns the retain set.

Both are fine-tuned in the ordinary way, ``CE(forget answers)`` the one and ``CE(retain answers)`` the other; what they
disagree about steers the target (Merchant and Levy 2026, arXiv 2605.31293): *linear* is
``l + α (l_retain − l_forget)``, *rank* puts the k tokens with the largest ``l_forget − l_retain`` to the target's k-th
largest logit. A run of the one can be loaded with the other's rule. The small models are LoRA on the target's first
layers, or on a model of the user's of the same vocabulary.
"""

from typing import Any

from uld.methods.registry import Loss, Method, register
from uld.methods.terms import GD, remember

PAPER = "https://arxiv.org/abs/2605.31293"
FORGET = Loss("forget", remember)
SETTINGS: dict[str, Any] = {"batch_size": 64, "retain_weight": 1.0, "paraphrases": 0, "wrong_answers": 0}

register(
    Method(
        "dd",
        "Divergence Decoding: two small models learn forget and retain rows; their difference steers the target.",
        PAPER,
        "pair",
        FORGET,
        GD,
        defaults=SETTINGS | {"rule": "offset", "weight": 1.5},
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
        defaults=SETTINGS | {"rule": "rank", "rank_tokens": 20},
    )
)
