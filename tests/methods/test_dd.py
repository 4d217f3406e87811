"""Divergence Decoding: two small models, each of which learns its own side, steer the target, and teach it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import uld
from uld.data.collate import FORGET, RETAIN
from uld.data.documents import read_sources
from uld.data.prompt import PromptFormat
from uld.data.record import Record
from uld.errors import ULDError
from uld.evaluation.grid import grid_name
from uld.evaluation.held_out import Probe
from uld.evaluation.scoring import Scorer
from uld.evaluation.tuning import tune
from uld.methods.registry import get_method
from uld.model.assistant import base_model
from uld.model.causal_lm import load_target
from uld.model.combine import Combination
from uld.model.load import load
from uld.runs.manifest import PAIR, Manifest
from uld.training.learners import make_learner
from uld.training.objective import Objective, terms_of


def settings(task, output, **changes):
    return uld.TrainConfig(**task.settings(output, method="dd", batch_size=12, learning_rate=0.02) | changes)


@pytest.fixture(scope="module")
def run(task, tmp_path_factory):
    """A run whose small models are the target's first two layers."""
    config = settings(task, tmp_path_factory.mktemp("dd") / "x", epochs=3)
    uld.train(config, progress=False)
    return config.output


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


@pytest.fixture
def learner(task, tmp_path):
    """A pair before its first step, with updates that do something."""
    learner = make_learner(settings(task, tmp_path / "x"), get_method("dd"), {}, "fp32")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in learner.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3, generator=generator)
    return learner


def batch(*sides):
    """Rows of six tokens, one for each side, a loss at four positions."""
    ids = torch.arange(6 * len(sides)).view(len(sides), 6) % 30 + 4
    kind = torch.tensor(sides)[:, None].repeat(1, 6)
    kind[:, [0, 5]] = 0
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids.roll(-1, 1),
        "kind": kind,
        "side": torch.tensor(sides),
        "reference": torch.full((len(sides),), torch.nan),
    }


def test_each_side_is_the_cross_entropy_of_its_own_model(learner):
    rows = batch(FORGET, RETAIN, FORGET)
    found = Objective(learner, terms_of(get_method("dd")))(**rows)
    for place, (side, kind) in enumerate((("forget", FORGET), ("retain", RETAIN))):
        mine = rows["side"] == kind
        alone = base_model(learner.model[side])(input_ids=rows["input_ids"][mine]).logits
        scores = alone.log_softmax(-1).gather(-1, rows["labels"][mine][..., None])[..., 0]
        assert found[place].item() == pytest.approx(-scores[:, 1:5].sum().item(), rel=1e-5)


@pytest.mark.parametrize("sides", [(FORGET, RETAIN), (FORGET, FORGET), (RETAIN,)])
def test_a_side_trains_its_own_model_and_every_parameter_has_a_gradient(learner, sides):
    Objective(learner, terms_of(get_method("dd")))(**batch(*sides)).sum().backward()
    for side, kind in (("forget", FORGET), ("retain", RETAIN)):
        trained = [one for one in learner.model[side].parameters() if one.requires_grad]
        assert trained and all(one.grad is not None for one in trained)  # which DDP waits for
        assert any(bool(one.grad.any()) for one in trained) == (kind in sides)


def test_the_two_share_every_weight_but_their_adapters(learner):
    names = {name: id(one) for name, one in base_model(learner.model["forget"]).named_parameters()}
    other = {name: id(one) for name, one in base_model(learner.model["retain"]).named_parameters()}
    own = {name for name, one in names.items() if one != other[name]}
    assert names.keys() == other.keys() and own == {name for name in names if "lora_" in name}


@pytest.mark.parametrize("weight", [None, 0.0, 0.5, 3.0])
@pytest.mark.parametrize("fused", [True, False])
def test_the_difference_of_the_small_models_steers_the_target(run, task, inputs, weight, fused):
    model, _ = uld.load(run, weight=weight, fused=fused)
    retain, forget = (logits(one, inputs) for one in model.assistants)
    assert (retain - forget).abs().max() > 0.5, "training changed nothing"
    expected = logits(load_target(task.target), inputs) + (1.5 if weight is None else weight) * (retain - forget)
    assert (model.one_pass is not None) == fused
    torch.testing.assert_close(logits(model, inputs), expected, rtol=1e-5, atol=1e-4)


