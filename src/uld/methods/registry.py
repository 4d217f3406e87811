"""The registry of unlearning methods: one small file each, found by the name that users type."""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from uld.errors import ULDError, guess
from uld.runs.values import Seed, brought

if TYPE_CHECKING:
    from torch import Tensor

Trains = Literal["assistant", "target", "offset", "pair"]
"""What is trained: LoRA on the target's first layers, the target itself, a small model behind the frozen target, or two
small models, each on the rows of its own side."""


@dataclass(frozen=True)
class Loss:
    """A loss on one side of a batch.

    Attributes:
        name: What it is called in logs, where ``_loss`` is put behind it.
        value: Takes a `uld.methods.side.Side` and gives the sum of the loss over the side, a scalar in nats; its
            keyword-only arguments are options that the user can set (``--option beta=0.5``).
        per: What the sum is divided by: the side's positions or its rows.
        frozen: Whether it asks the model before training in every step.
        reference: Whether it needs the log-likelihoods of the answers under the model before training, which are
            computed once.
    """

    name: str
    value: Callable[..., "Tensor"]
    per: Literal["position", "row"] = "position"
    frozen: bool = False
    reference: bool = False


@dataclass(frozen=True)
class Method:
    """What a method minimises, on what, and where it was published.

    Attributes:
        name: As users type it.
        summary: One line.
        paper: URL.
        trains: What is trained.
        forget: Loss on the forget rows.
        retain: Loss on the retain rows, weighted by ``retain_weight`` (β); None for methods without one.
        alternatives: Whether forget rows bring alternative answers (``also``), or are replaced by them (``instead``).
        defaults: Training settings that differ from `uld.training.config.TrainConfig`'s own defaults.
        tap: For losses on hidden states: ``(number of layers, **options)`` to the layer after which they are taken.
        restrict: Chooses what is trained of a target: ``(model, **options)``, sets ``requires_grad``.
        reweigh: New retain weight after a step: ``(weight, mean retain loss of the step, epochs trained, **options)``.
        finish: What is done to the trained weights at the end: ``(trained, before, **options)``, tensor by tensor.
        teacher: Method whose run is trained first, and asked by losses in place of the model before training.
        teach: Settings of that run that are not this run's: ``(**options)``.
        every_layer: Whether an assistant is all of the target's layers where the user does not say how many.
        formula: What is minimised, as the table of ``docs/methods.md`` shows it; methods of one formula share a line.
        notes: What the formula calls an option, or what it means, by its name.
    """

    name: str
    summary: str
    paper: str
    trains: Trains
    forget: Loss
    retain: Loss | None = None
    alternatives: Literal["also", "instead"] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tap: Callable[..., int] | None = None
    restrict: Callable[..., None] | None = None
    reweigh: Callable[..., float] | None = None
    finish: Callable[..., "Tensor"] | None = None
    teacher: str | None = None
    teach: Callable[..., dict[str, Any]] | None = None
    every_layer: bool = False
    formula: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The forget loss and, if there is one, the retain loss."""
        return (self.forget,) if self.retain is None else (self.forget, self.retain)

    @property
    def retain_name(self) -> str | None:
        """What the retain loss is called in logs."""
        return None if self.retain is None else f"{self.retain.name}_loss"

    @property
    def options(self) -> dict[str, Any]:
        """Every option of the method with its default."""
        found: dict[str, Any] = {}
        for part in (
            *(loss.value for loss in self.losses),
            self.tap,
            self.restrict,
            self.reweigh,
            self.finish,
            self.teach,
        ):
            found |= _keywords(part) if part is not None else {}
        return found

    @property
    def needs(self) -> list[str]:
        """What it takes besides the target and the data, in words."""
        words = {
            "frozen model in every step": any(loss.frozen for loss in self.losses) and self.teacher is None,
            f"a run of {self.teacher}, trained first": self.teacher is not None,
            "frozen log-likelihoods, once": any(loss.reference for loss in self.losses),
            "alternative answers": self.alternatives is not None,
            "no retain rows": self.retain is None,
        }
        return [word for word, true in words.items() if true]

    def read_options(self, given: Sequence[str]) -> dict[str, Any]:
        """Options as a user types them, ``name=value``, over the method's defaults.

        Raises:
            ULDError: an unknown name, or a value of another type.
        """
        options = self.options
        for text in given:
            name, equals, value = text.partition("=")
            if name not in options or not equals:
                hint = guess(name, options) or f": it has {', '.join(options) or 'none'}"
                raise ULDError(f"--option {text}: {self.name} has no such option{hint} (--option NAME=VALUE)")
            kind = type(options[name])
            try:
                options[name] = kind(value)
            except ValueError as error:
                raise ULDError(f"--option {text}: {name} must be {_KINDS.get(kind, kind.__name__)}") from error
            if name == "seed":
                try:
                    brought(options[name], Seed)
                except ValueError as error:
                    raise ULDError(f"--option {text}: {name} {error}") from error
            if kind is float and not math.isfinite(options[name]):
                raise ULDError(f"--option {text}: {name} must be a finite number")
        return options


_KINDS = {float: "a number", int: "a whole number"}


def _keywords(function: Callable[..., Any]) -> dict[str, Any]:
    """Keyword-only parameters of a function that have a default."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


def own_options(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a method's options that one of its functions takes."""
    return {name: options[name] for name in _keywords(function) if name in options}


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
        if module.name not in ("registry", "side", "losses"):
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
    hint = guess(name, methods) or f": choose one of {', '.join(methods)}"
    raise ULDError(f"there is no method {name!r}{hint} (--method; uld ls methods lists them)")
