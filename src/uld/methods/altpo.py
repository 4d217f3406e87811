"""AltPO: a plausible wrong answer is preferred to the one to forget.

The loss of ``dpo`` with answers that come with the data (``alternative`` in each forget record), gradient descent on
retain rows (Mekala et al. 2024, arXiv 2409.13474).
"""

from uld.methods.dpo import FORGET
from uld.methods.registry import Method, register
from uld.methods.terms import GD, ON_TARGET

register(
    Method(
        "altpo",
        "Preference of a given alternative answer over the forget answer, gradient descent on retain rows.",
        "https://arxiv.org/abs/2409.13474",
        "target",
        FORGET,
        GD,
        alternatives="also",
        defaults=ON_TARGET | {"batch_size": 64, "alternatives": "given"},
        formula="that of `dpo+gd`, y′ given with the data",
        notes={"beta": "β′"},
    )
)
