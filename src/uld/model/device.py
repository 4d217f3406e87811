"""Where a model runs."""

import torch


def best_device() -> str:
    """The best device that there is."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
