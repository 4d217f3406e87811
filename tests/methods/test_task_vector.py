"""The task vector goes back the way that training came, and undoes itself."""

import pytest
import torch
from safetensors.torch import load_file

import uld
from uld.methods.task_vector import finish


@pytest.fixture(scope="module")
def pair():
    return torch.randn(2, 400, generator=torch.Generator().manual_seed(0))


def test_finish_is_the_papers(pair):
    trained, before = pair
    for strength in (0.3, 1.0, 2.0):
        expected = [b - strength * (t - b) for t, b in zip(trained.tolist(), before.tolist(), strict=True)]
        torch.testing.assert_close(finish(trained, before, strength=strength).tolist(), expected, rtol=1e-5, atol=1e-6)


def test_it_undoes_itself_exactly(pair):
    trained, before = pair
    assert torch.equal(finish(trained, before, strength=-1.0), trained)
    assert torch.equal(finish(trained, before, strength=0.0), before)
    there = finish(trained, before, strength=1.0)
    torch.testing.assert_close(finish(there, before, strength=1.0), trained)


@pytest.mark.parametrize("rank", [None, 4], ids=["all weights", "LoRA"])
def test_a_run_is_the_target_minus_what_training_added(task, tmp_path, rank):
    settings = task.settings(tmp_path / "x") | {"method": "task-vector", "learning_rate": 0.01, "epochs": 3}
    settings |= {"lora_rank": rank, "num_layers": None, "batch_size": 10}
    weights = {}
    for strength in (-1, 0.5):
        config = uld.TrainConfig(
            **settings | {"output": str(tmp_path / f"{strength}"), "option": (f"strength={strength}",)}
        )
        uld.train(config, progress=False)
        weights[strength] = dict(uld.load(config.output)[0].named_parameters())
    target = load_file(task.target / "model.safetensors")
    changed = 0
    for name, trained in weights[-1].items():
        added = trained - target[name]
        changed += int(added.any())
        torch.testing.assert_close(weights[0.5][name], target[name] - 0.5 * added, rtol=1e-5, atol=1e-6)
    assert changed >= 28
