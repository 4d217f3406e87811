"""Where a model runs, and in which numbers."""

from typing import Any

from uld.errors import ULDError

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
