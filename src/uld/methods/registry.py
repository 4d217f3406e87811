"""The registry of unlearning methods: one small file each, found by the name that users type."""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from uld.errors import ULDError
from uld.losses import PositionLoss


@dataclass(frozen=True)
class Method:
    """What a method minimises, on what, and where it was published.

    Attributes:
        name: As users type it.
        summary: One line.
        paper: URL.
        trains: The model whose parameters are trained: ``assistant`` is LoRA on the target's first layers.
        forget: Loss on the forget rows' answers.
        retain: Loss on the retain rows, weighted by ``retain_weight`` (β).
        retain_name: What the retain loss is called in logs.
        defaults: Training settings that differ from `uld.config.TrainConfig`'s own defaults.
    """

    name: str
    summary: str
    paper: str
    trains: Literal["assistant"]
    forget: PositionLoss
    retain: PositionLoss
    retain_name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


_METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method under its name.

    Raises:
        ValueError: the name is taken.
    """
    if method.name in _METHODS:
        raise ValueError(f"a method named {method.name!r} is registered already")
    _METHODS[method.name] = method
    return method


def all_methods() -> dict[str, Method]:
    """Every method by name: those of the modules in `uld.methods`, and those that a user registered."""
    import uld.methods as package

    for module in pkgutil.iter_modules(package.__path__):
        if module.name != "registry":
            importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_METHODS.items()))


def get_method(name: str) -> Method:
    """Look a method up.

    Raises:
        ULDError: unknown; says what was probably meant.
    """
    methods = all_methods()
    if name in methods:
        return methods[name]
    close = difflib.get_close_matches(name.lower(), methods, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(methods)}"
    raise ULDError(f"there is no method {name!r}: {hint} (--method; uld ls methods lists them)")
