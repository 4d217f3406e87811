"""Pure arithmetic on next-token logits: how an assistant's logits are subtracted from a target's.

Ground floor: tensors in, tensors out; knows nothing of models, tokens or files. All arithmetic is done in fp32 and
handed back in the target's dtype. Two promises hold for every rule that starts from uniform (``suppress`` and
``subtract``): a uniform assistant and a weight of 0 are the *exact* identity, and a constant added to either input's
logits never changes the resulting distribution. ``suppress`` makes a third: no logit is ever raised.

Source: Ji et al. 2024, "Reversing the Forget-Retain Objectives", arXiv 2406.08607, Eq. 2 and its filter. The margin and
the floor of ``suppress`` are ours.
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from uld.errors import ULDError
from uld.model.ranking import standing_out
from uld.runs.values import MOST_WEIGHT, PAIRED, SHARE, WEIGHT, Outside, Rule

STEADY_WEIGHT = 20.0
"""An α so large that it hardly matters: a third of a nat beyond the margin takes a token to a floor of 1e-3."""
MARGIN_STEP = 0.5
"""Nats between the margins that `uld.evaluation.tuning` tries."""
MOST_MARGIN = 2 / 3
"""Largest sensible margin, as a share of log V, the most that an assistant can be sure of."""
USUAL_FLOOR = 5e-4
"""Floor of a run that nobody has tuned: what tuning found on TOFU lies between 4.2e-4 and 5.3e-4."""


def margins_of(vocabulary: int) -> list[float]:
    """The margins that tuning tries, nats: from 0 to `MOST_MARGIN` of log V, in steps of `MARGIN_STEP`."""
    return [step * MARGIN_STEP for step in range(int(MOST_MARGIN * math.log(vocabulary) / MARGIN_STEP) + 1)]


@dataclass(frozen=True)
class Combination:
    """How the assistant's logits change the target's. Read from the artefact; every field can be overridden at load.

    Attributes:
        rule: ``suppress`` lowers what the assistant remembers and never lifts a token; ``subtract`` is Eq. 2 measured
            from uniform, on the tokens that the filter keeps; ``reference`` is Eq. 2 on raw logits with the filter of
            the paper's released code; ``offset`` *adds* raw logits, on every token, and subtracts those of a second
            model (Eq. 11: the trained small model and the same before training; or the small model of the retain side
            and that of the forget side); ``rank`` compares the same two, and puts the k tokens that the second finds
            most likely beside the first to the target's k-th largest logit (Divergence Decoding, arXiv 2605.31293);
            ``generic`` lowers what the assistant, the target after learning the forget set again, finds likelier than
            the target itself (raw logits; Who's Harry Potter, arXiv 2310.02238).
        weight: α of Eq. 2, ≥ 0; 0 gives the target back, and to ``rank`` every other value is the same. ``suppress``
            takes ``inf``: what lies above the margin goes straight to the floor.
        margin: m ≥ 0, nats; ``suppress`` leaves a token alone unless the assistant finds it more than m nats likelier
            than uniform. 0 lowers all that is likelier than uniform. Not used by the other rules.
        floor: φ in [0, 1]; ``suppress`` lowers no token below φ times the probability of the likeliest token that is
            left. 0 has no floor. Not used by the other rules.
        rank_tokens: k ≥ 0 of ``rank``; 0 gives the target back. Not used by the other rules.
        filter: τ in [0, 1]; a token is kept when its target probability is at least τ times the largest. 0 keeps all.
            Used by ``subtract`` and ``reference`` alone.
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
    margin: float = 0.0
    floor: float = 0.0
    rank_tokens: int = 20

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            ULDError: names the field, the value and the range.
        """
        for name, kind in (("rule", Rule), ("outside", Outside)):
            if (value := getattr(self, name)) not in (known := get_args(kind)):
                raise ULDError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        for name in ("weight", "filter", "min_tokens", "margin", "floor"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise ULDError(f"{name} must be a number, not {value!r}")
            if not isinstance(value, int | float):  # numpy's, a fraction: what is written into files is plain
                object.__setattr__(self, name, float(value))
        if self.weight == math.inf and self.rule != "suppress":
            raise ULDError(f"weight (α) may be inf with the rule suppress alone, not with {self.rule}")
        if WEIGHT(self.weight) is not None:
            raise ULDError(f"weight (α) must lie between 0 and {MOST_WEIGHT:,} or be inf, not {self.weight}")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise ULDError(f"margin must be a number of nats ≥ 0, not {self.margin}")
        k = self.rank_tokens
        if isinstance(k, bool) or not isinstance(k, numbers.Integral) or k < 0:
            raise ULDError(f"rank_tokens must be a whole number ≥ 0, not {k!r}")
        object.__setattr__(self, "rank_tokens", int(k))
        for name in ("filter", "min_tokens", "floor"):
            if (fault := SHARE(getattr(self, name))) is not None:
                raise ULDError(f"{name} {fault}")

    @classmethod
    def steady(cls, vocabulary: int) -> "Combination":
        """``suppress`` with margin and floor, for an assistant that nobody has tuned.

        Args:
            vocabulary: V; an assistant can be log V nats surer than uniform, so the margin follows from it.
        """
        return cls(weight=STEADY_WEIGHT, margin=margins_of(vocabulary)[-1], floor=USUAL_FLOOR)

    @property
    def paired(self) -> bool:
        """Whether the rule takes two models for one: the logits of the first are added, of the second subtracted."""
        return self.rule in PAIRED

    @property
    def changes(self) -> bool:
        """Whether there is anything that it may change."""
        return self.weight > 0 and not (self.rule == "rank" and self.rank_tokens == 0)

    @property
    def filters(self) -> bool:
        """Whether the filter has a say: the rule uses one and τ is not 0."""
        return self.rule in ("subtract", "reference") and self.filter > 0

    def least(self, vocab: int) -> int:
        """The number of tokens that the filter never goes below, of ``vocab``."""
        return int(self.filter * vocab) if self.rule == "reference" else math.ceil(round(self.min_tokens * vocab, 6))

    @property
    def parts(self) -> "list[Combination]":
        """One setting for each model whose logits take part: two for rules that are `paired`."""
        if self.rule == "offset":
            return [self, replace(self, rule="reference", filter=0.0)]
        return [self, self] if self.paired else [self]

    def override(self, **changes: object) -> "Combination":
        """Return a copy with every change that is not None; an unknown field is a TypeError.

        Raises:
            ULDError: a value out of range, or a margin, floor or number of tokens for a rule that has none, or a rule
                without a margin in place of one with it, and no α for it.
        """
        given = {k: v for k, v in changes.items() if v is not None}
        changed = replace(self, **given)  # type: ignore[arg-type]
        for name, rule in {"margin": "suppress", "floor": "suppress", "rank_tokens": "rank"}.items():
            if given.get(name) and changed.rule != rule:
                raise ULDError(f"{name} is for the rule {rule}, and the rule here is {changed.rule}: leave it out")
        if self.rule == "suppress" != changed.rule and self.margin > 0 and "weight" not in given:
            raise ULDError(
                f"α = {self.weight:g} goes with a margin, which the rule {changed.rule} does not have: name an α as "
                "well (--weight)"
            )
        return changed

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, as files hold them: what is not in use and was not there before is left out."""
        unused = {name for name in ("margin", "floor") if not getattr(self, name)}
        unused |= {"rank_tokens"} if self.rule != "rank" else set()
        return {name: value for name, value in vars(self).items() if name not in unused}


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
        threshold = torch.minimum(threshold, kth_largest(scores, min_tokens)[..., None])
    return scores >= threshold


def kth_largest(scores: Tensor, k: int) -> Tensor:
    """The k-th largest of each row, ``(..., vocab)`` to ``(...)``; the smallest where there are fewer than k."""
    return scores.topk(min(k, scores.shape[-1]), dim=-1, sorted=False).values.amin(-1)


def combine(target: Tensor, assistant: Tensor, how: Combination) -> Tensor:
    """Unlearned logits from target and assistant logits.

    With ``r = log_ratio_to_uniform(assistant)``:

    - ``suppress``: ``s = l − α · max(r − m, 0)``, then ``max(s, min(l, max s + log φ))``;
    - ``subtract``: ``l − α · r`` on the tokens that the filter keeps (Eq. 2 with the assistant measured from uniform);
    - ``reference``: ``l − α · assistant`` on the tokens that the filter keeps, at least ``τ · V`` of them (Eq. 2 as the
      paper's code computes it);
    - ``offset``: ``l + α · assistant`` on all tokens;
    - ``generic``: ``l − α · max(assistant − l, 0)``.

    Args:
        target: ``(..., vocab)`` logits of the target.
        assistant: ``(..., vocab)`` logits of the assistant, same shape.
        how: Rule, α, τ and the rest.

    Returns:
        ``(..., vocab)`` in the target's dtype.

    Raises:
        ULDError: ``rank``, which takes two models: see `combine_all`.
    """
    return combine_all(target, [assistant], [how])


def combine_all(target: Tensor, assistants: Sequence[Tensor], settings: Sequence[Combination]) -> Tensor:
    """Unlearned logits from a target and several assistants.

    What ``suppress`` lowers is summed over its assistants and floored once, by the smallest φ among them:
    ``s = l − Σ αᵢ · max(rᵢ − mᵢ, 0)``. The changes of the other rules, whose filters look at the target's own logits,
    are added to that. So the order does not matter, but that the models of ``rank`` come in pairs: with ``la`` and
    ``lb`` for their logits, the k tokens with the largest ``lb − la`` get the target's k-th largest logit
    (`uld.model.ranking`).

    Args:
        target: ``(..., vocab)`` logits of the target.
        assistants: Logits of each assistant, same shape.
        settings: One for each assistant; see `combine`.

    Returns:
        ``(..., vocab)`` in the target's dtype.

    Raises:
        ULDError: an odd number of models for ``rank``.
    """
    active = [(assistant, how) for assistant, how in zip(assistants, settings, strict=True) if how.changes]
    if not active:
        return target
    logits = target.float()
    total = logits
    if suppressing := [one for one in active if one[1].rule == "suppress"]:
        lowering = [(excess_of(log_ratio_to_uniform(one), how), how.weight) for one, how in suppressing]
        total = put_floor(logits, lower(logits, lowering), min(how.floor for _, how in suppressing))
    for assistant, how in active:
        if how.rule not in ("suppress", "rank"):
            total = _changed(logits, total, assistant, how)
    ranked = [one for one in active if one[1].rule == "rank"]
    if len(ranked) % 2:
        raise ULDError("the rule rank takes two models, and there is one")
    for (added, how), (subtracted, _) in zip(ranked[::2], ranked[1::2], strict=True):
        chosen, level = standing_out(logits, subtracted.float() - added.float(), how.rank_tokens)
        total = torch.where(chosen, level + (total - logits), total)
    return total.to(target.dtype)


def excess_of(ratio: Tensor, how: Combination) -> Tensor:
    """By how many nats the assistant's log-ratio to uniform exceeds the margin: ``max(r − m, 0)``."""
    return (ratio - how.margin).clamp_min(0) if how.margin else ratio.clamp_min(0)


def lower(logits: Tensor, lowering: Sequence[tuple[Tensor, float]]) -> Tensor:
    """``l − Σ αᵢ · eᵢ``, and its limit where an α is inf.

    In the limit, only tokens with the least sum of such excesses keep any probability: up to a constant, which no
    distribution sees, they keep their logit and all others go to −inf.
    """
    finite = [weight * excess for excess, weight in lowering if weight != math.inf]
    lowered = logits - sum(finite[1:], finite[0]) if finite else logits  # the sum first: half of α twice is α once
    without_limit = [excess for excess, weight in lowering if weight == math.inf]
    if without_limit:
        beyond = torch.stack(without_limit).sum(0)
        least = beyond.masked_fill(torch.isneginf(logits), torch.inf).amin(-1, keepdim=True)
        lowered = lowered.masked_fill(beyond > least, -torch.inf)
    return lowered


def put_floor(logits: Tensor, lowered: Tensor, floor: float, top: Tensor | None = None) -> Tensor:
    """No token below φ times the best surviving one, and none above where it was: ``max(s, min(l, max s + log φ))``."""
    if floor == 0:
        return lowered
    top = lowered.amax(-1, keepdim=True) if top is None else top
    return torch.maximum(lowered, torch.minimum(logits, top + math.log(floor)))


def _changed(logits: Tensor, total: Tensor, assistant: Tensor, how: Combination) -> Tensor:
    """``total`` with the change that any rule but ``suppress`` and ``rank`` makes to the target's logits."""
    combined = total - how.weight * change_of(logits, assistant, how.rule)
    if how.filters:
        outside = total if how.outside == "keep" else torch.full_like(logits, -torch.inf)
        combined = torch.where(plausible(logits, how.filter, how.least(logits.shape[-1])), combined, outside)
    return combined


def change_of(logits: Tensor, assistant: Tensor, rule: Rule, ratio: Tensor | None = None) -> Tensor:
    """What any rule but ``suppress`` and ``rank`` subtracts for α = 1, before the filter: ``(..., vocab)`` fp32."""
    if rule == "subtract":
        return log_ratio_to_uniform(assistant) if ratio is None else ratio
    change = assistant.float()
    if rule == "generic":
        return (change - logits).clamp_min(0).masked_fill(torch.isneginf(logits), 0.0)
    change = change.masked_fill(torch.isneginf(change), 0.0)  # else −inf, subtracted, would win
    return -change if rule == "offset" else change
