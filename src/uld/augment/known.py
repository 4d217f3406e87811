"""Whether a target knows what a question asks for: where it does not, there is nothing to forget.

The measure is the probability, a token, that the target gives to what the answer adds to its question: the geometric
mean over the tokens of the answer's words that the question does not hold and that are no common ones. A whole sentence
repeats half of its question, and any model can copy that; what is left are the facts. Names and numbers that a model
never saw get a few thousandths, those that it knows more than a tenth. It is asked in its own template and in plain
text, because what it knows may have been a text, and the higher of both counts.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from uld.augment.generate import REASON, Problem
from uld.augment.lexicon import COMMON
from uld.data.letters import spelled_by
from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.data.text import MARKS, words_of
from uld.errors import ULDError
from uld.model.context import context_length
from uld.runs.rows import RowFile

LEAST = 0.1
"""Least probability a token at which an answer counts as known, by default."""
SCORES = "known.jsonl"
_PLAIN = "{question} {answer}"
_WHOLE = 2**31
_SPELT = re.compile(rf"[\w{MARKS}]+")


@dataclass
class Known:
    """Judges questions by what a target knows.

    Attributes:
        name: Of the target; with the template it tells kept scores of one target from those of another.
        load: Gives model and tokenizer; called when the first question comes.
        template: Prompt template of the target; None: its chat template.
        least: Below this probability a token, 0–1, an answer is not known; 0 keeps every question.
    """

    name: str
    load: Callable[[], tuple[Any, Any]]
    template: str | None = None
    least: float = LEAST

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return self.load()

    def probability(self, question: str, answer: str) -> float:
        """How likely the target finds what an answer adds to its question, a token, 0–1.

        Args:
            question: Any question.
            answer: Its answer; one that is longer than the model's context counts as known.

        Raises:
            ULDError: the target gives NaN.
        """
        tokenizer = self._loaded[1]
        forms = (PromptFormat(tokenizer, self.template), PromptFormat(tokenizer, _PLAIN))
        found = [self._in(form, question, answer) for form in forms]
        if any(map(math.isnan, found)):
            raise ULDError(
                f"{self.name} gives NaN as the probability of an answer, so what it knows cannot be told (--target): "
                "its weights are broken, or their dtype is too narrow for it"
            )
        return max(found)

    @torch.inference_mode()
    def _in(self, form: PromptFormat, question: str, answer: str) -> float:
        model, tokenizer = self._loaded
        row = form.encode(Record.qa(question, answer), _WHOLE)
        if len(row.ids) > context_length(model):
            return 1.0
        places = [place for place, learnt in enumerate(row.learn) if learnt and place]
        places = [place for place in places if row.ids[place] not in tokenizer.all_special_ids] or places
        text, spelled = spelled_by(tokenizer, row.ids, places[0], places[-1] + 1)
        chosen = new_tokens(text, [spelled[place - places[0]] for place in places], question)
        logits = model(torch.tensor([row.ids[:-1]], device=model.device)).logits[0]
        at = torch.tensor([places[i] for i in chosen], device=logits.device)
        labels = torch.tensor(row.ids, device=logits.device)[at]
        losses = torch.nn.functional.cross_entropy(logits[at - 1].float(), labels)
        return math.exp(-losses.item())

    @contextmanager
    def judging(self, output: Path, what: str) -> Iterator[Problem]:
        """Why a question and its answer are not worth asking; scores are kept, so that a stopped call loses none.

        Args:
            output: Folder of the augmentation.
            what: It is called in messages.
        """
        whose = _whose(self.name)
        with RowFile(output / SCORES, what) as file:
            told = [(row.get("key"), row.get("probability")) for row in file.rows.values()]
            kept = {key: value for key, value in told if isinstance(value, float) and not math.isnan(value)}

            def problem(pair: tuple[str, str]) -> str | None:
                if self.least <= 0:
                    return None
                key = hashlib.sha256(json.dumps([whose, self.template, *pair]).encode()).hexdigest()[:24]
                if key not in kept:
                    kept[key] = self.probability(*pair)
                    file.add(max(file.rows, default=-1) + 1, {"key": key, "probability": kept[key]})
                return None if kept[key] >= self.least else REASON

            yield problem


def _whose(place: str) -> list[Any]:
    """Whose scores they are: a model that was trained anew in the same folder is another."""
    files = sorted(path for path in Path(place).rglob("*") if path.suffix in (".safetensors", ".bin", ".gguf"))
    return [place, *((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)]


def new_tokens(text: str, spelled: Sequence[tuple[int, int]], question: str) -> list[int]:
    """The tokens of an answer that belong to what it adds to a question.

    Args:
        text: Ends in the answer.
        spelled: The letters of it that each token of the answer spells (`uld.data.letters`).
        question: The question.

    Returns:
        Their numbers: those of words that are neither in the question nor common; where there are none, of words that
        are not in the question; where there are none either, all.
    """
    asked = set(words_of(question))
    fresh = [found for found in _SPELT.finditer(text, spelled[0][0]) if not set(words_of(found[0])) <= asked]
    for some in ([found for found in fresh if found[0].lower() not in COMMON], fresh):
        spans = [found.span() for found in some]
        chosen = [
            i for i, (first, last) in enumerate(spelled) if any(first < end and start < last for start, end in spans)
        ]
        if chosen:
            return chosen
    return list(range(len(spelled)))
