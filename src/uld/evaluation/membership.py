"""Was this text trained on? The arithmetic of six membership-inference attacks, and how much they find out.

Pure functions. An attack gives each text a score that is *lower for what was trained on*, as the loss is, and as
open-unlearning (Dorna et al. 2025, arXiv 2506.12618) has it. Log-probabilities are in nats, ``(tokens,)`` of one text,
each of the true token when all before it are given. A text of probability 0 has an infinite score, which is an ordinary
value to everything that ranks.
"""

import math
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

K = 0.4
"""Share of a text's tokens that Min-K% looks at, in MUSE and in open-unlearning."""
_LEAST_DEVIATION = 1e-3  # open-unlearning's floor of 1e-6 under the variance

Array = NDArray[np.float64]


def loss(log_probs: ArrayLike) -> float:
    """LOSS: mean negative log-likelihood ``−mean(log p)``, nats a token. Source: Yeom et al. 2018, arXiv 1709.01604."""
    return float(-_tokens(log_probs).mean())


def zlib_ratio(log_probs: ArrayLike, text: str) -> float:
    """ZLIB: the loss divided by the bytes of the compressed text, so that dull texts do not look known.

    Source: Carlini et al. 2021, arXiv 2012.07805, §5.

    Args:
        log_probs: ``(tokens,)``.
        text: What the tokens say.

    Returns:
        Nats a token and byte.
    """
    return loss(log_probs) / len(zlib.compress(text.encode()))


def min_k(log_probs: ArrayLike, k: float = K) -> float:
    """Min-K% Prob: ``−mean(log p)`` over the share k of the tokens that are least likely, at least one.

    Source: Shi et al. 2024, arXiv 2310.16789, Eq. 1.
    """
    return _lowest(_tokens(log_probs), k)


def min_k_plus_plus(log_probs: ArrayLike, means: ArrayLike, deviations: ArrayLike, k: float = K) -> float:
    """Min-K%++: Min-K% of ``(log p − μ) / σ``, the token's place among all tokens at its position.

    Source: Zhang et al. 2024, arXiv 2404.02936, Eq. 3.

    Args:
        log_probs: ``(tokens,)``.
        means: ``(tokens,)`` μ, mean of log p over the vocabulary under p.
        deviations: ``(tokens,)`` σ, its standard deviation; not less than 1e-3 counts.
        k: Share of the tokens.
    """
    mean, deviation = (np.asarray(values, dtype=np.float64) for values in (means, deviations))
    return _lowest((_tokens(log_probs) - mean) / np.maximum(deviation, _LEAST_DEVIATION), k)


def reference(log_probs: ArrayLike, reference_log_probs: ArrayLike) -> float:
    """Reference: the loss less that of a model that did not see the text. Source: Carlini et al. 2021, §5.

    Returns:
        Nats a token; 0 where the text has probability 0 under both.
    """
    ours, theirs = loss(log_probs), loss(reference_log_probs)
    return 0.0 if math.isinf(ours) and math.isinf(theirs) else ours - theirs


def auc(members: ArrayLike, others: ArrayLike) -> float:
    """Area under the ROC curve: how often a member scores lower than another text, ties counting half.

    Args:
        members: ``(texts,)`` scores of texts that were trained on.
        others: ``(texts',)`` scores of texts that were not.

    Returns:
        A value in [0, 1]: 1 where the scores tell all, 0.5 where they tell nothing.

    Raises:
        ValueError: if either is empty or holds NaN.
    """
    from scipy.stats import rankdata

    member, other = _scores(members, "members"), _scores(others, "others")
    ranks = rankdata(np.concatenate([other, member]))[: other.size]
    return float((ranks.sum() - other.size * (other.size + 1) / 2) / (member.size * other.size))


def true_positive_rate(members: ArrayLike, others: ArrayLike, false_positive_rate: float = 0.01) -> float:
    """Share of members that an attack names while it names at most this share of the other texts.

    Source: Carlini et al. 2022, arXiv 2112.03570, §3. Of n other texts ``floor(n · rate)`` may be named: none of fewer
    than 100 at 1 %.

    Args:
        members: As in `auc`.
        others: As in `auc`.
        false_positive_rate: Share of the other texts.

    Returns:
        A value in [0, 1].

    Raises:
        ValueError: if either is empty or holds NaN.
    """
    member, other = _scores(members, "members"), np.sort(_scores(others, "others"))
    allowed = math.floor(round(other.size * false_positive_rate, 9))
    if allowed >= other.size:
        return 1.0
    return float((member < other[allowed]).mean())


def privleak(auc_unlearned: float, auc_retain: float = 0.5) -> float:
    """PrivLeak: how far an attack's AUC is from a retain-only model's, in per cent: ``(u − r) / r · 100``.

    Here u and r are ``1 − AUC``, because MUSE (Shi et al. 2024, arXiv 2407.06460, Eq. 3) takes the forget set as the
    *negatives* of its AUC. So 0 is best, below it too little is forgotten (−100: the attack finds every member), and
    above it too much.

    Args:
        auc_unlearned: From `auc`, of the model under test, forget set against holdout.
        auc_retain: The same of a model that never saw the forget set.

    Returns:
        Per cent, ≥ −100; inf where the retain-only model's AUC is 1 and the other's is not.
    """
    ours, theirs = 1 - auc_unlearned, 1 - auc_retain
    if theirs == 0:
        return math.inf if ours else 0.0
    return (ours - theirs) / theirs * 100


def _lowest(values: Array, k: float) -> float:
    """Minus the mean of the lowest share of the values."""
    count = max(1, int(values.size * k))
    return float(-np.sort(values)[:count].mean())


def _tokens(log_probs: ArrayLike) -> Array:
    array = np.asarray(log_probs, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"log_probs must be a non-empty one-dimensional array, not one of shape {array.shape}.")
    return array


def _scores(values: ArrayLike, name: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or np.isnan(array).any():
        raise ValueError(f"{name} must be a non-empty one-dimensional array without NaN.")
    return array


def cut_elsewhere(mine: Mapping[str, Any], theirs: Mapping[str, Any], sets: Iterable[str], cut: str) -> int:
    """How many texts of two models were cut at different places, or for one of them alone.

    Args:
        mine: Rows by set.
        theirs: The same of another model.
        sets: Names of those that are compared.
        cut: Key that a row has which was cut; ``tokens`` says how long what was read is.
    """
    pairs = [pair for one in sets for pair in zip(mine.get(one, ()), theirs.get(one, ()), strict=True)]
    some = [(first, second) for first, second in pairs if cut in first or cut in second]
    return sum((a["tokens"], a.get(cut)) != (b["tokens"], b.get(cut)) for a, b in some)
