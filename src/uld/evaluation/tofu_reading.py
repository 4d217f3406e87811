"""What people read in a model's answers to forget questions, from its log: re-entry, degenerate answers, leaks.

Beside the losses, not instead of them. The arithmetic is in `uld.evaluation.reading`, and what re-enters says
`uld.data.words`.
"""

import math
from dataclasses import dataclass

from uld.data.words import common_words, re_enters, words
from uld.data.words import key_words as keys_of
from uld.evaluation import reading
from uld.evaluation.reading import Reading
from uld.evaluation.task_log import TaskLog, TofuLog
from uld.text.table import aligned

LEAK_DRAWS = (1, 10, 100)
"""Answers of one question that an attacker draws, as far as so many were sampled."""
_LARGEST = 700.0  # above, exp is no float

PARTS = ("empty", "loop", "cut", "broken")


@dataclass(frozen=True, kw_only=True)
class ReadingResult:
    """Shares of the answers to forget questions, in [0, 1]; None where a log lacks what the number needs."""

    re_entry: float | None
    """Answers with a key word of the true answer, of those whose true answer has one."""
    re_entry_rows: int
    """Answers whose true answer has key words."""
    re_entry_beyond_retain: float | None
    """The same, less the key words that the retain-only model says in answer to the same question."""
    degenerate: float
    """Answers that are empty, loop, are cut or broken."""
    empty: float
    loop: float
    cut: float
    broken: float
    perplexity: float | None
    """Of the answers under another model, per token of that model's."""
    leak: dict[str, float]
    """leak@k by k, a mean over the questions with key words; empty without sampled answers."""
    samples: int | None
    """Sampled answers to each question."""

    def table(self, rouge: float | None) -> str:
        """A line of Markdown with its head; shares in percent.

        Args:
            rouge: ROUGE-L of the same answers, to stand beside.
        """
        head = ["forget answers: ROUGE-L (%)", "re-entry (%)", "beyond retain-only (%)", "degenerate (%)"]
        head += [f"{part} (%)" for part in PARTS]
        cells = [rouge, self.re_entry, self.re_entry_beyond_retain, self.degenerate]
        row = ["-" if one is None else f"{100 * one:.1f}" for one in (*cells, *(getattr(self, p) for p in PARTS))]
        if self.perplexity is not None:
            head.append("perplexity")
            row.append(f"{self.perplexity:.4g}")
        for k, leak in self.leak.items():
            head.append(f"leak@{k} (%)")
            row.append(f"{100 * leak:.1f}")
        return "\n".join(aligned(head, [row])) + "\n"


def read_log_answers(log: TofuLog, retain: TofuLog | None = None) -> ReadingResult | None:
    """What the answers of a log say.

    Args:
        log: Of the model.
        retain: Of a retain-only model, on the same forget rows.

    Returns:
        None for a log without answers to forget questions.
    """
    found = readings(log)
    if found is None:
        return None
    forget = log["forget"]
    keys = key_words(log)
    pairs = zip(keys or (), _answers(forget), strict=False)
    own = reading.share([re_enters(text, key) for key, text in pairs if key])
    leaks = _leaks(forget, keys or [])
    return ReadingResult(
        re_entry=own,
        re_entry_rows=sum(map(bool, keys or ())),
        re_entry_beyond_retain=None if keys is None or retain is None else _beyond(forget, keys, retain),
        degenerate=_share(found, "degenerate"),
        **{part: _share(found, part) for part in PARTS},
        perplexity=_perplexity(forget),
        leak=leaks,
        samples=len(forget.samples[0]) if forget.samples is not None else None,
    )


def readings(log: TofuLog) -> list[Reading] | None:
    """How each answer to a forget question reads; None for a log without them.

    What is a word is known from `unknown_words`, else from the questions and true answers of all tasks of the log.
    """
    forget = log.get("forget")
    if forget is None or forget.generated is None:
        return None
    if forget.unknown_words is not None:
        pairs = zip(_answers(forget), forget.unknown_words, strict=True)
        return [reading.read(text, unknown=unknown) for text, unknown in pairs]
    told = [truth for task in log.values() for _, _, truth in task.generated or ()]
    known = reading.dictionary([*told, *(text for task in log.values() for text in _questions(task))])
    return [reading.read(text, known) for text in _answers(forget)]


def key_words(log: TofuLog) -> list[frozenset[str]] | None:
    """Key words of each forget row's true answer; None for a log that lacks forget or retain answers.

    Words of the question give nothing away; in a log that has the prompts alone, words of the chat template are taken
    for some of them.
    """
    forget, retain = log.get("forget"), log.get("retain")
    if forget is None or retain is None or forget.generated is None or retain.generated is None:
        return None
    common = common_words(truth for _, _, truth in retain.generated)
    truths = (truth for _, _, truth in forget.generated)
    return [keys_of(question, truth, common) for question, truth in zip(_questions(forget), truths, strict=True)]


def _questions(task: TaskLog) -> list[str]:
    """What was asked; the whole prompts of a log that has these alone."""
    return task.question if task.question is not None else [prompt for prompt, _, _ in task.generated or ()]


def _beyond(forget: TaskLog, keys: list[frozenset[str]], retain: TofuLog) -> float | None:
    """Re-entry, less what a retain-only model says itself, of the rows that both logs hold."""
    other = retain.get("forget")
    if other is None or other.generated is None:
        return None
    said = dict(zip(other.keys, map(words, _answers(other)), strict=True))
    flags = [
        re_enters(text, own.difference(said[key]))
        for key, own, text in zip(forget.keys, keys, _answers(forget), strict=True)
        if own and key in said
    ]
    return reading.share(flags)


def _leaks(forget: TaskLog, keys: list[frozenset[str]]) -> dict[str, float]:
    """leak@k over the rows with key words, for each k that so many samples allow."""
    rows = [(own, texts) for own, texts in zip(keys, forget.samples or (), strict=False) if own]
    if not rows:
        return {}
    counts = [(len(texts), sum(re_enters(text, own) for text in texts)) for own, texts in rows]
    return {
        str(k): math.fsum(reading.leak_at_k(n, c, k) for n, c in counts) / len(counts)
        for k in LEAK_DRAWS
        if k <= counts[0][0]
    }


def _perplexity(forget: TaskLog) -> float | None:
    """``exp`` of the answers' mean loss a token under another model."""
    if forget.judged_loss is None or forget.judged_tokens is None or not sum(forget.judged_tokens):
        return None
    mean = sum(forget.judged_loss) / sum(forget.judged_tokens)
    return math.exp(mean) if mean < _LARGEST else math.inf


def _answers(task: TaskLog) -> list[str]:
    return [text for _, text, _ in task.generated or ()]


def _share(found: list[Reading], name: str) -> float:
    return sum(getattr(one, name) for one in found) / len(found)
