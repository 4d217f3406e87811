"""The run that a method learns from: which settings it shares with the run that it teaches, and which are its own."""

from pathlib import Path
from typing import Any

from uld.methods.registry import Method, own_options
from uld.runs.folder import TEACHER
from uld.runs.manifest import CHECKPOINTS
from uld.training.config import TrainConfig

_TAUGHT_WITH = (  # settings that a run has from the run that it teaches
    *("target", "revision", "trust_remote_code", "tokenizer", "template", "date", "max_length"),
    *("forget", "retain", "draw_retain", "chunks", "augment", "paraphrases", "wrong_answers"),
    *("split", "data", "augmented", "retain_rows", "small", "num_layers", "lora_alpha", "lora_dropout"),
    *("batch_size", "micro_batch_size", "batch_tokens", "dtype", "gradient_checkpointing", "seed", "save_steps"),
)


def teaching_settings(config: TrainConfig, method: Method, options: dict[str, Any]) -> TrainConfig | None:
    """Settings of the run that a method learns from, if it learns from one.

    Raises:
        ULDError: an option out of range.
    """
    if method.teacher is None or method.teach is None:
        return None
    shared = {name: getattr(config, name) for name in _TAUGHT_WITH}
    own = method.teach(**own_options(method.teach, options))
    return TrainConfig(method=method.teacher, output=str(Path(config.output) / CHECKPOINTS / TEACHER), **shared | own)
