"""Caches that hold the keys and values of a target and its assistants, and look like one model's to `generate`."""

import dataclasses
import functools
import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    STATIC_LAYER_TYPE_MAPPING,
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    StaticCache,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from uld.errors import ULDError

_ROOM = 64  # tokens

CACHE = next(
    one.name for one in dataclasses.fields(CausalLMOutputWithPast) if one.name in ("cache", "past_key_values")
)  # what models, their layers and `generate` call the cache: ``past_key_values`` up to transformers 5.23


def as_given(cache: Any, pages: Any = None) -> dict[str, Any]:
    """What a model is given of the tokens that it has read; nothing where there are none.

    Args:
        cache: Of the model, or None.
        pages: A paged cache in its place (`uld.model.paged`), which has had one name in every version.
    """
    if pages is not None:
        return {"cache": pages}
    return {} if cache is None else {CACHE: cache}


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


def _changes(kind: type[Cache]) -> list[str]:
    """Names of the methods that change a whole cache; those that concern one layer take its ``layer_idx``."""
    found = []
    for name, member in inspect.getmembers(kind, inspect.isfunction):
        asks = name.startswith(("_", "get_", "is_", "has_"))
        if not asks and "layer_idx" not in inspect.signature(member).parameters:
            found.append(name)
    return found


@functools.cache
def _joint(form: "type[_JointCache]", kind: type[Cache]) -> type[Cache]:
    """The class of caches of a kind that hold several models."""
    own = {name: form._change(kind, name) for name in _changes(kind) if name not in vars(form)}
    return type(form.__name__, (form, kind), {"__doc__": form.__doc__, "__module__": __name__, **own})


class _JointCache(Cache):
    """What an ordinary cache of the target becomes when it holds other models as well.

    Its class derives from the given cache's own, so whatever `generate`, masks and models ask is answered as the
    target's cache answers it. What changes a whole cache is each form's to pass on: `_change` makes such a method.
    """

    def __new__(cls, *parts: Any) -> Any:
        """Made from the target's cache; `copy` calls it without."""
        return object.__new__(_joint(cls, type(parts[0])) if parts else cls)

    @staticmethod
    @abstractmethod
    def _change(kind: type[Cache], name: str) -> Callable[..., None]:
        """The method of this name, over that of the target's cache."""


class PairedCache(_JointCache):
    """Keys and values for separate passes: the target's cache, and beside it the assistants'.

    Whatever changes it (beams, cropping, reset) changes all of them.
    """

    def __init__(self, *parts: Cache) -> None:
        """Take over the target's cache, and hold one of each assistant."""
        vars(self).update(vars(parts[0]))
        self.others = list(parts[1:])

    @staticmethod
    def _change(kind: type[Cache], name: str) -> Callable[..., None]:
        def change(self: "PairedCache", *args: Any, **kwargs: Any) -> None:
            getattr(kind, name)(self, *args, **kwargs)
            for other in self.others:  # which has fewer layers, where a list names something of each
                cut = [arg[: len(other)] if isinstance(arg, list) else arg for arg in args]
                rest = {key: arg[: len(other)] if isinstance(arg, list) else arg for key, arg in kwargs.items()}
                getattr(other, name)(*cut, **rest)

        return change

    def split(self) -> list[Cache]:
        """One cache a model; the target's is this one itself."""
        return [self, *self.others]


class FusedCache(_JointCache):
    """Keys and values of target and assistants: (1 + n)·B rows in the shared layers, fewer where rows have parted.

    Made from an ordinary cache of the target. To `generate` it is a cache of B rows.
    """

    def __init__(self, cache: Cache, groups: Sequence[int]) -> None:
        """Take over an empty cache's layers; ``groups`` is the number of models whose rows each layer holds."""
        vars(self).update(vars(cache))
        self.groups = list(groups)
        held: Any = cache.layers
        if not cache.offloading:  # the larger tensors of a layer with room would stay on the device
            held = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in held]
        for layer in held:
            if isinstance(layer, CacheLayerMixin):
                layer.is_initialized = False  # it may have made room for B rows; the first update makes it anew
        self.layers = held

    @staticmethod
    def can_hold(cache: Cache) -> bool:
        """Whether rows of several models can share a cache's layers: it must keep each row apart, as it came."""
        kinds = {*DYNAMIC_LAYER_TYPE_MAPPING.values(), *STATIC_LAYER_TYPE_MAPPING.values()}
        return type(cache) in (DynamicCache, StaticCache) and all(type(layer) in kinds for layer in cache.layers)

    @staticmethod
    def _change(kind: type[Cache], name: str) -> Callable[..., None]:
        if name in _SAME_FOR_EVERY_ROW:
            return getattr(kind, name)

        def refuse(self: "FusedCache", *args: Any, **kwargs: Any) -> None:
            raise ULDError(
                f"this version of transformers changes caches by {name}, which uld does not know: "
                "generate with use_cache=False, or set model.fused = False"
            )

        return refuse

    def _rows(self, indices: Tensor, groups: int, batch: int) -> Tensor:
        """The same choice of rows for every model in a layer."""
        return torch.cat([indices + group * batch for group in range(groups)])

    @property
    def batch_size(self) -> int:
        """B, or −1 while the cache is empty."""
        sizes = (_batch(layer) // groups for layer, groups in zip(self.layers, self.groups, strict=False))
        return next((size for size in sizes if size > 0), -1)

    def reorder_cache(self, beam_idx: Tensor) -> None:  # type: ignore[override]
        """Put rows into the order of ``beam_idx`` ``(batch,)``."""
        held: Any = self.layers
        for layer, groups in zip(held, self.groups, strict=True):
            layer.reorder_cache(self._rows(beam_idx, groups, len(beam_idx)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows named by ``indices``: their numbers, or a truth value for each."""
        named = indices.nonzero()[:, 0] if indices.dtype == torch.bool else indices
        for layer, groups in zip(self.layers, self.groups, strict=True):
            layer.batch_select_indices(self._rows(named, groups, _batch(layer) // groups))  # type: ignore[attr-defined]

    def early_initialization(
        self,
        batch_size: int,
        num_heads: int | list[int],
        head_dim: int | list[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Make room ahead of time, for B = ``batch_size`` rows; heads and their dimension of all layers or of each."""
        heads, dims = ([one] * len(self) if isinstance(one, int) else one for one in (num_heads, head_dim))
        for layer, groups, count, size in zip(self.layers, self.groups, heads, dims, strict=True):
            Cache(layers=[layer]).early_initialization(batch_size * groups, count, size, dtype, device)


_SAME_FOR_EVERY_ROW = {"crop", "reset", "batch_repeat_interleave", "activate_past_recording"}


def _batch(layer: Any) -> int:
    keys = getattr(layer, "keys", None)
    return -1 if keys is None or keys.dim() < 2 else keys.shape[0]
