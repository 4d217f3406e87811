"""Offset: a small model's change is added to a frozen target, in training and after loading."""

import shutil

import pytest
import torch

import uld
from uld.errors import ULDError
from uld.methods.registry import get_method
from uld.model.assistant import build_assistant
from uld.model.causal_lm import load_target
from uld.training.learners import make_learner


def settings(task, output, **changes):
    given = task.settings(output, method="offset-npo+kl", batch_size=12, learning_rate=0.02)
    return uld.TrainConfig(**given | changes)


@pytest.fixture(scope="module")
def run(task, tmp_path_factory):
    """A run whose small model is the target's first two layers."""
    config = settings(task, tmp_path_factory.mktemp("offset") / "x", epochs=4)
    uld.train(config, progress=False)
    return config.output


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def test_a_weight_of_0_is_the_target_exactly(run, task, inputs):
    expected = logits(load_target(task.target), inputs)
    apart, _ = uld.load(run, weight=0.0, fused=False)
    assert torch.equal(logits(apart, inputs), expected)
    model, _ = uld.load(run, weight=0.0)
    assert model.one_pass is not None
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, model.all_logits(**inputs)[0])
    torch.testing.assert_close(logits(model, inputs), expected, rtol=1e-5, atol=1e-5)  # a batch of another size rounds


@pytest.mark.parametrize("weight", [None, 0.5, 2.0])
def test_logits_are_the_targets_and_the_small_models_change(run, task, inputs, weight):
    model, _ = uld.load(run, weight=weight)
    after, before = model.assistants
    target = load_target(task.target)
    change = logits(after, inputs) - logits(before, inputs)
    assert change.abs().max() > 0.1, "training changed nothing"
    torch.testing.assert_close(logits(before, inputs), logits(build_assistant(target, 2), inputs))
    expected = logits(target, inputs) + (1.0 if weight is None else weight) * change
    torch.testing.assert_close(logits(model, inputs), expected, rtol=1e-5, atol=1e-4)
    apart, _ = uld.load(run, weight=weight, fused=False)
    torch.testing.assert_close(logits(apart, inputs), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_generation_with_a_cache_equals_generation_without(run, inputs, fused):
    model, _ = uld.load(run, fused=fused)
    for how in ({}, {"num_beams": 3}):
        settings = {"max_new_tokens": 8, "do_sample": False, **how}
        cached = model.generate(**inputs, **settings)
        assert torch.equal(cached, model.generate(**inputs, **settings, use_cache=False))
    assert not torch.equal(cached, model.target.generate(**inputs, **settings))


def test_left_padding_equals_single_rows(run, inputs, prompts):
    model, tokenizer = uld.load(run)
    together = logits(model, inputs)[:, -1]
    for row, prompt in enumerate(prompts):
        alone = logits(model, tokenizer(prompt, return_tensors="pt"))[0, -1]
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-4)


def test_a_small_model_of_its_own_trains_and_loads(task, tmp_path, make_target, inputs):
    small = make_target("llama", num_layers=1, seed=3)
    small.save_pretrained(tmp_path / "small")
    config = settings(task, tmp_path / "x", small=str(tmp_path / "small"), num_layers=None, epochs=2)
    uld.train(config, progress=False)
    model, _ = uld.load(config.output)
    after, before = model.assistants
    torch.testing.assert_close(logits(before, inputs), logits(small, inputs))
    change = logits(after, inputs) - logits(before, inputs)
    assert change.abs().max() > 0.01
    torch.testing.assert_close(
        logits(model, inputs), logits(load_target(task.target), inputs) + change, rtol=1e-5, atol=1e-4
    )
    nothing, _ = uld.load(config.output, weight=0.0)
    assert torch.equal(logits(nothing, inputs), logits(load_target(task.target), inputs))
    assert torch.equal(
        model.generate(**inputs, max_new_tokens=6), model.generate(**inputs, max_new_tokens=6, use_cache=False)
    )
    make_target("llama", num_layers=1, seed=4).save_pretrained(tmp_path / "small")
    with pytest.raises(ULDError, match="the run belongs to another small model"):
        uld.load(config.output)


def test_a_small_model_of_another_vocabulary_is_refused(task, tmp_path, make_target):
    make_target("llama", num_layers=1, vocab_size=40).save_pretrained(tmp_path / "small")
    config = settings(task, tmp_path / "x", small=str(tmp_path / "small"), num_layers=None)
    with pytest.raises(
        ULDError, match=r"small has a vocabulary of 40 tokens and the target one of 34.*--small"
    ) as caught:
        uld.train(config, progress=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()


def test_an_offset_run_without_its_small_model_is_one_sentence(task, tmp_path, make_target):
    make_target("llama", num_layers=1).save_pretrained(tmp_path / "small")
    config = settings(task, tmp_path / "x", small=str(tmp_path / "small"), num_layers=None, epochs=1)
    uld.train(config, progress=False)
    shutil.rmtree(tmp_path / "small")
    with pytest.raises(ULDError, match="small"):
        uld.load(config.output)


def test_the_rule_is_not_free_to_choose(run, task, tmp_path):
    with pytest.raises(ULDError, match="--rule suppress does not go with --method"):
        uld.train(settings(task, tmp_path / "x", rule="suppress"), progress=False)
    with pytest.raises(ULDError, match="the rule subtract does not go with it"):
        uld.load(run, rule="subtract")


def test_the_frozen_target_goes_where_the_small_model_goes(task, tmp_path):
    config = settings(task, tmp_path / "x")
    learner = make_learner(config, get_method(config.method), {}, "fp32")
    small, target = learner.base, learner.frozen_models[0]
    shared = small.model.embed_tokens.weight
    assert shared is target.model.embed_tokens.weight
    learner.to("meta")
    assert {one.device.type for model in (small, target) for one in model.parameters()} == {"meta"}
    buffers = [one for model in (small, target) for one in model.buffers()]
    assert buffers and all(one.device.type == "meta" for one in buffers)
