"""RMU: its two distances, its direction, the layer that it taps and the weights that it trains."""

import pytest
import torch

from uld.errors import ULDError
from uld.methods.registry import get_method
from uld.methods.rmu import direction, restrict, tap
from uld.model.assistant import decoder_layers
from uld.training.config import TrainConfig
from uld.training.learners import make_learner

LENGTHS = [5, 2, 4]


@pytest.fixture
def states():
    return torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))


def test_losses_are_the_papers(make_side, states):
    layer, frozen = states
    side = make_side(
        torch.zeros(3, 5, 11), torch.zeros(3, 5, dtype=torch.long), LENGTHS, layer=layer, frozen_layer=frozen
    )
    u = direction(7, seed=3).double()
    forget = retain = 0.0
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            forget += sum((layer[row, t, i].item() - 4.0 * u[i].item()) ** 2 for i in range(7)) / 7
            retain += sum((layer[row, t, i].item() - frozen[row, t, i].item()) ** 2 for i in range(7)) / 7
    rmu = get_method("rmu")
    assert rmu.retain is not None
    assert rmu.forget.value(side, steering=4.0, seed=3).item() == pytest.approx(forget, rel=1e-6)
    assert rmu.retain.value(side).item() == pytest.approx(retain, rel=1e-6)


def test_direction_is_a_unit_vector_that_the_seed_alone_decides():
    one = direction(64, seed=1)
    torch.manual_seed(5)
    assert torch.equal(one, direction(64, seed=1)) and not torch.equal(one, direction(64, seed=2))
    assert one.norm().item() == pytest.approx(1) and (one >= 0).all()


def test_the_layer_is_scaled_to_the_depth():
    assert [tap(total) for total in (32, 48, 16, 6, 4, 2, 1)] == [7, 10, 4, 1, 1, 0, 0]
    assert tap(32, layer=0) == 0 and tap(32, layer=31) == 31
    for layer in (-2, 32):
        with pytest.raises(ULDError, match=f"--option layer={layer}: the target has 32 layers"):
            tap(32, layer=layer)


DOWN = {"phi3": "mlp.down_proj", "gpt_neox": "mlp.dense_4h_to_h"}


def test_only_the_mlps_last_matrices_of_three_layers_are_trained(make_target, family):
    model = make_target(family)
    restrict(model, layer=3)
    prefix, layers = decoder_layers(model)
    own = DOWN.get(family, "mlp.down_proj")
    expected = {f"{prefix}.{i}.{own}.weight" for i in (1, 2, 3)}
    assert {name for name, one in model.named_parameters() if one.requires_grad} == expected
    restrict(model, layer=0)
    trained = [one for one in model.parameters() if one.requires_grad]
    assert len(trained) == 1 and trained[0] is layers[0].get_submodule(own).weight


def test_a_layer_without_an_mlp_of_matrices_is_refused(make_target):
    model = make_target("llama", num_layers=2)
    for layer in decoder_layers(model)[1]:
        layer.mlp = torch.nn.Identity()
    with pytest.raises(ULDError, match="LlamaDecoderLayer has no MLP of plain matrices"):
        restrict(model)


@pytest.mark.parametrize(("layer", "trained"), [(-1, {0, 1}), (2, {0, 1, 2}), (3, {0, 1, 2, 3})])
def test_with_lora_nothing_behind_the_tapped_layer_is_trained(task, tmp_path, layer, trained):
    given = task.settings(tmp_path / "x") | {"method": "rmu", "num_layers": None}
    learner = make_learner(TrainConfig(**given), get_method("rmu"), {"layer": layer}, "fp32")
    names = [name for name, one in learner.named_parameters() if one.requires_grad]
    assert all("lora_" in name for name in names)
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in names} == trained


def test_of_layers_with_three_parts_the_last_matrix_of_the_last_is_trained(make_target):
    target = make_target(num_layers=3)
    for layer in target.model.layers:
        mlp = layer.mlp
        del layer.mlp
        layer.between, layer.mlp = torch.nn.Linear(4, 4), mlp
    restrict(target, layer=2)
    trained = [name for name, one in target.named_parameters() if one.requires_grad]
    assert trained == [f"model.layers.{index}.mlp.down_proj.weight" for index in range(3)]
