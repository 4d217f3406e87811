"""PDU: forgetting under a bound on the retain loss, whose weight is the dual variable.

Minimise ``(max l − mean l)²`` at each token of the forget answers subject to ``CE(retain) ≤ ε``: after each step
``λ ← max(0, λ + η (CE(retain) − ε))``, λ the retain weight, once the first epochs are over (Entesari et al. 2025,
arXiv 2506.05314). The defaults are those that its authors use on TOFU; ε should lie a little above the target's own
loss on the retain rows.
"""

from torch import Tensor

from uld.methods.registry import Loss, Method, register
from uld.methods.side import Side
from uld.methods.terms import GD, ON_TARGET


def margin_flattening(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared distance of the largest logit from their mean: ``(max l − mean l)²`` (arXiv 2506.05314).

    Args:
        logits: ``(positions, vocab)``.
        labels: ``(positions,)``, ignored.

    Returns:
        ``(positions,)`` fp32 ≥ 0, in squared logits; 0 for equal logits.
    """
    x = logits.float()
    return (x.amax(-1) - x.mean(-1)) ** 2


def forget(side: Side) -> Tensor:
    """`margin_flattening` at every position."""
    return side.total(margin_flattening)


def reweigh(
    weight: float, retain: float, epoch: float, *, bound: float = 0.3, step: float = 5.0, warmup: float = 5.0
) -> float:
    """A step of dual ascent.

    Args:
        weight: λ so far.
        retain: Mean retain loss of the step, nats a token.
        epoch: Epochs trained so far.
        bound: ε, nats a token.
        step: η.
        warmup: Epochs before the first change.
    """
    return weight if epoch <= warmup else max(0.0, weight + step * (retain - bound))


register(
    Method(
        "pdu",
        "Flattened logits on forget answers under a bound on the retain loss (primal-dual).",
        "https://arxiv.org/abs/2506.05314",
        "target",
        Loss("forget", forget),
        GD,
        defaults=ON_TARGET | {"batch_size": 64, "retain_weight": 100.0},
        reweigh=reweigh,
        formula="(max l − mean l)² + λ · CE on retain, λ ← max(0, λ + η (CE − ε)) after each step",
        notes={"bound": "ε", "step": "η", "warmup": "epochs with λ = β"},
    )
)
