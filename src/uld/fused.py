"""Target and assistants in one pass: their rows go through the shared first layers as one batch.

A batch of B rows becomes (1 + n)·B rows: the target's, then each assistant's. Every shared linear is read once and its
LoRA updates are added to the assistants' rows alone; after an assistant's last layer its rows wait while the others go
on; all meet again at the final norm and one product with the head. A single-token step, whose time is the time to read
the weights, then costs what the target alone costs.

No forward of any model family is rewritten here. The fused model is a skeleton of the target's own class whose leaf
modules are the target's own (`uld.assistant.build_assistant` with every layer), with hooks at the layers where rows
part and meet.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from uld.assistant import base_model, build_assistant, decoder_layers
from uld.caches import FusedCache
from uld.errors import ULDError


class NotFusable(ULDError):
    """Target and assistants cannot share a pass; says why."""


class _RowLoRA(nn.Module):
    """A shared linear: the base product for every row, each assistant's LoRA update for its own rows."""

    def __init__(self, layers: Sequence[LoraLayer | None], base: nn.Module) -> None:
        """Take the assistants' LoRA layers (None where one has no LoRA here) in the order of their rows."""
        super().__init__()
        self.base = base
        self.layers: tuple[Any, ...] = tuple(
            layers
        )  # a tuple, so that their parameters stay registered in the assistant alone

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


