"""A target of which a part lies elsewhere: here on disk, as with a ``device_map`` over several devices."""

import pytest
import torch

import uld
from uld.errors import ULDError

IDS = torch.tensor([[1, 5, 9, 12, 7], [0, 0, 1, 8, 20]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
MODULES = ["model.embed_tokens", "model.rotary_emb", *(f"model.layers.{i}" for i in range(5)), "model.norm", "lm_head"]


@torch.no_grad()
def same_as_whole(make_run, folder, elsewhere: set[str]) -> None:
    """Hold a run with K = 2 against the same run on one device."""
    run = make_run(folder, "llama")
    whole, _ = uld.load(run)
    places = {name: "disk" if name in elsewhere else "cpu" for name in MODULES}
    model, _ = uld.load(run, device_map=places, offload_folder=str(folder / "elsewhere"))
    assert set(model.target.hf_device_map.values()) == {"disk", "cpu"}
    assert whole.one_pass is not None and model.one_pass is None  # which would ask for everything in one place
    batch, kept = {"input_ids": IDS, "attention_mask": MASK}, MASK.bool()
    torch.testing.assert_close(model(**batch).logits[kept], whole(**batch).logits[kept], rtol=1e-4, atol=1e-4)
    settings = {**batch, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**settings), whole.generate(**settings))


def test_layers_behind_the_assistants_may_lie_elsewhere(make_run, tmp_path):
    same_as_whole(make_run, tmp_path, {"model.layers.3", "model.layers.4"})


@pytest.mark.parametrize("elsewhere", ["model.layers.0", "lm_head"])
def test_what_the_assistant_shares_must_be_in_memory(make_run, tmp_path, elsewhere):
    with pytest.raises(ULDError, match=f"{elsewhere}.* is not in memory .*keep the embedding, the first 2 layers"):
        same_as_whole(make_run, tmp_path, {elsewhere})
