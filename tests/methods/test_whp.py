"""Who's Harry Potter, at inference and fine-tuned in; and what every method does that learns from a run of another."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import uld
from uld.errors import ULDError
from uld.methods.registry import get_method
from uld.model.causal_lm import load_target
from uld.model.combine import Combination, combine
from uld.model.label_losses import label_losses
from uld.model.unlearned import ULDForCausalLM
from uld.runs.manifest import Manifest
from uld.training.learners import make_learner
from uld.training.trainer import UnlearningTrainer

TAUGHT = ("dd-distilled", "whp")
LENGTHS = [5, 2, 4]


def settings(task, output, method, **changes):
    """Five rows a step and two epochs, for the teacher as well."""
    given = task.settings(output, method=method, learning_rate=0.01, batch_size=5) | changes
    if get_method(method).trains == "target":
        given |= {"lora_rank": None, "option": ("teacher_rate=0.02", "teacher_epochs=2", *given.get("option", ()))}
    if method.startswith("whp") and "num_layers" not in changes:
        del given["num_layers"]
    return uld.TrainConfig(**given)


@pytest.fixture(scope="module")
def decode(task, tmp_path_factory):
    """A run of ``whp-decode``."""
    config = settings(task, tmp_path_factory.mktemp("decode") / "x", "whp-decode", learning_rate=0.02)
    uld.train(config, progress=False)
    return config.output


@pytest.fixture(scope="module", params=TAUGHT)
def taught(request, task, tmp_path_factory):
    """A finished run of each method that learns from a run of another."""
    config = settings(task, tmp_path_factory.mktemp(request.param) / "x", request.param)
    uld.train(config, progress=False)
    return config


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


@pytest.mark.parametrize("soft", [0, 1])
def test_the_loss_is_the_papers(make_side, soft):
    draw = torch.Generator().manual_seed(1)
    own, generic = (torch.randn(3, 5, 11, generator=draw) * 2 for _ in range(2))
    expected = 0.0
    for row, length in enumerate(LENGTHS):
        for l, v in zip(own[row, :length].double(), generic[row, :length].double(), strict=True):  # noqa: E741
            wanted = v.softmax(-1) if soft else torch.nn.functional.one_hot(v.argmax(), 11).double()
            expected -= float((wanted * l.log_softmax(-1)).sum())
    side = make_side(own, torch.zeros(3, 5, dtype=torch.long), LENGTHS, frozen=generic)
    assert get_method("whp").forget.value(side, soft=soft).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 1.5, 4.0])
def test_distillation_is_a_forward_divergence_at_a_temperature(make_side, temperature):
    draw = torch.Generator().manual_seed(2)
    own, steered = (torch.randn(3, 5, 11, generator=draw) * 2 for _ in range(2))
    expected = 0.0
    for row, length in enumerate(LENGTHS):
        for l, t in zip(own[row, :length].double(), steered[row, :length].double(), strict=True):  # noqa: E741
            p, q = (t / temperature).softmax(-1), (l / temperature).softmax(-1)
            expected += temperature**2 * float((p * (p / q).log()).sum())
    side = make_side(own, torch.zeros(3, 5, dtype=torch.long), LENGTHS, frozen=steered)
    assert get_method("dd-distilled").forget.value(side, temperature=temperature).item() == pytest.approx(
        expected, rel=1e-5
    )
    same = make_side(own, torch.zeros(3, 5, dtype=torch.long), LENGTHS, frozen=own + 3)
    assert get_method("dd-distilled").forget.value(same).item() == pytest.approx(0, abs=1e-4)


values = st.integers(-255, 255).map(lambda n: n / 8)


@given(st.lists(st.tuples(values, values), min_size=2, max_size=24), st.sampled_from([0.0, 0.5, 5.0]))
def test_generic_predictions_are_the_papers_and_never_lift_a_token(rows, weight):
    target, reinforced = torch.tensor(rows).unbind(1)
    how = Combination("generic", weight=weight)
    naive = [v - weight * max(r - v, 0.0) for v, r in rows]
    out = combine(target, reinforced, how)
    assert out.tolist() == pytest.approx(naive)
    assert (out <= target).all() and torch.equal(combine(target, target, how), target)
    labels = torch.arange(len(rows))
    found = label_losses(target.expand(len(rows), -1), reinforced.expand(len(rows), -1), labels, [how, Combination()])
    torch.testing.assert_close(found[0].double(), -out.double().log_softmax(-1), atol=1e-4, rtol=1e-5)


def test_tokens_that_a_model_masks_out_stay_out():
    target = torch.tensor([1.0, -math.inf, 2.0, -math.inf])
    reinforced = torch.tensor([2.0, 3.0, -math.inf, -math.inf])
    assert combine(target, reinforced, Combination("generic", weight=1.0)).tolist() == [0.0, -math.inf, 2.0, -math.inf]


@pytest.mark.parametrize("fused", [True, False])
def test_a_reinforced_run_has_every_layer_and_answers_with_generic_predictions(decode, task, inputs, fused):
    manifest = Manifest.read(decode)
    assert (manifest.trains, manifest.num_layers, manifest.combination.rule) == ("assistant", 4, "generic")
    model, _ = uld.load(decode, fused=fused)
    target, reinforced = logits(load_target(task.target), inputs), logits(model.assistant, inputs)
    assert (reinforced - target).abs().max() > 0.5
    expected = target - 5 * (reinforced - target).clamp_min(0)
    torch.testing.assert_close(logits(model, inputs), expected, rtol=1e-5, atol=1e-3)


def test_a_run_that_teaches_is_asked_in_place_of_the_model_before_training(decode, task, inputs, tmp_path):
    learner = make_learner(settings(task, tmp_path / "x", "whp"), get_method("whp"), {}, "fp32")
    assert learner.frozen_models == []  # no second copy but the teacher's
    learner.learn_from(ULDForCausalLM.from_pretrained(decode))
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    states = learner.frozen_states(ids, mask)
    found = states.logits(torch.arange(ids.shape[1]))
    torch.testing.assert_close(found, logits(uld.load(decode)[0], inputs)[0], rtol=1e-5, atol=1e-4)
    assert not any(one.requires_grad for model in learner.frozen_models for one in model.parameters())


def test_a_taught_target_is_an_ordinary_model_and_its_teacher_is_gone(taught, task, inputs):
    manifest = Manifest.read(taught.output)
    assert manifest.trains == "target" and set(manifest.weights) == {"model.safetensors", "config.json"}
    sides = {"forget", "retain"} if taught.method == "dd-distilled" else {"forget"}
    assert set(manifest.data) == sides  # what the teacher was trained on is what the target knows of
    left = {path.name for path in Path(taught.output).iterdir()}
    assert not left & {"checkpoints", "adapter"}
    model, _ = uld.load(taught.output)
    assert (logits(model, inputs) - logits(load_target(task.target), inputs)).abs().max() > 0.05


@pytest.mark.parametrize(("taught", "part"), [("dd-distilled", "teacher"), ("whp", "target")], indirect=["taught"])
def test_a_training_that_is_stopped_in_either_part_comes_to_the_same(taught, task, tmp_path, monkeypatch, part):
    take, steps = UnlearningTrainer.take_step, []

    def stop(self, asked, due):
        steps.append((get_method(self.config.method).trains == "target") == (part == "target"))
        return take(self, asked or sum(steps) == 2, due)

    config = settings(task, tmp_path / "x", taught.method)
    said = "stopped while its teacher was trained" if part == "teacher" else "stopped at step 2 of 4"
    with monkeypatch.context() as patch:
        patch.setattr(UnlearningTrainer, "take_step", stop)
        with pytest.raises(ULDError, match=f"{said}: continue with uld train --output {config.output} --resume"):
            uld.train(config, progress=False)
    assert (tmp_path / "x/checkpoints/teacher").is_dir()
    uld.train(config, resume=True, progress=False)
    assert Manifest.read(config.output).weights == Manifest.read(taught.output).weights
    assert not (tmp_path / "x/checkpoints").exists()


@pytest.mark.parametrize(
    ("method", "option", "message"),
    [
        ("dd-distilled", "temperature=0", "--option temperature=0: the temperature must be more than 0"),
        ("dd-distilled", "teacher_rate=-1", "--option teacher_rate=-1: teacher_rate must lie between 0 and 1"),
        ("dd-distilled", "alpha=2e6", "--option alpha=2e[+]06: alpha must be at most 1,000,000"),
        ("whp", "teacher_epochs=0", "--option teacher_epochs=0: teacher_epochs must be at least 1"),
        ("whp", "teacher_rate=2", "--option teacher_rate=2: teacher_rate must lie between 0 and 1"),
        ("whp", "alpha=-1", "--option alpha=-1: alpha must be at least 0"),
        ("whp", "alpha=inf", "alpha.* finite number"),
    ],
)
def test_a_wrong_option_is_one_sentence_before_anything_is_trained(task, tmp_path, method, option, message):
    with pytest.raises(ULDError, match=message) as caught:
        uld.train(settings(task, tmp_path / "x", method, option=(option,)), progress=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()


def test_a_small_model_is_the_teachers_and_lora_goes_on_the_target(task, tmp_path, make_target, inputs):
    make_target("llama", num_layers=1, seed=3).save_pretrained(tmp_path / "small")
    config = settings(task, tmp_path / "x", "dd-distilled", small=str(tmp_path / "small"), num_layers=None)
    uld.train(replace(config, lora_rank=4), progress=False)
    manifest = Manifest.read(config.output)
    assert manifest.small is None and manifest.num_layers == 4
    shutil.rmtree(tmp_path / "small")
    model, _ = uld.load(config.output)
    assert (logits(model, inputs) - logits(load_target(task.target), inputs)).abs().max() > 1e-3


def test_a_teachers_bad_input_leaves_nothing(task, tmp_path, make_target):
    make_target("llama", num_layers=1, vocab_size=40).save_pretrained(tmp_path / "small")
    config = settings(task, tmp_path / "x", "dd-distilled", small=str(tmp_path / "small"), num_layers=None)
    with pytest.raises(ULDError, match="small has a vocabulary of 40 tokens and the target one of 34"):
        uld.train(config, progress=False)
    assert not (tmp_path / "x").exists()


def test_what_the_teacher_has_no_use_for_is_refused(task, tmp_path):
    for changes, message in (
        ({"num_layers": 2}, "--num-layers is for an assistant, and whp trains the target itself"),
        ({"small": "s"}, "--small is for offset-… and dd…, and --method is whp"),
    ):
        with pytest.raises(ULDError, match=message):
            uld.train(settings(task, tmp_path / "x", "whp", **changes), progress=False)
