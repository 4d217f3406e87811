"""Target and assistants in one pass: their rows go through the shared first layers as one batch.

A batch of B rows becomes (1 + n)·B rows: the target's, then each assistant's. Every shared linear is read once and its
LoRA updates are added to the assistants' rows alone; after an assistant's last layer its rows wait while the others go
on; all meet again at the final norm and one product with the head. A single-token step, whose time is the time to read
the weights, then costs what the target alone costs.

No forward of any model family is rewritten here. The fused model is a skeleton of the target's own class whose leaf
modules are the target's own (`uld.assistant.build_assistant` with every layer), with hooks at the layers where rows
part and meet.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from uld.assistant import base_model, build_assistant, decoder_layers, text_decoder
from uld.caches import FusedCache
from uld.errors import ULDError
from uld.lora import some_tokens

_OF_ROWS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids")
"""Inputs of a causal LM that have a row for each row of the batch, or one for all."""


_EXACT, _ROUNDED = 0.01, 0.3  # of the logits' size: TF32 and other orders of sums; half precision


class NotFusable(ULDError):
    """Target and assistants cannot share a pass; says why."""


class _Learnt(Exception):
    """Ends a pass that was made to see a layer's inputs."""


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


class _RowExperts(_OfRows):
    """Stacked experts, whose weights LoRA changes: the target's own for its rows, each assistant's for its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run each model's share of the tokens, which lie one model behind the other."""
        models = 1 + len(self.layers)
        shares = [_share(args, kwargs, models, number) for number in range(models)]
        runs = [self.base, *(self.base if layer is None else layer for layer in self.layers)]
        return torch.cat([run(*own, **named) for run, (own, named) in zip(runs, shares, strict=True)])


