"""`ULDForCausalLM`: target and assistant as one ordinary Hugging Face causal language model.

``forward`` returns the unlearned logits, so scoring, ``generate``, ``pipeline``, lm-eval and serving need to know
nothing of unlearning. There is no decoding loop here: `GenerationMixin` decodes, over a cache that answers for both
models. On disk the model is a run folder (see `uld.artifact`): the target's weights are never copied.

Source: Ji et al. 2024, arXiv 2406.08607, Eq. 2.
"""

from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from uld.artifact import ADAPTER, ArtifactError, Manifest, fingerprint, is_run
from uld.assistant import build_assistant, load_target
from uld.errors import ULDError
from uld.logits import Combination, combine

_HUB_ONLY = ("_from_auto", "adapter_kwargs", "subfolder", "_commit_hash", "use_safetensors", "weights_only")


class ULDConfig(PreTrainedConfig):
    """Names the target and holds its config; the rule, α and τ live in ``uld.json`` and on the model.

    Attributes:
        target: Folder or Hub id of the target.
        target_config: The target's own config as a dictionary.
        num_layers: K.
    """

    model_type = "uld"

    def __init__(
        self, target: str = "", target_config: dict[str, Any] | None = None, num_layers: int = 1, **kwargs: Any
    ) -> None:
        """Make the config; everything that generation asks of a config is answered from the target's."""
        self.target = target
        self.target_config = target_config or {}
        self.num_layers = num_layers
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            kwargs.setdefault(name, self.target_config.get(name))
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"):
            if name in self.target_config:
                kwargs.setdefault(name, self.target_config[name])
        super().__init__(**kwargs)


class PairedCache(Cache):
    """Keys and values of both models: the target's layers, then the assistant's.

    Being one list of layers, it is reordered, cropped, repeated and reset as one; its length and mask sizes are those
    of the target's first layer. ``target`` and ``assistant`` are views on the same layers for the two forwards.
    """

    def __init__(self, target: Cache, assistant: Cache) -> None:
        """Join two caches that already have all their layers."""
        super().__init__(layers=[*target.layers, *assistant.layers])
        self.target = target
        self.assistant = assistant


