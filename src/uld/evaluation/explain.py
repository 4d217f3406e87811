"""What unlearning took from an answer: every token before and after, and what was likeliest in its place.

Logits of target and assistants do not depend on how they are combined. So those of an answer are computed once, in the
pass that scoring makes, and kept (`Kept`): every setting is arithmetic on them, without a model.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld.data.prompt import Encoded, PromptFormat
from uld.data.record import Record, text_of
from uld.errors import ULDError
from uld.evaluation.scoring import Scorer, refuse_nan
from uld.model.combine import Combination, combine_all
from uld.model.context import context_length, refuse_long_prompt
from uld.model.generate import generate_ids
from uld.model.unlearned import ULDForCausalLM
from uld.runs.values import Count, given

Who = Literal["target", "unlearned", "given"]
LIKELIEST = 5
"""Tokens that are shown for each place of an answer."""
_WHOLE = 2**31
_CONTEXT = 8  # tokens before one that may decide how it is spelled: no character has more bytes


@dataclass(frozen=True, slots=True)
class Likely:
    """A token that may stand in a place.

    Attributes:
        text: As it would stand in the answer; its name where it adds no text.
        log_prob: Nats, ≤ 0.
    """

    text: str
    log_prob: float


@dataclass(frozen=True, slots=True)
class ExplainedToken:
    """One token of an answer.

    Attributes:
        text: What it adds to the answer; its name where that is nothing, as for the end of the sequence.
        before: Its log-probability under the target, given the tokens before it, nats.
        after: The same under the unlearned model.
        likeliest_before: The likeliest tokens in its place under the target, likeliest first.
        likeliest_after: The same under the unlearned model.
    """

    text: str
    before: float
    after: float
    likeliest_before: tuple[Likely, ...]
    likeliest_after: tuple[Likely, ...]

    @property
    def taken(self) -> float:
        """How much was taken from it, nats: ``before − after``; negative where it is likelier now."""
        return 0.0 if self.before == self.after else self.before - self.after


@dataclass(frozen=True, slots=True)
class ExplainedAnswer:
    """An answer, token by token.

    Attributes:
        who: Who gave it: the target, the unlearned model, or the user.
        text: Without special tokens.
        tokens: At least one, end of sequence included where there is one.
    """

    who: Who
    text: str
    tokens: tuple[ExplainedToken, ...]

    @property
    def taken(self) -> float:
        """How much was taken from the whole answer, nats."""
        return sum(token.taken for token in self.tokens)


@dataclass(frozen=True, slots=True)
class Explanation:
    """A question, what was answered, and what unlearning took from it.

    Attributes:
        question: What was asked.
        settings: How each assistant is combined with the target.
        answers: The target's and the unlearned model's; or the given one alone.
    """

    question: str
    settings: tuple[Combination, ...]
    answers: tuple[ExplainedAnswer, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it, with ``taken`` beside each token and answer."""
        answers = []
        for answer in self.answers:
            tokens = [{"taken": token.taken, **asdict(token)} for token in answer.tokens]
            answers.append({"who": answer.who, "text": answer.text, "taken": answer.taken, "tokens": tokens})
        return {"question": self.question, "settings": [how.to_dict() for how in self.settings], "answers": answers}


class Kept:
    """Answers to a question, and the logits of target and assistants at each of their tokens.

    Attributes:
        question: What was asked.
        logits: For each answer ``(1 + assistants, tokens, vocab)``, the target's first.
    """

    def __init__(
        self,
        model: ULDForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        question: str,
        answers: Sequence[tuple[Who, str, Encoded]],
    ) -> None:
        """Read the answers in one pass.

        Args:
            model: An unlearned model.
            tokenizer: Its tokenizer.
            question: What was asked.
            answers: Who gave each, its text, and its tokens behind those of the prompt.

        Raises:
            ULDError: an answer is longer than the model can read, or the model gives no numbers.
        """
        self.question = question
        self._tokenizer: Any = tokenizer
        self._answers = list(answers)
        rows = [row for _, _, row in answers]
        models = 1 + len(model.assistants)
        kept: dict[int, Tensor] = {}
        for number, values in Scorer.of(model, tokenizer).measure(rows, _as_they_are):
            for row in number.unique().tolist():
                kept[row] = values[:, number == row].T.unflatten(1, (models, -1)).transpose(0, 1)
        self.logits = [kept[row] for row in range(len(rows))]
        refuse_nan(model, [float(one.sum()) for one in self.logits if one.isnan().any()])

    def under(self, settings: Sequence[Combination]) -> Explanation:
        """The answers under a setting, from the logits that are kept.

        Args:
            settings: One for each assistant.
        """
        explained = []
        for (who, text, row), (target, *assistants) in zip(self._answers, self.logits, strict=True):
            before = target.float().log_softmax(-1)
            after = combine_all(target, assistants, settings).float().log_softmax(-1)
            explained.append(ExplainedAnswer(who, text, self._tokens(row, before, after)))
        return Explanation(self.question, tuple(settings), tuple(explained))

    def _tokens(self, row: Encoded, before: Tensor, after: Tensor) -> tuple[ExplainedToken, ...]:
        """Tokens of one answer from log-probabilities ``(tokens, vocab)``."""
        places = [place for place, learnt in enumerate(row.learn) if learnt and place]
        tops = [one.topk(min(LIKELIEST, one.shape[-1])) for one in (before, after)]
        found = []
        for at, place in enumerate(places):
            context, token = row.ids[:place], row.ids[place]
            likeliest_before, likeliest_after = (
                tuple(
                    Likely(_spelled(self._tokenizer, context, other), value)
                    for value, other in zip(top.values[at].tolist(), top.indices[at].tolist(), strict=True)
                )
                for top in tops
            )
            text, p, q = _spelled(self._tokenizer, context, token), float(before[at, token]), float(after[at, token])
            found.append(ExplainedToken(text, p, q, likeliest_before, likeliest_after))
        return tuple(found)


