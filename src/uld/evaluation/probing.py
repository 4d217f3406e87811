"""What is measured of an unlearned model on rows that were kept back: losses under many settings, and answers."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from uld.data.passages import passages
from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.data.words import common_words, re_enters, telling
from uld.errors import ULDError
from uld.evaluation.choosing import Point
from uld.evaluation.held_out import Probe
from uld.evaluation.scoring import Scorer
from uld.model.combine import Combination
from uld.model.generate import generate_answers, length_batches
from uld.model.unlearned import ULDForCausalLM
from uld.text.progress import bar

READ, READ_TOKENS = 64, 64
"""Questions at most that ``read`` has answered under a setting, and tokens of an answer."""
_WHOLE = 2**31


def measure(
    model: ULDForCausalLM,
    form: PromptFormat,
    pad_token_id: int,
    probes: Sequence[Probe],
    retain: Sequence[Record],
    settings: Sequence[Combination],
    *,
    max_length: int = 512,
    progress: bool = False,
) -> list[Point]:
    """Both measures under every setting, from one pass over the rows.

    Args:
        model: With one assistant.
        form: Its prompt format.
        pad_token_id: Fills short rows.
        probes: Questions about the forget set.
        retain: Held-out retain records; each counts once, however many chunks a text is cut into.
        settings: Combinations; the target itself (α = 0) is always measured and comes first.
        max_length: Tokens of a text's chunk. Answers are never cut.
        progress: Show a progress bar.

    Raises:
        DataError: a record that the prompt format cannot encode.
    """
    every = [dataclasses.replace(settings[0], weight=0.0), *settings]
    learnt = [probe.learnt for probe in probes if probe.learnt is not None]
    learnt = learnt if len(learnt) == len(probes) else []
    records = [*learnt, *(record for probe in probes for record in (probe.right, *probe.wrong))]
    rows = [form.encode(record, _WHOLE) for record in records]
    pieces = [form.encode_all([record], _WHOLE if record.text is None else max_length)[0] for record in retain]
    rows += [row for one in pieces for row in one]
    points: list[Point] = []
    base = None
    shown = f"{len(every)} settings" if progress else None
    for how, scores in zip(every, Scorer(model, pad_token_id, every).score(rows, shown), strict=True):
        each = iter(scores)
        trained = [next(each).avg_loss for _ in learnt]
        losses = [[next(each).avg_loss for _ in (probe.right, *probe.wrong)] for probe in probes]
        wrong = [statistics.fmean(one[1:]) for one in losses]
        kept = [[next(each) for _ in one] for one in pieces]
        prob = statistics.fmean(math.exp(-sum(s.loss for s in one) / sum(s.tokens for s in one)) for one in kept)
        base = prob if base is None else base
        mean, error = _mean([_ahead(worse, one[0]) for worse, one in zip(wrong, losses, strict=True)])
        own = _mean([_ahead(worse, one) for worse, one in zip(wrong, trained, strict=True)]) if learnt else (None, 0.0)
        points.append(Point(how.weight, how.filter, mean, prob / base, how.margin, how.floor, error, *own))
    return points


def _ahead(wrong: float, right: float) -> float:
    """By how many nats a token a right answer is likelier than wrong ones; of two that cannot be given, by none.

    A filter that masks tokens, or α = inf without a floor, leaves answers that cannot be given: their loss is inf.
    """
    return 0.0 if wrong == right else wrong - right


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error; inf where any right answer is infinitely far ahead, else −inf where any is behind."""
    for end in (math.inf, -math.inf):
        if end in values:
            return end, 0.0
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def surprise(model: ULDForCausalLM, form: PromptFormat, pad_token_id: int, probes: Sequence[Probe]) -> float:
    """How likely the target finds a token that it does not expect, beside the one that it expects most.

    A model that never saw the answer gives the remembered token about the probability that the target gives to what is
    merely plausible; so this is the floor below which forgetting need not go.

    Args:
        model: With one assistant.
        form: Its prompt format.
        pad_token_id: Fills short rows.
        probes: Questions with wrong answers; only these are read.

    Returns:
        Median of ``p(token) / max p`` over the tokens of wrong answers that are not the target's first choice, 0–1.

    Raises:
        ULDError: there are no wrong answers, or the target expects every token of them.
    """
    rows = [form.encode(record, _WHOLE) for probe in probes for record in probe.wrong]
    if not rows:
        raise ULDError("no question has a wrong answer, so there is no floor to be found: name one (--floor)")

    def behind(logits: Sequence[Tensor], labels: Tensor, _: Tensor) -> Tensor:
        return (logits[0].gather(-1, labels[:, None])[:, 0] - logits[0].amax(-1))[None]

    found = [one[0].double() for _, one in Scorer(model.target, pad_token_id).measure(rows, behind)]
    unexpected = torch.cat(found)
    unexpected = unexpected[unexpected < 0]
    if not len(unexpected):
        raise ULDError("the target expects every token of the wrong answers, so they give no floor: name one (--floor)")
    return math.exp(unexpected.median().item())


def read_answers(
    model: ULDForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    form: PromptFormat,
    trained: Sequence[Record],
    retain: Sequence[Record],
    settings: Sequence[Combination],
    *,
    progress: bool = False,
) -> tuple[list[float], int]:
    """Have what was trained answered greedily under one setting after the other, until nothing of it comes back.

    Args:
        model: With one assistant; its combination stays as it is.
        tokenizer: Its tokenizer.
        form: Its prompt format.
        trained: Questions with their answers, and texts, whose passages are asked about. Of those whose answer has key
            words at most `READ` are asked.
        retain: Words that are common in what it says give nothing away.
        settings: Combinations, from the one that takes least away on.
        progress: Show a progress bar.

    Returns:
        Share of answers in which key words come back, 0–1, under each setting up to the first at which it is 0, and how
        many questions were asked. Nothing and 0 where no true answer has a key word.
    """
    common = common_words(text for record in retain for text in record.told)
    asked = []
    for record in trained:
        passage = record.text is not None
        for one in passages(record, as_is=True) if passage else [record]:
            if keys := telling(one.asked, one.answer, common, passage=passage):
                asked.append((form.prompt_ids(one.messages[:-1]) if one.messages else _given(form, one), keys))
    asked = asked[:: -(-len(asked) // READ) or 1]
    if not asked:
        return [], 0
    before, shares = model.combination, []
    with bar(len(settings) * len(asked), "reading answers", "answer", shown=progress) as line:
        try:
            for how in settings:
                model.combination, back = how, 0
                for batch in length_batches([len(prompt) for prompt, _ in asked]):
                    given = [asked[i][0] for i in batch]
                    said = generate_answers(model, tokenizer, given, max_new_tokens=READ_TOKENS)
                    back += sum(re_enters(text, asked[i][1]) for i, text in zip(batch, said, strict=True))
                    line.update(len(batch))
                shares.append(back / len(asked))
                if not back:
                    break
        finally:
            model.combination = before
    return shares, len(asked)


def _given(form: PromptFormat, record: Record) -> list[int]:
    """The tokens before a completion."""
    row = form.encode(record, _WHOLE)
    return row.ids[: row.learn.index(True)]
