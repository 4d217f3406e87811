"""Divergence from a target: equal to the naive sum, from one pass over an unlearned model and from two models."""

import pytest
import torch

from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.errors import ULDError
from uld.evaluation.benchmark import Subject
from uld.evaluation.divergence import divergences

ROWS = [Record.qa("who is it?", "it is the cat."), Record.qa("who?", "the dog sat by the door."), Record.qa("a?", "b")]


@pytest.fixture(scope="module")
def rows(letters):
    form = PromptFormat(letters)
    return [form.encode(record, 128) for record in ROWS]


@torch.no_grad()
def naive(target, model, rows, size=None) -> list[float]:
    """``Σ p (log p − log q)`` at the places before learnt tokens."""
    found = []
    for row in rows:
        ids = torch.tensor([row.ids])
        p, q = (one(ids).logits[0, :-1, :size].double().log_softmax(-1) for one in (target, model))
        found.append(((p.exp() * (p - q)).sum(-1) * torch.tensor(row.learn[1:])).sum().item())
    return found


def measured(model, target, letters, rows) -> list[float]:
    task = divergences(Subject(model, letters), Subject(target, letters), rows, "kl")
    return [row["kl"] for row in task.work(list(rows))]


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_of_an_unlearned_model_and_its_own_target(make_target, make_unlearned, letters, rows, weight):
    target = make_target("llama")
    model = make_unlearned(target, 2)
    model.combination = model.combination.override(weight=weight)
    found = measured(model, target, letters, rows)
    assert found == pytest.approx(naive(target, model, rows), rel=1e-3, abs=1e-5)
    assert (max(found) < 1e-5) == (weight == 0)


def test_of_two_models_and_only_of_the_tokens_that_both_have(make_target, letters, rows):
    target, model = make_target("llama"), make_target("llama", seed=1, vocab_size=40)
    found = measured(model, target, letters, rows)
    assert found == pytest.approx(naive(target, model, rows, size=34), rel=1e-3)
    assert measured(target, target, letters, rows) == pytest.approx([0, 0, 0], abs=1e-5)


def test_a_broken_model_is_refused_and_not_taken_for_the_same(make_target, letters, rows):
    target, model = make_target("llama"), make_target("llama", seed=1)
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(ULDError, match="gives NaN"):
        measured(model, target, letters, rows)
