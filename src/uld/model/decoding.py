"""What `GenerationMixin` has to know of a model that is several: caches, masks, and how much it can read.

There is no decoding loop here. A cache of the kind that the user asks for is made for every model and joined
(`uld.model.caches`); before its first use a few tokens are read with it and without, so that a kind that a family does
not manage is never the reason for another text.
"""

import inspect
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import Cache, QuantizedCache, StaticCache
from transformers.generation.configuration_utils import GenerationMode

from uld.errors import ULDError, words
from uld.model.caches import CACHE, FusedCache, PairedCache
from uld.model.context import check_positions
from uld.model.fields import field
from uld.model.trial import continues

logger = logging.getLogger(__name__)

_PROBED, _STEP = 7, 5  # tokens that a new kind of cache is tried on, and how many of them come first


class JointGeneration(GenerationMixin):
    """Generation for `uld.model.unlearned.ULDForCausalLM`: one cache for all models, each with masks of its own."""

    target: Any
    one_pass: Any
    _continues: dict[tuple[bool, bool], bool]  # what was tried: whether tokens behind a cache are read as such

    @abstractmethod
    def _each(self, cache: Any) -> Iterator[tuple[Any, Any]]:
        """Each model with its own part of the cache."""

    @abstractmethod
    def all_logits(self, cache: Cache | None = None, /, **inputs: Any) -> list[Tensor]:
        """Logits of each model."""

    @property
    def takes_cache(self) -> bool:
        """Whether the target reads the caches that transformers makes; some families have none, or one of their own."""
        reads = CACHE in inspect.signature(self.target.forward).parameters
        return reads and self.target._supports_default_dynamic_cache()

    def new_cache(self) -> PairedCache | FusedCache:
        """An empty cache for all models.

        Raises:
            ULDError: transformers makes no cache for the target's family.
        """
        if not self.takes_cache:
            raise ULDError(f"transformers makes no cache for {type(self.target).__name__}: set use_cache=False")
        return self._joined(lambda model: DynamicCache(config=model.config))

    def refuse_to_begin_anew(self, cache: Cache | None, tokens: Tensor | None, position_ids: Tensor | None) -> None:
        """Refuse tokens behind a cache that the family would read as if nothing came before.

        A step of one token with its position is what `generate` asks for, and was tried before training.
        """
        if cache is None or tokens is None or (tokens.shape[1] == 1 and position_ids is not None):
            return
        if not cache.get_seq_length():
            return
        asked = (tokens.shape[1] > 1, position_ids is not None)
        if asked not in self._continues:
            several, positions = asked
            self._continues[asked] = continues(self.target, several=several, positions=positions)  # type: ignore[call-arg]
        if self._continues[asked]:
            return
        raise ULDError(
            f"{type(self.target).__name__} reads such tokens behind a cache as if nothing came before: give them one "
            "at a time with position_ids, or the whole text without a cache"
        )

    def _joined(self, made: Callable[[Any], Cache]) -> PairedCache | FusedCache:
        """One cache for all models, from what makes that of each."""
        (target, _), *assistants = self._each(None)
        cache = made(target)
        if self.one_pass is not None and FusedCache.can_hold(cache):
            return self.one_pass.cache(cache)
        return PairedCache(cache, *(made(model) for model, _ in assistants))

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, *rest: Any, **kwargs: Any
    ) -> Any:
        """Make the kind of cache that the user asked for, for all models; none where the target has none."""
        kind = generation_config.cache_implementation
        if getattr(generation_config, "assistant_early_exit", None) is not None:
            raise ULDError(
                "assistant_early_exit would cut off layers of the target alone: leave it out; other drafts come from "
                "prompt_lookup_num_tokens=3 or assistant_model=model.target"
            )

        def made(model: Any) -> Cache:
            own = dict(model_kwargs)
            try:
                model._prepare_cache_for_generation(generation_config, own, generation_mode, *rest, **kwargs)
            except (ImportError, ValueError, RuntimeError, TypeError) as error:
                raise _no_cache(kind, str(error)) from error
            if own[CACHE].offloading and self.device.type == "cpu":  # type: ignore[attr-defined]
                raise _no_cache(kind, "the model is on the CPU already")
            return own[CACHE]

        if model_kwargs.get(CACHE) is not None:
            super()._prepare_cache_for_generation(  # type: ignore[misc]
                generation_config, model_kwargs, generation_mode, *rest, **kwargs
            )
        elif generation_config.use_cache is not False:
            if self.takes_cache and self._manages(kind, made, model_kwargs.get("attention_mask") is not None):
                model_kwargs[CACHE] = self._joined(made)
            else:
                generation_config.use_cache = False
        cache = model_kwargs.get(CACHE)
        if generation_mode == GenerationMode.ASSISTED_GENERATION and isinstance(cache, StaticCache | QuantizedCache):
            raise ULDError(
                "assisted decoding and prompt lookup take tokens back, which only a growing cache can do: "
                f"leave out cache_implementation={kind}"
            )

    def _manages(self, kind: str | None, made: Callable[[Any], Cache], padded: bool) -> bool:
        """Whether the same comes of a kind of cache as of none; found out once.

        Raises:
            ULDError: not so, and the user named the kind.
        """
        known: dict[Any, bool] = self.__dict__.setdefault("_managed", {})
        key = kind, padded, self.one_pass is None
        if key not in known:
            trial = self._joined(made)
            known[key] = isinstance(trial, QuantizedCache) or self._finds_the_same(trial, padded)  # those round
        if not known[key]:
            name = type(self.target).__name__
            if kind is not None:
                raise _no_cache(kind, f"{name} would write something else with it than without")
            logger.info("%s finds something else with a cache than without: text is generated without one", name)
        return known[key]

    @torch.no_grad()
    def _finds_the_same(self, cache: PairedCache | FusedCache, padded: bool) -> bool:
        """Read a few tokens at once without a cache, and in steps with it."""
        vocab, device = field(self.target.config, "vocab_size"), self.target.device
        ids = (torch.arange(2 * _PROBED, device=device).view(2, -1) * 5 + 3) % vocab
        mask = torch.ones_like(ids)
        mask[1, :2] = 0
        if not padded:
            ids, mask = ids[:1], mask[:1]
        places = (mask.cumsum(-1) - 1).clamp_min(0)

        def read(start: int, end: int, past: Any) -> list[Tensor]:
            inputs = {"input_ids": ids[:, start:end], "position_ids": places[:, start:end]}
            return self.all_logits(
                past, attention_mask=mask[:, :end] if padded else None, use_cache=past is not None, **inputs
            )

        try:
            wanted = read(0, _PROBED, None)
            steps = [read(0, _STEP, cache), *(read(at, at + 1, cache) for at in range(_STEP, _PROBED))]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a family says of a cache that it does not know
            logger.info("%s and its cache: %s", type(self.target).__name__, error)
            return False
        for one, *found in zip(wanted, *steps, strict=True):
            later = one[:, _STEP - 1 :].float()
            off = (torch.cat([step[:, -1:] for step in found], 1).float() - later).norm(dim=-1)
            if not bool((off <= torch.finfo(one.dtype).eps ** 0.5 * later.norm(dim=-1)).all()):
                return False
        return True

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
        """The mask as it is: `generate` would make one for a static cache, and our config knows no windows."""
        return attention_mask

    def _valid_auto_compile_criteria(self, model_kwargs: dict[str, Any], generation_config: Any) -> bool:
        """A step is compiled where ``compile_config`` is given; a static cache alone is not taken to ask for it."""
        asked = generation_config.compile_config is not None
        return asked and super()._valid_auto_compile_criteria(model_kwargs, generation_config)  # type: ignore[misc]

    def _validate_generated_length(
        self, generation_config: Any, input_ids_length: int, has_default_max_length: bool
    ) -> None:
        """Refuse a text that the models have no positions for."""
        new = generation_config.max_length - input_ids_length
        models = (model for model, _ in self._each(None))
        what = f"a prompt of {input_ids_length} tokens with {new} new ones"
        check_positions(models, generation_config.max_length - 1, what)
        super()._validate_generated_length(  # type: ignore[misc]
            generation_config, input_ids_length, has_default_max_length
        )

    def _prepare_generation_config(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Refuse transformers' way from here to `generate_batch`: it takes padding for text, and leaves beams out."""
        if kwargs.get("cache_implementation") == "paged":
            raise ULDError("a paged cache is for prompts without padding: give them to model.generate_batch, as lists")
        return super()._prepare_generation_config(*args, **kwargs)  # type: ignore[misc]

    def init_continuous_batching(
        self,
        generation_config: Any = None,
        continuous_batching_config: Any = None,
        workload_hints: Any = None,
    ) -> Any:
        """Batches that requests join and leave, of transformers, over a paged cache with pages for every model.

        Raises:
            ULDError: through that cache comes something else than `generate` writes (`uld.model.paged`).
        """
        paged = self.paged
        paged.checked(continuous_batching_config)
        return paged.init_continuous_batching(generation_config, continuous_batching_config, workload_hints)

    @property
    def paged(self) -> Any:
        """The model as continuous batching takes it (`uld.model.paged.PagedModel`).

        Raises:
            ULDError: this version of transformers batches in another way.
        """
        if self.__dict__.get("_paged") is None:
            try:
                from uld.model.paged import PagedModel
            except ImportError as error:  # what it is built on has come and changed with versions
                raise ULDError(f"continuous batching needs transformers 5.23 or newer ({words(error)})") from error
            self.__dict__["_paged"] = PagedModel(self)
        return self.__dict__["_paged"]

    def destroy_cached_continuous_batching_manager(self) -> None:
        """Let go of a manager that was kept for further batches."""
        self.paged.destroy_cached_continuous_batching_manager()


def _no_cache(kind: str | None, why: str) -> ULDError:
    """A cache that cannot be had."""
    why = (why.strip() or "it fails").splitlines()[0].rstrip(".")
    return ULDError(f"no cache of the kind {kind or 'dynamic'}: {why}; leave out cache_implementation={kind}")
