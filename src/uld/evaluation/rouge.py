"""ROUGE-L of words in any script (`uld.data.text.words_of`); `uld.evaluation.metrics` has TOFU's and MUSE's own."""

from functools import cache
from typing import TYPE_CHECKING, Any

from uld.data.text import words_of

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer


def rouge_l(generated: str, truth: str) -> float:
    """F1 of ROUGE-L; of ASCII text `uld.evaluation.metrics.rouge_l_f1`. Source: Lin 2004.

    Args:
        generated: What the model wrote.
        truth: What stands in the book.

    Returns:
        A value in [0, 1]; 0 where either text has no word.
    """
    return float(_score(generated, truth).fmeasure)


def rouge_l_recall(generated: str, truth: str) -> float:
    """Recall of ROUGE-L: the share of the true answer's words that stand in what was said, in their order.

    However much else was said. Source: Lin 2004.

    Args:
        generated: What the model wrote.
        truth: The true answer.

    Returns:
        A value in [0, 1]; 0 where either text has no word.
    """
    return float(_score(generated, truth).recall)


def _score(generated: str, truth: str) -> Any:
    return _rouge_scorer().score(truth, generated)["rougeL"]


@cache
def _rouge_scorer() -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())


class _Words:
    """Words for rouge_score, whose own tokenizer keeps only a to z and 0 to 9."""

    def tokenize(self, text: str) -> list[str]:
        return words_of(text)
