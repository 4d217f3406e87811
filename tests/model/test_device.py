"""Where a model runs, and in which numbers."""

import logging

import pytest
import torch

from uld.model import device
from uld.model.load import load


@pytest.fixture
def stored(make_target, letters, tmp_path):
    def store(dtype):
        folder = tmp_path / str(dtype)
        make_target().to(dtype).save_pretrained(folder)
        letters.save_pretrained(folder)
        return folder

    return store


@pytest.mark.parametrize(
    ("dtype", "asked", "native", "weights", "wanted"),
    [
        (torch.bfloat16, "auto", False, 1, True),
        (torch.bfloat16, "fp32", False, 1, False),
        (torch.float32, "auto", False, 1, False),
        (torch.float32, "bf16", False, 1, True),
        (torch.bfloat16, "auto", True, 1, False),
        (torch.bfloat16, "auto", False, 10**9, False),
    ],
)
def test_a_processor_that_imitates_bf16_is_told_of_once(
    stored, caplog, monkeypatch, dtype, asked, native, weights, wanted
):
    monkeypatch.setattr(device, "best_device", lambda: "cpu")
    monkeypatch.setattr(device, "computes_bf16", lambda torch: native)
    monkeypatch.setattr(device, "_LARGE", weights)
    monkeypatch.setattr(device, "_said", set())
    folder = stored(dtype)
    with caplog.at_level(logging.WARNING, "uld"):
        for _ in range(2):
            load(folder, dtype=asked)
    said = [one.getMessage() for one in caplog.records if "--dtype fp32" in one.getMessage()]
    assert len(said) == wanted and all(str(folder) in one for one in said)


def test_whoever_has_a_gpu_is_told_nothing(stored, caplog, monkeypatch):
    monkeypatch.setattr(device, "best_device", lambda: "cuda")
    monkeypatch.setattr(device, "computes_bf16", lambda torch: False)
    monkeypatch.setattr(device, "_LARGE", 1)
    with caplog.at_level(logging.WARNING, "uld"):
        load(stored(torch.bfloat16))
    assert not caplog.records


def test_what_the_processor_can_is_asked_of_torch():
    class Says:
        class ops:  # as torch has it
            class mkldnn:
                _is_mkldnn_bf16_supported = staticmethod(lambda: False)

    class Silent:
        ops = object()

    assert not device.computes_bf16(Says) and device.computes_bf16(Silent)
    assert device.computes_bf16(torch) in (True, False)
