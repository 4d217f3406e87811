"""A side of a batch made of given logits, so that a method's losses can be held against naive formulas."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from uld.data.collate import FORGET, NO_LOSS
from uld.model.load import load_tokenizer
from uld.training.learners import States
from uld.training.objective import BatchSide


@pytest.fixture
def make_side() -> Callable[..., BatchSide]:
    """``make_side(logits, labels, lengths, frozen=…, reference=…, layer=…, frozen_layer=…)``.

    ``logits`` ``(rows, tokens, vocab)``, ``labels`` ``(rows, tokens)``; a loss falls on the first ``lengths[i]``
    positions of row i. ``reference`` ``(rows,)``; ``layer`` and ``frozen_layer`` ``(rows, tokens, width)``.
    """

    def states(logits: Tensor, layer: Tensor | None) -> States:
        tapped = None if layer is None else layer.flatten(0, 1)
        return States((logits.flatten(0, 1),), lambda h: h, logits.shape[-1], None, tapped)

    def make(
        logits: Tensor,
        labels: Tensor,
        lengths: list[int],
        frozen: Tensor | None = None,
        reference: Tensor | None = None,
        layer: Tensor | None = None,
        frozen_layer: Tensor | None = None,
    ) -> BatchSide:
        inside = torch.arange(labels.shape[1]) < torch.tensor(lengths)[:, None]
        batch = {
            "labels": labels,
            "kind": torch.where(inside, FORGET, NO_LOSS),
            "side": torch.full((len(labels),), FORGET),
            "reference": torch.full((len(labels),), torch.nan) if reference is None else reference,
        }
        other = frozen if frozen is not None else torch.zeros_like(logits)
        return BatchSide(
            states(logits, layer), batch, FORGET, lambda rows: states(other[rows], _pick(frozen_layer, rows))
        )

    return make


def _pick(layer: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if layer is None else layer[rows]


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """Prompts of several lengths."""
    return ["q: who is abba the forget? a:", "q: who? a:", "q: who is dad? a:"]


@pytest.fixture(scope="session")
def inputs(task: Any, prompts: list[str]) -> Any:
    """`prompts` as tokens, padded on the left."""
    tokenizer = load_tokenizer(task.target)
    tokenizer.padding_side = "left"
    return tokenizer(prompts, return_tensors="pt", padding=True)
