"""Small passes to try a model with, and what counts as the same."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from uld.model.caches import as_given
from uld.model.lora import some_tokens

untraced: Any = torch.compiler.disable  # a trial is no part of a compiled model
_EXACT, _ROUNDED = 0.01, 0.3  # of their size: TF32 and other orders of sums; half precision


def padded_inputs(model: PreTrainedModel, rows: int, tokens: int) -> dict[str, Tensor]:
    """Inputs for a small pass, as ``generate`` makes them: the first row is padded on the left."""
    mask = torch.ones(rows, tokens, dtype=torch.long, device=model.device)
    mask[0, : tokens // 2] = 0
    inputs = {"input_ids": some_tokens(model, rows, tokens), "attention_mask": mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    return inputs


def difference(found: Tensor, wanted: Tensor, mask: Tensor) -> str | None:
    """How much logits or hidden states differ beyond what rounding may do; None where they do not.

    In full precision every position counts. In half precision the median of a row's positions: there rounding alone
    sends a token to other experts now and then.

    Args:
        found: ``(batch, tokens, vocab)`` or ``(batch, tokens, hidden)``.
        wanted: The same.
        mask: ``(batch, tokens)``, 0 where padded.
    """
    exact = wanted.dtype == torch.float32
    wanted, found = wanted.float(), found.float()
    size = (wanted - wanted.mean(-1, keepdim=True)).norm(dim=-1)
    errors = (found - wanted).norm(dim=-1) / size.clamp_min(1e-6)
    rows = [own[keep] for own, keep in zip(errors, mask.bool(), strict=True)]
    values = [float(row.max() if exact else row.median()) for row in rows]
    bad = [value for value in values if not value <= (_EXACT if exact else _ROUNDED)]  # so NaN is one, too
    return f"they differ by {bad[0]:.0%}" if bad else None


@untraced
@torch.no_grad()
def continues(model: Any, *, several: bool, positions: bool) -> bool:
    """Whether tokens behind a cache find what they find without one; some families begin anew there.

    Args:
        model: Causal LM.
        several: Whether they are given all at once, or one by one.
        positions: Whether ``position_ids`` come with them.
    """
    ids = some_tokens(model, 1, 6)
    places = torch.arange(6, device=ids.device)[None]
    cache = DynamicCache(config=model.config)
    found = []
    for start, end in ((0, 3), (3, 6)) if several else ((0, 3), (3, 4), (4, 5), (5, 6)):
        inputs = {"position_ids": places[:, start:end]} if positions else {}
        found.append(model(input_ids=ids[:, start:end], use_cache=True, **as_given(cache), **inputs).logits)
    wanted = model(input_ids=ids, use_cache=False).logits
    return difference(torch.cat(found, 1), wanted, torch.ones_like(ids)) is None
