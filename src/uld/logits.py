"""Pure arithmetic on next-token logits: how an assistant's logits are subtracted from a target's.

Ground floor: tensors in, tensors out; knows nothing of models, tokens or files. All arithmetic is done in fp32 and
handed back in the target's dtype. Two promises hold for every rule that starts from uniform (``suppress`` and
``subtract``): a uniform assistant and a weight of 0 are the *exact* identity, and a constant added to either input's
logits never changes the resulting distribution.

Source: Ji et al. 2024, "Reversing the Forget-Retain Objectives", arXiv 2406.08607, Eq. 2 and its filter.
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from uld.errors import ULDError

Rule = Literal["suppress", "subtract", "reference"]
Outside = Literal["keep", "mask"]

_SAFE_SPREAD = 60.0  # nats; fp32 holds exp(−87) to exp(88)


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
    weight: float = 1.5
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
        for name in ("weight", "filter", "min_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise ULDError(f"{name} must be a number, not {value!r}")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ULDError(f"weight (α) must be a number ≥ 0, not {self.weight}")
        for name in ("filter", "min_tokens"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ULDError(f"{name} must lie between 0 and 1, not {value}")

    @property
    def filters(self) -> bool:
        """Whether the filter has a say: the rule uses one and τ is not 0."""
        return self.rule != "suppress" and self.filter > 0

    def least(self, vocab: int) -> int:
        """The number of tokens that the filter never goes below, of ``vocab``."""
        return int(self.filter * vocab) if self.rule == "reference" else math.ceil(round(self.min_tokens * vocab, 6))

    def override(self, **changes: object) -> "Combination":
        """Return a copy with every change that is not None; an unknown field is a TypeError."""
        return replace(self, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]


def log_ratio_to_uniform(logits: Tensor) -> Tensor:
    """Log-probability of each token relative to the uniform distribution: ``log_softmax(logits) + log V``.

    Written as ``x − log mean exp x`` so that constant logits give exactly 0. Tokens of −inf, which a model masks out
    itself, do not count: V is the number of the others, and the masked ones get 0.

    Args:
        logits: ``(..., vocab)``, any float dtype.

    Returns:
        ``(..., vocab)`` fp32, in nats, in (−inf, log V].
    """
    x = logits.float()
    masked = torch.isneginf(x)
    x = x - x.amax(-1, keepdim=True)
    count = masked.logical_not().sum(-1, keepdim=True)
    ratio = x - (x.exp().sum(-1, keepdim=True) / count).log()
    return ratio.masked_fill(masked, 0.0)


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
    logits = target.float()
    combined = logits - how.weight * _change(assistant, how.rule)
    if how.filters:
        outside = logits if how.outside == "keep" else torch.full_like(logits, -torch.inf)
        combined = torch.where(plausible(target, how.filter, how.least(target.shape[-1])), combined, outside)
    return combined.to(target.dtype)


def _change(assistant: Tensor, rule: Rule) -> Tensor:
    """What a rule subtracts for α = 1, before the filter: ``(..., vocab)`` fp32."""
    if rule == "reference":
        change = assistant.float()
        return change.masked_fill(torch.isneginf(change), 0.0)  # else −inf, subtracted, would win
    ratio = log_ratio_to_uniform(assistant)
    return ratio.clamp_min(0) if rule == "suppress" else ratio


def combine_all(target: Tensor, assistants: Sequence[Tensor], settings: Sequence[Combination]) -> Tensor:
    """Unlearned logits from a target and several assistants: the changes of all of them, each as `combine` makes it.

    Every filter looks at the target's own logits, so the order does not matter.

    Args:
        target: ``(..., vocab)`` logits of the target.
        assistants: Logits of each assistant, same shape.
        settings: One for each assistant.

    Returns:
        ``(..., vocab)`` in the target's dtype.
    """
    if len(assistants) == 1:
        return combine(target, assistants[0], settings[0])
    logits = target.float()
    total = logits
    for assistant, how in zip(assistants, settings, strict=True):
        change = combine(logits, assistant, how) - logits
        total = torch.where(torch.isneginf(logits), logits, total + change)
    return total.to(target.dtype)


def label_losses(target: Tensor, assistant: Tensor, labels: Tensor, settings: Sequence[Combination]) -> Tensor:
    """Cross-entropy of one label a position under many settings, for little more than the price of one.

    The normaliser of a setting is ``Σ_kept exp(l − α d) + Σ_outside exp(l)``, where d is the rule's change. The
    exponentials of one α follow from those of the next smaller one by a product, and serve every τ and ``outside``.

    Args:
        target: ``(positions, vocab)`` logits of the target.
        assistant: ``(positions, vocab)`` logits of the assistant.
        labels: ``(positions,)`` token ids.
        settings: Any number of combinations.

    Returns:
        ``(settings, positions)`` fp32 in nats; equal to `combine` and cross-entropy up to rounding (1e-5), and inf
        where ``outside`` is ``mask`` and the filter drops the label.
    """
    losses = torch.empty(len(settings), len(target), dtype=torch.float32, device=target.device)
    logits = target.float()
    logits = logits - logits.amax(-1, keepdim=True)
    before = logits.exp()
    own = logits.gather(-1, labels[:, None])[:, 0]
    kept: dict[tuple[float, int], tuple[Tensor, Tensor, Tensor]] = {}
    rules: list[Rule] = list(dict.fromkeys(one.rule for one in settings))
    for rule in rules:
        change = _change(assistant, rule)
        own_change = change.gather(-1, labels[:, None])[:, 0]
        spread = change.amax(-1) - change.amin(-1)
        steps: dict[float, Tensor] = {}
        weights, weight = before, 0.0
        for i in sorted((i for i, one in enumerate(settings) if one.rule == rule), key=lambda i: settings[i].weight):
            how = settings[i]
            step = round(how.weight - weight, 9)
            if step > 0:
                if step not in steps:
                    steps[step] = (change * -step).exp_()
                weights, weight = weights * steps[step], how.weight
            loss = how.weight * own_change - own
            masked = torch.zeros_like(own, dtype=torch.bool)
            if how.weight == 0 or not how.filters:
                total = weights.sum(-1)
            else:
                filter = (how.filter, how.least(target.shape[-1]))
                if filter not in kept:
                    inside = plausible(target, *filter).float()
                    own_inside = inside.gather(-1, labels[:, None])[:, 0].bool()
                    kept[filter] = inside, own_inside, (before * (1 - inside)).sum(-1)
                inside, own_inside, outside = kept[filter]
                total = torch.linalg.vecdot(weights, inside)
                if how.outside == "keep":
                    total = total + outside
                    loss = torch.where(own_inside, loss, -own)
                else:
                    masked = ~own_inside
            losses[i] = torch.where(masked, torch.inf, loss + total.log())
            # Products of exponentials lose what lies further apart than fp32 reaches: such positions are done alone.
            wrong = ((how.weight * spread > _SAFE_SPREAD) & ~masked).nonzero()[:, 0]
            if len(wrong):
                exact = combine(target[wrong].float(), assistant[wrong], how)
                losses[i, wrong] = torch.logsumexp(exact, -1) - exact.gather(-1, labels[wrong, None])[:, 0]
    return losses
