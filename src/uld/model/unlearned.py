"""`ULDForCausalLM`: target and assistants as one ordinary Hugging Face causal language model.

``forward`` returns the unlearned logits, so scoring, ``generate``, ``pipeline``, lm-eval and serving need to know
nothing of unlearning. There is no decoding loop here: `GenerationMixin` decodes, over a cache that answers for all
models (`uld.model.decoding`). On disk the model is a run folder (see `uld.runs.manifest`): the target's weights are
never copied.

Source: Ji et al. 2024, arXiv 2406.08607, Eq. 2.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from uld.errors import ULDError
from uld.model.assistant import base_model, gated_logits, head_logits, text_decoder, through_gate
from uld.model.caches import CACHE, FusedCache, PairedCache, as_given
from uld.model.combine import Combination
from uld.model.combined import Combined
from uld.model.config import ULDConfig
from uld.model.decoding import JointGeneration
from uld.model.fields import field
from uld.model.gate import gate_of
from uld.model.lora import on_bytes
from uld.model.one_pass import FusedModel, NotFusable
from uld.model.refused import Refused, refuse_publishing
from uld.model.stored import assistants_of, combination_of, target_of
from uld.model.weights import save_adapter
from uld.runs.card import write_card
from uld.runs.digests import weights_digests
from uld.runs.files import new_folder, writing
from uld.runs.hub import run_folder
from uld.runs.manifest import ADAPTER, MANIFEST, PAIR, Manifest

logger = logging.getLogger(__name__)

_HUB_ONLY = ("_from_auto", "adapter_kwargs", "subfolder", "_commit_hash", "use_safetensors", "weights_only")
_OF_LOSS = ("num_items_in_batch", "ignore_index", "shift_labels")


class ULDForCausalLM(Refused, Combined, JointGeneration, PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The unlearned model: ``l`` of the target combined with ``la`` of each assistant at every position.

    Target and assistants run as one pass (`uld.model.one_pass`) where that is possible, and one after the other where
    not.

    Attributes:
        target: The target, frozen.
        assistants: `PeftModel`s over the target's first layers; usually one. An Offset run has two small models: the
            trained one, and the same before training. A pair has that of the retain side and that of the forget side.
        combinations: Rule, α and τ of each assistant.
        manifests: What each assistant's run folder says.
        fused: Whether one pass is wanted; set it to False for separate passes.
    """

    config_class = ULDConfig
    base_model_prefix = "target"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: ULDConfig,
        target: PreTrainedModel,
        assistants: PreTrainedModel | PeftModel | Sequence[PreTrainedModel | PeftModel],
        combinations: Combination | Sequence[Combination],
        manifests: Sequence[Manifest] = (),
        *,
        fused: bool = True,
    ) -> None:
        """Join a target and its assistants (whose weights are the target's own), in evaluation mode."""
        super().__init__(config)
        self.config._attn_implementation = target.config._attn_implementation  # `generate` asks ours
        self.target = target
        self.assistants = nn.ModuleList([assistants] if isinstance(assistants, nn.Module) else assistants)
        for one in self.assistants:
            if isinstance(one, PeftModel) and (name := on_bytes(one)) is not None:
                raise ULDError(
                    f"the run has LoRA on {name} as a parameter, and the target's is quantised: load it without "
                    "quantization_config"
                )
        self.combinations = combinations.parts if isinstance(combinations, Combination) else combinations
        self._warn_of_wide_margins()
        self.manifests = list(manifests)
        self.fused = fused
        self._one_pass: FusedModel | NotFusable | None = None
        self._continues = {}
        self.requires_grad_(False)
        self.eval()
        if target.generation_config is not None:
            self.generation_config = target.generation_config

    @property
    def assistant(self) -> PeftModel:
        """The first assistant, which is the only one unless several runs were loaded together."""
        return self.assistants[0]  # type: ignore[return-value]

    @property
    def manifest(self) -> Manifest | None:
        """The first assistant's manifest; None for a model that was put together by hand."""
        return self.manifests[0] if self.manifests else None

    @property
    def one_pass(self) -> FusedModel | None:
        """The model that runs all rows as one pass; None where ``fused`` is off or it cannot be had."""
        return self._fused_model() if self.fused else None

    def _fused_model(self) -> FusedModel | None:
        if self._one_pass is None:
            try:
                self._one_pass = FusedModel(self.target, list(self.assistants))  # type: ignore[arg-type]
            except NotFusable as reason:
                logger.info("target and assistant run in separate passes: %s", reason)
                self._one_pass = reason
        return self._one_pass if isinstance(self._one_pass, FusedModel) else None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Unlearned next-token logits.

        Args:
            input_ids: ``(batch, tokens)``.
            attention_mask: ``(batch, past + tokens)``, 0 where padded (left or right).
            position_ids: ``(batch, tokens)``.
            past_key_values: From `new_cache`; made where it is None and ``use_cache`` is set.
            inputs_embeds: ``(batch, tokens, hidden)`` instead of ``input_ids``.
            labels: ``(batch, tokens)``; gives ``loss``, the mean NLL in nats of the unlearned model.
            use_cache: Whether to return a cache.
            logits_to_keep: As in transformers: the last n positions only, or an index.
            cache: The name that ``past_key_values`` has from transformers 5.24 on.
            kwargs: Handed to all models, what concerns the loss to it (``num_items_in_batch``, …); of ``return_dict`` a
                tuple comes where it is False.

        Returns:
            ``logits`` ``(batch, tokens, vocab)`` in the target's dtype, ``past_key_values`` (or ``cache``), ``loss``.

        Raises:
            ULDError: no tokens, a cache that was not made for this model, or hidden states or attentions are asked for.
        """
        return_dict = kwargs.pop("return_dict", None)
        of_loss = {name: kwargs.pop(name) for name in _OF_LOSS if name in kwargs}
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.pop(name, None):
                raise ULDError(
                    f"{name}: an unlearned model has logits only; ask model.target or model.assistant for it"
                )
        if past_key_values is not None and cache is not None:
            raise ULDError("past_key_values and cache are two names of one argument: give one")
        past = cache if past_key_values is None else past_key_values
        use_cache = use_cache if use_cache is not None else (past is not None or not self.training)
        if use_cache and past is None:
            use_cache = self.takes_cache
            past = self.new_cache() if use_cache else None
        if (input_ids is None) == (inputs_embeds is None):
            raise ULDError("give tokens as input_ids or as inputs_embeds: one of the two")
        tokens = input_ids if input_ids is not None else inputs_embeds
        self.refuse_to_begin_anew(past, tokens, position_ids)
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
            **kwargs,
        }
        logits = self.combined(self.all_logits(past, **inputs))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **of_loss)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: past})  # type: ignore[arg-type]
        return output.to_tuple() if return_dict is False else output  # type: ignore[return-value]

    def all_logits(self, cache: Cache | None = None, /, **inputs: Any) -> list[Tensor]:
        """Logits of the target and of each assistant on the same input, before they are combined.

        Args:
            cache: From `new_cache`, or None.
            inputs: What the target's ``forward`` takes; as ``pages``, a `uld.model.paged.PagedRows` in a cache's place.

        Returns:
            The target's, then each assistant's: ``(batch, tokens, vocab)``.

        Raises:
            ULDError: the given cache was not made for this model.
        """
        if any(gate_of(assistant) is not None for assistant in self.assistants):
            keep = inputs.pop("logits_to_keep", 0)
            kept = slice(-keep, None) if isinstance(keep, int) else keep  # as transformers' models do it
            return self.heads([hidden[:, kept] for hidden in self.all_hidden(cache, **inputs)])
        if (one_pass := self._pass_for(cache)) is not None:
            return one_pass.logits(cache, **inputs)  # type: ignore[arg-type]
        return [model(**own).logits for model, own in self._apart(cache, inputs)]

    def all_hidden(self, cache: Cache | None = None, /, **inputs: Any) -> list[Tensor]:
        """Like `all_logits`, but final hidden states ``(batch, tokens, hidden)``, before the head that all share."""
        if (one_pass := self._pass_for(cache)) is not None:
            return one_pass.hidden(cache, **inputs)  # type: ignore[arg-type]
        return [text_decoder(model)(**own).last_hidden_state for model, own in self._apart(cache, inputs)]

    def heads(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Logits of each model from its final hidden states, through the gates of those that have one.

        Args:
            hidden: ``(..., width)`` of each model, as `all_hidden` returns them.

        Returns:
            ``(..., vocab)`` of each.
        """
        models = [self.target, *self.assistants]
        if self.one_pass is None:
            return [gated_logits(model, states) for model, states in zip(models, hidden, strict=True)]
        together = head_logits(self.target, torch.cat(list(hidden))).chunk(len(models))  # the head is read once
        return [through_gate(*one) for one in zip(models, together, hidden, strict=True)]

    def _pass_for(self, cache: Cache | None) -> FusedModel | None:
        """The one pass, unless the cache belongs to separate ones."""
        if cache is None:
            return self.one_pass
        if isinstance(cache, PairedCache) and len(cache.split()) == 1 + len(self.assistants):
            return None
        if isinstance(cache, FusedCache) and (one_pass := self._fused_model()) and one_pass.groups == cache.groups:
            return one_pass
        raise ULDError(
            f"{CACHE} is a {type(cache).__name__} that was not made for this model: pass model.new_cache() instead"
        )

    def _each(self, cache: PairedCache | Cache | None) -> Iterator[tuple[Any, Cache | None]]:
        """Each model with its own part of the cache."""
        models: list[Any] = [self.target, *map(base_model, self.assistants)]
        return zip(models, cache.split() if isinstance(cache, PairedCache) else [None] * len(models), strict=True)

    def _apart(self, cache: Cache | None, inputs: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Each model with what it reads in a pass of its own."""
        pages = inputs.pop("pages", None)
        parts = [None] * (1 + len(self.assistants)) if pages is None else pages.split()
        for (model, past), own in zip(self._each(cache), parts, strict=True):
            yield model, inputs | as_given(past, own)

    def get_input_embeddings(self) -> Any:
        """The target's embedding, which the assistant shares."""
        return self.target.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The target's head, which the assistant shares."""
        return self.target.get_output_embeddings()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path | Sequence[str | Path], *args: Any, **kwargs: Any
    ) -> "ULDForCausalLM":
        """Load a run folder: its target, the assistant that shares the target's weights, and the adapter.

        Args:
            pretrained_model_name_or_path: Run folder written by training, or Hub id of one; or several, of the same
                target, whose documents are then all unlearned.
            args: Not used.
            kwargs: ``target`` names another place of the same target; ``rule``, ``weight``, ``margin``, ``floor``,
                ``filter``, ``min_tokens``, ``outside``, ``rank_tokens`` override the artefact; ``fused=False`` runs
                target and assistant one after the other; the rest (``dtype``, ``device_map``, ``quantization_config``,
                ``attn_implementation``, …) goes to the target's ``from_pretrained``. ``config`` is not used: the run
                folder says it all.

        Returns:
            The unlearned model, in evaluation mode.

        Raises:
            ULDError: no such run, another target, or a value out of range.
        """
        places = pretrained_model_name_or_path
        places = [places] if isinstance(places, str | Path) else list(places)
        folders = [run_folder(one, **kwargs) or Path(one) for one in places]
        if not folders:
            raise ULDError("name at least one run to load")
        manifests = [Manifest.read(folder) for folder in folders]
        changes = {name: kwargs.pop(name, None) for name in Combination.__dataclass_fields__}
        settings = [combination_of(one, folder, changes) for one, folder in zip(manifests, folders, strict=True)]
        config = kwargs.pop("config", None)
        moved = kwargs.pop("target", None) or getattr(config, "target", None)  # the Auto classes put it into the config
        place = str(moved or manifests[0].target)
        fused = kwargs.pop("fused", True)
        for name in _HUB_ONLY:
            kwargs.pop(name, None)
        if "torch_dtype" in kwargs:
            kwargs.setdefault("dtype", kwargs.pop("torch_dtype"))
        if kwargs.get("revision") is None and place == manifests[0].target:
            kwargs["revision"] = manifests[0].target_revision
        target = target_of(folders[0], place, **kwargs)
        trust = {"trust_remote_code": bool(kwargs.get("trust_remote_code"))}
        assistants: list[Any] = []
        for folder, manifest in zip(folders, manifests, strict=True):
            assistants += assistants_of(manifest, folder, target, place, **trust)
            fused = fused and manifest.small is None
        settings = [part for one in settings for part in one.parts]
        loaded = {"target": place, "target_revision": kwargs.get("revision")}
        manifests = [manifest.model_copy(update=loaded) for manifest in manifests]
        return cls.join(target, assistants, settings, manifests, name=str(folders[0]), fused=fused)

    @classmethod
    def join(
        cls,
        target: PreTrainedModel,
        assistants: PreTrainedModel | PeftModel | Sequence[PreTrainedModel | PeftModel],
        combinations: Combination | Sequence[Combination],
        manifests: Sequence[Manifest] = (),
        name: str = "",
        fused: bool = True,
    ) -> "ULDForCausalLM":
        """Make the model from its loaded parts."""
        sliced = base_model(assistants if isinstance(assistants, nn.Module) else assistants[0])
        config = ULDConfig.of(target.config, field(sliced.config, "num_hidden_layers"))
        config.name_or_path = name
        return cls(config, target, assistants, combinations, manifests, fused=fused)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Write the run folder: adapter, ``uld.json``, ``config.json``; the target's weights stay where they are.

        Args:
            save_directory: Folder; made if missing.
            args: Not used.
            kwargs: Not used; what other models take (``max_shard_size``, …) has no meaning for an adapter. With
                ``push_to_hub`` it is refused, and without ``is_main_process`` nothing is written.

        Raises:
            ULDError: the model was put together by hand and has no manifest, or holds several assistants, or is to be
                published.
        """
        if kwargs.get("push_to_hub"):
            refuse_publishing()
        if not kwargs.get("is_main_process", True):
            return
        if self.manifest is None:
            raise ULDError("this model has no manifest (it was not trained or loaded by uld), so it cannot be saved")
        if len(self.manifests) > 1:
            raise ULDError(f"this model joins {len(self.manifests)} runs: each of them is saved already, as a run")
        folder = Path(save_directory)
        with writing(folder):
            with new_folder(folder / ADAPTER, replace=True) as adapter:
                for name, part in zip(PAIR if self.manifest.trains == "pair" else ("",), self.assistants, strict=False):
                    save_adapter(part, adapter / name, self.manifest.small or self.manifest.target)
                (folder / MANIFEST).unlink(missing_ok=True)  # no prefix of what follows is a run with another's adapter
            self.config.architectures = [type(self).__name__]
            self.config.save_pretrained(folder)
            if self.generation_config is not None:
                self.generation_config.save_pretrained(folder)
        changed = {"combination": self.combination.to_dict(), "weights": weights_digests(folder)}
        updated = self.manifest.model_dump() | changed
        manifest = Manifest.model_validate(updated)
        write_card(folder, manifest)
        manifest.write(folder)


AutoModelForCausalLM.register(ULDConfig, ULDForCausalLM)
