"""More answers to forget questions, and what a classifier says of those that a model gave: tasks of their own.

The names of their files say what decided the rows.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from uld.errors import ULDError, explained
from uld.evaluation.benchmark import Row, Subject, Task, in_order
from uld.evaluation.judged import few_digits
from uld.model.checkpoint import quiet_transformers
from uld.model.generate import SAMPLING, generate_answers
from uld.runs.manifest import fingerprint

_AT_ONCE = 64  # answers that are sampled, or classified, at a time


def sampled(subject: Subject, questions: Sequence[str], count: int, seed: int, max_new_tokens: int) -> Task[Any]:
    """Answers sampled at temperature 1.

    Args:
        subject: The model.
        questions: In order.
        count: Answers to each question.
        seed: Decides them, with the place of the question.
        max_new_tokens: Most tokens of an answer.

    Returns:
        A task with ``samples``, ``count`` texts a question.
    """

    def work(batch: list[tuple[int, str]]) -> list[Row]:
        prompts = [ids for _, question in batch for ids in [subject.form.prompt_ids(question)] * count]
        texts: list[str] = []
        with torch.random.fork_rng(devices=[subject.model.device] if subject.model.device.type == "cuda" else []):
            torch.manual_seed(int(hashlib.sha256(f"{seed} {batch[0][0]}".encode()).hexdigest()[:12], 16))
            for start in range(0, len(prompts), _AT_ONCE):
                part = prompts[start : start + _AT_ONCE]
                how = {"max_new_tokens": max_new_tokens, **SAMPLING}
                texts += generate_answers(subject.model, subject.tokenizer, part, **how)
        return [{"samples": texts[i * count : (i + 1) * count]} for i in range(len(batch))]

    batches = in_order(len(questions), max(1, _AT_ONCE // count))
    return Task("samples", list(enumerate(questions)), work, batches, file=f"samples-{count}-seed{seed}")


class Classifier:
    """A text classifier of transformers, and the label that counts."""

    def __init__(self, place: str, label: str, device: str = "cpu") -> None:
        """Load it.

        Args:
            place: Folder or Hub id.
            label: What it calls a text that is fine, in any case.
            device: Where it runs.

        Raises:
            ULDError: it is no classifier of texts, or does not know the label.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        with explained(f"--fluency-model: {place} cannot be loaded as a text classifier"), quiet_transformers():
            self.tokenizer: Any = AutoTokenizer.from_pretrained(place)
            loaded = AutoModelForSequenceClassification.from_pretrained(place, output_loading_info=True)
        self.model: Any = loaded[0].to(device).eval()
        if missing := sorted(loaded[1]["missing_keys"]):  # else its head would be random
            raise ULDError(f"--fluency-model: {place} is no text classifier: it lacks {missing[0]}")
        names = {str(name).casefold(): int(i) for i, name in self.model.config.id2label.items()}
        if label.casefold() not in names:
            known = ", ".join(str(name) for name in self.model.config.id2label.values())
            raise ULDError(
                f"--fluency-model: {place} has no label {label!r} but {known}: name one with --fluency-label"
            )
        self.label = names[label.casefold()]

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> list[float]:
        """How sure it is of the label, for each text, in [0, 1]; 0 for one that has no token."""
        read = {text: 0.0 for text in texts if self.tokenizer(text).input_ids}
        batches = [[text] for text in read] if self.tokenizer.pad_token_id is None else [list(read)] * bool(read)
        for batch in batches:
            read |= zip(batch, self._probabilities(batch), strict=True)
        return [read.get(text, 0.0) for text in texts]

    def _probabilities(self, texts: Sequence[str]) -> list[float]:
        longest = min(512, getattr(self.model.config, "max_position_embeddings", 512))
        inputs = self.tokenizer(
            list(texts), return_tensors="pt", padding=len(texts) > 1, truncation=True, max_length=longest
        )
        logits = self.model(**inputs.to(self.model.device)).logits
        return logits.float().softmax(-1)[:, self.label].tolist()


def classified(classifier: Classifier, answers: Sequence[str]) -> Task[str]:
    """Which answers are no gibberish.

    Args:
        classifier: Which one.
        answers: Texts.

    Returns:
        A task with ``clean``, in [0, 1].
    """

    def work(batch: list[str]) -> list[Row]:
        return [{"clean": value} for value in classifier(batch)]

    name = f"clean-{few_digits(fingerprint(classifier.model.named_parameters()), classifier.label, list(answers))}"
    return Task("clean", answers, work, in_order(len(answers), _AT_ONCE), file=name)
