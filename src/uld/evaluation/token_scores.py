"""What a model thinks of each token of given texts, without ever holding ``(batch, tokens, vocab)`` logits.

The tokens are those that carry a loss, each predicted from the true tokens before it (teacher forcing).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uld.data.prompt import Encoded
from uld.evaluation import membership
from uld.evaluation.scoring import Score, Scorer
from uld.model.combine import Combination, combine_all


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
    found = [np.zeros((4, 0))] * len(rows)
    for number, values in scorer.measure(rows, lambda logits, labels, _: _of_tokens(logits, labels, settings)):
        for row in number.unique().tolist():
            found[row] = values[:, number == row].double().numpy()
    return [_as_scores(one) for one in found]


def scores_and_tokens(
    scorer: Scorer, rows: Sequence[Encoded], marked: Collection[int]
) -> tuple[list[Score], dict[int, TokenScores]]:
    """Score every row, and every learnt token of some, from one pass over all of them.

    Args:
        scorer: As in `token_scores`.
        rows: As in `token_scores`; each learns at least one token.
        marked: Numbers of the rows of which every token is wanted.

    Returns:
        A score a row, in the given order, equal to `Scorer.score`; and the tokens of the marked rows.
    """
    settings = scorer.settings[0]

    def piece(logits: Sequence[Tensor], labels: Tensor, marks: Tensor) -> Tensor:
        losses = scorer.label_losses(logits, labels)[0]
        values = losses.new_zeros(5, len(losses))
        values[0] = losses
        if marks.any():
            values[1:, marks] = _of_tokens([one[marks] for one in logits], labels[marks], settings)
        return values

    losses = torch.zeros(len(rows), dtype=torch.float64)
    tokens = {}
    for number, values in scorer.measure(rows, piece, marked):
        losses.index_add_(0, number, values[0].double())
        for row in set(number.tolist()).intersection(marked):
            tokens[row] = _as_scores(values[1:, number == row].double().numpy())
    counts = [sum(row.learn[1:]) for row in rows]
    return [Score(loss, count) for loss, count in zip(losses.tolist(), counts, strict=True)], tokens


def attack_scores(tokens: TokenScores, text: str) -> dict[str, float]:
    """What four membership attacks make of a text: ``loss``, ``zlib``, ``min_k`` and ``min_k++``.

    Args:
        tokens: At least one.
        text: What they say.
    """
    return {
        "loss": membership.loss(tokens.log_probs),
        "zlib": membership.zlib_ratio(tokens.log_probs, text.strip()),
        "min_k": membership.min_k(tokens.log_probs),
        "min_k++": membership.min_k_plus_plus(tokens.log_probs, tokens.means, tokens.deviations),
    }


def _of_tokens(logits: Sequence[Tensor], labels: Tensor, settings: list[Combination]) -> Tensor:
    target, *assistants = logits
    return _statistics(combine_all(target, assistants, settings) if assistants else target, labels)


def _as_scores(values: NDArray[np.float64]) -> TokenScores:
    return TokenScores(*values[:3], right=values[3].astype(np.bool_))


def _statistics(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability, mean, standard deviation and rightness at each position: ``(4, positions)`` fp32."""
    log_probs = logits.float().log_softmax(-1)
    probs = log_probs.exp()
    finite = log_probs.masked_fill(probs == 0, 0.0)  # a token of probability 0 adds nothing, and 0 · −inf is NaN
    means = (probs * finite).sum(-1)
    deviations = (probs * (finite - means[:, None]).square()).sum(-1).sqrt()
    own = log_probs.gather(-1, labels[:, None])[:, 0]
    return torch.stack([own, means, deviations, (logits.argmax(-1) == labels).float()])
