"""What a config says of a model, under whatever name its family has for it.

Everything here that wants a model's layers, width, vocabulary or context asks for it by the common name, of a config or
of the dictionary that a config was written as.
"""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

_OTHER_NAMES = {
    "max_position_embeddings": ("n_positions", "max_seq_len", "n_ctx", "context_length"),
    "final_logit_softcapping": ("logits_soft_cap", "output_logit_soft_cap"),
    "logit_scale": ("lm_head_multiplier",),
}
"""Names that some families have without saying in their ``attribute_map`` what they mean."""


def field(config: PreTrainedConfig | Mapping[str, Any], name: str, default: Any = None) -> Any:
    """A field of the text decoder's config.

    Args:
        config: A config, of which the part about text counts where it is composite; or a dictionary of one.
        name: The common name, such as ``num_hidden_layers``; a family may have another in its ``attribute_map``.
        default: What to answer where there is none, or it is None.
    """
    if isinstance(config, PreTrainedConfig):
        text = config.get_text_config(decoder=True)
        values = (getattr(text, one, None) for one in (name, *_OTHER_NAMES.get(name, ())))
    else:
        names = _attribute_map(config)
        values = (config.get(names.get(one, one)) for one in (name, *_OTHER_NAMES.get(name, ())))
    return next((value for value in values if value is not None), default)


def number(config: PreTrainedConfig | Mapping[str, Any], name: str) -> float | None:
    """A field that is a number, or None; a family may hold something else under the same name."""
    value = field(config, name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _attribute_map(config: Mapping[str, Any]) -> dict[str, str]:
    """The common names and the family's own, where transformers knows the family."""
    kind: Any = config.get("model_type")
    return CONFIG_MAPPING[kind].attribute_map if kind in CONFIG_MAPPING else {}
