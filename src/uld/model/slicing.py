"""A model of the first layers only, whose layers are as they are in the whole model."""

from collections.abc import Mapping
from typing import Any

from torch import nn


def settle(whole: Mapping[str, nn.Module], part: nn.Module, layers: str) -> str | None:
    """Give the layers of a part the numbers and switches that they have in the whole model.

    What a family works out from the number of layers (a scale of the residuals, which layers keep their keys) then is
    as in the whole.

    Args:
        whole: Modules of the whole model, or of its skeleton, by name.
        part: The first layers as a model.
        layers: Name of the part's list of layers.

    Returns:
        Name of a tensor whose shape depends on the number of layers, which nothing can mend; None if there is none.
    """
    for name, module in part.named_modules():
        other = whole.get(name)
        if type(other) is not type(module):  # quantised, or missing, which is noticed where it is asked for
            continue
        theirs = dict(_tensors(other))
        for own, tensor in _tensors(module):
            if own in theirs and theirs[own].shape != tensor.shape:
                return f"{name}.{own}"
        if name.startswith(layers + "."):
            for own, value in vars(other).items():
                plain = isinstance(value, int | float | str) and own != "training"
                if plain and own in vars(module) and vars(module)[own] != value:
                    setattr(module, own, value)
    return None


def _tensors(module: Any) -> list[tuple[str, Any]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
