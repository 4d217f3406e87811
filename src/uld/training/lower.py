"""What the layers below the first that is trained make of a row: computed once, and kept for every later epoch.

With LoRA on the last layers alone (``--lora-layers``) no step changes the layers below, so what comes out of them for a
row is the same in every epoch. Of SmolLM2-135M with LoRA on 8 of 30 layers that is two fifths of a step's arithmetic.

Rows are computed in groups that depend on the rows alone and not on the batches, so that a training that was stopped
and continues computes the same numbers as one that was not.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from uld.data.collate import LENGTH_MULTIPLE
from uld.model.assistant import decoder_layers, layers_of, text_decoder

logger = logging.getLogger(__name__)

LIMIT = 2 * 2**30
"""Bytes of states that are kept, in the machine's memory; a training with more computes them anew."""
_GROUP = 8  # rows that are computed together


def first_trained(model: Any) -> int:
    """Number of the first decoder layer with something to train; 0 also where something below the layers is trained."""
    if (found := layers_of(model)) is None:
        return 0
    inside = {id(one) for layer in found[1] for one in layer.parameters()}
    if any(one.requires_grad and id(one) not in inside for one in text_decoder(model).parameters()):
        return 0
    trained = (number for number, one in enumerate(found[1]) if any(each.requires_grad for each in one.parameters()))
    return next(trained, 0)


class LowerStates:
    """States of rows where the first layer that is trained takes them.

    Attributes:
        first: Number of that layer.
    """

    def __init__(self, model: Any, first: int, rows: Iterable[Sequence[int]]) -> None:
        """Take the rows that come again.

        Args:
            model: Causal LM in training, without PEFT's wrapper.
            first: From `first_trained`.
            rows: Token ids of each.
        """
        self.first = first
        self._decoder, self._layers = text_decoder(model), decoder_layers(model)[1]
        self._width, self._dtype = model.config.get_text_config(decoder=True).hidden_size, model.dtype
        self._tuple = False
        self._kept: dict[tuple[int, ...], Tensor] = {}
        known = sorted({tuple(ids) for ids in rows}, key=lambda ids: (len(ids), ids))
        self._group = {ids: number // _GROUP for number, ids in enumerate(known)}
        self._members = [known[start : start + _GROUP] for start in range(0, len(known), _GROUP)]

    @classmethod
    def worth_keeping(cls, model: Any, rows: Iterable[Sequence[int]]) -> "LowerStates | None":
        """For a model and its rows; None where nothing is gained, it would take too much memory, or is not the same."""
        if not (first := first_trained(model)) or not (made := cls(model, first, rows))._members:
            return None
        size = sum(len(ids) for ids in made._group) * made._width * torch.finfo(model.dtype).bits // 8
        if size > LIMIT:
            logger.info(
                "the %d layers that are not trained are computed in every epoch: their states would take %.1f GiB",
                *(made.first, size / 2**30),
            )
            return None
        return made if made._same() else None

    @torch.no_grad()
    def _same(self) -> bool:
        """Whether a pass from kept states on is the model's own, on the shortest rows.

        In some families a layer takes more than the states of the one below, for example its keys and values.
        """
        ids, mask = _padded([torch.tensor(one, device=self._device) for one in self._members[0][:2]])
        with without_dropout(self._decoder):
            whole = self._decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            try:
                with self.given(ids, mask):
                    found = self._decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
                found = torch.full_like(whole, torch.nan)
        real, near = mask.bool(), torch.finfo(whole.dtype).eps ** 0.5
        same = torch.allclose(found[real], whole[real], rtol=near, atol=near * float(whole[real].abs().mean()))
        if not same:
            logger.info("%s is computed whole in every epoch", type(self._decoder).__name__)
        self._kept.clear()
        return same

    @property
    def _device(self) -> torch.device:
        return next(self._decoder.parameters()).device

    @contextmanager
    def given(self, ids: Tensor, mask: Tensor) -> Iterator[None]:
        """Have passes over a padded batch ``(batch, tokens)`` begin at the first layer that is trained."""
        real = mask.cpu().bool()
        states = self._of([tuple(row[kept].tolist()) for row, kept in zip(ids.cpu(), real, strict=True)])
        whole = states[0].new_zeros(*ids.shape, states[0].shape[-1])
        for place, one in enumerate(states):
            whole[place, real[place]] = one
        with ExitStack() as stack:
            *lower, last = self._layers[: self.first]
            for layer in lower:
                stack.enter_context(_skipped(layer, self._tuple))
            # From its forward, and by no hook: what is computed anew in the backward pass begins with a layer's input.
            stack.enter_context(_skipped(last, self._tuple, whole))
            yield

    def _of(self, rows: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """The states of rows ``(tokens, width)`` each, of those that are known from the store."""
        for group in sorted({self._group[one] for one in rows if one in self._group and one not in self._kept}):
            members = self._members[group]
            self._kept.update(zip(members, self._computed(members), strict=True))
        others = sorted({one for one in rows if one and one not in self._group})
        passing = dict(zip(others, self._computed(others), strict=True)) if others else {}
        passing[()] = torch.zeros(0, self._width, dtype=self._dtype)  # of a process without a row
        return [self._kept[one] if one in self._kept else passing[one] for one in rows]

    @torch.no_grad()
    def _computed(self, rows: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """The states of rows, from one pass that ends before the first layer that is trained."""
        ids, mask = _padded([torch.tensor(one, device=self._device) for one in rows])

        def reach(layer: nn.Module, args: Any, kwargs: Any) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

        def look(layer: nn.Module, args: Any, output: Any) -> None:
            self._tuple = isinstance(output, tuple)

        hooks = [
            self._layers[self.first].register_forward_pre_hook(reach, with_kwargs=True),
            self._layers[0].register_forward_hook(look),
        ]
        try:
            with without_dropout(self._decoder):  # it would be the same in every epoch
                self._decoder(input_ids=ids, attention_mask=mask, use_cache=False)
        except _Reached as found:
            return [one[: len(row)].to("cpu", copy=True) for one, row in zip(found.states, rows, strict=True)]
        finally:
            for hook in hooks:
                hook.remove()
        raise AssertionError("a pass went by the first layer that is trained")


class _Reached(Exception):
    """Carries the states out of a pass that need not go on."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of tokens as ``(batch, tokens)``, of few lengths, and the mask of what is real."""
    ids = pad_sequence(list(rows), batch_first=True)
    ids = nn.functional.pad(ids, (0, -ids.shape[1] % LENGTH_MULTIPLE))
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    return ids, (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()


@contextmanager
def without_dropout(decoder: nn.Module) -> Iterator[None]:
    """Have a model compute as it does when it is used, for what is no part of the training."""
    training = decoder.training
    decoder.eval()
    try:
        yield
    finally:
        decoder.train(training)


@contextmanager
def _skipped(layer: nn.Module, as_tuple: bool, kept: Tensor | None = None) -> Iterator[None]:
    """Have a decoder layer hand on what it is given, or states that were kept."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        states = states if kept is None else kept.to(states.device)
        return (states,) if as_tuple else states

    layer.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del layer.forward
