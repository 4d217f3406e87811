"""How much of a text a model has by heart: pure functions of what it predicted, one text at a time.

``right`` says for each token of a text, in order, whether it is the model's greedy prediction when everything before it
is given (teacher forcing). `uld.evaluation.token_scores` finds that out for a model; the truth ratio, which compares
answers instead, is in `uld.evaluation.metrics`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def exact_memorization(right: ArrayLike) -> float:
    """Share of tokens that are the greedy prediction: ``Σ_i 1[argmax f(y_<i) = y_i] / n``.

    Source: Tirumala et al. 2022, arXiv 2205.10770, §3.

    Args:
        right: ``(tokens,)`` bool.

    Returns:
        A value in [0, 1].

    Raises:
        ValueError: if ``right`` is empty or not one-dimensional.
    """
    return float(_predictions(right).mean())


def extraction_strength(right: ArrayLike) -> float:
    """Share of a text that the rest of it calls up: ``1 − k / n``, k the shortest prefix that does.

    k is the smallest number of tokens after which every remaining one is the greedy prediction. Source: Carlini et al.
    2021, arXiv 2012.07805, as open-unlearning defines it (Dorna et al. 2025, arXiv 2506.12618). Where even the last
    token is missed, k = n and this is 0; open-unlearning's code stops at k = n − 1 and gives 1/n for such a text.

    Args:
        right: ``(tokens,)`` bool.

    Returns:
        A value in [0, 1]; 1 where the model says all of the text.

    Raises:
        ValueError: if ``right`` is empty or not one-dimensional.
    """
    right = _predictions(right)
    missed = np.flatnonzero(~right)
    shortest = int(missed[-1]) + 1 if missed.size else 0
    return 1 - shortest / right.size


def longest_verbatim_run(generated: Sequence[int], truth: Sequence[int]) -> int:
    """Length of the longest run of tokens that stands in both texts, wherever it stands.

    Args:
        generated: Token ids of what the model wrote.
        truth: Token ids of the true continuation.

    Returns:
        Tokens; 0 where either is empty.
    """
    other = np.asarray(truth, dtype=np.int64)
    # runs[j + 1]: length of the run that ends in truth[j] and in the token of `generated` looked at last
    runs, longest = np.zeros(other.size + 1, dtype=np.int64), 0
    for token in generated:
        runs[1:] = np.where(other == token, runs[:-1] + 1, 0)
        longest = max(longest, int(runs.max()))
    return longest


def _predictions(right: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(right, dtype=np.bool_)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"right must be a non-empty one-dimensional array, not one of shape {array.shape}.")
    return array
