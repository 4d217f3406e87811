"""Layers of vLLM's models that several models go through together, where they were the same up to there.

An assistant with LoRA on its last layers alone is the target below them. So it has no layers of its own there: behind
the last common one its rows join the target's, ``(tokens, hidden)`` becoming ``((1 + n) · tokens, hidden)``, and every
layer from there on gives each model's rows to that model's own layer. What comes out of the target's class are the
final states of all, and vLLM compiles, pages and shards it as the one model that it is.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_TAKES = ("positions", "hidden_states", "residual")


def can_join(layers: nn.ModuleList) -> bool:
    """Whether layers are called as those of most of vLLM's classes: with positions, states and what is added."""
    return all(tuple(inspect.signature(one.forward).parameters)[: len(_TAKES)] == _TAKES for one in layers)


def join(layers: nn.ModuleList, others: Sequence[tuple[int, nn.ModuleList]]) -> None:
    """Have a target's layers take along those of other models.

    Args:
        layers: The target's. They keep their names and weights.
        others: Of each other model the layer from which on it has its own, and its layers, as many as the target's.
            Rows come out in this order, the target's first.
    """
    order = sorted(range(len(others)), key=lambda i: others[i][0])
    if order != list(range(len(others))):
        raise ValueError("models join in the order of their first own layers")
    for depth, layer in enumerate(layers):
        beside = [own[depth] for first, own in others if first <= depth]
        if beside:
            held: Any = layer
            held.__class__ = _joined(type(layer))
            held.beside = tuple(beside)  # a tuple, so that they are not weights of the target's
            held.joining = sum(first == depth for first, _ in others)


def _joined(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of layers of a kind that take along other models' layers."""

    def forward(self: Any, positions: Tensor, hidden_states: Tensor, residual: Tensor | None, **more: Any) -> Any:
        rows, own = positions.shape[-1], super(made, self).forward  # type: ignore[misc]
        there = 1 + len(self.beside) - self.joining
        states = [_of_model(hidden_states, i, rows) for i in range(there)]
        added = [None if residual is None else _of_model(residual, i, rows) for i in range(there)]
        for _ in range(self.joining):  # copies, because kernels write into what they are given
            states.append(states[0].clone())
            added.append(None if added[0] is None else added[0].clone())
        found = [
            layer(positions=positions, hidden_states=one, residual=other, **more)
            for layer, one, other in zip((own, *self.beside), states, added, strict=True)
        ]
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    made = type(f"Joined{kind.__name__}", (kind,), {"forward": forward})
    return made


def _of_model(states: Tensor, number: int, rows: int) -> Tensor:
    return states.narrow(0, number * rows, rows)
