"""Layers below the first that is trained: computed once a row, and what comes of them is what the model computes."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from families import RESULTS  # noqa: E402
from family_models import CORE, FAMILIES, tiny  # noqa: E402

import uld.training.lower  # noqa: E402
from uld.model.assistant import (  # noqa: E402
    add_lora,
    base_model,
    build_assistant,
    decoder_layers,
    text_decoder,
)
from uld.training.learners import Learner  # noqa: E402
from uld.training.lower import LowerStates, first_trained  # noqa: E402

REFUSED = {one["family"] for one in json.loads(RESULTS.read_text())["families"] if one["refused"]}
WHOLE = ("bamba", "gemma3n")
"""Families whose layers take more than the states of the one below."""


def learner_of(model, last=2):
    made = Learner(add_lora(model, rank=4, alpha=8, last=last))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return made


def padded(rows):
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return ids, (torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]).long()


def rows_of(count=6):
    torch.manual_seed(0)
    return [torch.randint(3, 38, (length,)).tolist() for length in range(9, 9 + count)]


def check_family(family):
    if family in REFUSED:
        pytest.skip("refused before any training")
    learner = learner_of(build_assistant(tiny(family), 4)).eval()
    rows = rows_of()
    plain = learner.states(*padded(rows[:4])).hidden[0].unflatten(0, (4, -1))
    learner.keep_lower(rows[1:])  # the first is one that it has not been told of
    assert (learner._lower is None) == (family in WHOLE)
    for _ in range(2):
        ids, mask = padded(rows[:4])
        found = learner.states(ids, mask).hidden[0].unflatten(0, (4, -1))
        torch.testing.assert_close(found[mask.bool()], plain[mask.bool()], rtol=1e-4, atol=1e-4)
    again = learner.frozen_states(*padded(rows[:4])).hidden[0]  # the whole model still is what it was
    assert torch.isfinite(again).all() and again.shape == plain.flatten(0, 1).shape


@pytest.mark.parametrize("family", (*CORE, *WHOLE))
def test_states_are_those_of_the_whole_pass(family):
    check_family(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_the_whole_pass_in_every_family(family):
    check_family(family)


def test_gradients_are_those_of_the_whole_pass():
    learner, rows = learner_of(build_assistant(tiny("llama"), 4)).double(), rows_of(4)
    found: list[dict] = []
    for keep in (False, True):
        if keep:
            learner.keep_lower(rows)
        learner.zero_grad()
        ids, mask = padded(rows)
        (learner.states(ids, mask).hidden[0] * mask.flatten()[:, None]).square().sum().backward()
        found.append({name: one.grad.clone() for name, one in learner.named_parameters() if one.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) == 2 * 7 * 2
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-8, atol=1e-12)


def checkpointed_with_hooks(layer, *args, **kwargs):
    """A layer as transformers up to 5.22 computes it anew in the backward pass: with its hooks."""
    if not (layer.gradient_checkpointing and layer.training):
        return nn.Module.__call__(layer, *args, **kwargs)
    return layer._gradient_checkpointing_func(partial(nn.Module.__call__, layer, **kwargs), *args)


@pytest.mark.parametrize("with_hooks", [True, False])
def test_gradients_are_those_of_the_whole_pass_where_it_is_computed_anew(monkeypatch, with_hooks):
    if with_hooks:
        monkeypatch.setattr(GradientCheckpointingLayer, "__call__", checkpointed_with_hooks)
    model = build_assistant(tiny("llama"), 4)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    learner, rows = learner_of(model).double().train(), rows_of(4)
    ids, mask = padded(rows)
    found: list[dict] = []
    for keep in (False, True):
        if keep:
            learner.keep_lower(rows)
            assert learner._lower is not None
        learner.zero_grad()
        (learner.states(ids, mask).hidden[0] * mask.flatten()[:, None]).square().sum().backward()
        found.append({name: one.grad.clone() for name, one in learner.named_parameters() if one.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) == 2 * 7 * 2
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-8, atol=1e-12)


def test_a_row_goes_through_the_lower_layers_once():
    model = build_assistant(tiny("llama"), 4)
    learner, rows = learner_of(model), rows_of(6)
    learner.keep_lower(rows)
    passes = []
    decoder_layers(base_model(learner.model))[1][0].mlp.register_forward_hook(
        lambda *given: passes.append(len(given[2]))
    )
    for some in (rows[:3], rows[3:], rows[:3], rows):
        learner.states(*padded(some))
    assert passes == [6]  # one group holds them all


def test_what_is_kept_knows_no_dropout():
    learner, rows = learner_of(build_assistant(tiny("gpt2"), 4)), rows_of(4)
    layer = decoder_layers(base_model(learner.model))[1][2]
    seen = []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    learner.eval().states(*padded(rows))
    hook.remove()
    learner.train().keep_lower(rows)
    with learner._lower.given(*padded(rows)):
        pass
    assert learner.model.training and learner._lower is not None
    for row, states in zip(rows, seen[0], strict=True):
        torch.testing.assert_close(learner._lower._kept[tuple(row)], states[: len(row)], rtol=1e-4, atol=1e-5)


def test_rows_of_one_length_are_computed_together():
    learner, rows = learner_of(build_assistant(tiny("llama"), 4)), rows_of(32)
    rows = [row[:9] if place % 2 else (row * 3)[:40] for place, row in enumerate(rows)]
    learner.keep_lower(rows)
    shapes = []
    layer = decoder_layers(base_model(learner.model))[1][0]
    layer.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape[:2])))
    learner._lower._of([tuple(row) for row in rows])
    assert shapes == [(8, 16)] * 2 + [(8, 48)] * 2


def test_a_batch_of_padding_alone_goes_through():
    learner = learner_of(build_assistant(tiny("llama"), 4))
    learner.keep_lower(rows_of())
    states = learner.states(torch.zeros(1, 16, dtype=torch.long), torch.zeros(1, 16, dtype=torch.long))
    assert states.hidden[0].shape == (16, 32)


@pytest.mark.parametrize("last, first", [(2, 2), (4, 0), (1, 3)])
def test_the_first_layer_with_something_to_train(last, first):
    assert first_trained(base_model(learner_of(build_assistant(tiny("llama"), 4), last).model)) == first


def test_nothing_is_kept_where_all_is_trained_or_memory_is_short(monkeypatch):
    whole = build_assistant(tiny("llama"), 4)
    assert first_trained(whole) == 0 and LowerStates.worth_keeping(whole, rows_of()) is None
    some = base_model(learner_of(build_assistant(tiny("llama"), 4)).model)
    assert LowerStates.worth_keeping(some, []) is None
    size = sum(map(len, rows_of())) * 32 * 4
    monkeypatch.setattr(uld.training.lower, "LIMIT", size - 1)
    assert LowerStates.worth_keeping(some, rows_of()) is None
    monkeypatch.setattr(uld.training.lower, "LIMIT", size)
    assert LowerStates.worth_keeping(some, rows_of()) is not None


def test_embeddings_that_are_trained_are_below_every_layer():
    model = base_model(learner_of(build_assistant(tiny("llama"), 4)).model)
    text_decoder(model).get_input_embeddings().requires_grad_(True)
    assert first_trained(model) == 0
