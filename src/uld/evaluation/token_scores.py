"""What a model thinks of each token of given texts, without ever holding ``(batch, tokens, vocab)`` logits.

The tokens are those that carry a loss, each predicted from the true tokens before it (teacher forcing).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uld.data.prompt import Encoded
from uld.evaluation.scoring import Scorer
from uld.logits import combine_all


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The learnt tokens of one row, in order.

    Attributes:
        log_probs: ``(tokens,)`` log-probability of the true token, nats, ≤ 0.
        means: ``(tokens,)`` ``E_p[log p]`` over the vocabulary at its position, nats: the negative entropy.
        deviations: ``(tokens,)`` standard deviation of ``log p`` under p, nats, ≥ 0.
        right: ``(tokens,)`` whether the true token is the greedy prediction.
    """

    log_probs: NDArray[np.float64]
    means: NDArray[np.float64]
    deviations: NDArray[np.float64]
    right: NDArray[np.bool_]


def token_scores(scorer: Scorer, rows: Sequence[Encoded]) -> list[TokenScores]:
    """Score every learnt token of each row.

    Args:
        scorer: Of the model; of several combinations the first counts.
        rows: Encoded texts, or prompts with answers.

    Returns:
        One entry a row, in the given order; of no token for a row that learns none.
    """
    settings = scorer.settings[0]

    def piece(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        target, *assistants = logits
        return _statistics(combine_all(target, assistants, settings) if assistants else target, labels)

    found = [np.zeros((4, 0))] * len(rows)
    for number, values in scorer.measure(rows, piece):
        for row in number.unique().tolist():
            found[row] = values[:, number == row].double().numpy()
    return [TokenScores(*one[:3], right=one[3].astype(np.bool_)) for one in found]


def right_predictions(scorer: Scorer, rows: Sequence[Encoded]) -> list[NDArray[np.bool_]]:
    """For each row, whether each learnt token is the greedy prediction: what `uld.evaluation.memorization` wants.

    Args:
        scorer: As in `token_scores`.
        rows: As in `token_scores`.

    Returns:
        ``(tokens,)`` bool, one array a row.
    """
    return [score.right for score in token_scores(scorer, rows)]


def _statistics(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability, mean, standard deviation and rightness at each position: ``(4, positions)`` fp32."""
    log_probs = logits.float().log_softmax(-1)
    probs = log_probs.exp()
    finite = log_probs.masked_fill(probs == 0, 0.0)  # a token of probability 0 adds nothing, and 0 · −inf is NaN
    means = (probs * finite).sum(-1)
    deviations = (probs * (finite - means[:, None]).square()).sum(-1).sqrt()
    own = log_probs.gather(-1, labels[:, None])[:, 0]
    return torch.stack([own, means, deviations, (logits.argmax(-1) == labels).float()])