def test_each_small_model_knows_its_own_side_better(run, task):
    model, tokenizer = uld.load(run)
    form = PromptFormat(tokenizer)
    means = {}
    for name, path in (("forget", task.forget), ("retain", task.retain)):
        rows = [form.encode(record, 64) for record in read_sources([str(path)])[0]]
        for side, part in zip(PAIR, model.assistants, strict=True):
            scores = Scorer(base_model(part), 0).score(rows)[0]
            means[name, side] = sum(one.loss for one in scores) / sum(one.tokens for one in scores)
    assert means["forget", "forget"] < means["forget", "retain"] - 0.02
    assert means["retain", "retain"] < means["retain", "forget"] - 0.02


@pytest.mark.parametrize("fused", [True, False])
def test_generation_with_a_cache_equals_generation_without(run, inputs, fused):
    model, _ = uld.load(run, fused=fused)
    cached = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(cached, model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=False))
    assert not torch.equal(cached, model.target.generate(**inputs, max_new_tokens=8, do_sample=False))


def test_a_run_is_two_adapters_whose_digests_are_noted_and_can_be_saved_again(run, inputs, tmp_path):
    manifest = Manifest.read(run)
    assert manifest.trains == "pair" and manifest.num_layers == 2 and manifest.small is None
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert set(manifest.weights) == {f"adapter/{side}/{name}" for side in ("forget", "retain") for name in names}
    model, tokenizer = uld.load(run)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "again")
    same, _ = uld.load(tmp_path / "again")
    assert torch.equal(logits(model, inputs), logits(same, inputs))
    shutil.rmtree(tmp_path / "again/adapter/retain")
    with pytest.raises(ULDError, match="lacks adapter/retain"):
        uld.load(tmp_path / "again")


@pytest.mark.parametrize("fused", [True, False])
def test_by_rank_the_tokens_that_the_forget_model_favours_lose_their_lead(run, inputs, fused):
    model, _ = uld.load(run, rule="rank", rank_tokens=5, fused=fused)
    target = logits(model.target, inputs)
    retain, forget = (logits(one, inputs) for one in model.assistants)
    expected = target.clone()
    for row, l, lr, lf in zip(*(one.flatten(0, 1) for one in (expected, target, retain, forget)), strict=True):  # noqa: E741
        row[(lf - lr).topk(5).indices] = l.topk(5).values[-1]
    found = logits(model, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert (found - target).abs().max() > 0.5
    nothing, _ = uld.load(run, rule="rank", rank_tokens=0, fused=False)
    assert torch.equal(logits(nothing, inputs), target)


def test_many_settings_are_scored_in_one_pass_as_each_alone(run, task):
    model, tokenizer = uld.load(run)
    rows = [PromptFormat(tokenizer).encode(record, 64) for record in read_sources([str(task.forget)])[0]]
    linear, rank = Combination("offset", weight=0.7), Combination("rank", rank_tokens=3)
    for how, scores in zip((linear, rank), Scorer(model, 0, [linear, rank]).score(rows), strict=True):
        model.combination = how
        for row, score in zip(rows, scores, strict=True):
            ids = torch.tensor([row.ids])
            learnt = torch.tensor(row.learn[1:])
            with torch.no_grad():
                lost = -model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[learnt, 0]
            assert score.loss == pytest.approx(lost.sum().item(), rel=1e-4)


def test_a_pair_refuses_rules_of_single_assistants_and_the_other_way_round(run, make_target, make_unlearned):
    model, _ = uld.load(run)
    single = make_unlearned(make_target("llama"), 2)
    for one, rule in ((model, "suppress"), (single, "rank"), (single, "offset")):
        with pytest.raises(ULDError, match=f"the rule {rule} is for (single assistants|pairs of models), and"):
            one.combination = Combination(rule)
        with pytest.raises(ULDError, match=f"the rule {rule} is for"):
            Scorer(one, 0, [Combination(rule)])


def test_a_run_notes_its_k_where_it_is_ranked_and_nowhere_else(run, tmp_path):
    assert get_method("dd-rank").losses == get_method("dd").losses
    before = json.loads((Path(run) / "uld.json").read_text())["combination"]
    assert before.keys() == {"rule", "weight", "filter", "min_tokens", "outside"}  # as older versions read it
    model, _ = uld.load(run, rule="rank", rank_tokens=7)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "uld.json").read_text())["combination"]["rank_tokens"] == 7
    assert Manifest.read(tmp_path).combination.rank_tokens == 7
    names = [grid_name(Combination("rank", weight=weight, rank_tokens=7)) for weight in (0.5, 3.0, 0.0)]
    assert names == ["rank-tokens-7", "rank-tokens-7", "rank-tokens-0"]  # a grid scores the same settings once


