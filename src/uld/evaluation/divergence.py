"""How far a model's distribution is from another's, token by token of given answers."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from uld.data.prompt import Encoded
from uld.evaluation.benchmark import Row, Subject, Task, by_length
from uld.evaluation.scoring import Scorer, refuse_nan
from uld.model.combine import combine_all
from uld.model.unlearned import ULDForCausalLM

_VALUES = 2**26  # log-probabilities of two models that are held at a time


def divergences(subject: Subject, reference: Subject, rows: Sequence[Encoded], name: str) -> Task[Encoded]:
    """``KL(reference ‖ model)`` at each learnt token, summed over a row.

    Where the reference is the target inside of an unlearned model, one pass over that model gives both.

    Args:
        subject: The model.
        reference: Of the same tokenizer.
        rows: Encoded prompts with answers.
        name: Of the task.

    Returns:
        A task with ``kl``, nats, and ``tokens``.
    """

    def work(batch: list[Encoded]) -> list[Row]:
        model = subject.model
        if isinstance(model, ULDForCausalLM) and model.target is reference.model:
            found = _within(subject.scorer, batch)
        else:
            found = _between(subject.scorer, reference.scorer, batch)
        refuse_nan(model, found)  # max would make a zero of it: no distance at all
        return [{"kl": max(0.0, kl), "tokens": sum(row.learn[1:])} for kl, row in zip(found, batch, strict=True)]

    vocabulary = int(subject.model.config.get_text_config().vocab_size)
    batches = by_length([len(row.ids) for row in rows], max(1, _VALUES // vocabulary))
    return Task(name, rows, work, batches)


def _within(scorer: Scorer, rows: Sequence[Encoded]) -> list[float]:
    """Of an unlearned model and its own target."""
    settings = scorer.settings[0]

    def piece(logits: Sequence[Tensor], labels: Tensor, _: Tensor) -> Tensor:
        target, *assistants = logits
        return _kl(_log_probs(target), _log_probs(combine_all(target, assistants, settings)))[None]

    sums = torch.zeros(len(rows), dtype=torch.float64)
    for number, values in scorer.measure(rows, piece):
        sums.index_add_(0, number, values[0].double())
    return sums.tolist()


def _between(scorer: Scorer, reference: Scorer, rows: Sequence[Encoded]) -> list[float]:
    """Of two models that are both loaded; of embeddings that were padded differently the common part counts."""
    size = min(int(one.model.config.get_text_config().vocab_size) for one in (scorer, reference))
    ours, theirs = (dict(_distributions(one, rows, size)) for one in (scorer, reference))
    return [float(_kl(theirs[i], ours[i]).double().sum()) for i in range(len(rows))]


def _distributions(scorer: Scorer, rows: Sequence[Encoded], size: int) -> Iterator[tuple[int, Tensor]]:
    """Log-probabilities ``(tokens, size)`` at the learnt tokens of each row."""
    settings: Any = scorer.settings[0]

    def piece(logits: Sequence[Tensor], labels: Tensor, _: Tensor) -> Tensor:
        target, *assistants = logits
        whole = combine_all(target, assistants, settings) if assistants else target
        return _log_probs(whole[:, :size]).T

    for number, values in scorer.measure(rows, piece):
        for row in number.unique().tolist():
            yield row, values[:, number == row].T


def _log_probs(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1)


def _kl(one: Tensor, other: Tensor) -> Tensor:
    """``KL(one ‖ other)`` of log-probabilities ``(positions, vocab)``, nats; a token that has none adds nothing."""
    probabilities = one.exp()
    gap = torch.where(probabilities > 0, one - other, 0.0)
    return (probabilities * gap).sum(-1)
