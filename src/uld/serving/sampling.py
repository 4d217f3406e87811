"""Sampling in shared batches: temperature and top-p are each request's own.

transformers' own processors have no temperature of 0, and its server takes the first request's settings for all that
follow.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from uld.model.generate import nucleus


class _OfRequest(ContinuousBatchingLogitsProcessor):
    """A number that each request may give."""

    ignored_kwargs = ()
    name: str
    default: float

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Fill the storage with the default; numbers are kept as the bits of an fp32."""
        int32_tensor.copy_(torch.full_like(int32_tensor, self.default, dtype=torch.float32).view(torch.int32))

    def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> Tensor:
        """The number of each request that gets a token, ``(requests,)``."""
        given = [one.state.logit_processor_kwargs.get(self.name, self.default) for one in requests_with_new_token]
        return torch.tensor(given, dtype=torch.float32).view(torch.int32)


class Temperature(_OfRequest):
    """Logits over the temperature; at 0 the first of the likeliest tokens alone, as ``generate`` takes it."""

    supported_kwargs = {"temperature": float}  # noqa: RUF012  # as its base has it
    name, default = "temperature", 0.0

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """Scores ``(tokens, vocab)`` to such scores."""
        heat = tensor_arg[: scores.shape[0]].view(torch.float32)[:, None]
        best = scores.argmax(-1, keepdim=True)
        alone = torch.full_like(scores, -torch.inf).scatter_(-1, best, 0.0)
        return torch.where(heat > 0, scores / heat.clamp_min(1e-6), alone)


class TopP(_OfRequest):
    """The likeliest tokens that together have a share p of the probability, and no others."""

    supported_kwargs = {"top_p": float}  # noqa: RUF012
    name, default = "top_p", 1.0

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """Scores ``(tokens, vocab)`` to such scores."""
        share = tensor_arg[: scores.shape[0]].view(torch.float32)[:, None]
        if bool((share >= 1).all()):
            return scores
        return nucleus(scores, share)


def processors(model: Any) -> tuple[ContinuousBatchingLogitsProcessorList, list[str]]:
    """What is done to logits before a token is drawn: each request's settings, and what the model's own ask for.

    Returns:
        The processors in the order of ``generate``, and names of those that the model's generation config asks for and
        shared batches cannot do.
    """
    sampled = copy.deepcopy(model.generation_config)
    sampled.update(do_sample=True, temperature=0.5, top_p=0.5)  # whose places ours take: the order is that of generate
    kept: list[Any] = []
    left_out: set[str] = set()
    for one in model._get_logits_processor(sampled):
        if isinstance(one, TemperatureLogitsWarper):
            kept.append(Temperature())
        elif isinstance(one, TopPLogitsWarper):
            kept.append(TopP())
        elif getattr(one, "supports_continuous_batching", False):
            kept.append(one)
        else:
            left_out.add(type(one).__name__)
    found = ContinuousBatchingLogitsProcessorList(LogitsProcessorList(kept))
    found.tensors_required = 2  # a number a request for each of ours
    return found, sorted(left_out)
