"""Where a model runs, and in which numbers."""

import logging
from typing import Any

from uld.errors import ULDError

logger = logging.getLogger(__name__)

DTYPES = {"auto": "auto", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""Dtypes as users type them, and what transformers and torch call them."""


def named_dtype(dtype: Any) -> Any:
    """A dtype as transformers takes it, of one or of its name: a user's (``bf16``) or torch's (``torch.bfloat16``).

    Raises:
        ULDError: another name.
    """
    if not isinstance(dtype, str):
        return dtype
    named = DTYPES.get(dtype, dtype.removeprefix("torch."))
    if named not in DTYPES.values():
        raise ULDError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    return named


def best_device() -> str:
    """The best device that there is."""
    import torch  # not needed to say what there may be

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


_LARGE = 50 * 10**6  # weights from which on it matters
_said: set[str] = set()


def warn_of_imitated(model: Any, name: str) -> None:
    """Say once of a large model in bf16 that this machine has no instructions for it: it takes many times as long.

    Args:
        model: As it was loaded.
        name: What the user calls it.
    """
    import torch

    if name in _said or str(model.dtype) != "torch.bfloat16" or best_device() != "cpu" or computes_bf16(torch):
        return
    if sum(one.numel() for one in model.parameters()) >= _LARGE:
        _said.add(name)
        logger.warning(
            "%s is in bf16, which this processor can only imitate: in fp32 it takes twice the memory and a fraction of "
            "the time (--dtype fp32, or --set dtype=fp32 of uld forget)",
            name,
        )


def computes_bf16(torch: Any) -> bool:
    """Whether the processor multiplies bf16 matrices by itself; so taken where torch does not say."""
    asked = getattr(getattr(torch.ops, "mkldnn", None), "_is_mkldnn_bf16_supported", None)
    return asked is None or bool(asked())
