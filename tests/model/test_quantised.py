"""Targets whose linears hold bytes: by a quantiser of our own that needs no package, and by those that users take."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

import uld
from uld.errors import ArtifactError

IDS = torch.tensor([[1, 5, 9, 12, 7], [0, 0, 1, 8, 20]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


class InBytes(nn.Linear):
    """A linear of 255 steps."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.scale = float(linear.weight.abs().max()) / 127
        self.weight = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(input, self.weight.to(input.dtype) * self.scale, self.bias)


@register_quantization_config("bytes-of-a-test")
class BytesConfig(QuantizationConfigMixin):
    """What ``quantization_config`` takes."""

    def __init__(self, **_: Any) -> None:
        self.quant_method = "bytes-of-a-test"


@register_quantizer("bytes-of-a-test")
class Bytes(HfQuantizer):
    """Rounds the linears of a model's layers as it is loaded."""

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and "lm_head" not in name:
                model.set_submodule(name, InBytes(module))
        return model

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return True


def config(kind: str) -> Any:
    """A configuration of a kind, if its package is installed."""
    if kind == "our own":
        return BytesConfig()
    if kind == "torchao":
        pytest.importorskip("torchao", reason="torchao is not installed")
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit="4" in kind, load_in_8bit="8" in kind)


@pytest.mark.parametrize("kind", ["our own", "bitsandbytes, 4 bits", "bitsandbytes, 8 bits", "torchao"])
@torch.no_grad()
def test_a_run_answers_on_its_target_in_fewer_bits(make_run, tmp_path, kind):
    quantised = config(kind)
    run = make_run(tmp_path, "llama", hidden_size=64, intermediate_size=128)
    plain, _ = uld.load(run)
    model, _ = uld.load(run, quantization_config=quantised)
    batch = {"input_ids": IDS, "attention_mask": MASK}
    kept = MASK.bool()
    target, rounded = (one.target(**batch).logits[kept] for one in (plain, model))
    assert 0 < (rounded - target).abs().mean() < 0.5 * target.abs().mean()  # rounded, and still the same model
    answers = model(**batch).logits[kept]
    assert (answers - rounded).abs().max() > 0.5, "nothing is unlearned"
    settings = {**batch, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    written = model.generate(**settings)
    assert torch.equal(written, model.generate(**settings, use_cache=False))
    model.fused = False
    torch.testing.assert_close(model(**batch).logits[kept], answers, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.generate(**settings), written)


def test_a_target_in_fewer_bits_is_told_from_another(make_run, make_target, tmp_path):
    run = make_run(tmp_path, "llama", hidden_size=64, intermediate_size=128)
    other = make_target("llama", seed=7, hidden_size=64, intermediate_size=128)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ArtifactError, match="belongs to another target"):
        uld.load(run, target=str(tmp_path / "other"), quantization_config=BytesConfig())
