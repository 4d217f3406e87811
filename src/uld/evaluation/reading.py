"""What people read: does an answer give the forgotten fact away, and is it an answer at all?

Pure functions of texts. Losses say how likely an answer is; these say what stands in the answers that a model gave.
What a word is and which words give an answer away says `uld.data.words`.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uld.data.words import form, spelled, words

LOOP_WORDS = 4
"""Words of the run that is looked for in a loop."""
LOOP_TIMES = 3
"""An answer loops when one such run stands in it this often."""
STRANGE = 0.2
"""An answer is broken when more than this share of its uncapitalised words is in no dictionary."""

_DIGIT = re.compile(r"\d")
_ENDS = tuple(".!?…。！？।॥؟۔։។៕။།༎")
_UNMARKED = re.compile("[\u0e00-\u0eff]$")  # Thai and Lao end a sentence without a mark
_CLOSING = "\"'*`"
_MARKS = ("Pe", "Pf", "Pi")  # brackets and quotation marks of all scripts; some close with what others open with


@dataclass(frozen=True, slots=True)
class Reading:
    """What can be told of one answer without knowing the right one.

    Attributes:
        empty: It holds no word.
        loop: A run of `LOOP_WORDS` words stands in it `LOOP_TIMES` times or more.
        cut: It does not end like a sentence.
        broken: Of its uncapitalised words, more than `STRANGE` are in no dictionary.
    """

    empty: bool
    loop: bool
    cut: bool
    broken: bool

    @property
    def degenerate(self) -> bool:
        """Whether it is no answer that a person would take for one."""
        return self.empty or self.loop or self.cut or self.broken


def dictionary(texts: Iterable[str]) -> frozenset[str]:
    """Every word of some texts, for `read`."""
    return frozenset(word for text in texts for word in words(text))


def unknown_words(generated: str, known: frozenset[str]) -> int:
    """How many of an answer's uncapitalised words are in no dictionary; capitalised ones are names."""
    return sum(word not in known for word in _plain(generated))


def read(generated: str, known: frozenset[str] | None = None, unknown: int | None = None) -> Reading:
    """Look at an answer: a stated proxy for a classifier that tells gibberish.

    Args:
        generated: What a model wrote.
        known: A dictionary; None looks for no broken words.
        unknown: From `unknown_words`, where that was found out before.
    """
    last = _without_closing(generated)
    each = words(generated)  # in a script without blanks a whole run is one of `spelled`
    runs = Counter(tuple(each[i : i + LOOP_WORDS]) for i in range(len(each) - LOOP_WORDS + 1))
    if unknown is None:
        unknown = 0 if known is None else unknown_words(generated, known)
    return Reading(
        empty=not each,
        loop=max(runs.values(), default=0) >= LOOP_TIMES,
        cut=bool(each) and not last.endswith(_ENDS) and not _UNMARKED.search(last),
        broken=unknown > STRANGE * len(_plain(generated)),
    )


def _without_closing(text: str) -> str:
    """A text without the quotation marks, brackets and blanks behind its last sentence."""
    end = len(text)
    while end and (
        text[end - 1].isspace() or text[end - 1] in _CLOSING or unicodedata.category(text[end - 1]) in _MARKS
    ):
        end -= 1
    return text[:end]


def _plain(text: str) -> list[str]:
    """The uncapitalised words without digits, in the form in which they are compared."""
    return [form(word) for word in spelled(text) if word.islower() and not _DIGIT.search(word)]


def leak_at_k(samples: int, leaks: int, k: int) -> float:
    """Chance that at least one of k answers leaks, estimated from n samples: ``1 − C(n − c, k) / C(n, k)``.

    Unbiased for k ≤ n, as pass@k is (Chen et al. 2021, arXiv 2107.03374).

    Args:
        samples: n, sampled answers to one question.
        leaks: c, those that leak.
        k: Answers that an attacker draws, at most n.

    Raises:
        ValueError: if not ``0 ≤ c ≤ n`` and ``1 ≤ k ≤ n``.
    """
    if not (0 <= leaks <= samples and 1 <= k <= samples):
        raise ValueError(f"leak@{k} of {leaks} leaks in {samples} samples: c must be 0 to n and k 1 to n")
    return 1 - math.comb(samples - leaks, k) / math.comb(samples, k)


def resamples(rows: int, draws: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """How often each row stands in each of many draws with repetition, of as many rows. Source: Efron 1979.

    Args:
        rows: Number of rows.
        draws: How often to draw.
        seed: Decides the draws, so that two models are looked at on the same rows.

    Returns:
        ``(draws, rows)`` counts; ``resamples(…) @ values / rows`` are the means of the draws.
    """
    return np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=draws).astype(np.float64)


def interval(values: ArrayLike, level: float = 0.99) -> tuple[float, float]:
    """Percentile interval of a statistic's values over many draws; level in (0, 1)."""
    low, high = np.quantile(np.asarray(values, dtype=float), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def share(flags: Sequence[bool]) -> float | None:
    """Share of true flags; None where there is none to count."""
    return sum(flags) / len(flags) if flags else None
