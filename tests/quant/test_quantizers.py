"""Grids by hand: equation 10, the two ranges, the affine grid, and gradients of scales."""

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
