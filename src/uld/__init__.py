"""Make a language model unlearn chosen documents without touching its weights (Unlearning from Logit Difference).

``import uld`` is light: what needs torch is imported when it is first asked for. From then on transformers knows run
folders, too: ``AutoModelForCausalLM.from_pretrained("runs/x")``.
"""

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

from uld.errors import ULDError

if TYPE_CHECKING:
    from uld.model.combine import Combination
    from uld.model.config import ULDConfig
    from uld.model.load import load
    from uld.model.unlearned import ULDForCausalLM
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
    "finetune",
    "load",
    "train",
]

_LAZY = {
    "Combination": "uld.model.combine",
    "FinetuneConfig": "uld.training.config",
    "TrainConfig": "uld.training.config",
    "ULDConfig": "uld.model.config",
    "ULDForCausalLM": "uld.model.unlearned",
    "finetune": "uld.training.finetune",
    "load": "uld.model.load",
    "train": "uld.training.run",
}
_AUTO_CONFIG = "transformers.models.auto.configuration_auto"


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


class _RegisterAfterTransformers(MetaPathFinder):
    """Registers `ULDConfig` right after transformers has made its `AutoConfig`; finds nothing by itself.

    transformers has no way to announce a model type without importing transformers, which takes seconds.
    """

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != _AUTO_CONFIG:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: Any) -> None:
                execute(module)
                importlib.import_module("uld.model.config")

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if _AUTO_CONFIG in sys.modules:
    importlib.import_module("uld.model.config")
else:
    sys.meta_path.insert(0, _RegisterAfterTransformers())
