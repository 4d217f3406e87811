"""Whether a model can be trained and asked at all, tried before anything is written.

A second at most, on the model as it is loaded for training: a backward pass; rows padded on either side against rows
alone; cached steps and one pass against separate, uncached ones. What fails is said in one sentence that names the
model's class.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import DynamicCache

from uld.errors import ULDError
from uld.methods.losses import cross_entropy
from uld.model.assistant import build_assistant, decoder_layers, text_decoder
from uld.model.combine import Combination
from uld.model.lora import quiet_peft, some_tokens
from uld.model.trial import difference
from uld.model.unlearned import ULDForCausalLM
from uld.model.weights import adapters_of
from uld.training.learner import Learner

_LENGTHS = (6, 4)  # tokens of the rows that are tried
_STEPS = ((0, 4), (4, 5), (5, 6))  # a prompt and two cached steps
_SHORT = ((0, 5), (5, 6))


def probe(learner: Learner, *, answers: bool) -> None:
    """Try what training and answering need; the learner is left as it was.

    Args:
        learner: On its device, before its first step.
        answers: Whether it becomes an assistant, which has to answer beside its target.

    Raises:
        ULDError: names the model's class and what does not work.
    """
    name = type(learner.base).__name__
    with _untouched(learner):
        _try(f"{name} cannot be trained", "a pass over rows of two lengths", lambda: _trains(learner))
        _try(f"{name} cannot be trained", "reading its adapter back", lambda: _reads_back(learner))
        if answers:
            _try(f"{name} cannot be unlearned", "answering with a cache", lambda: _answers(learner))


def _try(sentence: str, trial: str, work: Callable[[], str | None]) -> None:
    try:
        found = work()
    except Exception as error:  # whatever a family's forward comes upon
        lines = str(error).strip().splitlines()
        what = f"{type(error).__name__} ({lines[0]})" if lines else type(error).__name__
        raise ULDError(f"{sentence}: {trial} ends in {what}") from error
    if found is not None:
        raise ULDError(f"{sentence}: {found}")


@contextmanager
def _untouched(learner: Learner) -> Iterator[None]:
    """Put back modes, gradients' flags, LoRA's values and random numbers; meanwhile LoRA's scale is 1."""
    modes = {module: module.training for model in (learner, *learner.frozen_models) for module in model.modules()}
    flags = {parameter: parameter.requires_grad for model in modes for parameter in model.parameters(recurse=False)}
    values = {one: one.detach().clone() for name, one in learner.named_parameters() if "lora_" in name}
    scales = [(one.scaling, dict(one.scaling)) for one in learner.modules() if isinstance(one, LoraLayer)]
    for scale, _ in scales:
        scale.update(dict.fromkeys(scale, 1.0))
    device = next(learner.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for parameter, value in values.items():
                parameter.data.copy_(value)
            for scale, own in scales:
                scale.update(own)
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)
            for module, mode in modes.items():
                module.training = mode


def _trains(learner: Learner) -> str | None:
    """A forward and a backward pass over rows that are padded on the right."""
    learner.train()
    ids, mask = _rows(learner.base, left=False)
    states = learner.states(ids, mask)
    last = mask.sum(-1) - 2  # of each row, the last place with a token behind it
    index = torch.arange(len(ids), device=ids.device) * ids.shape[1] + last
    loss = cross_entropy(states.logits(index).float(), ids.flatten()[index + 1]).mean()
    found = [one for one in torch.autograd.grad(loss, _asked(learner), allow_unused=True) if one is not None]
    if not loss.isfinite() or not all(one.isfinite().all() for one in found):
        return "its loss or gradients are not finite"
    if not any(one.any() for one in found):
        return "no gradient reaches what is to be trained"
    learner.eval()
    with torch.no_grad():
        short = _LENGTHS[1]
        padded, alone = learner.states(ids, mask), learner.states(ids[1:, :short], mask[1:, :short])
        for one, other in zip(padded.hidden, alone.hidden, strict=True):
            own = one.unflatten(0, ids.shape)[1:, :short]
            if what := difference(own, other[None], mask[1:, :short]):
                return f"padding on the right changes what it computes ({what})"
    return None


