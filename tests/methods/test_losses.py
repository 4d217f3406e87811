import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from uld.methods.losses import cross_entropy, uniform

LOSSES = (cross_entropy, uniform)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def naive_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    rows = zip(logits, labels.tolist(), strict=True)
    return torch.stack([-(row.exp() / row.exp().sum())[label].log() for row, label in rows])


def naive_uniform(logits: Tensor, labels: Tensor) -> Tensor:
    """Σ_v (1/V) · (−log p_v)."""
    return torch.stack([-(row.exp() / row.exp().sum()).log().sum() / len(row) for row in logits])


NAIVE = {cross_entropy: naive_cross_entropy, uniform: naive_uniform}


ordinary = st.floats(-20, 20, width=32)
huge = st.floats(-1e30, 1e30) | st.sampled_from([-1e30, 1e30, 0.0])


@st.composite
def positions(draw, values=ordinary) -> tuple[Tensor, Tensor]:
    """Logits ``(positions, vocab)`` and labels ``(positions,)``."""
    vocab = draw(st.integers(2, 12))
    rows = draw(st.lists(st.lists(values, min_size=vocab, max_size=vocab), min_size=1, max_size=4))
    labels = draw(st.lists(st.integers(0, vocab - 1), min_size=len(rows), max_size=len(rows)))
    return torch.tensor(rows), torch.tensor(labels)


@pytest.mark.parametrize("loss", LOSSES)
@given(case=positions())
def test_losses_and_their_gradients_equal_the_naive_ones(loss, case):
    logits, labels = case
    mine, plain = logits.clone().requires_grad_(), logits.double().requires_grad_()
    value, expected = loss(mine, labels), NAIVE[loss](plain, labels)
    assert value.dtype == torch.float32 and value.shape == labels.shape
    torch.testing.assert_close(value.double(), expected, atol=1e-4, rtol=1e-5)
    weights = torch.arange(1.0, len(labels) + 1)
    (value * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    assert mine.grad is not None and plain.grad is not None
    torch.testing.assert_close(mine.grad.double(), plain.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES)
@given(case=positions(huge))
def test_losses_and_gradients_are_finite_for_any_logits(loss, dtype, case):
    limit = min(1e30, torch.finfo(dtype).max)
    logits, labels = case[0].clamp(-limit, limit).to(dtype).requires_grad_(), case[1]
    value = loss(logits, labels)
    value.sum().backward()
    assert value.dtype == torch.float32 and torch.isfinite(value).all() and (value >= 0).all()
    assert logits.grad is not None and torch.isfinite(logits.grad).all() and logits.grad.abs().max() <= 1


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_arithmetic_is_in_fp32_whatever_the_dtype(loss, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(5, 1000, generator=generator) * 5).to(dtype)
    labels = torch.randint(1000, (5,), generator=generator)
    assert torch.equal(loss(logits, labels), loss(logits.float(), labels))


@given(positions(), st.floats(-20, 20, width=32))
def test_uniform_is_least_at_equal_logits_where_it_is_log_vocabulary(case, level):
    logits, labels = case
    least = math.log(logits.shape[-1])
    assert (uniform(logits, labels) >= least - 1e-5).all()
    flat = torch.full_like(logits, level).requires_grad_()
    value = uniform(flat, labels)
    assert value.tolist() == pytest.approx([least] * len(labels), abs=1e-6)
    value.sum().backward()
    assert flat.grad is not None and flat.grad.abs().max() < 1e-6


@given(positions())
def test_uniform_does_not_look_at_the_label(case):
    logits, labels = case
    assert torch.equal(uniform(logits, labels), uniform(logits, torch.zeros_like(labels)))
