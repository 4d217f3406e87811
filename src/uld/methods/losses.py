"""What several methods share: cross-entropy, uniformity and KL divergence, fp32 inside.

A position loss takes ``(positions, vocab)`` logits and gives one value a position; a row loss takes
log-likelihoods of whole answers ``(rows,)`` and gives one value a row. Callers choose the positions, the rows and the
normaliser. Values are in nats where nothing else is said; position losses are finite in bf16 and fp32 for logits of
magnitude up to 1e30.
"""

from typing import Protocol

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