def test_two_runs_add_their_changes(run, inputs):
    one, _ = uld.load(run, weight=0.5)
    both, _ = uld.load([run, run], weight=0.25)
    torch.testing.assert_close(logits(both, inputs), logits(one, inputs), rtol=1e-5, atol=1e-4)


def test_a_stopped_training_comes_to_the_same(run, task, tmp_path, monkeypatch):
    from uld.training.trainer import UnlearningTrainer

    take, steps = UnlearningTrainer.take_step, []

    def stop(self, asked, due):
        steps.append(1)
        return take(self, asked or len(steps) == 3, due)

    config = settings(task, tmp_path / "x", epochs=3)
    with monkeypatch.context() as patch:
        patch.setattr(UnlearningTrainer, "take_step", stop)
        with pytest.raises(ULDError, match="stopped at step 3 of 6"):
            uld.train(config, progress=False)
    uld.train(config, resume=True, progress=False)
    assert Manifest.read(config.output).weights == Manifest.read(run).weights


def test_a_small_model_of_the_users_own(task, tmp_path, make_target, inputs):
    small = make_target("llama", num_layers=1, seed=3)
    small.save_pretrained(tmp_path / "small")
    config = settings(task, tmp_path / "x", small=str(tmp_path / "small"), num_layers=None)
    uld.train(config, progress=False)
    model, _ = uld.load(config.output)
    retain, forget = (logits(one, inputs) for one in model.assistants)
    assert (retain - forget).abs().max() > 0.01
    expected = logits(load_target(task.target), inputs) + 1.5 * (retain - forget)
    torch.testing.assert_close(logits(model, inputs), expected, rtol=1e-5, atol=1e-4)
    off = [one.disable_adapter() for one in model.assistants]
    with off[0], off[1]:
        torch.testing.assert_close(logits(model.assistants[0], inputs), logits(small, inputs))
    make_target("llama", num_layers=1, seed=4).save_pretrained(tmp_path / "small")
    with pytest.raises(ULDError, match="the run belongs to another small model"):
        uld.load(config.output)


def test_a_small_model_of_another_vocabulary_is_refused(task, tmp_path, make_target):
    make_target("llama", num_layers=1, vocab_size=40).save_pretrained(tmp_path / "small")
    config = settings(task, tmp_path / "x", small=str(tmp_path / "small"), num_layers=None)
    with pytest.raises(ULDError, match="small has a vocabulary of 40 tokens and the target one of 34") as caught:
        uld.train(config, progress=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()


def test_a_rule_for_one_assistant_is_refused(run, task, tmp_path):
    with pytest.raises(ULDError, match="--rule suppress does not go with --method dd"):
        uld.train(settings(task, tmp_path / "x", rule="suppress"), progress=False)
    with pytest.raises(ULDError, match="the rule subtract does not go with it"):
        uld.load(run, rule="subtract")


def test_alpha_of_a_pair_is_tuned_and_rank_has_none(run, task, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    question, wrong = Record.qa("Who keeps the light?", "Mara does."), Record.qa("Who keeps the light?", "Nobody does.")
    model, tokenizer = load(folder)
    choice = tune(folder, model, tokenizer, [Probe(question, (wrong,))], [wrong], aim="budget", budget=0.99)
    told = Manifest.read(folder).combination
    assert (told.rule, told.weight) == ("offset", choice.point.weight)
    assert len({point.advantage for point in choice.points}) == len(choice.points)  # α reaches both models
    model, tokenizer = load(folder, rule="rank", weight=1.0)
    with pytest.raises(ULDError, match="the rule rank has no α to choose"):
        tune(folder, model, tokenizer, [Probe(question, (wrong,))], [wrong])
    both, _ = load([folder, run])
    with pytest.raises(ULDError, match="several runs were loaded together"):
        tune(folder, both, tokenizer, [Probe(question, (wrong,))], [wrong])


def test_both_small_models_learn_their_rows_with_the_same_weight_and_nothing_made_up():
    defaults = get_method("dd").defaults
    assert (defaults["retain_weight"], defaults["paraphrases"], defaults["wrong_answers"]) == (1.0, 0, 0)
