"""ULD: an assistant remembers the forget set and is uniform on the rest; its logits are subtracted from the target's.

``CE(forget answers) + β · CE(uniform, retain)``, Eq. 3–5 of Ji et al. 2024, arXiv 2406.08607. Both terms are bounded
from below, so that training needs no early stopping.
"""

from uld.losses import cross_entropy, uniform
from uld.methods.registry import Method, register

ULD = register(
    Method(
        name="uld",
        summary="An assistant remembers what is to be forgotten; its logits are subtracted from the target's.",
        paper="https://arxiv.org/abs/2406.08607",
        trains="assistant",
        forget=cross_entropy,
        retain=uniform,
        retain_name="uniform_loss",
    )
)
