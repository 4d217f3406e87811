"""The arithmetic of TOFU's scores: losses of answers in, numbers in [0, 1] out.

Everything here is a pure function of numpy arrays (TOFU: Maini et al. 2024, arXiv 2401.06121, §2.2). A loss is the mean
negative log-likelihood of an answer's tokens, in nats per token.

Nothing here returns NaN. A NaN loss is refused; an infinite one is an answer of probability zero, and two answers of
probability zero are equally likely: their truth ratio is 1, and they share a normalised probability equally.
"""

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

Array = NDArray[np.float64]


def probability(avg_loss: ArrayLike) -> Array:
    """Length-normalised probability of an answer: ``exp(-avg_loss)``, that is ``P(answer | question)^(1 / tokens)``.

    Source: TOFU (arXiv 2401.06121, §2.2.1), *Probability* on the forget and retain rows.

    Args:
        avg_loss: ``(rows,)``, nats per token.

    Returns:
        ``(rows,)`` in [0, 1]; an infinite loss gives 0.

    Raises:
        ValueError: if a loss is NaN or -inf.
    """
    return np.exp(-_losses(avg_loss, "avg_loss"))


def normalised_probability(avg_loss: ArrayLike, wrong_losses: ArrayLike) -> Array:
    """Probability of the right answer among all choices: ``p / (p + Σ p_wrong)`` with ``p = exp(-avg_loss)``.

    Source: TOFU (arXiv 2401.06121, §2.2.1), *Probability* on real authors and world facts. The ratio is
    taken relative to the likeliest choice, so that probabilities too small for a float still compare.

    Args:
        avg_loss: ``(rows,)``, nats per token, of the right answer.
        wrong_losses: ``(rows, wrong)``, nats per token, of the wrong answers.

    Returns:
        ``(rows,)`` in [0, 1]; ``1 / (1 + wrong)`` where all choices have an infinite loss.

    Raises:
        ValueError: if a loss is NaN or -inf, or the shapes do not fit.
    """
    right, wrong = _right_and_wrong(avg_loss, wrong_losses, "avg_loss")
    losses = np.concatenate([right[..., None], wrong], axis=-1)
    best = losses.min(axis=-1, keepdims=True)
    losses = np.where(np.isposinf(best), 0.0, losses)
    weights = np.exp(np.where(np.isposinf(best), 0.0, best) - losses)
    return weights[..., 0] / weights.sum(axis=-1)


def truth_ratio_statistic(paraphrase_loss: ArrayLike, wrong_losses: ArrayLike) -> Array:
    """How much likelier the right answer is than the wrong ones: ``t = exp(mean(wrong_losses) - paraphrase_loss)``.

    Source: TOFU (arXiv 2401.06121, §2.2.1), whose truth ratio is ``1 / t``, and so is the `truth_ratio` of evaluation
    logs. The paper writes the wrong answers' mean probability; its code, like every published number, takes the mean of
    their losses, which is the geometric mean of the probabilities. So does this function.

    Args:
        paraphrase_loss: ``(rows,)``, nats per token, of the paraphrased answer (real authors and world facts: of the
            answer itself).
        wrong_losses: ``(rows, wrong)``, nats per token, of the wrong answers.

    Returns:
        ``(rows,)`` in [0, inf]: inf where a wrong answer is impossible and the right one is not (or the ratio
        overflows), 0 in the opposite case, and 1 where both sides are impossible.

    Raises:
        ValueError: if a loss is NaN or -inf, or the shapes do not fit.
    """
    right, wrong = _right_and_wrong(paraphrase_loss, wrong_losses, "paraphrase_loss")
    mean_wrong = wrong.mean(axis=-1)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = mean_wrong - right
        return np.exp(np.where(np.isposinf(mean_wrong) & np.isposinf(right), 0.0, difference))


def truth_ratio_rows(t: ArrayLike, aggregator: str) -> Array:
    """What each row adds to a truth ratio, which is their mean.

    ==================  =================  ==========================================================================
    closer_to_1_better  min(t, 1/t)        forgotten rows: highest where right and wrong are told apart least
    true_better         max(0, 1 − 1/t)    all others: highest where the right answer stands out most
    prob_mean           t / (1 + t)        a share: the right answer's part of ``p_right + p_wrong``
    ==================  =================  ==========================================================================

    Source: TOFU (arXiv 2401.06121, §2.2.1); the last, and the names, are open-unlearning's (Dorna et al. 2025, arXiv
    2506.12618).

    Args:
        t: ``(rows,)`` from `truth_ratio_statistic`, in [0, inf].
        aggregator: One of the three.

    Returns:
        ``(rows,)`` in [0, 1]; where t is 0 or inf, the limit.

    Raises:
        ValueError: if ``t`` is empty, negative or NaN.
    """
    t = _statistic(t, "t")
    inverse = _inverse(t)
    if aggregator == "closer_to_1_better":
        return np.minimum(t, inverse)
    return np.maximum(0.0, 1.0 - inverse) if aggregator == "true_better" else 1.0 / (1.0 + inverse)