class _RowLoRA(_OfRows):
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
            NotFusable: an assistant's adapter is more than plain LoRA on the linears and experts of its layers, the
                target is spread over several devices, or the one pass does not find what separate passes find.
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
        self._buffers = self._held_buffers(target)
        self._share_linears([bases[i] for i in self.order], name)
        self.parted: list[Tensor] = []
        self._per_row: dict[Any, int] = {}
        try:
            self._learn(layers)
            self._hook(layers)
            self._check([target, *bases])
        except NotFusable:
            raise
        except Exception as error:  # whatever a family's forward comes upon with rows that it did not expect
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise NotFusable(f"{type(target).__name__} fails in one pass: {first}") from error

    def _hook(self, layers: nn.ModuleList) -> None:
        """Let rows part and meet where they do."""
        for index, layer in enumerate(layers):
            after = self.groups[index + 1] if index + 1 < len(layers) else self.groups[index]
            if self.groups[index] < self.groups[0]:
                layer.register_forward_pre_hook(self._cut_inputs(self.groups[index]), with_kwargs=True)
            if after < self.groups[index]:
                layer.register_forward_hook(self._part(self.groups[index], after))
        if self.groups[-1] < self.groups[0]:
            layers[-1].register_forward_hook(self._meet)

    def _held_buffers(self, target: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
        """Modules of the skeleton's own that hold buffers, each with the target's: those follow it to other devices."""
        theirs = dict(target.named_modules())
        return [
            (module, theirs[name])
            for name, module in self.skeleton.named_modules()
            if name in theirs and theirs[name] is not module and module._buffers
        ]

    @torch.no_grad()
    def _learn(self, layers: nn.ModuleList) -> None:
        """Find out which inputs of a layer have rows, from passes over two and over three rows.

        Stores how many entries of the first dimension each of them has for a row: 1 for a mask, the number of heads
        for some biases.
        """
        first = next((index for index, groups in enumerate(self.groups) if groups < self.groups[0]), None)
        if first is None:
            return
        sizes: list[dict[Any, int]] = []

        def look(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            sizes.append({place: tensor.shape[0] for place, tensor in _tensors((args, kwargs))})
            raise _Learnt

        hook = layers[first].register_forward_pre_hook(look, with_kwargs=True)
        for rows in (2, 3):
            try:
                self.logits(**_padded(self.skeleton, rows, 3), use_cache=False)
            except _Learnt:
                continue
            finally:
                self.parted.clear()
        hook.remove()
        two, three = sizes
        models = self.groups[0]
        for place, size in two.items():
            entries, rest = divmod(size, 2 * models)
            if entries and not rest and three.get(place) == entries * 3 * models:
                self._per_row[place] = entries

    @torch.no_grad()
    @torch.compiler.disable
    def _check(self, models: Sequence[Any]) -> None:
        """Compare a cached pass over padded rows with separate passes."""
        inputs = _padded(self.skeleton, 3, 5)
        last = self.skeleton.config.get_text_config(decoder=True)
        cache = self.cache(DynamicCache(config=last))
        steps = []
        for start, end in ((0, 4), (4, 5)):
            step = {name: value if name == "attention_mask" else value[:, start:end] for name, value in inputs.items()}
            step["attention_mask"] = step["attention_mask"][:, :end]
            steps.append(self.logits(cache, **step, use_cache=True))
        for number, model in enumerate(models):
            found = torch.cat([step[number] for step in steps], 1)
            if (
                what := difference(found, model(**inputs, use_cache=False).logits, inputs["attention_mask"])
            ) is not None:
                raise NotFusable(f"{type(models[0]).__name__} finds something else in one pass: {what}")

    def _share_linears(self, bases: Sequence[Any], name: str) -> None:
        """Put `_RowLoRA` where an assistant has LoRA."""
        found: dict[str, dict[int, LoraLayer]] = {}
        for number, base in enumerate(bases):
            for path, module in base.named_modules():
                if isinstance(module, LoraLayer) and ".base_layer" not in path:  # of wrappers, the outermost
                    self._check_lora(path, module, name)
                    found.setdefault(path, {})[number] = module
        for path, layers in found.items():
            index = int(path.removeprefix(name + ".").split(".", 1)[0])
            parent, _, leaf = path.rpartition(".")
            alive = self.groups[index] - 1
            kind = _RowExperts if any(isinstance(one, ParamWrapper) for one in layers.values()) else _RowLoRA
            shared = kind([layers.get(i) for i in range(alive)], self.skeleton.get_submodule(path))
            setattr(self.skeleton.get_submodule(parent), leaf, shared)

    @staticmethod
    def _check_lora(path: str, layer: LoraLayer, name: str) -> None:
        active = layer.active_adapters
        if not path.startswith(name + "."):
            raise NotFusable(f"the adapter changes {path}, outside the decoder layers")
        if len(active) != 1 or active[0] not in layer.lora_A or layer.merged:
            raise NotFusable(f"{path} has not exactly one active LoRA")
        if active[0] in layer.lora_variant or layer.lora_bias.get(active[0], False):
            raise NotFusable(f"{path} has more than plain LoRA")

    def _cut_inputs(self, groups: int) -> Any:
        """Pre-hook of a layer that fewer rows reach: masks and positions of the others are cut off."""

        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            rows = args[0].shape[0]
            whole = rows // groups * self.groups[0]

            def cut(place: Any, tensor: Tensor) -> Tensor:
                entries = self._per_row.get(place, 0)
                return tensor[: entries * rows] if tensor.shape[0] == entries * whole else tensor

            return _map_tensors((args, kwargs), cut)

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

        def repeat(place: Any, tensor: Tensor) -> Tensor:
            return tensor.repeat(times, *(1 for _ in tensor.shape[1:])) if tensor.shape[0] == batch else tensor

        return inputs | {name: _map_tensors(inputs[name], repeat) for name in _OF_ROWS if name in inputs}

    def _start(self) -> None:
        """Make ready for a pass."""
        self.parted.clear()  # a pass that was interrupted may have left rows
        for module, source in self._buffers:
            module._buffers.update(source._buffers)

    def logits(self, cache: FusedCache | None = None, **inputs: Any) -> list[Tensor]:
        """Logits of the target and of each assistant.

        Args:
            cache: Past of all of them, or None.
            inputs: What the target's ``forward`` takes, for B rows.

        Returns:
            1 + n tensors ``(batch, tokens, vocab)``; the assistants' in the order in which they were given.
        """
        self._start()
        out = self.skeleton(past_key_values=cache, **self._repeat(inputs)).logits
        return self._in_order(out)

    def hidden(self, cache: FusedCache | None = None, **inputs: Any) -> list[Tensor]:
        """Final hidden states (after the norm), before the head; otherwise like `logits`.

        Returns:
            1 + n tensors ``(batch, tokens, hidden)``.
        """
        self._start()
        decoder = text_decoder(self.skeleton)
        return self._in_order(decoder(past_key_values=cache, **self._repeat(inputs)).last_hidden_state)

    def _in_order(self, out: Tensor) -> list[Tensor]:
        target, *rest = out.chunk(self.groups[0])
        given = [target] * len(rest)
        for part, number in zip(rest, self.order, strict=True):
            given[number] = part
        return [target, *given]


def _map_tensors(value: Any, change: Callable[[Any, Tensor], Tensor], place: tuple[Any, ...] = ()) -> Any:
    """Change tensors of at least two dimensions in nested tuples, lists and dictionaries; what stays, stays itself."""
    if isinstance(value, Tensor):
        return change(place, value) if value.dim() >= 2 else value
    if type(value) in (tuple, list):
        new = [_map_tensors(item, change, (*place, number)) for number, item in enumerate(value)]
        return value if all(a is b for a, b in zip(new, value, strict=True)) else type(value)(new)
    if type(value) is dict:
        named = {key: _map_tensors(item, change, (*place, key)) for key, item in value.items()}
        return value if all(named[key] is value[key] for key in value) else named
    return value


def _tensors(value: Any) -> list[tuple[Any, Tensor]]:
    """Every tensor of at least two dimensions, and its place."""
    found: list[tuple[Any, Tensor]] = []

    def keep(place: Any, tensor: Tensor) -> Tensor:
        found.append((place, tensor))
        return tensor

    _map_tensors(value, keep)
    return found


def _share(args: tuple[Any, ...], kwargs: dict[str, Any], models: int, number: int) -> tuple[Any, Any]:
    """One model's part of inputs whose first dimension is the tokens of all models."""
    tokens = args[0].shape[0]

    def part(place: Any, tensor: Tensor) -> Tensor:
        return tensor.chunk(models)[number] if tensor.shape[0] == tokens else tensor

    return _map_tensors((args, kwargs), part)


def _padded(model: PreTrainedModel, rows: int, tokens: int) -> dict[str, Tensor]:
    """Inputs for a small pass, as ``generate`` makes them: the first row is padded on the left."""
    mask = torch.ones(rows, tokens, dtype=torch.long, device=model.device)
    mask[0, : tokens // 2] = 0
    inputs = {"input_ids": some_tokens(model, rows, tokens), "attention_mask": mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    return inputs


def difference(found: Tensor, wanted: Tensor, mask: Tensor) -> str | None:
    """How much logits differ beyond what rounding may do; None where they do not.

    In full precision every position counts. In half precision the median of a row's positions: there rounding alone
    sends a token to other experts now and then.

    Args:
        found: ``(batch, tokens, vocab)``.
        wanted: The same.
        mask: ``(batch, tokens)``, 0 where padded.
    """
    exact = wanted.dtype == torch.float32
    wanted, found = wanted.float(), found.float()
    size = (wanted - wanted.mean(-1, keepdim=True)).norm(dim=-1)
    errors = (found - wanted).norm(dim=-1) / size.clamp_min(1e-6)
    rows = [own[keep] for own, keep in zip(errors, mask.bool(), strict=True)]
    values = [float(row.max() if exact else row.median()) for row in rows]
    bad = [value for value in values if not value <= (_EXACT if exact else _ROUNDED)]  # so NaN is one, too
    return f"logits differ by {bad[0]:.0%}" if bad else None
