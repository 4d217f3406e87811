"""KL minimisation, as TOFU calls it: the losses of ``ga+kl`` under the name that its tables use.

``Σ log π(token)`` of the forget answers, ``KL(π₀ ‖ π)`` on the retain rows (Maini et al. 2024, arXiv 2401.06121).
"""

from uld.methods.ga import FORGET
from uld.methods.registry import Method, register
from uld.methods.terms import KL, ON_TARGET

register(
    Method(
        "kl-min",
        "TOFU's KL minimisation: the same as ga+kl.",
        "https://arxiv.org/abs/2401.06121",
        "target",
        FORGET,
        KL,
        defaults=ON_TARGET | {"batch_size": 64},
        formula="that of `ga+kl`, under TOFU's name",
    )
)
