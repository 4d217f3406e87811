"""The unlearned model over transformers' paged cache, which continuous batching needs.

That cache keys its pages by the number of a layer, and target and assistants all number theirs from 0. So it is told of
the layers of all of them, one model behind the other, and `PagedRows` sends what each model writes to its own pages. A
model that is served so is tried first: two prompts go through the paged cache and through `generate`, under a setting
that hides nothing of any model, and where they differ nothing is served.
"""

import copy
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager, ContinuousMixin
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.utils import find_head_dim, find_num_key_value_heads
from transformers.generation.continuous_batching.utils import logger as batching_logger

from uld.errors import ULDError, words
from uld.model.assistant import base_model, decoder_layers
from uld.model.combine import Combination
from uld.model.context import context_length
from uld.model.lora import some_tokens

logger = logging.getLogger(__name__)

_NEW, _LONGEST = 8, 80  # tokens that the trial writes, and those of its longer prompt
_EXACT, _ROUNDED = 0.01, 0.3  # nats: other orders of sums; half precision


class Differs(ULDError):
    """The paged cache and `generate` do not find the same; says what."""


class PagedRows(PagedAttentionCache):
    """transformers' paged cache as the rows of a pass see it: those of each model write pages of their own.

    Attributes:
        starts: For each row of the pass, the number that its first layer has in the cache.
    """

    def __init__(self, cache: PagedAttentionCache, starts: Sequence[int]) -> None:
        """Look at a cache of all layers: what it holds is held once."""
        vars(self).update(vars(cache))
        self.starts = list(starts)

    def split(self) -> "list[PagedRows]":
        """One for each model, for passes of their own."""
        return [PagedRows(self, [start]) for start in self.starts]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values ``(rows, heads, tokens, dim)``; returns all that attention needs of each row.

        Args:
            key_states: Of the rows that reach this layer: the first of them.
            value_states: The same.
            layer_idx: Number of the layer in its model.
            kwargs: Where to write and read; what the attention is to get is put into it.
        """
        found = []
        for row in range(key_states.shape[0]):
            given = dict(kwargs) if row + 1 < key_states.shape[0] else kwargs  # an update replaces entries of it
            one = slice(row, row + 1)
            where = self.starts[row] + layer_idx
            found.append(super().update(key_states[one], value_states[one], where, given))  # type: ignore[misc]
        keys, values = zip(*found, strict=True)
        return (keys[0], values[0]) if len(found) == 1 else (torch.cat(keys), torch.cat(values))


class PagedModel(ContinuousMixin):
    """An unlearned model as continuous batching takes it: the same forward, and the layers of all its models.

    Everything that is not here is the model's own.
    """

    def __init__(self, model: Any) -> None:
        """Count layers.

        Raises:
            ULDError: its models have keys of different shapes.
        """
        self.model = model
        parts = [model.target, *map(base_model, model.assistants)]
        self.config = _joined_config(parts)
        depths = [len(decoder_layers(part)[1]) for part in parts]
        self._starts = [sum(depths[:number]) for number in range(len(parts))]
        self._known: dict[Any, str] = {}

    def __getattr__(self, name: str) -> Any:
        """What the model answers itself."""
        return getattr(self.__dict__["model"], name)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A copy of the model makes its own, with a manager of its own."""
        return type(None), ()

    def eval(self) -> "PagedModel":
        """As modules do; it is in evaluation mode already."""
        return self

    def set_attn_implementation(self, name: str) -> None:
        """Have every layer of every model take another kind of attention."""
        models = [self.model.target, *map(base_model, self.model.assistants)]
        if (one_pass := self.model.one_pass) is not None:
            models.append(one_pass.skeleton)
        for one in models:
            one.set_attn_implementation(name)
        self.config._attn_implementation = self.model.config._attn_implementation = name

    def __call__(self, *, cache: Any, **batch: Any) -> Any:
        """Unlearned logits of a packed batch over the paged cache."""
        one_pass = self.model.one_pass
        order = range(len(self._starts) - 1) if one_pass is None else one_pass.order
        starts = [0, *(self._starts[1 + number] for number in order)]
        return self.model(pages=PagedRows(cache, starts), **batch)

    def checked(self, config: ContinuousBatchingConfig | None = None) -> None:
        """Make sure that two prompts give through the paged cache what `generate` gives; found out once a setting.

        In one pass if the model runs so; where that differs and separate passes do not, the model runs in those from
        now on.

        Args:
            config: What will be asked of the cache.

        Raises:
            Differs: they do not.
        """
        config = _trial_config(self.model, config or ContinuousBatchingConfig())
        together = self.model.one_pass is not None
        key = (self.config._attn_implementation, self.model.dtype, self.model.device, together, repr(config))
        if key not in self._known:
            fault = _fault(self.model, config)
            if fault is not None and together:
                self.model.fused = False
                if (apart := _fault(self.model, config)) is None:
                    logger.info("continuous batching runs target and assistant in separate passes: %s", fault)
                fault = apart
            self._known[key] = fault or ""
        if self._known[key]:
            raise Differs(
                f"{type(self.model.target).__name__} cannot be run with a paged cache here: {self._known[key]}"
            )


def refuse_differing(model: Any, config: ContinuousBatchingConfig) -> None:
    """The same trial of an ordinary model, which transformers batches as it is.

    Args:
        model: Any causal LM that is not an unlearned one, which is tried whenever it is asked for batches.
        config: What will be asked of the cache.

    Raises:
        Differs: the paged cache and ``generate`` do not find the same.
    """
    if (fault := _fault(model, _trial_config(model, config))) is not None:
        raise Differs(f"{type(model).__name__} cannot be run with a paged cache here: {fault}")


