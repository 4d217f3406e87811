"""Who's Harry Potter: the target learns what it would say if it did not know the forget set better than other texts.

A *reinforced* model is the target after learning the forget set once more. What it finds likelier than the target is
lowered, ``v_generic = v − α max(v_reinforced − v, 0)``, and the target is fine-tuned on what is then the likeliest
token (Eldan and Russinovich 2023, arXiv 2310.02238). The reinforced model is LoRA on all layers, a run of
``whp-decode``, which also answers by itself, without a second training. The paper's other half is left out: a
dictionary, made by a strong model, that puts generic names in place of those of the text.
"""

from typing import Any

from torch import Tensor

from uld.methods.losses import cross_entropy
from uld.methods.registry import Loss, Method, register
from uld.methods.side import Side
from uld.methods.terms import ON_TARGET, remember, taught
from uld.methods.undial import self_distillation

PAPER = "https://arxiv.org/abs/2310.02238"


def teach(*, alpha: float = 5.0, teacher_rate: float = 1e-3, teacher_epochs: int = 10) -> dict[str, Any]:
    """α, learning rate and epochs of the reinforced model's run."""
    return taught(alpha, teacher_rate, teacher_epochs)


def forget(side: Side, *, soft: int = 0) -> Tensor:
    """``CE`` of the likeliest token of ``v_generic`` at every position; with ``soft`` of all of its distribution."""

    def loss(logits: Tensor, labels: Tensor, frozen: Tensor) -> Tensor:
        if soft:
            return self_distillation(logits, labels, frozen, 0)
        return cross_entropy(logits, frozen.argmax(-1))

    return side.each_frozen(loss).sum()


register(
    Method(
        "whp-decode",
        "Who's Harry Potter at inference: what a reinforced model finds likelier is lowered in the target's logits.",
        PAPER,
        "assistant",
        Loss("forget", remember),
        defaults={"paraphrases": 0, "wrong_answers": 0, "rule": "generic", "weight": 5.0},
        every_layer=True,
        formula="CE(y), LoRA on every layer; then l − α · max(la − l, 0)",
    )
)
register(
    Method(
        "whp",
        "Who's Harry Potter: fine-tuning on the generic predictions that a reinforced model shows.",
        PAPER,
        "target",
        Loss("forget", forget, frozen=True),
        defaults=ON_TARGET,
        teacher="whp-decode",
        teach=teach,
        formula="CE(argmax t), t the logits of a run of `whp-decode` (`soft=1`: CE(softmax(t), softmax(l)))",
        notes={"alpha": "of that run", "teacher_rate": "of that run", "teacher_epochs": "of that run"},
    )
)
