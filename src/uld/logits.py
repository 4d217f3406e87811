"""Pure arithmetic on next-token logits: how an assistant's logits are subtracted from a target's.

Ground floor: tensors in, tensors out; knows nothing of models, tokens or files. All arithmetic is done in fp32 and
handed back in the target's dtype. Two promises hold for every rule that starts from uniform (``suppress`` and
``subtract``): a uniform assistant and a weight of 0 are the *exact* identity, and a constant added to either input's
logits never changes the resulting distribution.

Source: Ji et al. 2024, "Reversing the Forget-Retain Objectives", arXiv 2406.08607, Eq. 2 and its filter.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from uld.errors import ULDError

Rule = Literal["suppress", "subtract", "reference"]
Outside = Literal["keep", "mask"]


@dataclass(frozen=True)
class Combination:
    """How the assistant's logits change the target's. Read from the artefact; every field can be overridden at load.

    Attributes:
        rule: ``suppress`` lowers what the assistant remembers and never lifts a token; ``subtract`` is Eq. 2 measured
            from uniform, on the tokens that the filter keeps; ``reference`` is Eq. 2 on raw logits with the filter of
            the paper's released code.
        weight: α of Eq. 2, ≥ 0; 0 gives the target back.
        filter: τ in [0, 1]; a token is kept when its target probability is at least τ times the largest. 0 keeps all.
            Not used by ``suppress``.
        min_tokens: The filter never keeps fewer than this share (0–1) of the vocabulary. ``reference`` uses ``filter``
            for it, as the released code does.
        outside: What happens to tokens that the filter drops: ``keep`` leaves them the target's logit, ``mask`` sets
            them to −inf so that they can never be chosen.
    """

    rule: Rule = "suppress"
    weight: float = 1.25
    filter: float = 0.01
    min_tokens: float = 0.01
    outside: Outside = "keep"

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            ULDError: names the field, the value and the range.
        """
        if self.rule not in get_args(Rule):
            raise ULDError(f"rule must be one of {', '.join(get_args(Rule))}, not {self.rule!r}")
        if self.outside not in get_args(Outside):
            raise ULDError(f"outside must be one of {', '.join(get_args(Outside))}, not {self.outside!r}")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ULDError(f"weight (α) must be a number ≥ 0, not {self.weight}")
        for name in ("filter", "min_tokens"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ULDError(f"{name} must lie between 0 and 1, not {value}")

    def override(self, **changes: object) -> "Combination":
        """Return a copy with every change that is not None; an unknown field is a TypeError."""
        return replace(self, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]


def log_ratio_to_uniform(logits: Tensor) -> Tensor:
    """Log-probability of each token relative to the uniform distribution: ``log_softmax(logits) + log V``.

    Written as ``x − log mean exp x`` so that constant logits give exactly 0. Entries of −inf (tokens that a model
    masks out itself) count as 0: the assistant has nothing to say about them.

    Args:
        logits: ``(..., vocab)``, any float dtype.

    Returns:
        ``(..., vocab)`` fp32, in nats, in (−inf, log V].
    """
    x = logits.float()
    x = x - x.amax(-1, keepdim=True)
    ratio = x - x.exp().mean(-1, keepdim=True).log()
    return ratio.masked_fill(torch.isneginf(x), 0.0)


def plausible(target: Tensor, filter: float, min_tokens: int) -> Tensor:
    """Which tokens the target itself finds plausible: ``p ≥ τ · max p``, and at least the ``min_tokens`` likeliest.

    Args:
        target: ``(..., vocab)`` target logits.
        filter: τ in [0, 1]; 0 keeps every token.
        min_tokens: Lower bound on the number of kept tokens (ties may keep more).

    Returns:
        ``(..., vocab)`` bool.
    """
    if filter == 0:
        return torch.ones_like(target, dtype=torch.bool)
    scores = target.float()
    threshold = scores.amax(-1, keepdim=True) + math.log(filter)
    if min_tokens > 1:
        least = scores.topk(min(min_tokens, scores.shape[-1]), dim=-1, sorted=False).values.amin(-1, keepdim=True)
        threshold = torch.minimum(threshold, least)
    return scores >= threshold


def combine(target: Tensor, assistant: Tensor, how: Combination) -> Tensor:
    """Unlearned logits from target and assistant logits.

    With ``r = log_ratio_to_uniform(assistant)``:

    - ``suppress``: ``l − α · max(r, 0)``;
    - ``subtract``: ``l − α · r`` on the tokens that the filter keeps (Eq. 2 with the assistant measured from uniform);
    - ``reference``: ``l − α · assistant`` on the tokens that the filter keeps, at least ``τ · V`` of them (Eq. 2 as the
      paper's code computes it).

    Args:
        target: ``(..., vocab)`` logits of the target.
        assistant: ``(..., vocab)`` logits of the assistant, same shape.
        how: Rule, α, τ and the rest.

    Returns:
        ``(..., vocab)`` in the target's dtype.
    """
    if how.weight == 0:
        return target
    vocab = target.shape[-1]
    logits = target.float()
    if how.rule == "suppress":
        combined = logits - how.weight * log_ratio_to_uniform(assistant).clamp_min(0)
        return combined.to(target.dtype)
    if how.rule == "subtract":
        change, least = log_ratio_to_uniform(assistant), math.ceil(how.min_tokens * vocab)
    else:
        change, least = assistant.float(), int(how.filter * vocab)
    combined = logits - how.weight * change
    if how.filter > 0:
        outside = logits if how.outside == "keep" else torch.full_like(logits, -torch.inf)
        combined = torch.where(plausible(target, how.filter, least), combined, outside)
    return combined.to(target.dtype)
