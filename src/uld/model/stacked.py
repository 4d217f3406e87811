"""Rows of several models in one tensor, one model behind the other: modules that run them, tensors that hold them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


class _OfRows(nn.Module):
    """A module of the target where assistants have LoRA."""

    def __init__(self, layers: Sequence[LoraLayer | None], base: nn.Module) -> None:
        """Take the assistants' LoRA layers (None where one has no LoRA here) in the order of their rows."""
        super().__init__()
        self.base = base
        self.layers: tuple[Any, ...] = tuple(
            layers
        )  # a tuple, so that their parameters stay registered in the assistant alone

    def __getattr__(self, name: str) -> Any:
        """What other modules read of the target's own module (a weight's dtype, a bias)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


class RowExperts(_OfRows):
    """Stacked experts, whose weights LoRA changes: the target's own for its rows, each assistant's for its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run each model's share of the tokens, which lie one model behind the other."""
        models = 1 + len(self.layers)
        shares = [_share(args, kwargs, models, number) for number in range(models)]
        runs = [self.base, *(self.base if layer is None else layer for layer in self.layers)]
        return torch.cat([run(*own, **named) for run, (own, named) in zip(runs, shares, strict=True)])


class RowLoRA(_OfRows):
    """A shared linear: the base product for every row, each assistant's LoRA update for its own rows."""

    def forward(self, x: Tensor) -> Tensor:
        """``base(x)`` with the updates added: ``((1 + n)·B, ..., in)`` to ``((1 + n)·B, ..., out)``."""
        y = self.base(x)
        rows = x.shape[0] // (1 + len(self.layers))
        for number, layer in enumerate(self.layers, start=1):
            if layer is None or layer.disable_adapters:
                continue
            (name,) = layer.active_adapters
            down, up = layer.lora_A[name].weight, layer.lora_B[name].weight  # (r, in), (out, r)
            own = slice(number * rows, (number + 1) * rows)
            inner = nn.functional.linear(x[own].flatten(0, -2).to(down.dtype), down)
            scale = layer.scaling[name]
            if up.dtype == y.dtype:
                y[own].flatten(0, -2).addmm_(inner, up.t(), alpha=scale)
            else:
                y[own] += (nn.functional.linear(inner, up) * scale).to(y.dtype).view_as(y[own])
        return y


def map_tensors(value: Any, change: Callable[[Any, Tensor], Tensor], place: tuple[Any, ...] = ()) -> Any:
    """Change tensors of at least two dimensions in nested tuples, lists and dictionaries; what stays, stays itself."""
    if isinstance(value, Tensor):
        return change(place, value) if value.dim() >= 2 else value
    if type(value) in (tuple, list):
        new = [map_tensors(item, change, (*place, number)) for number, item in enumerate(value)]
        return value if all(a is b for a, b in zip(new, value, strict=True)) else type(value)(new)
    if type(value) is dict:
        named = {key: map_tensors(item, change, (*place, key)) for key, item in value.items()}
        return value if all(named[key] is value[key] for key in value) else named
    return value


def tensors_of(value: Any) -> list[tuple[Any, Tensor]]:
    """Every tensor of at least two dimensions, and its place."""
    found: list[tuple[Any, Tensor]] = []

    def keep(place: Any, tensor: Tensor) -> Tensor:
        found.append((place, tensor))
        return tensor

    map_tensors(value, keep)
    return found


def _share(args: tuple[Any, ...], kwargs: dict[str, Any], models: int, number: int) -> tuple[Any, Any]:
    """One model's part of inputs whose first dimension is the tokens of all models."""
    tokens = args[0].shape[0]

    def part(place: Any, tensor: Tensor) -> Tensor:
        return tensor.chunk(models)[number] if tensor.shape[0] == tokens else tensor

    return map_tensors((args, kwargs), part)
