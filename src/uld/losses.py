"""Pure losses, fp32 inside, one paper each.

Ground floor. A position loss takes ``(positions, vocab)`` logits and gives one value a position; a row loss takes
log-likelihoods of whole answers ``(rows,)`` and gives one value a row. Callers choose the positions, the rows and the
normaliser. Values are in nats where nothing else is said; position losses are finite in bf16 and fp32 for logits of
magnitude up to 1e30 (`margin_flattening`, a square, up to 1e18).
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class PositionLoss(Protocol):
    """A loss at each position: ``(positions, vocab)`` logits and ``(positions,)`` token ids to ``(positions,)``."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every position, fp32, in nats."""
        ...


class FrozenPositionLoss(Protocol):
    """A position loss that also looks at the frozen model's logits at the same positions."""

    def __call__(self, logits: Tensor, labels: Tensor, frozen: Tensor) -> Tensor:
        """Return the loss of every position, fp32, in nats."""
        ...


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of the label: ``−log softmax(logits)[label]`` (remembering, Eq. 4 of arXiv 2406.08607).

    Args:
        logits: ``(positions, vocab)``.
        labels: ``(positions,)`` token ids.

    Returns:
        ``(positions,)`` fp32 ≥ 0.
    """
    return F.cross_entropy(logits.float(), labels, reduction="none")


def uniform(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy from the uniform distribution: ``logsumexp(l) − mean(l)`` (Eq. 5 of arXiv 2406.08607).

    Its minimum, ``log V``, is reached by equal logits. The label is not used.

    Args:
        logits: ``(positions, vocab)``.
        labels: ``(positions,)``, ignored.

    Returns:
        ``(positions,)`` fp32 ≥ log V.
    """
    x = logits.float()
    x = x - x.amax(-1, keepdim=True).detach()
    return x.exp().sum(-1).log() - x.mean(-1)


def gradient_ascent(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-likelihood of the label, so that minimising it unlearns: ``log softmax(logits)[label]`` (arXiv 1912.03817).

    Not bounded from below. Shapes as `cross_entropy`; values ≤ 0.
    """
    return -cross_entropy(logits, labels)


def kl(logits: Tensor, labels: Tensor, frozen: Tensor) -> Tensor:
    """``KL(frozen ‖ model) = Σ p₀ (log p₀ − log p)`` at each position (TOFU's "KL minimisation", arXiv 2401.06121).

    Args:
        logits: ``(positions, vocab)`` of the model in training.
        labels: ``(positions,)``, ignored.
        frozen: ``(positions, vocab)`` of the model before training.

    Returns:
        ``(positions,)`` fp32 ≥ 0.
    """
    mine, theirs = logits.float().log_softmax(-1), frozen.float().log_softmax(-1)
    return F.kl_div(mine, theirs, reduction="none", log_target=True).sum(-1)


def npo(log_likelihood: Tensor, frozen: Tensor, beta: float) -> Tensor:
    """Negative preference optimisation: ``−(2/β) log σ(−β (log π − log π₀))`` (Eq. 3 of arXiv 2404.05868).

    Its gradient goes to that of gradient ascent as β → 0; for β > 0 it is bounded from below by 0.

    Args:
        log_likelihood: ``(rows,)`` summed log-likelihood of each answer, nats.
        frozen: ``(rows,)`` the same under the model before training.
        beta: β > 0, inverse temperature.

    Returns:
        ``(rows,)`` fp32 ≥ 0.
    """
    return -2 / beta * F.logsigmoid(-beta * (log_likelihood - frozen))


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


def self_distillation(logits: Tensor, labels: Tensor, frozen: Tensor, strength: float) -> Tensor:
    """Cross-entropy from the frozen model with the label's logit lowered: ``CE(softmax(l₀ − γ·1[label]), softmax(l))``.

    Deliberate imagination / UNDIAL, Eq. 2–3 of arXiv 2402.10052.

    Args:
        logits: ``(positions, vocab)`` of the model in training.
        labels: ``(positions,)`` tokens to forget.
        frozen: ``(positions, vocab)`` of the model before training.
        strength: γ ≥ 0, in logits.

    Returns:
        ``(positions,)`` fp32 ≥ 0.
    """
    lowered = torch.zeros_like(frozen, dtype=torch.float32).scatter_(-1, labels[:, None], strength)
    wanted = (frozen.float() - lowered).softmax(-1)
    return F.cross_entropy(logits.float(), wanted, reduction="none")


def simnpo(log_likelihood: Tensor, lengths: Tensor, beta: float, gamma: float) -> Tensor:
    """SimNPO: `npo` without a frozen model, per token: ``−(2/β) log σ(−(β/|y|) log π − γ)`` (arXiv 2410.07163).

    It is `npo` of β/|y| and ``log π₀ = −γ |y| / β``, divided by ``|y|``.

    Args:
        log_likelihood: ``(rows,)`` summed log-likelihood of each answer, nats.
        lengths: ``(rows,)`` tokens of each answer; a row without any counts as one of length 1.
        beta: β > 0.
        gamma: γ ≥ 0, the margin.

    Returns:
        ``(rows,)`` fp32 ≥ 0.
    """
    return -2 / beta * F.logsigmoid(-beta * log_likelihood / lengths.clamp_min(1) - gamma)


def weighted_ascent(logits: Tensor, labels: Tensor, saturation: float, importance: float = 0.0) -> Tensor:
    """Gradient ascent with a weight that has no gradient: ``p^β₁ (1 − p)^β₂ log p``, p the label's probability.

    β₁ leaves tokens alone that are forgotten already (WGA, arXiv 2502.19301), β₂ those that are certain (SatImp,
    arXiv 2505.11953).

    Args:
        logits: ``(positions, vocab)``.
        labels: ``(positions,)`` token ids.
        saturation: β₁ ≥ 0.
        importance: β₂ ≥ 0.

    Returns:
        ``(positions,)`` fp32 ≤ 0.
    """
    log_p = -cross_entropy(logits, labels)
    known = log_p.detach()
    return known.exp() ** saturation * (-known.expm1()) ** importance * log_p


def cross_entropy_unlearning(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy from the model itself without the label: ``CE(softmax(l with l[label] = −∞), softmax(l))``.

    CE-U, arXiv 2503.01224. The distribution on the left has no gradient.

    Args:
        logits: ``(positions, vocab)``, of at least two tokens.
        labels: ``(positions,)`` tokens to forget.

    Returns:
        ``(positions,)`` fp32 ≥ 0.
    """
    x = logits.float()
    wanted = x.detach().scatter(-1, labels[:, None], -torch.inf).softmax(-1)
    return F.cross_entropy(x, wanted, reduction="none")


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


def mean_square(states: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference over the width, at each position (the distance of RMU, arXiv 2403.03218).

    Args:
        states: ``(positions, width)``.
        wanted: The same, or broadcast to it.

    Returns:
        ``(positions,)`` fp32 ≥ 0, in squared units of the states.
    """
    return ((states.float() - wanted.float()) ** 2).mean(-1)
