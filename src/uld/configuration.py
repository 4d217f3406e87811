"""`ULDConfig`, the Hugging Face config of an unlearned model.

A module of its own because it is light: `import uld` has it made as soon as transformers knows any config at all, so
that the ``Auto`` classes recognise a run folder; the model itself is imported when the first such config is made.
"""

import importlib
from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig


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
        importlib.import_module("uld.modeling")  # registers the model: whoever holds such a config may ask for it
        self.target = target
        self.target_config = target_config or {}
        self.num_layers = num_layers
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            kwargs.setdefault(name, self.target_config.get(name))
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"):
            if name in self.target_config:
                kwargs.setdefault(name, self.target_config[name])
        super().__init__(**kwargs)


AutoConfig.register(ULDConfig.model_type, ULDConfig)
