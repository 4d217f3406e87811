"""Target and assistants in one pass: their rows go through the shared first layers as one batch.

A batch of B rows becomes (1 + n)·B rows: the target's, then each assistant's. Every shared linear is read once and its
LoRA updates are added to the assistants' rows alone; after an assistant's last layer its rows wait while the others go
on; all meet again at the final norm and one product with the head. A single-token step, whose time is the time to read
the weights, then costs what the target alone costs.

No forward of any model family is rewritten here. The fused model is a skeleton of the target's own class whose leaf
modules are the target's own (`uld.model.assistant.build_assistant` with every layer), with hooks at the layers where
rows part and meet.

Below the first layer in which any assistant has LoRA, its rows would be the target's: only these go through, and the
others join them there (`--lora-layers`).
"""

from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from uld.errors import ULDError
from uld.model.assistant import base_model, build_assistant, decoder_layers, text_decoder
from uld.model.caches import FusedCache, as_given
from uld.model.stacked import RowExperts, RowLoRA, map_tensors, tensors_of
from uld.model.trial import difference, padded_inputs, untraced

_OF_ROWS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids")
"""Inputs of a causal LM that have a row for each row of the batch, or one for all."""


class NotFusable(ULDError):
    """Target and assistants cannot share a pass; says why."""


class _Learnt(Exception):
    """Ends a pass that was made to see a layer's inputs."""


