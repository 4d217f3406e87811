"""Which tokens one model favours most beside another: arithmetic on logits, for the rule ``rank``.

Source: Merchant and Levy 2026, "Divergence Decoding", arXiv 2605.31293. What happens to ties is ours.
"""

import torch
from torch import Tensor


def standing_out(logits: Tensor, difference: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k tokens with the largest difference, and the k-th largest logit, which they are to have.

    Tokens that tie with the next one do not stand out, so two models that are equal change nothing; where there are no
    more than k tokens, all do. A token of −inf, which the target masks out itself, is none of them.

    Args:
        logits: ``(..., vocab)`` fp32, of the target.
        difference: ``(..., vocab)`` fp32, by how much the one model's logits exceed the other's; what is not finite, as
            of tokens that a model masks out, counts as the least.
        k: ≥ 1.

    Returns:
        ``(..., vocab)`` bool and ``(..., 1)`` fp32.
    """
    masked = torch.isneginf(logits)
    chosen = ~masked
    if k < logits.shape[-1]:
        difference = difference.masked_fill(masked | ~difference.isfinite(), -torch.inf)
        next_one = difference.topk(k + 1, dim=-1, sorted=False).values.amin(-1, keepdim=True)
        chosen = chosen & (difference > next_one)
    top = logits.topk(min(k, logits.shape[-1]), dim=-1, sorted=False).values
    return chosen, top.masked_fill(torch.isneginf(top), torch.inf).amin(-1, keepdim=True)
