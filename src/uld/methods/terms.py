"""Losses that several methods share, and the families that the paper compares.

The paper pairs each forget loss with no retain loss, gradient descent (GD) or KL divergence (KL) on the retain rows,
each on the target itself and, as Offset, on a small model whose logits are added to a frozen target's.
"""

from typing import Annotated, Any

from torch import Tensor

from uld.errors import ULDError
from uld.methods.losses import cross_entropy, kl
from uld.methods.registry import Loss, Method, register
from uld.methods.side import Side
from uld.runs.values import MOST_WEIGHT, Epochs, Rate, Within, brought

OFFSET = "https://arxiv.org/abs/2404.11045"
ON_TARGET: dict[str, Any] = {"learning_rate": 1e-5, "retain_weight": 1.0, "paraphrases": 0, "wrong_answers": 0}
"""The paper's settings for methods that train the target: no augmentation, β = 1."""

_TAUGHT = (("weight", Annotated[float, Within(0, MOST_WEIGHT)]), ("learning_rate", Rate), ("epochs", Epochs))


def positive(value: float, name: str = "beta", what: str = "β") -> float:
    """An option, β where nothing else is said, which must be more than 0.

    Raises:
        ULDError: it is not.
    """
    if not value > 0:
        raise ULDError(f"--option {name}={value:g}: {what} must be more than 0")
    return value


def taught(alpha: float, teacher_rate: float, teacher_epochs: int) -> dict[str, Any]:
    """Settings of a run that teaches, from the options for it.

    Raises:
        ULDError: an option that the run's setting cannot be.
    """
    options = {"alpha": alpha, "teacher_rate": teacher_rate, "teacher_epochs": teacher_epochs}
    settings: dict[str, Any] = {}
    for (option, value), (name, kind) in zip(options.items(), _TAUGHT, strict=True):
        try:
            settings[name] = brought(value, kind)
        except ValueError as error:
            raise ULDError(f"--option {option}={value:g}: {option} {error}") from error
    return settings


def remember(side: Side) -> Tensor:
    """Cross-entropy on the answers."""
    return side.total(cross_entropy)


def stay(side: Side) -> Tensor:
    """KL divergence from the model before training."""
    return side.each_frozen(kl).sum()


GD = Loss("gd", remember)
KL = Loss("kl", stay, frozen=True)
RETAIN = {"": None, "+gd": GD, "+kl": KL}
_WORDS = {"": "", "+gd": ", gradient descent on retain rows", "+kl": ", KL to the frozen model on retain rows"}


def family(name: str, summary: str, paper: str, forget: Loss, *, offset: bool = True, **rest: Any) -> list[Method]:
    """Register ``name``, ``name+gd`` and ``name+kl``, and the same as ``offset-…``.

    A batch holds 32 forget rows, as in the paper, with retain rows as many again.

    Args:
        name: Of the forget loss, as users type it.
        summary: What the forget loss does.
        paper: Its URL.
        forget: The loss.
        offset: Whether Offset is registered, too.
        rest: Further attributes of `Method`.
    """
    made = []
    own = rest.pop("defaults", {})
    for suffix, retain in RETAIN.items():
        defaults = ON_TARGET | {"batch_size": 32 if retain is None else 64} | own
        words = summary + _WORDS[suffix]
        made.append(
            register(Method(name + suffix, f"{words}.", paper, "target", forget, retain, defaults=defaults, **rest))
        )
        if offset:
            defaults = defaults | {"learning_rate": 1e-4, "rule": "offset", "weight": 1.0}
            words = f"Offset: a small model in place of the target; {words[0].lower()}{words[1:]}."
            made.append(
                register(
                    Method(f"offset-{name}{suffix}", words, OFFSET, "offset", forget, retain, defaults=defaults, **rest)
                )
            )
    return made
