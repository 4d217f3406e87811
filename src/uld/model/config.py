"""`ULDConfig`, the Hugging Face config of an unlearned model.

A module of its own because it is light: `import uld` has it made as soon as transformers knows any config at all, so
that the ``Auto`` classes recognise a run folder; the model itself is imported when the first such config is made.
"""

import importlib
from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig

from uld.model.fields import field

_ANSWERED = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size", "max_position_embeddings"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
)
"""What generation, lm-eval and others ask of a config by the common names, whatever the target's family calls it."""


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
        importlib.import_module(
            "uld.model.unlearned"
        )  # registers the model: whoever holds such a config may ask for it
        self.target = target
        self.target_config = target_config or {}
        self.num_layers = num_layers
        for name in _ANSWERED:
            value = field(self.target_config, name)
            if value is not None or name.endswith("token_id"):  # a token that there is not is None in every config
                kwargs.setdefault(name, value)
        super().__init__(**kwargs)

    @classmethod
    def of(cls, config: PreTrainedConfig, num_layers: int) -> "ULDConfig":
        """The config of an unlearned model.

        Args:
            config: The target's, of a family that transformers may not know.
            num_layers: K.
        """
        known = {name: value for name in _ANSWERED if (value := field(config, name)) is not None}
        text = config.get_text_config(decoder=True).to_dict()
        return cls(target=str(config.name_or_path), target_config=text, num_layers=num_layers, **known)


AutoConfig.register(ULDConfig.model_type, ULDConfig)
