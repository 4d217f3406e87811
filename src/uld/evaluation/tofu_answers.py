"""More answers to forget questions, and what other models say of those that a model gave.

Rows are kept in the folder of the evaluation as they finish, in files whose names say what decided them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.errors import ULDError, explained
from uld.evaluation.resume import complete
from uld.evaluation.scoring import Scorer, refuse_nan
from uld.evaluation.task_log import TofuLog
from uld.evaluation.tofu_log import FILE_NAME, write_log
from uld.model.generate import generate_answers, length_batches
from uld.runs.manifest import fingerprint

_AT_ONCE = 64  # answers that are sampled, or classified, at a time
SAMPLING: dict[str, Any] = {
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
}
"""The model's own distribution, whatever its generation config asks for."""


def sample_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    form: PromptFormat,
    questions: Sequence[str],
    folder: Path,
    count: int,
    seed: int,
    *,
    max_new_tokens: int,
    progress: bool = True,
) -> list[list[str]]:
    """Answers sampled at temperature 1, or go on where that was stopped.

    Args:
        model: Any causal LM.
        tokenizer: Its tokenizer.
        form: How it is asked.
        questions: In order.
        folder: Of the evaluation.
        count: Answers to each question.
        seed: Decides them, with the place of the question.
        max_new_tokens: Most tokens of an answer.
        progress: Show a progress bar.

    Returns:
        ``count`` texts a question.
    """
    size = max(1, _AT_ONCE // count)
    batches = [list(range(i, min(i + size, len(questions)))) for i in range(0, len(questions), size)]

    def work(batch: list[int]) -> list[dict[str, Any]]:
        prompts = [ids for i in batch for ids in [form.prompt_ids(questions[i])] * count]
        texts: list[str] = []
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(int(hashlib.sha256(f"{seed} {batch[0]}".encode()).hexdigest()[:12], 16))
            for start in range(0, len(prompts), _AT_ONCE):
                part = prompts[start : start + _AT_ONCE]
                texts += generate_answers(model, tokenizer, part, max_new_tokens=max_new_tokens, **SAMPLING)
        return [{"samples": texts[i * count : (i + 1) * count]} for i in range(len(batch))]

    name = f"samples-{count}-seed{seed}"
    done = complete(folder, name, batches, work, device=model.device.type, progress=progress)
    return [row["samples"] for row in done]


def judge(
    log: TofuLog,
    questions: Sequence[str],
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None = None,
    *,
    progress: bool = True,
) -> TofuLog:
    """Have another model say how likely each answer to a forget question is.

    Args:
        log: With generated answers.
        questions: Of its forget rows.
        folder: Of the evaluation.
        model: The judge, any causal LM.
        tokenizer: Its tokenizer.
        template: Its prompt template; None takes the tokenizer's chat template.
        progress: Show a progress bar.

    Returns:
        The log with `judged_loss` and `judged_tokens`; as it is, if it has no answers.
    """
    answers = _answers(log)
    if answers is None:
        return log
    form, scorer = PromptFormat(tokenizer, template), Scorer.of(model, tokenizer)
    rows = {
        i: form.encode(Record.qa(question, text, f"answer {i}"), max_length=2**31)
        for i, (question, text) in enumerate(zip(questions, answers, strict=True))
        if text.strip()
    }
    lengths = [len(rows[i].ids) if i in rows else 0 for i in range(len(answers))]

    def work(batch: list[int]) -> list[dict[str, Any]]:
        there = [i for i in batch if i in rows]
        scores = dict(zip(there, scorer.score([rows[i] for i in there])[0], strict=True)) if there else {}
        refuse_nan(model, (score.loss for score in scores.values()))
        return [
            {"judged_loss": scores[i].loss, "judged_tokens": scores[i].tokens}
            if i in scores
            else {"judged_loss": 0.0, "judged_tokens": 0}
            for i in batch
        ]

    name = f"judged-{_digest(fingerprint(model.named_parameters()), form.template, answers)}"
    done = complete(folder, name, list(length_batches(lengths)), work, device=model.device.type, progress=progress)
    return _with(log, folder, done, "judged_loss", "judged_tokens")


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

        with explained(f"--fluency-model: {place} cannot be loaded as a text classifier"):
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
        """How sure it is of the label, for each text, in [0, 1]."""
        if self.tokenizer.pad_token_id is None:
            return [one for text in texts for one in self._probabilities([text])]
        return self._probabilities(texts)

    def _probabilities(self, texts: Sequence[str]) -> list[float]:
        longest = min(512, getattr(self.model.config, "max_position_embeddings", 512))
        inputs = self.tokenizer(
            list(texts), return_tensors="pt", padding=len(texts) > 1, truncation=True, max_length=longest
        )
        logits = self.model(**inputs.to(self.model.device)).logits
        return logits.float().softmax(-1)[:, self.label].tolist()


def classify(log: TofuLog, folder: Path, classifier: Classifier, *, progress: bool = True) -> TofuLog:
    """Have a classifier say which answers to forget questions are no gibberish.

    Args:
        log: With generated answers.
        folder: Of the evaluation.
        classifier: Which one.
        progress: Show a progress bar.

    Returns:
        The log with `clean`; as it is, if it has no answers.
    """
    answers = _answers(log)
    if answers is None:
        return log

    def work(batch: list[int]) -> list[dict[str, Any]]:
        return [{"clean": value} for value in classifier([answers[i] for i in batch])]

    batches = [list(range(i, min(i + _AT_ONCE, len(answers)))) for i in range(0, len(answers), _AT_ONCE)]
    name = f"clean-{_digest(fingerprint(classifier.model.named_parameters()), classifier.label, answers)}"
    done = complete(folder, name, batches, work, device=str(classifier.model.device.type), progress=progress)
    return _with(log, folder, done, "clean")


def _answers(log: TofuLog) -> list[str] | None:
    forget = log.get("forget")
    return None if forget is None or forget.generated is None else [text for _, text, _ in forget.generated]


def _with(log: TofuLog, folder: Path, done: list[dict[str, Any]], *columns: str) -> TofuLog:
    """A log with more columns of the forget task, also written in place of that without them."""
    found: dict[str, Any] = {name: [row[name] for row in done] for name in columns}
    log = replace(log, tasks={**log.tasks, "forget": replace(log["forget"], **found)})
    if PartialState().is_main_process:
        write_log(log, folder / FILE_NAME)
    return log


def _digest(*parts: Any) -> str:
    """Eight digits of what decides some rows."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]
