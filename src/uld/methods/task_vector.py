"""Task arithmetic: learn the forget set by heart, then go the same way in the opposite direction.

``θ = θ₀ − strength · (θ₁ − θ₀)``, θ₁ the weights after training with ``CE`` on the forget answers alone (Ilharco et al.
2023, arXiv 2212.04089). With LoRA the update itself is negated.
"""

from torch import Tensor

from uld.methods.registry import Loss, Method, register
from uld.methods.terms import ON_TARGET, remember


def finish(trained: Tensor, before: Tensor, *, strength: float = 1.0) -> Tensor:
    """``before − strength · (trained − before)``; exactly ``before`` for 0 and ``trained`` for −1."""
    return before.lerp(trained, -strength)


register(
    Method(
        "task-vector",
        "Training on forget answers, subtracted from the target's weights at the end.",
        "https://arxiv.org/abs/2212.04089",
        "target",
        Loss("forget", remember),
        defaults=ON_TARGET,
        finish=finish,
        formula="CE(y), then θ = θ₀ − s · (θ₁ − θ₀)",
        notes={"strength": "s"},
    )
)
