"""Grids by hand: equation 10, the two ranges, the affine grid, and gradients of scales."""

import math
from functools import partial

import pytest
import torch

from frisket.quant.quantizers import (
    GELU_LEAST,
    affine,
    after_gelu,
    after_softmax,
    levels,
    rounded,
    span,
    straight,
    stretched,
    symmetric,
    widest,
)


def test_equation_10_by_hand() -> None:
    x = torch.tensor([-9.0, -4.1, -4.0, -0.6, -0.5, 0.0, 0.5, 0.6, 1.5, 3.4, 9.0])
    # three bits: levels -4 .. 3; ties go to the even level, as in round()
    assert symmetric(x, torch.tensor(1.0), 3).tolist() == [-4, -4, -4, -1, 0, 0, 0, 1, 2, 3, 3]
    assert symmetric(torch.tensor([-70.0, 70.0]), torch.tensor(0.5), 8).tolist() == [-64.0, 63.5]
    assert levels(8) == (-128, 127) and levels(2) == (-2, 1)


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_never_more_levels_than_bits_allow_and_half_a_step_of_error(bits: int) -> None:
    x = torch.randn(10_000)
    scale = widest(x, bits)
    q = symmetric(x, scale, bits)
    assert len(q.unique()) <= 2**bits and (q - x).abs().max() <= scale / 2 * (1 + 1e-5)
    low, zero = span(x, bits)
    a = affine(x, low, zero, bits)
    assert len(a.unique()) <= 2**bits and (a - x).abs().max() <= low * (1 + 1e-4)
    assert affine(torch.zeros(1), low, zero, bits) == 0  # padding stays exactly 0


def test_widest_is_by_channel_and_survives_zeros() -> None:
    x = torch.tensor([[1.0, -3.0], [0.0, 0.0]])
    assert widest(x, 8, 0)[:, 0].tolist() == pytest.approx([3 / 127.5, 1.0])
    assert float(widest(x, 8)) == pytest.approx(3 / 127.5)
    assert symmetric(x, widest(x, 8, 0), 8)[1].tolist() == [0, 0]


@pytest.mark.parametrize("bits", [4, 8])
def test_gelus_negative_side_has_a_range_of_its_own(bits: int) -> None:
    x = torch.nn.functional.gelu(torch.linspace(-6, 6, 20_001))
    scale = widest(x.clamp(min=0), bits)
    q = after_gelu(x, scale, bits)
    step = GELU_LEAST / 2 ** (bits - 1)
    assert (q - x)[x < 0].abs().max() <= step / 2 * (1 + 1e-4)
    assert (q - x)[x >= 0].abs().max() <= scale / 2 * (1 + 1e-4)
    assert float(after_gelu(torch.tensor([-GELU_LEAST]), scale, bits)) == pytest.approx(-GELU_LEAST)
    plain = symmetric(x, widest(x, bits), bits)
    assert (q - x)[x < 0].square().sum() < 0.1 * (plain - x)[x < 0].square().sum()


@pytest.mark.parametrize("split", [2.0**-3, 2.0**-8])
def test_softmaxs_two_ranges_are_chosen_not_added(split: float) -> None:
    """The public layers add clamp(x, split, 1) to clamp(x, 0, split): everything is `split` too high."""
    x = torch.rand(20_000) ** 3
    q = after_softmax(x, torch.tensor(split), 8)
    error = q - x
    assert error.mean().abs() < 1e-3 < split or error.mean().abs() < split / 4
    assert error[x < split].abs().max() <= split / 127 / 2 * 1.001
    assert error[x >= split].abs().max() <= 1 / 127 / 2 * 1.001
    assert after_softmax(torch.tensor([0.0, 1.0]), torch.tensor(split), 8).tolist() == [0.0, 1.0]


def test_gradients_pass_the_rounding_and_reach_the_scale() -> None:
    """LSQ's: round(x/s) - x/s inside, the level where it clips."""
    x = torch.tensor([0.3, 1.7, -9.0, 9.0], requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    symmetric(x, scale, 3).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 1, 0, 0]
    assert scale.grad is not None and float(scale.grad) == pytest.approx((0 - 0.3) + (2 - 1.7) - 4 + 3)
    for quantizer in (after_gelu, after_softmax):
        s = torch.tensor(0.1, requires_grad=True)
        quantizer(torch.tensor([0.04, 0.33, 0.9]), s, 4).sum().backward()
        assert s.grad is not None and float(s.grad) != 0
    assert rounded(torch.tensor([0.5, 1.5, -0.5])).tolist() == [0, 2, 0]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_learned_scale_has_lsqs_gradient(bits: int) -> None:
    """Number by number, of a scale for each channel (arXiv 1902.08153, section 2). What rounds to the last level counts
    as inside, as in torch's own learnable quantizer; the paper ends the inside half a step before."""
    torch.manual_seed(bits)
    weight, scale = torch.randn(3, 20), torch.tensor([[0.4], [0.05], [1.3]])
    toward = torch.randn(3, 20)  # the loss's gradient at the quantized weight
    stretch = torch.tensor([0.2, 0.0, -0.3], requires_grad=True)
    leaf = weight.clone().requires_grad_()
    low, high = levels(bits)
    quantized = straight(partial(symmetric, bits=bits), leaf, stretched(scale, stretch, 20, bits))
    quantized.backward(toward)
    assert stretch.grad is not None and leaf.grad is not None
    for row in range(3):
        s = float(scale[row, 0]) * math.exp(float(stretch.detach()[row]))
        total = 0.0
        for v, g in zip(weight[row].tolist(), toward[row].tolist(), strict=True):
            share = -v / s + round(v / s) if low <= round(v / s) <= high else float(low if v < 0 else high)
            total += share * g
        expected = total * s / math.sqrt(20 * high)  # the chain rule of scale e^stretch; the gradient's own scale
        assert float(stretch.grad[row]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
        inside = (weight[row] / s).round().clamp(low, high) == (weight[row] / s).round()
        torch.testing.assert_close(leaf.grad[row], toward[row] * inside)


@pytest.mark.parametrize("kind", ["symmetric", "affine", "gelu", "softmax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_computes_what_the_plain_quantizer_does_and_keeps_less(kind: str, dtype: torch.dtype) -> None:
    quantizer = {
        "symmetric": partial(symmetric, bits=4),
        "affine": partial(affine, zero=torch.tensor(5.0), bits=4),
        "gelu": partial(after_gelu, bits=4),
        "softmax": partial(after_softmax, bits=4),
    }[kind]
    x = (torch.rand(64, 32) if kind == "softmax" else torch.randn(64, 32)).to(dtype)
    toward, kept = torch.randn(64, 32).to(dtype), []
    answers = []
    for lean in (True, False):
        leaf, scale, saved = x.clone().requires_grad_(), torch.tensor(0.13, requires_grad=True), {}

        def pack(tensor: torch.Tensor, saved: dict = saved) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = straight(quantizer, leaf, scale) if lean else quantizer(leaf.float(), scale).to(dtype)
        y.backward(toward)
        kept.append(sum(saved.values()))
        answers.append((y, leaf.grad, scale.grad))
    assert y.dtype == dtype
    for mine, plain in zip(*answers, strict=True):
        torch.testing.assert_close(mine, plain)
    assert kept[0] <= x.nbytes + 8 < kept[1] / 2


def test_a_scale_begins_exactly_as_it_was_and_is_never_negative() -> None:
    scale = torch.rand(5, 1) + 1e-3
    assert torch.equal(stretched(scale, torch.zeros(5), 7, 4), scale)
    assert (stretched(scale, torch.full((5,), -60.0), 7, 4) > 0).all()
