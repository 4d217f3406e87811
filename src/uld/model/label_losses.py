"""Cross-entropy of one label a position under many settings of the combination at once. Tensors in, tensors out."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from uld.errors import ULDError
from uld.model.combine import (
    Combination,
    Rule,
    change_of,
    excess_of,
    kth_largest,
    log_ratio_to_uniform,
    lower,
    put_floor,
)

_GROUP = 16  # tokens
_SPARSE = 0.25  # share of the vocabulary above a margin up to which picking these tokens out is cheaper


def label_losses(target: Tensor, assistant: Tensor, labels: Tensor, settings: Sequence[Combination]) -> Tensor:
    """Cross-entropy of one label a position under many settings.

    A setting that filters, or has a margin, changes few tokens: with d for the rule's change, its normaliser is
    ``Σ_inside exp(l − α d) + Σ_outside exp(l)``. So the tokens that any such setting changes are taken out of the
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
    if any(how.rule == "rank" for how in settings):
        raise ULDError("the rule rank takes two models, and there is one")
    logits = target.float()
    losses = torch.empty(len(settings), len(logits), dtype=torch.float32, device=target.device)
    groups: dict[tuple[Rule, bool], list[int]] = {}
    for i, how in enumerate(settings):
        groups.setdefault((how.rule, how.filters and how.weight > 0), []).append(i)
    ratio = None
    if any(rule in ("suppress", "subtract") for rule, _ in groups):
        ratio = log_ratio_to_uniform(assistant)
    for (rule, filters), members in groups.items():
        own = [settings[i] for i in members]
        if rule == "suppress":
            assert ratio is not None
            losses[members] = _suppressed_losses(logits, ratio, labels, own)
            continue
        change = change_of(logits, assistant, rule, ratio)
        if filters:
            losses[members] = _filtered_losses(logits, change, labels, own)
        else:
            changed = (torch.sub(logits, change, alpha=how.weight) for how in own)
            losses[members] = torch.stack([F.cross_entropy(one, labels, reduction="none") for one in changed])
    return losses


def _suppressed_losses(logits: Tensor, ratio: Tensor, labels: Tensor, settings: Sequence[Combination]) -> Tensor:
    """`label_losses` for settings of ``suppress``: ``(settings, positions)``.

    Only tokens above a margin change. Those above the smallest margin at which they are few are taken out once, and
    each setting with that margin or a larger one costs as much as these few tokens.
    """
    margins = sorted({how.margin for how in settings if how.weight > 0})
    above, least = None, math.inf
    for margin in margins:
        over = ratio > margin
        if over.sum(-1, dtype=torch.int32).amax() <= _SPARSE * logits.shape[-1]:
            above, least = over, margin
            break
    sparse: list[int] = []
    losses = logits.new_empty(len(settings), len(logits))
    for i, how in enumerate(settings):
        if how.weight > 0 and how.margin >= least and (how.weight < math.inf or _leaves(logits, ratio, how.margin)):
            sparse.append(i)
            continue
        changed = logits
        if how.weight > 0:
            changed = put_floor(logits, lower(logits, [(excess_of(ratio, how), how.weight)]), how.floor)
        losses[i] = F.cross_entropy(changed, labels, reduction="none")
    if sparse:
        assert above is not None
        losses[sparse] = _sparse_losses(logits, ratio, above, labels, [settings[i] for i in sparse])
    return losses


def _leaves(logits: Tensor, ratio: Tensor, margin: float) -> bool:
    """Whether some token of every row lies below a margin; where none does, α = inf has another limit."""
    return bool(((logits > -torch.inf) & (ratio <= margin)).any(-1).all())


def _sparse_losses(
    logits: Tensor, ratio: Tensor, above: Tensor, labels: Tensor, settings: Sequence[Combination]
) -> Tensor:
    """`_suppressed_losses` where few tokens of each row lie above the smallest margin, and some below."""
    near, near_ratio = _gathered(above, (logits, -torch.inf), (ratio, 0.0))
    left = torch.where(above, -torch.inf, logits)
    far, far_top = left.logsumexp(-1), left.amax(-1, keepdim=True)
    own, own_ratio = (one.gather(-1, labels[:, None]) for one in (logits, ratio))
    losses = []
    for how in settings:
        lowered = _below(near, excess_of(near_ratio, how), how.weight)
        top = torch.maximum(far_top, lowered.amax(-1, keepdim=True)) if near.shape[-1] else far_top
        total = torch.logaddexp(put_floor(near, lowered, how.floor, top).logsumexp(-1), far)
        mine = put_floor(own, _below(own, excess_of(own_ratio, how), how.weight), how.floor, top)
        losses.append(total - mine[:, 0])
    return torch.stack(losses)


def _below(logits: Tensor, excess: Tensor, weight: float) -> Tensor:
    """``l − α · e``; α = inf leaves nothing of what exceeds the margin."""
    if weight == math.inf:
        return logits.masked_fill(excess > 0, -torch.inf)
    return torch.sub(logits, excess, alpha=weight)


def _filtered_losses(logits: Tensor, change: Tensor, labels: Tensor, settings: Sequence[Combination]) -> Tensor:
    """`label_losses` for settings of one rule that all filter: ``(settings, positions)``."""
    least = [max(1, how.least(logits.shape[-1])) for how in settings]
    top = logits.amax(-1)
    # At least k tokens reach the k-th largest of the groups' maxima: a bound that is far cheaper than the k-th token.
    groups = logits[:, : logits.shape[-1] // _GROUP * _GROUP].unflatten(-1, (_GROUP, -1)).amax(-2)
    bound = kth_largest(groups if groups.shape[-1] >= max(least) else logits, max(least))
    kept = logits >= torch.minimum(top + math.log(min(how.filter for how in settings)), bound)[:, None]
    near, near_change = _gathered(kept, (logits, -torch.inf), (change, 0.0))
    lowest = {k: kth_largest(near, k) for k in set(least)}
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
