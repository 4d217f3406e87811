"""Every registered method, from losses on bf16 logits to a run that loads, and what a user can get wrong."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import uld
from uld.data.record import DataError
from uld.errors import ULDError
from uld.methods.registry import Method, all_methods, get_method
from uld.model.causal_lm import load_target
from uld.training.trainer import UnlearningTrainer

NAMES = list(all_methods())


def hooks(method: Method) -> set[Any]:
    """What a method asks of a training, and so what a training may fail in."""
    sides = {("retain" if method.retain else "no retain", method.trains)}
    per = {(kind, method.trains) for loss in method.losses for kind in ("frozen", "reference") if getattr(loss, kind)}
    own = {name for name in ("tap", "restrict", "reweigh", "finish", "teach", "every_layer") if getattr(method, name)}
    return sides | per | own | {("alternatives", method.alternatives), ("teacher", method.teacher)}


def one_a_hook() -> list[str]:
    """Methods that between them have every hook, and together with every kind of model that it works on."""
    chosen, seen = [], set()
    for name, method in sorted(all_methods().items(), key=lambda one: -len(hooks(one[1]))):
        if hooks(method) - seen:
            chosen.append(name)
            seen |= hooks(method)
    return sorted(chosen)


ROWS, TOKENS, VOCAB, WIDTH = 3, 5, 11, 7
LENGTHS = [5, 2, 4]


@pytest.fixture(scope="module")
def tiny(task, tmp_path_factory):
    """The `task`, its forget records with alternative answers."""
    records = [json.loads(line) for line in task.forget.read_text().splitlines()]
    path = tmp_path_factory.mktemp("tiny") / "forget.jsonl"
    path.write_text("".join(json.dumps(one | {"alternative": "abba"}) + "\n" for one in records))
    return dataclasses.replace(task, forget=path)


def settings(tiny, name: str, output: Path, **changes: Any) -> dict[str, Any]:
    """Settings of four steps, or of two without retain rows."""
    given = tiny.settings(output, batch_size=12, method=name, **changes)
    if get_method(name).trains == "target":
        del given["num_layers"], given["lora_rank"], given["lora_alpha"]
    return given


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_finite_on_bf16_logits_and_have_gradients(make_side, name):
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(VOCAB, (ROWS, TOKENS), generator=draw)

    def drawn(width):
        return (torch.randn(ROWS, TOKENS, width, generator=draw) * 20).bfloat16().requires_grad_()

    method = get_method(name)
    for loss in method.losses:
        logits, layer, other = drawn(VOCAB), drawn(WIDTH), drawn(VOCAB)
        reference, frozen = torch.tensor([-9.0, -3.0, -2.0]), drawn(VOCAB).detach()
        extra = {"frozen": frozen, "layer": layer, "frozen_layer": drawn(WIDTH).detach(), "reference": reference}
        side = make_side(logits, labels, LENGTHS, **extra)
        if method.alternatives == "also":
            side.alternative = make_side(other, labels, LENGTHS, reference=reference)
        value = loss.value(side)
        value.backward()
        assert value.dtype == torch.float32 and value.shape == () and value.isfinite()
        gradient = layer.grad if method.tap is not None else logits.grad
        assert gradient is not None and torch.isfinite(gradient).all() and gradient.any()
        outside = torch.arange(TOKENS) >= torch.tensor(LENGTHS)[:, None]
        assert not gradient[outside].any(), "a position without a loss has a gradient"


@pytest.mark.parametrize("name", one_a_hook())
def test_a_run_takes_the_steps_that_its_rows_make_and_loads(tiny, tmp_path, name):
    config = uld.TrainConfig(**settings(tiny, name, tmp_path / "x"))
    result = uld.train(config, progress=False)
    rows = 10 if get_method(name).retain is None else 23
    assert result.steps == math.ceil(rows / 12) * 2
    assert math.isfinite(result.forget_loss) and (result.retain_loss is None) == (get_method(name).retain is None)
    model, tokenizer = uld.load(config.output)
    inputs = tokenizer(["q: who is abba the forget? a:"], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape[-1] == 34 and torch.isfinite(logits).all()
    if get_method(name).trains == "target":
        before, after = (load_file(folder / "model.safetensors") for folder in (tiny.target, tmp_path / "x"))
        changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
        assert after.keys() == before.keys()
        if name == "rmu":
            assert changed == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}
        else:
            assert "lm_head.weight" in changed and "model.layers.0.self_attn.q_proj.weight" in changed


@pytest.mark.parametrize("name", ["rmu", "dpo+kl"])
def test_lora_on_the_target_gives_a_frozen_model_for_nothing_and_a_run_that_loads(tiny, tmp_path, name):
    given = settings(tiny, name, tmp_path / "x", learning_rate=0.05) | {"lora_rank": 4}
    config = uld.TrainConfig(**given)
    result = uld.train(config, progress=False)
    assert result.steps == 4 and not (tmp_path / "x/model.safetensors").exists()
    model, tokenizer = uld.load(config.output)
    inputs = tokenizer(["q: who is abba the forget? a:"], return_tensors="pt")
    with torch.no_grad():
        logits, before = (one(**inputs).logits for one in (model, load_target(tiny.target)))
    assert torch.isfinite(logits).all() and (logits - before).abs().max() > 1e-3


def test_pdus_weight_follows_the_retain_loss_of_each_step_after_the_warm_up(tiny, tmp_path, monkeypatch):
    weights: list[float] = []
    take = UnlearningTrainer.take_step

    def spy(self, *asked):
        weights.append(self.weights[1])
        return take(self, *asked)

    monkeypatch.setattr(UnlearningTrainer, "take_step", spy)
    options = ("bound=4.9", "step=2", "warmup=1")
    changes = {"option": options, "epochs": 4, "retain_weight": 3.0, "learning_rate": 0.02}
    uld.train(uld.TrainConfig(**settings(tiny, "pdu", tmp_path / "x", **changes)), progress=False)
    lines = [json.loads(line) for line in (tmp_path / "x/metrics.jsonl").read_text().splitlines()]
    expected = [3.0, 3.0, 3.0]  # two steps an epoch: the third is the first to change it
    for line in lines[2:-1]:
        expected.append(max(0.0, expected[-1] + 2 * (line["gd_loss"] - 4.9)))
    assert weights == pytest.approx(expected)
    assert [line["retain_weight"] for line in lines] == weights
    assert len(lines) == 8 and max(weights) > 3.0 > min(weights)  # it went up and down


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("npo", "bta=1", "--option bta=1: npo has no such option: did you mean 'beta'"),
        ("pdu", "bound", "--option bound: pdu has no such option: did you mean 'bound'.*NAME=VALUE"),
        ("rmu", "layer=two", "--option layer=two: layer must be a whole number"),
        ("rmu", "layer=4", "--option layer=4: the target has 4 layers"),
        ("simnpo", "beta=much", "--option beta=much: beta must be a number"),
        ("npo", "beta=0", "--option beta=0: β must be more than 0"),
        ("ga", "beta=1", "--option beta=1: ga has no such option: it has none"),
    ],
)
def test_a_wrong_option_is_one_sentence_and_leaves_nothing(tiny, tmp_path, name, option, message):
    config = uld.TrainConfig(**settings(tiny, name, tmp_path / "x", option=(option,)))
    with pytest.raises(ULDError, match=message) as caught:
        uld.train(config, progress=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("slip", "meant"), [("npo+lk", "npo+kl"), ("idk+dg", "idk+gd"), ("ceu", "ce-u"), ("RMU", "rmu")]
)
def test_a_slip_in_the_name_is_answered_with_a_guess(slip, meant):
    with pytest.raises(ULDError, match=f"there is no method '{slip}': did you mean '{meant}'".replace("+", r"\+")):
        uld.TrainConfig(method=slip)


@pytest.mark.parametrize("name", ["dpo", "idk+gd", "altpo"])
def test_texts_are_refused_by_methods_that_need_another_answer(tiny, tmp_path, name):
    (tmp_path / "texts.jsonl").write_text('{"text": "abc abc abc"}\n')
    given = settings(tiny, name, tmp_path / "x") | {"forget": (str(tmp_path / "texts.jsonl"),)}
    with pytest.raises(
        DataError, match=r"texts.jsonl:1: a text has no alternative answer.*\(uld ls methods\)"
    ) as caught:
        uld.train(uld.TrainConfig(**given), progress=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()


def test_altpo_is_refused_without_alternatives(task, tmp_path):
    given = settings(task, "altpo", tmp_path / "x")
    with pytest.raises(DataError, match=r"forget.jsonl:1: .* add the key 'alternative'.*--alternatives idk") as caught:
        uld.train(uld.TrainConfig(**given), progress=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()


def test_layers_are_refused_by_a_method_that_trains_the_target(tiny, tmp_path):
    given = settings(tiny, "npo+kl", tmp_path / "x") | {"num_layers": 2}
    with pytest.raises(ULDError, match=r"--num-layers is for an assistant, and npo\+kl trains the target itself"):
        uld.train(uld.TrainConfig(**given), progress=False)
