"""What one model does with the questions of a check, row by row; and what the target has to say of that."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from uld.checking.measures import JUDGED, KL, Side, Value, is_known, key_words, measured
from uld.checking.questions import Item, Questions
from uld.data.passages import without_end
from uld.data.prompt import Encoded, PromptFormat
from uld.evaluation.benchmark import Benchmark, Found, Result, Row, Subject, Task, by_length, digest
from uld.evaluation.divergence import divergences
from uld.evaluation.judged import judged
from uld.evaluation.memorization import exact_memorization, extraction_strength
from uld.evaluation.reading import dictionary, unknown_words
from uld.evaluation.scoring import refuse_nan
from uld.model.generate import Written

_WHOLE = 2**31


@dataclass(frozen=True)
class Numbers(Result):
    """What came of one model.

    Attributes:
        values: By the names of `uld.checking.measures.MEASURES`.
    """

    values: dict[str, Value]

    def table(self) -> str:
        """A line a number."""
        return "\n".join(f"{name} {one.value:.4g}" for name, one in self.values.items())


@dataclass
class Asked(Benchmark):
    """The questions, and how long an answer may be.

    Attributes:
        questions: All of them.
        max_new_tokens: Most tokens of an answer; the rest of a passage is as long as it is.
    """

    questions: Questions
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        """Give it its name."""
        self.name = "check"

    @property
    def about(self) -> dict[str, Any]:
        """All that decides the rows beside the model, as plain JSON types."""
        asked = {name: [item.record.exact for item in items] for name, items in self.questions.sets.items()}
        data = digest([asked, list(self.questions.kept)])
        return {"benchmark": self.name, "data": data, "max_new_tokens": self.max_new_tokens}

    def settings(self, subject: Subject) -> dict[str, Any]:
        """The same for every model."""
        return self.about

    def tasks(self, subject: Subject, found: Found) -> Iterator[Task[tuple[Item, Encoded]]]:
        """A task a set."""
        words = self._words(subject)
        for name, items in self.questions.sets.items():
            rows = [(item, encoded(subject.form, item)) for item in items]

            def work(batch: list[tuple[Item, Encoded]]) -> list[Row]:
                return self._answered(subject, words, batch)

            yield Task(
                name,
                rows,
                work,
                by_length([len(row.ids) for _, row in rows]),
                finished=lambda _, result: "ids" in result,  # of models that are compared none is judged otherwise
            )

    def compared(self, subject: Subject, target: Subject, found: Found) -> Iterator[Task[Any]]:
        """What the target says of a model's results: how likely it finds the answers, and how far the model is from it.

        Of a model with another tokenizer the distance is left out.
        """
        for name, items in self.questions.sets.items():
            answers = [row["generated"] for row in found[name]]
            yield judged(target, [item.record for item in items], answers, found[name], f"{name}_{JUDGED}")
        if same_vocabulary(subject, target) and subject.model is not target.model:
            rows = [encoded(target.form, item) for item in self.questions.sets["retain"]]
            yield divergences(subject, target, rows, f"retain_{KL}")

    @cached_property
    def keys(self) -> dict[str, list[frozenset[str]]]:
        """Key words of every true answer."""
        return {name: key_words(items, self.questions.kept) for name, items in self.questions.sets.items()}

    def counted(self, before: Found) -> dict[str, list[int]]:
        """Numbers of the questions that count: what is kept, and what the target knows of what is to be forgotten.

        Args:
            before: The target's results.
        """
        return {
            name: [
                i
                for i, (item, row, keys) in enumerate(zip(items, before[name], self.keys[name], strict=True))
                if name == "retain" or is_known(item, row, keys)
            ]
            for name, items in self.questions.sets.items()
        }

    def summarise(self, found: Found, others: Mapping[str, Found] | None = None) -> "Numbers":
        """From results to numbers.

        Args:
            found: Of a model, those of `compared` among them.
            others: The ``target``'s; None where this model is the target.
        """
        before = others["target"] if others else found
        sides = {}
        for name, counted in self.counted(before).items():
            sides[name] = Side(
                items=[self.questions.sets[name][i] for i in counted],
                rows=[found[name][i] for i in counted],
                before=[before[name][i] for i in counted],
                judged=[found[f"{name}_{JUDGED}"][i] for i in counted],
                kl=found.get(f"{name}_{KL}"),
                keys=[self.keys[name][i] for i in counted],
            )
        return Numbers(measured(sides))

    def _words(self, subject: Subject) -> frozenset[str]:
        """What counts as a word: the words of the files, and those that the tokenizer has a token for."""
        tokenizer: Any = subject.tokenizer
        texts = [text for items in self.questions.sets.values() for one in items for text in (one.question, one.answer)]
        return dictionary([*texts, *self.questions.kept]) | dictionary(
            tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        )

    def _answered(self, subject: Subject, words: frozenset[str], batch: list[tuple[Item, Encoded]]) -> list[Row]:
        """How well the true answers are known, and what is said instead."""
        scores = subject.token_scores([row for _, row in batch])
        begins = [row.learn.index(True) for _, row in batch]
        prompts = [row.ids[:begin] for (_, row), begin in zip(batch, begins, strict=True)]
        lengths = [
            len(row.ids) - begin if item.passage else self.max_new_tokens
            for (item, row), begin in zip(batch, begins, strict=True)
        ]
        results = []
        for score, written in zip(scores, _written(subject, prompts, lengths), strict=True):
            refuse_nan(subject.model, score.log_probs)
            results.append(
                {
                    "loss": float(-score.log_probs.sum()),
                    "tokens": len(score.right),
                    "memorization": exact_memorization(score.right),
                    "extraction": extraction_strength(score.right),
                    "generated": written.text,
                    "unknown_words": unknown_words(written.text, words),
                    **written.row,
                }
            )
        return results


def _written(subject: Subject, prompts: list[list[int]], lengths: list[int]) -> list[Written]:
    """What is written behind prompts: at once, or one by one where the widest and the longest together do not fit."""
    if max(map(len, prompts)) + max(lengths) <= subject.context:
        return subject.written(prompts, lengths)
    return [subject.written([one], [most])[0] for one, most in zip(prompts, lengths, strict=True)]


def encoded(form: PromptFormat, item: Item) -> Encoded:
    """A question with its last answer learnt; behind a passage, which ends nowhere, no end of sequence is."""
    row = form.encode(item.record, _WHOLE).last_answer()
    return without_end(row, form.tokenizer) if item.passage else row


def same_vocabulary(one: Subject, other: Subject) -> bool:
    """Whether two models call every token by the same number."""
    first, second = (subject.tokenizer.get_vocab() for subject in (one, other))
    return first == second
