"""Make a language model unlearn chosen documents without touching its weights (Unlearning from Logit Difference).

``import uld`` is light: what needs torch is imported when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from uld.errors import ULDError

if TYPE_CHECKING:
    from uld.checking.run import check
    from uld.evaluation.explain import explain
    from uld.evaluation.pipe import evaluate
    from uld.model.combine import Combination
    from uld.model.config import ULDConfig
    from uld.model.load import load
    from uld.model.unlearned import ULDForCausalLM
    from uld.request.run import forget
    from uld.training.config import FinetuneConfig, TrainConfig
    from uld.training.finetune import finetune
    from uld.training.run import train

__version__ = "0.1.0"
__all__ = [
    "Combination",
    "FinetuneConfig",
    "TrainConfig",
    "ULDConfig",
    "ULDError",
    "ULDForCausalLM",
    "check",
    "evaluate",
    "explain",
    "finetune",
    "forget",
    "load",
    "register",
    "train",
]

_LAZY = {
    "Combination": "uld.model.combine",
    "FinetuneConfig": "uld.training.config",
    "TrainConfig": "uld.training.config",
    "ULDConfig": "uld.model.config",
    "ULDForCausalLM": "uld.model.unlearned",
    "check": "uld.checking.run",
    "evaluate": "uld.evaluation.pipe",
    "explain": "uld.evaluation.explain",
    "finetune": "uld.training.finetune",
    "forget": "uld.request.run",
    "load": "uld.model.load",
    "train": "uld.training.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, also those that are not imported yet."""
    return sorted({*globals(), *__all__})


def register() -> None:
    """Make run folders known to ``AutoModelForCausalLM.from_pretrained``; `load` does so by itself."""
    importlib.import_module("uld.model.config")
