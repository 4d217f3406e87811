"""Continuous batching over an unlearned model: what comes through the paged cache is what `generate` writes."""

import copy
import dataclasses
import pickle

import pytest
import torch

pytest.importorskip("transformers", minversion="5.23", reason="continuous batching is another before transformers 5.23")

from transformers import ContinuousBatchingConfig, GenerationConfig

from uld.errors import ULDError
from uld.model import paged
from uld.model.combine import Combination

SMALL = ContinuousBatchingConfig(
    page_size=8, num_blocks=48, max_batch_tokens=24, max_requests_per_batch=6, auto_switch_to_flash=False
)
"""Pages of 8 tokens and batches of 24, so that prompts are read in parts and begin on shared pages."""
GREEDY = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
LENGTHS = (30, 3, 17, 26, 1, 9)


def prompts() -> list[list[int]]:
    """Prompts of mixed lengths; every other one begins as the first does."""
    numbers = torch.Generator().manual_seed(1)
    found = [torch.randint(3, 34, (length,), generator=numbers).tolist() for length in LENGTHS]
    return [found[0][: len(one) // 2] + one[len(one) // 2 :] if i % 2 else one for i, one in enumerate(found)]


def one_by_one(model) -> list[list[int]]:
    """What `generate` writes behind each prompt."""
    out = [model.generate(torch.tensor([ids]), generation_config=GREEDY)[0, len(ids) :] for ids in prompts()]
    return [one.tolist() for one in out]


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("fused", [True, False], ids=["one pass", "separate passes"])
@pytest.mark.parametrize(("depth", "last"), [(2, None), (5, 2)], ids=["first layers", "last layers"])
def test_batches_are_what_generate_writes(make_target, make_unlearned, name, fused, depth, last):
    how = Combination(weight=2.0, margin=0.5, floor=0.01)
    model = make_unlearned(make_target(name), depth, how, fused=fused, last=last)
    found = model.generate_batch(prompts(), generation_config=GREEDY, continuous_batching_config=SMALL)
    assert [one.generated_tokens for one in found.values()] == one_by_one(model)
    assert (model.one_pass is not None) is fused
    assert model.combination == how  # the trial's own setting is gone


def test_several_assistants_have_pages_of_their_own(make_target, make_unlearned):
    target = make_target("llama")
    one, other = (make_unlearned(target, depth, seed=depth) for depth in (1, 3))
    assistants = [one.assistant, other.assistant]
    model = type(one).join(target, assistants, [Combination(weight=1.0), Combination(weight=0.7)])
    found = model.generate_batch(prompts(), generation_config=GREEDY, continuous_batching_config=SMALL)
    assert [one.generated_tokens for one in found.values()] == one_by_one(model)


def test_pages_that_are_mixed_up_are_noticed_though_the_assistant_is_silent(make_target, make_unlearned, monkeypatch):
    silent = Combination(weight=1.0, margin=50.0)  # nothing is ever lowered, so no text would show it
    model = make_unlearned(make_target("llama"), 2, silent)
    call = paged.PagedModel.__call__

    def mixed(self, **batch):
        self._starts = [0, 0]
        return call(self, **batch)

    monkeypatch.setattr(paged.PagedModel, "__call__", mixed)
    with pytest.raises(ULDError, match=r"LlamaForCausalLM cannot be run with a paged cache here: token \d+ of a trial"):
        model.generate_batch(prompts(), generation_config=GREEDY, continuous_batching_config=SMALL)
    assert model.combination == silent


def test_one_pass_that_differs_gives_way_to_separate_passes(make_target, make_unlearned, monkeypatch):
    model = make_unlearned(make_target("llama"), 2)
    update = paged.PagedRows.update

    def wrong_together(self, key_states, value_states, layer_idx, kwargs):
        keys, values = update(self, key_states, value_states, layer_idx, kwargs)
        return (keys, values.flip(0)) if len(keys) > 1 else (keys, values)

    monkeypatch.setattr(paged.PagedRows, "update", wrong_together)
    found = model.generate_batch(prompts(), generation_config=GREEDY, continuous_batching_config=SMALL)
    assert model.fused is False
    assert [one.generated_tokens for one in found.values()] == one_by_one(model)


def test_a_family_whose_attention_knows_no_pages_is_refused(make_target, make_unlearned):
    model = make_unlearned(make_target("gemma2"), 2)  # its soft-caps are lost on the way
    with pytest.raises(ULDError, match="Gemma2ForCausalLM cannot be run with a paged cache here"):
        model.generate_batch(prompts(), generation_config=GREEDY, continuous_batching_config=SMALL)
    assert len(one_by_one(model)) == len(LENGTHS)  # and generate is as it was


def test_ordinary_models_are_tried_as_well(make_target):
    paged.refuse_differing(make_target("llama"), SMALL)
    with pytest.raises(ULDError, match="Gemma2ForCausalLM cannot be run with a paged cache here"):
        paged.refuse_differing(make_target("gemma2"), SMALL)


def test_the_trial_changes_nothing_of_the_model_nor_of_the_random_numbers(make_target, make_unlearned, monkeypatch):
    how = Combination(weight=2.0, margin=0.5, floor=0.01)
    model = make_unlearned(make_target("llama"), 2, how)
    seen = []
    generated = paged._generated

    def meanwhile(shown, prompt):
        seen.append((shown.combination.rule, model.combination))
        return generated(shown, prompt)

    monkeypatch.setattr(paged, "_generated", meanwhile)
    numbers = torch.get_rng_state()
    model.paged.checked(SMALL)
    assert seen == [("subtract", how)] * 2  # whoever asks the model during the trial is answered as ever
    assert torch.equal(torch.get_rng_state(), numbers)


def test_a_setting_is_tried_once_and_another_anew(make_target, make_unlearned, monkeypatch):
    model = make_unlearned(make_target("llama"), 2)
    tried = []
    monkeypatch.setattr(paged, "_fault", lambda model, config: tried.append(config))
    for changes in ({}, {"seed": 3, "num_blocks": 50}, {"page_size": 16}, {"auto_switch_to_flash": True}):
        model.paged.checked(dataclasses.replace(SMALL, **changes))
    assert [(one.page_size, one.auto_switch_to_flash) for one in tried] == [(8, False), (16, False), (8, True)]


def test_a_manager_that_is_kept_is_not_the_one_that_is_tried(make_target, make_unlearned):
    model = make_unlearned(make_target("llama"), 2)
    how = {"generation_config": GREEDY, "persistent_manager": True}
    model.generate_batch(prompts(), continuous_batching_config=SMALL, **how)
    other = dataclasses.replace(SMALL, page_size=16)
    found = model.generate_batch(prompts(), continuous_batching_config=other, **how)
    model.destroy_cached_continuous_batching_manager()
    assert [one.generated_tokens for one in found.values()] == one_by_one(model)


def test_what_cannot_be_tried_leaves_the_attention_as_it_was(make_target, make_unlearned):
    model = make_unlearned(make_target("llama"), 2)
    model.paged.set_attn_implementation("eager")
    wanted = one_by_one(model)
    with pytest.raises(ULDError, match="page_size"):
        model.generate_batch(
            prompts(), generation_config=GREEDY, continuous_batching_config=dataclasses.replace(SMALL, page_size=2)
        )
    assert model.target.config._attn_implementation == "eager"
    assert one_by_one(model) == wanted


@pytest.mark.parametrize("fused", [True, False], ids=["one pass", "separate passes"])
@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_model_that_has_written_batches_can_be_copied(make_target, make_unlearned, again, fused):
    model = make_unlearned(make_target("llama"), 2, fused=fused)
    how = {"generation_config": GREEDY, "continuous_batching_config": SMALL}
    model.generate_batch(prompts(), **how, persistent_manager=True)  # which holds threads and locks
    other = again(model)
    model.destroy_cached_continuous_batching_manager()
    assert one_by_one(other) == one_by_one(model)
    assert [one.generated_tokens for one in other.generate_batch(prompts(), **how).values()] == one_by_one(model)
