"""Caches that hold the keys and values of a target and its assistants, and look like one model's to `generate`."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_ROOM = 64  # tokens


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer with room for the tokens to come.

    `DynamicLayer` copies all keys and values at every token; this one does so when the room is used up. ``keys`` and
    ``values`` ``(batch, heads, tokens, dim)`` are the starts of larger tensors. After anything but ``update`` has
    changed them (beams, cropping, copies of the layer), the next ``update`` makes new ones.
    """

    _room: tuple[int, int, Tensor, Tensor] | None = None  # owner, tokens, and the larger tensors

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values ``(batch, heads, new tokens, dim)``; returns all of them."""
        held: Any = self.keys
        start = self.get_seq_length()
        differentiable = torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad)
        other_rows = start > 0 and key_states.shape[:2] != held.shape[:2]  # an error, never to be broadcast
        if start == 0 or other_rows or differentiable or torch.compiler.is_compiling():
            self._room = None
            return super().update(key_states, value_states, *args, **kwargs)
        end = start + key_states.shape[-2]
        keys, values = self._large(end)
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        self._room = (id(self), end, keys, values)
        return self.keys, self.values

    def _large(self, tokens: int) -> tuple[Tensor, Tensor]:
        """The larger tensors, made anew where there is no room or they may be someone else's too."""
        held: list[Any] = [self.keys, self.values]
        if self._room is not None:
            owner, length, *large = self._room
            own = owner == id(self) and length == held[0].shape[-2] and tokens <= large[0].shape[-2]
            writable = torch.is_inference_mode_enabled() or not large[0].is_inference()
            if own and writable and all(a.data_ptr() == b.data_ptr() for a, b in zip(held, large, strict=True)):
                return large[0], large[1]
        size = tokens + max(_ROOM, tokens // 8)
        made = [one.new_empty(*one.shape[:2], size, one.shape[-1]) for one in held]
        for new, one in zip(made, held, strict=True):
            new[:, :, : one.shape[-2]] = one
        return made[0], made[1]


class PairedCache(Cache):
    """Keys and values for separate passes: the target's layers, then each assistant's.

    Being one list of layers, it is reordered, cropped, repeated and reset as one; its length and mask sizes are those
    of the target's first layer.
    """

    def __init__(self, *parts: Cache) -> None:
        """Join the target's cache and the assistants', which already have all their layers."""
        super().__init__(layers=[layer for part in parts for layer in part.layers])
        self.parts = parts

    @property
    def is_compileable(self) -> bool:
        """False: `generate` would make one mask for all models, from a config that knows none of their windows."""
        return False

    def split(self) -> list[Cache]:
        """One cache a model, each a view on its own layers."""
        views, start = [], 0
        for part in self.parts:
            view = copy.copy(part)
            view.layers = self.layers[start : start + len(part.layers)]
            views.append(view)
            start += len(part.layers)
        return views


class FusedCache(Cache):
    """Keys and values of target and assistants: (1 + n)·B rows in the shared layers, fewer where rows have parted.

    Made from an ordinary cache of the target. To `generate` it is a cache of B rows.
    """

    def __init__(self, cache: Cache, groups: Sequence[int]) -> None:
        """Take over an empty cache's layers; ``groups`` is the number of models whose rows each layer holds."""
        super().__init__(layers=[RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers])
        self.groups = list(groups)
        held: Any = self.layers
        for layer in held:
            layer.is_initialized = False  # a static layer may have made room for B rows; the first update makes it anew

    def _rows(self, indices: Tensor, groups: int, batch: int) -> Tensor:
        """The same choice of rows for every model in a layer."""
        return torch.cat([indices + group * batch for group in range(groups)])

    @property
    def is_compileable(self) -> bool:
        """False: `generate` would make the masks itself, from a config that does not know the target's windows."""
        return False

    @property
    def batch_size(self) -> int:
        """B, or −1 while the cache is empty."""
        return _batch(self.layers[0]) // self.groups[0]

    def reorder_cache(self, beam_idx: Tensor) -> None:  # type: ignore[override]
        """Put rows into the order of ``beam_idx`` ``(batch,)``."""
        held: Any = self.layers
        for layer, groups in zip(held, self.groups, strict=True):
            layer.reorder_cache(self._rows(beam_idx, groups, len(beam_idx)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows named by ``indices``."""
        for layer, groups in zip(self.layers, self.groups, strict=True):
            layer.batch_select_indices(self._rows(indices, groups, _batch(layer) // groups))  # type: ignore[attr-defined]


def _batch(layer: Any) -> int:
    keys = getattr(layer, "keys", None)
    return -1 if keys is None or keys.dim() < 2 else keys.shape[0]