class FusedModel:
    """Runs a target and its assistants as one.

    Not a module: every parameter that it uses is the target's or an assistant's.

    Attributes:
        skeleton: A causal LM of the target's class that runs all rows.
        groups: For each layer, the number of models whose rows pass through it.
    """

    def __init__(self, target: PreTrainedModel, assistants: Sequence[PreTrainedModel | PeftModel]) -> None:
        """Build the skeleton.

        Args:
            target: The target.
            assistants: Of the same target (every base weight shared), in any order of depth.

        Raises:
            NotFusable: an assistant's adapter is more than plain LoRA on the linears of its layers, or the target
                is spread over several devices.
        """
        if len(set(getattr(target, "hf_device_map", {"": 0}).values())) > 1:
            raise NotFusable("the target is spread over several devices")
        bases = [base_model(assistant) for assistant in assistants]
        depths = [len(decoder_layers(base)[1]) for base in bases]
        # Rows of deeper assistants come first, so that those that are done are always the last.
        self.order = sorted(range(len(bases)), key=lambda i: -depths[i])
        total = target.config.get_text_config(decoder=True).num_hidden_layers
        self.skeleton = build_assistant(target, total)
        name, layers = decoder_layers(self.skeleton)
        self.groups = [1 + sum(depth > index for depth in depths) for index in range(total)]
        self._refuse_buffers(layers)
        self._share_linears([bases[i] for i in self.order], name)
        self.parted: list[Tensor] = []
        for index, layer in enumerate(layers):
            after = self.groups[index + 1] if index + 1 < total else self.groups[index]
            if self.groups[index] < self.groups[0]:
                layer.register_forward_pre_hook(self._cut_inputs(self.groups[index]), with_kwargs=True)
            if after < self.groups[index]:
                layer.register_forward_hook(self._part(self.groups[index], after))
        if self.groups[-1] < self.groups[0]:
            layers[-1].register_forward_hook(self._meet)

    @staticmethod
    def _refuse_buffers(layers: nn.ModuleList) -> None:
        """Buffers that containers hold directly would not follow the target to another device."""
        for module in layers.modules():
            if any(True for _ in module.children()) and any(True for _ in module.buffers(recurse=False)):
                raise NotFusable(f"{type(module).__name__} holds buffers of its own")

    def _share_linears(self, bases: Sequence[Any], name: str) -> None:
        """Put `_RowLoRA` where an assistant has LoRA."""
        found: dict[str, dict[int, LoraLayer]] = {}
        for number, base in enumerate(bases):
            for path, module in base.named_modules():
                if isinstance(module, LoraLayer):
                    self._check_lora(path, module, name)
                    found.setdefault(path, {})[number] = module
        for path, layers in found.items():
            index = int(path.removeprefix(name + ".").split(".", 1)[0])
            parent, _, leaf = path.rpartition(".")
            alive = self.groups[index] - 1
            linear = _RowLoRA([layers.get(i) for i in range(alive)], self.skeleton.get_submodule(path))
            setattr(self.skeleton.get_submodule(parent), leaf, linear)

    @staticmethod
    def _check_lora(path: str, layer: LoraLayer, name: str) -> None:
        active = layer.active_adapters
        if not path.startswith(name + "."):
            raise NotFusable(f"the adapter changes {path}, outside the decoder layers")
        if len(active) != 1 or active[0] not in layer.lora_A or layer.merged:
            raise NotFusable(f"{path} has not exactly one active LoRA")
        if isinstance(layer, ParamWrapper) or active[0] in layer.lora_variant or layer.lora_bias.get(active[0], False):
            raise NotFusable(f"{path} has more than plain LoRA")

    def _cut_inputs(self, groups: int) -> Any:
        """Pre-hook of a layer that fewer rows reach: masks and positions of the others are cut off."""

        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            rows = args[0].shape[0]
            whole = rows // groups * self.groups[0]
            args, kwargs = _map_rows((args, kwargs), lambda t: t[:rows] if t.shape[0] == whole else t)
            return args, kwargs

        return hook

    def _part(self, before: int, after: int) -> Any:
        """Hook of an assistant's last layer: its rows wait."""

        def hook(layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            rows = hidden.shape[0] // before * after
            self.parted.append(hidden[rows:])
            return (hidden[:rows], *output[1:]) if isinstance(output, tuple) else hidden[:rows]

        return hook

    def _meet(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Hook of the last layer: all rows together again, for the norm and the head."""
        hidden = output[0] if isinstance(output, tuple) else output
        joined = torch.cat([hidden, *reversed(self.parted)])
        self.parted.clear()
        return (joined, *output[1:]) if isinstance(output, tuple) else joined

    def cache(self, cache: Cache) -> FusedCache:
        """Turn an empty cache of the target into one for all models."""
        return FusedCache(cache, self.groups)

    def _repeat(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Every row of the inputs once for each model."""
        first: Any = inputs.get("input_ids")
        batch = (first if first is not None else inputs["inputs_embeds"]).shape[0]
        times = self.groups[0]
        return _map_rows(inputs, lambda t: t.repeat(times, *(1 for _ in t.shape[1:])) if t.shape[0] == batch else t)

    def logits(self, cache: FusedCache | None = None, **inputs: Any) -> list[Tensor]:
        """Logits of the target and of each assistant.

        Args:
            cache: Past of all of them, or None.
            inputs: What the target's ``forward`` takes, for B rows.

        Returns:
            1 + n tensors ``(batch, tokens, vocab)``; the assistants' in the order in which they were given.
        """
        self.parted.clear()  # a pass that was interrupted may have left rows
        out = self.skeleton(past_key_values=cache, **self._repeat(inputs)).logits
        return self._in_order(out)

    def hidden(self, cache: FusedCache | None = None, **inputs: Any) -> list[Tensor]:
        """Final hidden states (after the norm), before the head; otherwise like `logits`.

        Returns:
            1 + n tensors ``(batch, tokens, hidden)``.
        """
        self.parted.clear()
        decoder = self.skeleton.get_decoder()
        return self._in_order(decoder(past_key_values=cache, **self._repeat(inputs)).last_hidden_state)

    def _in_order(self, out: Tensor) -> list[Tensor]:
        target, *rest = out.chunk(self.groups[0])
        given = [target] * len(rest)
        for part, number in zip(rest, self.order, strict=True):
            given[number] = part
        return [target, *given]


def _map_rows(value: Any, change: Any) -> Any:
    """Apply a change to every tensor of at least two dimensions in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return change(value) if value.dim() >= 2 else value
    if type(value) in (tuple, list):
        return type(value)(_map_rows(item, change) for item in value)
    if type(value) is dict:
        return {key: _map_rows(item, change) for key, item in value.items()}
    return value