def explain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    answer: str | None = None,
    *,
    template: str | None = None,
    max_new_tokens: int = 200,
) -> Explanation:
    """What unlearning takes from the answers to a question, token by token.

    Args:
        model: An unlearned model, from `uld.load`.
        tokenizer: Its tokenizer.
        question: What to ask.
        answer: An answer to explain; None explains the greedy answers of the target and of the unlearned model.
        template: Prompt template, by name or inline; None takes the run's, else the chat template.
        max_new_tokens: Most tokens of an answer that a model gives; fewer where its context has no room for them.

    Returns:
        The answers with every token before and after, under the settings in force.

    Raises:
        ULDError: an ordinary model, an empty question or answer, one that is longer than the model's context, or a
            number of tokens below 1.
    """
    max_new_tokens = given("max_new_tokens", max_new_tokens, Count)
    unlearned = refuse_ordinary(model)
    form = PromptFormat(tokenizer, template)
    return ask(unlearned, form, question, answer, max_new_tokens=max_new_tokens).under(unlearned.combinations)


def ask(
    model: ULDForCausalLM, form: PromptFormat, question: str, answer: str | None = None, *, max_new_tokens: int
) -> Kept:
    """Have a question answered, or take an answer to it, and keep the logits: see `explain`.

    Raises:
        ULDError: see `explain`.
    """
    prompt = prompt_of(model, form, question)
    if answer is not None:
        record = Record.qa(question, text_of(answer, "answer", "explain"), "explain")
        return Kept(model, form.tokenizer, question, [("given", answer, form.encode(record, _WHOLE))])
    room = max(1, min(max_new_tokens, context_length(model) - len(prompt)))
    said: dict[Who, Any] = {"target": model.target, "unlearned": model}
    return keep(
        model,
        form,
        question,
        {
            who: generate_ids(one, form.tokenizer, [prompt], max_new_tokens=room)[0].tolist()
            for who, one in said.items()
        },
    )


def keep(model: ULDForCausalLM, form: PromptFormat, question: str, said: dict[Who, list[int]]) -> Kept:
    """Keep the logits of answers that are there as tokens.

    Args:
        model: An unlearned model.
        form: Its prompt format.
        question: What was asked.
        said: Token ids of each answer, at least one.
    """
    prompt = form.prompt_ids(question)
    answers: list[tuple[Who, str, Encoded]] = [
        (
            who,
            form.tokenizer.decode(ids, skip_special_tokens=True).strip(),
            Encoded([*prompt, *ids], [False] * len(prompt) + [True] * len(ids)),
        )
        for who, ids in said.items()
    ]
    return Kept(model, form.tokenizer, question, answers)


def prompt_of(model: PreTrainedModel, form: PromptFormat, question: str) -> list[int]:
    """Tokens of a question, ready for generation.

    Raises:
        ULDError: it is empty, no text, or longer than the model's context.
    """
    ids = form.prompt_ids(text_of(question, "question", "explain"))
    refuse_long_prompt(model, ids)
    return ids


def refuse_ordinary(model: Any) -> ULDForCausalLM:
    """The model, if it is an unlearned one.

    Raises:
        ULDError: it has no assistant.
    """
    if isinstance(model, str | Path):
        raise ULDError(f"{model} is the place of a model: load it first (model, tokenizer = uld.load({str(model)!r}))")
    if not isinstance(model, ULDForCausalLM):
        raise ULDError(
            f"{getattr(model, 'name_or_path', model)} has no assistant, so there is nothing that it takes away: name "
            "the folder of a run that has one"
        )
    return model


def _as_they_are(logits: Sequence[Tensor], labels: Tensor, marks: Tensor) -> Tensor:
    """Logits of all models at each position, one above the other: a `uld.evaluation.scoring.Measure`."""
    return torch.cat([one.T for one in logits])


def _spelled(tokenizer: Any, before: Sequence[int], token: int) -> str:
    """What a token adds to the text before it; its name where that is nothing."""
    context = list(before[-_CONTEXT:])
    how = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    old, new = (tokenizer.decode(ids, **how) for ids in (context, [*context, token]))
    old = old.rstrip("\ufffd")  # a character of several tokens belongs to the last of them
    text = new[len(old) :] if new.startswith(old) else ""
    return text or str(tokenizer.convert_ids_to_tokens(token))