class FusedModel:
    """Runs a target and its assistants as one.

    Not a module: every parameter that it uses is the target's or an assistant's. Threads may share it: rows that wait
    are kept here, so one pass is made at a time.

    Attributes:
        skeleton: A causal LM of the target's class that runs all rows.
        groups: For each layer, the number of models whose rows pass through it.
        joins: Number of the layer from which on an assistant's rows may differ from the target's.
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
        self.models = 1 + len(bases)
        self.order = sorted(range(len(bases)), key=lambda i: -depths[i])
        total = target.config.get_text_config(decoder=True).num_hidden_layers
        self.skeleton = build_assistant(target, total)
        name, layers = decoder_layers(self.skeleton)
        self.joins = min(_first_own(bases, name), min(depths, default=1) - 1)
        alive = [1 + sum(depth > index for depth in depths) for index in range(total)]
        self.groups = [1] * self.joins + alive[self.joins :]
        self._buffers = self._held_buffers(target)
        self._share_linears([bases[i] for i in self.order], name)
        self.parted: list[Tensor] = []
        self._passing = Lock()
        self._per_row: dict[Any, int] = {}
        try:
            self._learn(layers)
            self._hook(layers)
            self._check([target, *bases])  # type: ignore[attr-defined]  # torch.compiler.disable hides its type
        except NotFusable:
            raise
        except Exception as error:  # whatever a family's forward comes upon with rows that it did not expect
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise NotFusable(f"{type(target).__name__} fails in one pass: {first}") from error

    def _hook(self, layers: nn.ModuleList) -> None:
        """Let rows part and meet where they do."""
        for index, layer in enumerate(layers):
            after = self.groups[index + 1] if index + 1 < len(layers) else self.groups[index]
            if self.groups[index] < self.models:
                cut = self._cut_inputs(self.groups[index], whole=index == 0)
                layer.register_forward_pre_hook(cut, with_kwargs=True)
            if index == self.joins > 0:
                layer.register_forward_pre_hook(self._join)
            if after < self.groups[index]:
                layer.register_forward_hook(self._part(self.groups[index], after))
        if self.groups[-1] < self.models:
            layers[-1].register_forward_hook(self._meet)

    def _held_buffers(self, target: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
        """Modules of the skeleton's own that hold buffers, each with the target's: those follow it to other devices."""
        theirs = dict(target.named_modules())
        return [
            (module, theirs[name])
            for name, module in self.skeleton.named_modules()
            if name in theirs and theirs[name] is not module and module._buffers
        ]

    @untraced
    @torch.no_grad()
    def _learn(self, layers: nn.ModuleList) -> None:
        """Find out which inputs of a layer have rows, from passes over two and over three rows.

        Stores how many entries of the first dimension each of them has for a row: 1 for a mask, the number of heads
        for some biases.
        """
        first = next((index for index, groups in enumerate(self.groups) if groups < self.models), None)
        if first is None:
            return
        sizes: list[dict[Any, int]] = []

        def look(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            sizes.append({place: tensor.shape[0] for place, tensor in tensors_of((args, kwargs))})
            raise _Learnt

        hook = layers[first].register_forward_pre_hook(look, with_kwargs=True)
        for rows in (2, 3):
            try:
                self.hidden(None, **padded_inputs(self.skeleton, rows, 3), use_cache=False)
            except _Learnt:
                continue
            finally:
                self.parted.clear()
        hook.remove()
        two, three = sizes
        models = self.models
        for place, size in two.items():
            entries, rest = divmod(size, 2 * models)
            if entries and not rest and three.get(place) == entries * 3 * models:
                self._per_row[place] = entries

    @untraced
    @torch.no_grad()
    def _check(self, models: Sequence[Any]) -> None:
        """Compare a cached pass over padded rows with separate passes."""
        inputs = padded_inputs(self.skeleton, 2, 4)
        cache = self.cache(DynamicCache(config=self.skeleton.config))
        steps = []
        for start, end in ((0, 3), (3, 4)):
            step: dict[str, Any] = {name: tensor[:, start:end] for name, tensor in inputs.items()}
            step["attention_mask"] = inputs["attention_mask"][:, :end]
            steps.append(self.hidden(cache, **step, use_cache=True))
        for number, model in enumerate(models):
            found = torch.cat([step[number] for step in steps], 1)
            wanted = text_decoder(model)(**inputs, use_cache=False).last_hidden_state
            if (what := difference(found, wanted, inputs["attention_mask"])) is not None:
                raise NotFusable(f"{type(models[0]).__name__} finds something else in one pass: {what}")

    def _share_linears(self, bases: Sequence[Any], name: str) -> None:
        """Put `RowLoRA` where an assistant has LoRA."""
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
            kind = RowExperts if any(isinstance(one, ParamWrapper) for one in layers.values()) else RowLoRA
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

    def _cut_inputs(self, groups: int, *, whole: bool) -> Any:
        """Pre-hook of a layer that fewer rows reach: masks and positions of the others are cut off.

        Args:
            groups: Models whose rows reach it.
            whole: Whether the states of all rows still come to it, and are to be cut as well.
        """

        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            given = args[0].shape[0]
            total = given if whole else given // groups * self.models
            rows = total // self.models * groups

            def cut(place: Any, tensor: Tensor) -> Tensor:
                entries = self._per_row.get(place, 0)
                return tensor[: entries * rows] if tensor.shape[0] == entries * total else tensor

            return map_tensors((args, kwargs), cut)

        return hook

    def _join(self, layer: nn.Module, args: tuple[Any, ...]) -> Any:
        """Pre-hook of the first layer in which rows may differ: every model's begin as the target's."""
        return (torch.cat([args[0]] * self.models), *args[1:])

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
        times = self.models

        def repeat(place: Any, tensor: Tensor) -> Tensor:
            return tensor.repeat(times, *(1 for _ in tensor.shape[1:])) if tensor.shape[0] == batch else tensor

        return inputs | {name: map_tensors(inputs[name], repeat) for name in _OF_ROWS if name in inputs}

    def _start(self) -> None:
        """Make ready for a pass."""
        self.parted.clear()  # a pass that was interrupted may have left rows
        for module, source in self._buffers:
            module._buffers.update(source._buffers)

    def logits(self, cache: FusedCache | None = None, /, pages: Any = None, **inputs: Any) -> list[Tensor]:
        """Logits of the target and of each assistant.

        Args:
            cache: Past of all of them, or None.
            pages: A `uld.model.paged.PagedRows` in its place.
            inputs: What the target's ``forward`` takes, for B rows.

        Returns:
            1 + n tensors ``(batch, tokens, vocab)``; the assistants' in the order in which they were given.
        """
        with self._passing:
            self._start()
            out = self.skeleton(**as_given(cache, pages), **self._repeat(inputs)).logits
        return self._in_order(out)

    def hidden(self, cache: FusedCache | None = None, /, pages: Any = None, **inputs: Any) -> list[Tensor]:
        """Final hidden states (after the norm), before the head; otherwise like `logits`.

        Returns:
            1 + n tensors ``(batch, tokens, hidden)``.
        """
        decoder = text_decoder(self.skeleton)
        with self._passing:
            self._start()
            out = decoder(**as_given(cache, pages), **self._repeat(inputs)).last_hidden_state
        return self._in_order(out)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A copy of the model makes its own: the hooks of this one would keep rows here."""
        return type(None), ()

    def _in_order(self, out: Tensor) -> list[Tensor]:
        target, *rest = out.chunk(self.models)
        given = [target] * len(rest)
        for part, number in zip(rest, self.order, strict=True):
            given[number] = part
        return [target, *given]


def _first_own(assistants: Sequence[Any], layers: str) -> int:
    """The number of the first layer in which any of them has LoRA; 0 where none has any.

    Args:
        assistants: Without PEFT's wrapper.
        layers: Name of the list of layers.
    """
    return min(
        (
            int(path.removeprefix(f"{layers}.").partition(".")[0])
            for one in assistants
            for path, module in one.named_modules()
            if isinstance(module, LoraLayer) and path.startswith(f"{layers}.")
        ),
        default=0,
    )
