"""square_mean against PyTorch's average pooling: values, gradients, every border; and what a counter sees of it."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from frisket.kernels.squares import square_mean, square_sum


def pooled(x: torch.Tensor, side: int) -> torch.Tensor:
    return F.avg_pool2d(x, side, 1, side // 2, count_include_pad=False)


@pytest.mark.parametrize("side", [1, 3, 5, 7, 11])
@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (1, 4, 1, 9), (3, 1, 5, 2), (1, 2, 1, 1), (1, 5, 13, 40)])
def test_equals_average_pooling_without_its_border(shape: tuple[int, ...], side: int) -> None:
    generator = torch.Generator().manual_seed(side)
    x = torch.randn(shape, generator=generator) + 3
    weight = torch.randn(shape, generator=generator)
    answers = []
    for mean in (pooled, square_mean):
        leaf = x.clone().requires_grad_()
        out = mean(leaf, side)
        (out * weight).sum().backward()
        answers.append((out.detach(), leaf.grad))
    torch.testing.assert_close(*(out for out, _ in answers))
    torch.testing.assert_close(*(grad for _, grad in answers), atol=1e-5, rtol=1e-5)


def test_the_operation_is_sound_and_no_multiplication_is_counted() -> None:
    x = torch.randn(1, 3, 6, 7, requires_grad=True)
    torch.library.opcheck(square_sum, (x, 3))
    with FlopCounterMode(display=False) as counter:
        square_mean(x, 3).sum().backward()
    assert counter.get_total_flops() == 0


def test_other_layouts_and_precisions() -> None:
    x = torch.randn(2, 8, 12, 9)
    torch.testing.assert_close(square_mean(x.to(memory_format=torch.channels_last), 5), pooled(x, 5))
    torch.testing.assert_close(square_mean(x.double(), 5), pooled(x.double(), 5))
    near = square_mean(x.bfloat16(), 7).float()
    assert (near - pooled(x, 7)).abs().max() < 0.02
    torch.testing.assert_close(torch.compile(square_mean, backend="eager")(x, 3), pooled(x, 3))
