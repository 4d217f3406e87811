"""ULD with another retain loss, the negative entropy: ``python own_method.py MODEL OUTPUT``.

Its minimum, ``−log V``, is at the uniform distribution, like that of ULD's own loss. But it has a maximum, too: a
confident wrong guess costs no more than 0.
"""

import sys
from pathlib import Path

from torch import Tensor

import uld
from uld.methods.registry import Loss, Method, register
from uld.methods.side import Side
from uld.methods.terms import remember


def negative_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``Σ p log p`` at each position: ``(positions, vocab)`` logits to ``(positions,)``; the labels are not used."""
    log_p = logits.float().log_softmax(-1)
    return (log_p.exp() * log_p).sum(-1)


def entropy(side: Side) -> Tensor:
    """The sum over all positions of the retain rows; keyword-only arguments would be values of ``--option``."""
    return side.each(negative_entropy).sum()


register(
    Method(
        name="uld-entropy",
        summary="ULD whose assistant has the largest entropy on what is to be retained.",
        paper="https://arxiv.org/abs/2406.08607",
        trains="assistant",
        forget=Loss("forget", remember),
        retain=Loss("entropy", entropy),  # entropy_loss in metrics.jsonl
    )
)

if __name__ == "__main__":
    target, output = sys.argv[1:]
    forget, retain = (str(Path(__file__).with_name(f"{side}.jsonl")) for side in ("forget", "retain"))
    config = uld.TrainConfig(target=target, output=output, method="uld-entropy", forget=(forget,), retain=(retain,))
    print(uld.train(config))
