"""What a training runs: a model, the frozen model that it started from, and the states of a pass of either.

`uld.training.learners` has other kinds, and loads them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from uld.model.assistant import base_model, decoder_layers, gated_logits, head_logits, text_decoder
from uld.model.gate import gate_of
from uld.training.lower import LowerStates, without_dropout


@dataclass(frozen=True)
class States:
    """Final hidden states of a pass, and the way from them to logits.

    Attributes:
        hidden: One tensor for each model that takes part, ``(batch · tokens, width)``.
        head: Takes rows of each of them and gives ``(rows, vocab)`` logits.
        vocab: Size of the vocabulary.
        plain: The model whose head alone makes the logits; None where several models do.
        layer: ``(batch · tokens, width)`` after the tapped decoder layer, if one is tapped.
        parameters: All that the head itself may have to train; None where that is not said.
    """

    hidden: tuple[Tensor, ...]
    head: Callable[..., Tensor]
    vocab: int
    plain: Any = None
    layer: Tensor | None = None
    parameters: tuple[nn.Parameter, ...] | None = None

    def logits(self, index: Tensor) -> Tensor:
        """Logits ``(positions, vocab)`` at some positions."""
        return self.head(*(one[index] for one in self.hidden))

    def of_rows(self, rows: Tensor) -> "States":
        """The states of the rows of a boolean mask ``(batch,)``; the tapped layer is left out."""
        hidden = (one.unflatten(0, (len(rows), -1))[rows].flatten(0, 1) for one in self.hidden)
        return replace(self, hidden=tuple(hidden), layer=None)


class Learner(nn.Module):
    """A model in training, and the frozen model that it started from.

    Attributes:
        model: What is trained, with PEFT's wrapper if it has one.
        fingerprints: `uld.runs.manifest.fingerprint` of the weights that it started from, by name: ``target``,
        ``small``.
    """

    def __init__(self, model: Any, frozen: Any = None, fingerprints: Mapping[str, str] | None = None) -> None:
        """Take the model.

        Args:
            model: Causal LM, or a `PeftModel` of one.
            frozen: A second copy as it was before training; a `PeftModel` needs none, its adapter is switched off.
            fingerprints: Of the weights that training starts from.
        """
        super().__init__()
        self.model = model
        self.fingerprints = dict(fingerprints or {})
        self._frozen = (frozen,)  # a tuple, so that its parameters are none of ours
        self._teacher: tuple[Any, ...] = ()
        self._tapped: list[Tensor] = []
        self._lower: LowerStates | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Take the models that are held beside to another device or dtype, too."""
        for model in self.frozen_models:
            model._apply(fn)
        return super()._apply(fn, recurse)

    @property
    def base(self) -> Any:
        """The causal LM without PEFT's wrapper; of a pair the first."""
        return base_model(self.parts[0])

    @property
    def parts(self) -> list[Any]:
        """The models that are trained, with PEFT's wrapper if they have one: one, or the two of a pair."""
        return [self.model]

    @property
    def frozen_models(self) -> list[Any]:
        """Models that are held beside the one in training."""
        return [one for one in (*self._frozen, *self._teacher) if one is not None]

    def keep_lower(self, rows: Iterable[Sequence[int]]) -> None:
        """Compute the layers below the first that is trained once for each of these rows of tokens."""
        self._lower = LowerStates.worth_keeping(self.base, rows)

    def learn_from(self, teacher: Any) -> None:
        """Have losses ask a `uld.model.unlearned.ULDForCausalLM` in place of the model before training."""
        self._teacher = (teacher,)

    def tap(self, layer: int) -> None:
        """Have every pass hand out the hidden states after a decoder layer, counted from 0."""
        for model in {id(one): one for one in (self.base, self._frozen[0]) if one is not None}.values():
            decoder_layers(model)[1][layer].register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, args: Any, output: Any) -> None:
        self._tapped.append(output[0] if isinstance(output, tuple) else output)

    @property
    def vocab(self) -> int:
        """Size of the vocabulary."""
        return self.base.config.get_text_config(decoder=True).vocab_size

    def _pass(self, model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        self._tapped.clear()
        out = text_decoder(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return out.flatten(0, 1), self._tapped.pop().flatten(0, 1) if self._tapped else None

    def states(self, ids: Tensor, mask: Tensor, rows: Mapping[str, Tensor] | None = None) -> States:
        """A pass of the model in training over ``(batch, tokens)``.

        Args:
            ids: Token ids.
            mask: 0 where padded.
            rows: ``(batch,)`` bool, which rows are ``forget``, which ``retain``; a pair asks for it.
        """
        base = self.base
        with nullcontext() if self._lower is None else self._lower.given(ids, mask):
            hidden, layer = self._pass(base, ids, mask)
        part = self.parts[0]
        gate = gate_of(part)
        own = [*base.get_output_embeddings().parameters(), *(() if gate is None else gate.parameters())]
        plain = base if gate is None else None
        return States((hidden,), lambda h: gated_logits(part, h), self.vocab, plain, layer, tuple(own))

    @torch.no_grad()
    def frozen_states(self, ids: Tensor, mask: Tensor, trained: States | None = None) -> States:
        """A pass of the model before training; ``trained`` is the pass of the model in training over the same rows."""
        if self._teacher:
            (teacher,) = self._teacher
            found = teacher.all_hidden(input_ids=ids, attention_mask=mask, use_cache=False)
            hidden = tuple(one.flatten(0, 1) for one in found)
            return States(hidden, lambda *h: teacher.combined(teacher.heads(h)), self.vocab)
        frozen = self._frozen[0] if self._frozen[0] is not None else self.base
        part = self.parts[0]
        off = part.disable_adapter() if isinstance(part, PeftModel) else nullcontext()
        with off, without_dropout(frozen):
            hidden, layer = self._pass(frozen, ids, mask)
        return States((hidden,), lambda h: head_logits(frozen, h), self.vocab, None, layer)
