"""ULD: an assistant remembers the forget set and is uniform on the rest; its logits are subtracted from the target's.

``CE(forget answers) + β · CE(uniform, retain)``, Eq. 3–5 of Ji et al. 2024, arXiv 2406.08607. Both terms are bounded
from below, so that training needs no early stopping.
"""

from torch import Tensor

from uld.methods.losses import uniform
from uld.methods.registry import Loss, Method, register
from uld.methods.side import Side
from uld.methods.terms import remember


def be_uniform(side: Side) -> Tensor:
    """Cross-entropy from the uniform distribution at every position."""
    return side.total(uniform)


UNIFORM = Loss("uniform", be_uniform)

ULD = register(
    Method(
        name="uld",
        summary="An assistant remembers what is to be forgotten; its logits are subtracted from the target's.",
        paper="https://arxiv.org/abs/2406.08607",
        trains="assistant",
        forget=Loss("forget", remember),
        retain=UNIFORM,
        formula="CE(y) + β · CE(uniform, πa) on retain, then l − α · max(ra, 0)",
    )
)
