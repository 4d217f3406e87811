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
import torch.nn.functional as F
from torch import Tensor

from uld.errors import ULDError

Rule = Literal["suppress", "subtract", "reference", "offset"]
Outside = Literal["keep", "mask"]

MOST_WEIGHT = 10**6
"""Largest α: far above what anybody wants, and below what overflows in fp32."""
_GROUP = 16  # tokens


@dataclass(frozen=True)
class Combination:
    """How the assistant's logits change the target's. Read from the artefact; every field can be overridden at load.

    Attributes:
        rule: ``suppress`` lowers what the assistant remembers and never lifts a token; ``subtract`` is Eq. 2 measured
            from uniform, on the tokens that the filter keeps; ``reference`` is Eq. 2 on raw logits with the filter of
            the paper's released code; ``offset`` *adds* raw logits, on every token (Eq. 11: an Offset model adds its
            trained small model and subtracts the same before training).
        weight: α of Eq. 2, ≥ 0; 0 gives the target back.
        filter: τ in [0, 1]; a token is kept when its target probability is at least τ times the largest. 0 keeps all.
            Not used by ``suppress`` and ``offset``.
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
        if self.weight > MOST_WEIGHT:
            raise ULDError(f"weight (α) must be at most {MOST_WEIGHT:,}, not {self.weight}: it would overflow")
        for name in ("filter", "min_tokens"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ULDError(f"{name} must lie between 0 and 1, not {value}")

    @property
    def filters(self) -> bool:
        """Whether the filter has a say: the rule uses one and τ is not 0."""
        return self.rule in ("subtract", "reference") and self.filter > 0

    def least(self, vocab: int) -> int:
        """The number of tokens that the filter never goes below, of ``vocab``."""
        return int(self.filter * vocab) if self.rule == "reference" else math.ceil(round(self.min_tokens * vocab, 6))

    @property
    def parts(self) -> "list[Combination]":
        """One setting for each model whose logits take part: two for ``offset``, where the second is not trained."""
        return [self, replace(self, rule="reference", filter=0.0)] if self.rule == "offset" else [self]

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
    count = x.shape[-1] - masked.sum(-1, keepdim=True, dtype=torch.int32)  # on a CPU, int64 takes ten times as long
    ratio = x - (x.exp().sum(-1, keepdim=True) / count).log()
    return torch.where(masked, 0.0, ratio)


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
        threshold = torch.minimum(threshold, _kth_largest(scores, min_tokens)[..., None])
    return scores >= threshold


def _kth_largest(scores: Tensor, k: int) -> Tensor:
    """The k-th largest of each row, ``(..., vocab)`` to ``(...)``; the smallest where there are fewer than k."""
    return scores.topk(min(k, scores.shape[-1]), dim=-1, sorted=False).values.amin(-1)


def combine(target: Tensor, assistant: Tensor, how: Combination) -> Tensor:
    """Unlearned logits from target and assistant logits.

    With ``r = log_ratio_to_uniform(assistant)``:

    - ``suppress``: ``l − α · max(r, 0)``;
    - ``subtract``: ``l − α · r`` on the tokens that the filter keeps (Eq. 2 with the assistant measured from uniform);
    - ``reference``: ``l − α · assistant`` on the tokens that the filter keeps, at least ``τ · V`` of them (Eq. 2 as the
      paper's code computes it);
    - ``offset``: ``l + α · assistant`` on all tokens.

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


def _change(assistant: Tensor, rule: Rule, ratio: Tensor | None = None) -> Tensor:
    """What a rule subtracts for α = 1, before the filter: ``(..., vocab)`` fp32; ``ratio`` where it is known."""
    if rule in ("reference", "offset"):
        change = assistant.float()
        change = change.masked_fill(torch.isneginf(change), 0.0)  # else −inf, subtracted, would win
        return -change if rule == "offset" else change
    ratio = log_ratio_to_uniform(assistant) if ratio is None else ratio
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
    """Cross-entropy of one label a position under many settings.

    A setting that filters changes few tokens: with d for the rule's change, its normaliser is
    ``Σ_inside exp(l − α d) + Σ_outside exp(l)``. So the tokens that any such setting keeps are taken out of the
    vocabulary once, the others are summed once, and each setting then costs as much as its few tokens. The other
    settings cost a cross-entropy each.

    Args:
        target: ``(positions, vocab)`` logits of the target.
        assistant: ``(positions, vocab)`` logits of the assistant.
        labels: ``(positions,)`` token ids.
        settings: Any number of combinations.

    Returns:
        ``(settings, positions)`` fp32 in nats; equal to `combine` and cross-entropy up to rounding (1e-5), and inf
        where ``outside`` is ``mask`` and the filter drops the label.
    """
    logits = target.float()
    losses = torch.empty(len(settings), len(logits), dtype=torch.float32, device=target.device)
    rules: list[Rule] = list(dict.fromkeys(one.rule for one in settings))
    ratio = log_ratio_to_uniform(assistant) if "suppress" in rules or "subtract" in rules else None
    for rule in rules:
        change = _change(assistant, rule, ratio)
        filtered = []
        for i, how in enumerate(settings):
            if how.rule != rule:
                continue
            if how.filters and how.weight > 0:
                filtered.append(i)
            else:
                changed = torch.sub(logits, change, alpha=how.weight)
                losses[i] = F.cross_entropy(changed, labels, reduction="none")
        if filtered:
            losses[filtered] = _filtered_losses(logits, change, labels, [settings[i] for i in filtered])
    return losses


def _filtered_losses(logits: Tensor, change: Tensor, labels: Tensor, settings: Sequence[Combination]) -> Tensor:
    """`label_losses` for settings of one rule that all filter: ``(settings, positions)``."""
    least = [max(1, how.least(logits.shape[-1])) for how in settings]
    top = logits.amax(-1)
    # At least k tokens reach the k-th largest of the groups' maxima: a bound that is far cheaper than the k-th token.
    groups = logits[:, : logits.shape[-1] // _GROUP * _GROUP].unflatten(-1, (_GROUP, -1)).amax(-2)
    bound = _kth_largest(groups if groups.shape[-1] >= max(least) else logits, max(least))
    kept = logits >= torch.minimum(top + math.log(min(how.filter for how in settings)), bound)[:, None]
    near, near_change = _gathered(kept, (logits, -torch.inf), (change, 0.0))
    lowest = {k: _kth_largest(near, k) for k in set(least)}
    thresholds = torch.stack(
        [torch.minimum(top + math.log(how.filter), lowest[k]) for how, k in zip(settings, least, strict=True)]
    )
    far = torch.where(kept, -torch.inf, logits).logsumexp(-1)
    own, own_change = (one.gather(-1, labels[:, None])[:, 0] for one in (logits, change))

    weights = logits.new_tensor([how.weight for how in settings])[:, None]
    outside = logits.new_tensor([0.0 if how.outside == "keep" else -torch.inf for how in settings])[:, None]
    shifts = torch.where(near >= thresholds[..., None], -weights[..., None] * near_change, outside[..., None])
    total = torch.logaddexp((near + shifts).logsumexp(-1), far + outside)
    return total - own - torch.where(own >= thresholds, -weights * own_change, outside)


def _gathered(kept: Tensor, *values: tuple[Tensor, float]) -> list[Tensor]:
    """The kept values of each row next to each other; each comes with what fills the ends of rows that keep fewer.

    Returns:
        For each ``(rows, vocab)`` one ``(rows, most kept in a row)``.
    """
    count = kept.sum(-1, dtype=torch.int32)
    taken = torch.arange(int(count.max()), device=kept.device) < count[:, None]
    index = kept.flatten().nonzero()[:, 0]
    return [value.new_full(taken.shape, fill).masked_scatter_(taken, value.take(index)) for value, fill in values]