class ULDForCausalLM(PreTrainedModel, GenerationMixin):
    """The unlearned model: ``l`` of the target combined with ``la`` of the assistant at every position.

    Attributes:
        target: The target, frozen.
        assistant: A `PeftModel` over the target's first K layers.
        combination: Rule, α and τ in force; assign `combination.override(weight=…)` to change them.
        manifest: What the run folder says about the model.
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
        assistant: PeftModel,
        combination: Combination,
        manifest: Manifest | None = None,
    ) -> None:
        """Join a target and its assistant (whose weights are the target's own); both are put in evaluation mode."""
        super().__init__(config)
        self.target = target
        self.assistant = assistant
        self.combination = combination
        self.manifest = manifest
        self.requires_grad_(False)
        self.eval()
        if target.generation_config is not None:
            self.generation_config = target.generation_config

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
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Unlearned next-token logits.

        Args:
            input_ids: ``(batch, tokens)``.
            attention_mask: ``(batch, past + tokens)``, 0 where padded (left or right).
            position_ids: ``(batch, tokens)``.
            past_key_values: A `PairedCache`; made where it is None and ``use_cache`` is set.
            inputs_embeds: ``(batch, tokens, hidden)`` instead of ``input_ids``.
            labels: ``(batch, tokens)``; gives ``loss``, the mean NLL in nats of the unlearned model.
            use_cache: Whether to return a cache.
            logits_to_keep: As in transformers: the last n positions only, or an index.
            kwargs: Handed to both models.

        Returns:
            ``logits`` ``(batch, tokens, vocab)`` in the target's dtype, ``past_key_values``, ``loss``.

        Raises:
            ULDError: the given cache was not made for two models.
        """
        use_cache = use_cache if use_cache is not None else (past_key_values is not None or not self.training)
        if use_cache and past_key_values is None:
            past_key_values = self.new_cache()
        if past_key_values is not None and not isinstance(past_key_values, PairedCache):
            raise ULDError(
                f"past_key_values is a {type(past_key_values).__name__}, which holds the keys of one model: "
                "pass model.new_cache() instead"
            )
        shared: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
            **kwargs,
        }
        target, assistant = self.both_logits(past_key_values, **shared)
        logits = combine(target, assistant.to(target.device), self.combination)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)  # type: ignore[arg-type]

    def both_logits(self, cache: PairedCache | None = None, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Logits of the target and of the assistant on the same input, before they are combined.

        Args:
            cache: Holds the past of both, or None.
            inputs: What both models' ``forward`` takes.

        Returns:
            Two tensors ``(batch, tokens, vocab)``.
        """
        target = self.target(past_key_values=cache.target if cache else None, **inputs).logits
        assistant = self.assistant(past_key_values=cache.assistant if cache else None, **inputs).logits
        return target, assistant

    def new_cache(self) -> PairedCache:
        """An empty cache for both models."""
        sliced: Any = self.assistant.get_base_model()
        return PairedCache(DynamicCache(config=self.target.config), DynamicCache(config=sliced.config))

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *rest: Any, **kwargs: Any
    ) -> None:
        """Make one cache a model with the kind of cache that the user asked for, and pair them."""
        if model_kwargs.get("past_key_values") is not None or generation_config.use_cache is False:
            super()._prepare_cache_for_generation(generation_config, model_kwargs, *rest, **kwargs)  # type: ignore
            return
        caches = []
        for part in (self.target, self.assistant.get_base_model()):
            own = dict(model_kwargs)
            part._prepare_cache_for_generation(generation_config, own, *rest, **kwargs)  # type: ignore[operator]
            caches.append(own["past_key_values"])
        model_kwargs["past_key_values"] = PairedCache(*caches)

    def get_input_embeddings(self) -> Any:
        """The target's embedding, which the assistant shares."""
        return self.target.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The target's head, which the assistant shares."""
        return self.target.get_output_embeddings()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, *args: Any, config: Any = None, **kwargs: Any
    ) -> "ULDForCausalLM":
        """Load a run folder: its target, the assistant that shares the target's weights, and the adapter.

        Args:
            pretrained_model_name_or_path: Run folder written by training.
            args: Not used.
            config: Not used; the run folder says it all.
            kwargs: ``target`` names another place of the same target; ``rule``, ``weight``, ``filter``,
                ``min_tokens``, ``outside`` override the artefact; the rest (``dtype``, ``device_map``,
                ``quantization_config``, ``attn_implementation``, …) goes to the target's ``from_pretrained``.

        Returns:
            The unlearned model, in evaluation mode.

        Raises:
            ULDError: no such run, another target, or a value out of range.
        """
        folder = Path(pretrained_model_name_or_path)
        manifest = Manifest.read(folder)
        changes = {name: kwargs.pop(name, None) for name in Combination.__dataclass_fields__}
        combination = Combination(**manifest.combination.model_dump()).override(**changes)
        place = kwargs.pop("target", None) or manifest.target
        for name in _HUB_ONLY:
            kwargs.pop(name, None)
        if "torch_dtype" in kwargs:
            kwargs.setdefault("dtype", kwargs.pop("torch_dtype"))
        kwargs.setdefault("revision", manifest.target_revision)
        target = load_target(place, **kwargs)
        assistant = build_assistant(target, manifest.num_layers)
        verify_target(assistant, manifest, str(place))
        try:
            peft = PeftModel.from_pretrained(assistant, str(folder / ADAPTER))
        except (OSError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise ArtifactError(f"the adapter in {folder / ADAPTER} cannot be loaded: {first}") from error
        return cls.join(target, peft, combination, manifest, name=str(folder))

    @classmethod
    def join(
        cls,
        target: PreTrainedModel,
        assistant: PeftModel,
        combination: Combination,
        manifest: Manifest | None = None,
        name: str = "",
    ) -> "ULDForCausalLM":
        """Make the model from its loaded parts."""
        sliced: Any = assistant.get_base_model()
        config = ULDConfig(
            target=str(target.config.name_or_path),
            target_config=target.config.get_text_config(decoder=True).to_dict(),
            num_layers=sliced.config.num_hidden_layers,
        )
        config.name_or_path = name
        return cls(config, target, assistant, combination, manifest)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Write the run folder: adapter, ``uld.json``, ``config.json``; the target's weights stay where they are.

        Args:
            save_directory: Folder; made if missing.
            args: Not used.
            kwargs: Not used; what other models take (``max_shard_size``, …) has no meaning for an adapter.

        Raises:
            ULDError: the model was put together by hand and has no manifest.
        """
        if self.manifest is None:
            raise ULDError("this model has no manifest (it was not trained or loaded by uld), so it cannot be saved")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.assistant.save_pretrained(str(folder / ADAPTER), save_embedding_layers=False)
        (folder / ADAPTER / "README.md").unlink(missing_ok=True)  # PEFT's model-card form, all of it to be filled in
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(folder)
        if self.generation_config is not None:
            self.generation_config.save_pretrained(folder)
        settings = {name: getattr(self.combination, name) for name in Combination.__dataclass_fields__}
        updated = self.manifest.model_dump() | {"combination": settings}
        Manifest.model_validate(updated).write(folder)


def verify_target(assistant: PreTrainedModel, manifest: Manifest, place: str) -> None:
    """Refuse a target whose shared tensors are not those that the adapter was trained on.

    Args:
        assistant: From `build_assistant` or `load_sliced`, before LoRA is added.
        manifest: The run's.
        place: Where the target came from, for the message.

    Raises:
        ArtifactError: names both fingerprints.
    """
    if getattr(assistant, "is_quantized", False):
        return  # quantised weights have bytes of their own: the name of the target is all that can be compared
    found = fingerprint(assistant.named_parameters())
    if found != manifest.target_fingerprint:
        raise ArtifactError(
            f"the adapter belongs to another target: it was trained on {manifest.target} with fingerprint "
            f"{manifest.target_fingerprint}, but {place} has {found}"
        )


def load(
    path: str | Path, *, tokenizer: str | Path | None = None, **kwargs: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a run (the unlearned model), or any ordinary causal LM, with its tokenizer.

    Args:
        path: Run folder, model folder or Hub id.
        tokenizer: Another place to take the tokenizer from.
        kwargs: See `ULDForCausalLM.from_pretrained`.

    Returns:
        Model in evaluation mode and tokenizer.

    Raises:
        ULDError: neither a run nor a model, or a model without a tokenizer.
    """
    if is_run(path):
        model: PreTrainedModel = ULDForCausalLM.from_pretrained(path, **kwargs)
    else:
        if (Path(path) / ADAPTER).exists() or (Path(path) / "checkpoints").exists():
            raise ArtifactError(f"{path} is an unfinished run: finish it with uld train --resume")
        given = sorted(set(kwargs) & set(Combination.__dataclass_fields__))
        if any(kwargs.pop(name) is not None for name in given):
            raise ULDError(f"{path} is an ordinary model, not an unlearned one: --{given[0]} has no meaning for it")
        model = load_target(path, **kwargs)
    return model, load_tokenizer(tokenizer or path)


def load_tokenizer(path: str | Path, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer; where it has no padding token, end-of-sequence stands in.

    Raises:
        ULDError: there is none.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(path), **kwargs)
    except Exception as error:  # tokenizers raise everything from OSError to KeyError for a folder without one
        raise ULDError(
            f"{path} has no tokenizer that can be loaded: save one beside the model, or name one with --tokenizer"
        ) from error
    if tokenizer.vocab_size == 0 or len(tokenizer) == 0:
        raise ULDError(f"{path} has no tokenizer: save one beside the model, or name one with --tokenizer")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


AutoConfig.register("uld", ULDConfig)
AutoModelForCausalLM.register(ULDConfig, ULDForCausalLM)

__all__ = ["PairedCache", "ULDConfig", "ULDForCausalLM", "load", "load_tokenizer", "verify_target"]