def forget_quality(t_unlearned: ArrayLike, t_retain: ArrayLike) -> float:
    """Could both models be the same one? The p-value of a two-sample Kolmogorov-Smirnov test on their truth ratios.

    Source: TOFU (arXiv 2401.06121, §2.2.2). The test sees ranks only: t, 1/t and log t give one p-value, and infinities
    are ordinary values.

    Args:
        t_unlearned: ``(rows,)`` of the model under test, on the forget rows.
        t_retain: ``(rows',)`` of a model that never saw the forget rows.

    Returns:
        The p-value in [0, 1]; above 0.05 the two are commonly called indistinguishable.

    Raises:
        ValueError: if either is empty, negative or NaN.
    """
    from scipy.stats import ks_2samp

    result = ks_2samp(_statistic(t_unlearned, "t_unlearned"), _statistic(t_retain, "t_retain"))
    return float(result.pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def model_utility(parts: Iterable[float]) -> float:
    """What the model can still do: the harmonic mean ``n / Σ 1/x`` of its parts.

    Source: TOFU (arXiv 2401.06121, §2.2.1); the parts are Probability, ROUGE-L recall and truth ratio on retain
    rows, real authors and world facts.

    Args:
        parts: values ≥ 0, nine of them in TOFU.

    Returns:
        The harmonic mean; 0 as soon as one part is 0, its limit.

    Raises:
        ValueError: if there is no part, or one is negative or NaN.
    """
    values = _statistic(list(parts), "parts")
    if (values == 0.0).any():
        return 0.0
    with np.errstate(over="ignore"):
        return float(len(values) / np.sum(1.0 / values))


def rouge_recall(generated: str, truth: str) -> tuple[float, float]:
    """ROUGE recall of a generated answer: the share of the true answer's stemmed words that it holds.

    ROUGE-1 counts single words, ROUGE-L the longest common subsequence. TOFU (arXiv 2401.06121, §2.2.1) takes the
    recall of ROUGE-L; MUSE takes its F1, which is another number.

    Args:
        generated: what the model wrote, without the prompt.
        truth: the true answer.

    Returns:
        ``(rouge1, rougeL)``, each in [0, 1]; both 0 where either text has no word.
    """
    scores = _rouge_scorer().score(truth, generated)
    return float(scores["rouge1"].recall), float(scores["rougeL"].recall)


def rouge_l_f1(generated: str, truth: str, *, stemmed: bool = False) -> float:
    """ROUGE-L F1: the harmonic mean of precision and recall of the longest common subsequence of words.

    Source: Lin 2004; MUSE (arXiv 2407.06460) reports this one, of words that are not stemmed, where TOFU takes the
    recall of stemmed words (`rouge_recall`).

    Args:
        generated: what the model wrote, without the prompt.
        truth: the true continuation or answer.
        stemmed: compare word stems.

    Returns:
        A value in [0, 1]; 0 where either text has no word.
    """
    return float(_rouge_scorer(stemmed).score(truth, generated)["rougeL"].fmeasure)


@cache
def _rouge_scorer(stemmed: bool = True) -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=stemmed)


def _inverse(t: Array) -> Array:
    with np.errstate(divide="ignore", over="ignore"):
        return 1.0 / t


def _losses(values: ArrayLike, name: str) -> Array:
    losses = np.asarray(values, dtype=np.float64)
    bad = np.isnan(losses) | np.isneginf(losses)
    if bad.any():
        row = int(np.argwhere(bad)[0][0]) if losses.ndim else 0
        raise ValueError(f"{name} is NaN or -inf in row {row} ({int(bad.sum())} such values): score this model again.")
    return losses


def _right_and_wrong(right: ArrayLike, wrong: ArrayLike, name: str) -> tuple[Array, Array]:
    losses, wrong_losses = _losses(right, name), _losses(wrong, "wrong_losses")
    if wrong_losses.shape[:-1] != losses.shape or wrong_losses.ndim != losses.ndim + 1 or wrong_losses.shape[-1] == 0:
        raise ValueError(
            f"wrong_losses must be (rows, wrong) beside {name} (rows,), not {wrong_losses.shape} beside {losses.shape}."
        )
    return losses, wrong_losses


def _statistic(values: ArrayLike, name: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a non-empty one-dimensional array, not one of shape {array.shape}.")
    if not (array >= 0.0).all():
        raise ValueError(f"{name} must hold values of 0 or more, and no NaN.")
    return array