def _reads_back(learner: Learner) -> str | None:
    """LoRA's own tensors, as they are written and read: PEFT renames some on the way, by what a family was called."""
    lost: list[str] = []
    for part in adapters_of(learner.model).values():
        tensors = get_peft_model_state_dict(part, save_embedding_layers=False)
        with quiet_peft():
            found = set_peft_model_state_dict(part, tensors)
        lost += [name for name in (*found.missing_keys, *found.unexpected_keys) if "lora_" in name]
    return f"PEFT would not find {lost[0]} in the adapter that it writes" if lost else None


def _asked(learner: Learner) -> Sequence[Tensor]:
    """Parameters whose gradients tell: LoRA's second matrices, or the smallest trained parameter of each layer."""
    trained = [(name, one) for name, one in learner.named_parameters() if one.requires_grad]
    if second := [one for name, one in trained if "lora_B" in name]:
        return second
    layers = decoder_layers(learner.base)[1]
    own = [[one for one in layer.parameters() if one.requires_grad] for layer in layers]
    return [min(some, key=Tensor.numel) for some in own if some] or [one for _, one in trained]


@torch.no_grad()
def _answers(learner: Learner) -> str | None:
    """Cached, padded and joint passes against the plain way: each model and each row alone, without a cache."""
    for name, one in learner.named_parameters():
        if "lora_B" in name:  # 0 before training, when it would hide everything
            one.data.normal_(0, 0.05)
    base = learner.base
    try:
        DynamicCache(config=base.config).get_seq_length()
    except ValueError:
        return "its first layers keep no keys, which would count the tokens so far: choose more with --num-layers"
    plain = build_assistant(base, base.config.get_text_config(decoder=True).num_hidden_layers)
    model = ULDForCausalLM.join(plain, learner.parts[0], Combination())
    ids, mask = _rows(base, left=True)
    wanted = [
        [text_decoder(one)(input_ids=ids[row : row + 1, -length:], use_cache=False)[0] for one in (plain, base)]
        for row, length in enumerate(_LENGTHS)
    ]
    for fused, rows, steps in ((False, 2, _STEPS), (True, 1, _SHORT)):
        model.fused = fused
        if fused and model.one_pass is None:  # that it found something else is why there is none
            continue
        found = _cached(model, ids[:rows], mask[:rows], steps)
        for row, length in enumerate(_LENGTHS[:rows]):
            for one, other in zip(found, wanted[row], strict=True):
                if what := difference(one[row : row + 1, -length:], other, mask[row : row + 1, -length:]):
                    return _blame(what, fused, padded=row > 0)
    return None


def _blame(what: str, fused: bool, padded: bool) -> str:
    if fused:
        return f"target and assistant in one pass answer otherwise than alone ({what})"
    if padded:
        return f"padding on the left changes its answers ({what})"
    return f"its cache changes its answers ({what})"


def _cached(model: ULDForCausalLM, ids: Tensor, mask: Tensor, steps: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Hidden states of target and assistant ``(batch, tokens, hidden)`` from a prompt and steps, as of ``generate``."""
    cache: Any = model.new_cache()
    found = []
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    for start, end in steps:
        inputs = {"input_ids": ids[:, start:end], "position_ids": positions[:, start:end]}
        found.append(model.all_hidden(cache, **inputs, attention_mask=mask[:, :end], use_cache=True))
    return [torch.cat([step[number] for step in found], 1) for number in range(2)]


def _rows(model: Any, *, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and mask ``(2, tokens)``, the second row padded."""
    ids = some_tokens(model, 2, _LENGTHS[0])
    mask = torch.ones_like(ids)
    mask[1, : -_LENGTHS[1]] = 0
    return (ids, mask) if left else (ids, mask.flip(1))