def _trial_config(model: Any, config: ContinuousBatchingConfig) -> ContinuousBatchingConfig:
    """What the trial asks of the cache: as it will be asked, with room for two prompts."""
    longest = _longest(model)
    room = 2 * (1 + (longest + _NEW) // config.page_size)
    small = {"num_blocks": room, "max_batch_tokens": longest, "max_requests_per_batch": 4}
    return dataclasses.replace(config, return_logprobs=True, seed=None, **small)


def _longest(model: Any) -> int:
    """Tokens of the trial's longer prompt."""
    return max(2, min(_LONGEST, context_length(model) - _NEW - 1))


def _fault(model: Any, config: ContinuousBatchingConfig) -> str | None:
    """How paged cache and `generate` differ, or why they could not be compared; None where they agree."""
    longest = _longest(model)
    ids = some_tokens(model, 2, longest).tolist()
    half = longest // 2
    prompts = [ids[0], ids[0][:half] + ids[1][: half // 2]]  # which begin the same way
    shown = _all_through(model)
    batching = model if shown is model else PagedModel(shown)
    devices = [model.device] if model.device.type == "cuda" else []
    with _quiet(), torch.random.fork_rng(devices):  # transformers seeds whenever it makes a cache
        try:
            wanted = [_generated(shown, prompt) for prompt in prompts]
            found = _paged(batching, prompts, config)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a family's forward comes upon with rows that it did not expect
            return words(error)
    exact = model.dtype == torch.float32
    return next(filter(None, map(_difference, found, wanted, [exact] * 2)), None)


def _generated(model: Any, prompt: list[int]) -> Tensor:
    """Logits ``(tokens, vocab)`` of what `generate` writes, behind each token the likeliest."""
    ids = torch.tensor([prompt], device=model.device)
    more = {"output_logits": True, "return_dict_in_generate": True, "attention_mask": torch.ones_like(ids)}
    out = model.generate(ids, generation_config=_greedy(), **more)
    return torch.cat(out.logits).float()


def _paged(batching: Any, prompts: list[list[int]], config: ContinuousBatchingConfig) -> list[Any]:
    """What comes through the paged cache, of all prompts together."""
    own = batching.config._attn_implementation
    try:
        manager = ContinuousBatchingManager(batching, _greedy(), config)  # never one that is kept for further batches
        manager.start()
        try:
            names = [manager.add_request(prompt, max_new_tokens=_NEW, eos_token_id=-1) for prompt in prompts]
            results: dict[Any, Any] = {}
            while len(results) < len(names):
                if (result := manager.get_result(timeout=1)) is not None:
                    results[result.request_id] = result
                elif not manager.is_running():
                    raise manager.background_thread_status.fatal_error or RuntimeError("it ended at once")
        finally:
            manager.stop(block=True)
    finally:
        if batching.config._attn_implementation != own:  # a manager that could not be made has changed it
            batching.set_attn_implementation(own)
    failed = next((one.error for one in results.values() if one.error), None)
    if failed is not None:
        raise RuntimeError(failed)
    return [results[name] for name in names]


def _joined_config(parts: Sequence[Any]) -> Any:
    """The target's config with the layers of all models, one behind the other."""
    configs = [part.config.get_text_config(decoder=True) for part in parts]
    shapes = {(find_num_key_value_heads(config), find_head_dim(config)) for config in configs}
    if len(shapes) > 1:
        raise Differs("a paged cache holds keys of one shape, and those of target and assistants differ")
    joined = copy.deepcopy(configs[0])
    kinds = [getattr(config, "layer_types", None) for config in configs]
    joined.num_hidden_layers = sum(len(decoder_layers(part)[1]) for part in parts)
    if kinds[0] is not None:
        joined.layer_types = [kind for one in kinds for kind in one or []]
    joined._attn_implementation = configs[0]._attn_implementation
    return joined


def _greedy() -> GenerationConfig:
    return GenerationConfig(max_new_tokens=_NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)


def _difference(found: Any, wanted: Tensor, exact: bool) -> str | None:
    """How what came through the paged cache differs from what `generate` wrote, beyond rounding."""
    most = _EXACT if exact else _ROUNDED
    for step, (token, logprob) in enumerate(zip(found.generated_tokens, found.logprobs, strict=True)):
        likely = wanted[step].log_softmax(-1)
        if not abs(float(likely[token]) - logprob) <= most:  # NaN is a difference as well
            return f"token {step + 1} of a trial has the log-probability {logprob:.3f}, not {float(likely[token]):.3f}"
        if token != int(likely.argmax()):
            if float(likely.max() - likely[token]) > most:
                return f"token {step + 1} of a trial is another than that of generate"
            return None  # a tie: from here on the two write different texts
    return None if len(found.generated_tokens) == len(wanted) else "a trial ended too early"


def _all_through(model: Any) -> Any:
    """The model with every logit of every model in its result: a margin or a silent assistant would hide a fault.

    The model itself keeps its settings, for whoever asks it meanwhile.
    """
    if not hasattr(model, "combinations"):
        return model
    shown = copy.copy(model)
    paired = model.combination.paired
    how = Combination(rule="offset", weight=1.0) if paired else Combination(rule="subtract", weight=1.0, filter=0.0)
    shown.combinations = model.settings_under(how)
    return shown


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing what ends up in our sentence."""
    talkers = [transformers.logging.get_logger("transformers"), batching_logger]
    before = [one.level for one in talkers]
    for one in talkers:
        one.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for one, level in zip(talkers, before, strict=True):
            one.setLevel(level)
