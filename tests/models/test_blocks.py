"""Windows, norms and table resampling, each against the plain statement of what it should do."""

import pytest
import torch
from torch import nn

from frisket.models import blocks


@pytest.mark.parametrize("size", [(14, 14), (16, 9), (1, 30)])
def test_windows_come_back(size: tuple[int, int]) -> None:
    x = torch.randn(2, *size, 3)
    windows = blocks.window_partition(x, 14)
    assert windows.shape == (2 * -(-size[0] // 14) * -(-size[1] // 14), 14, 14, 3)
    assert torch.equal(blocks.window_merge(windows, size), x)


def test_windows_are_padded_with_zeros_at_the_end() -> None:
    windows = blocks.window_partition(torch.ones(1, 16, 16, 1), 14)
    assert len(windows) == 4
    assert windows.sum() == 256
    assert windows[3, :2, :2].sum() == 4


def test_layer_norm_2d_is_layer_norm_over_channels() -> None:
    x, norm = torch.randn(2, 5, 3, 4) * 7 + 3, blocks.LayerNorm2d(5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    expected = (x - mean) / (variance + 1e-6).sqrt() * norm.weight.view(1, 5, 1, 1) + norm.bias.view(1, 5, 1, 1)
    assert (norm(x) - expected).abs().max() < 1e-5  # float32 rounding of two orders of summation


def test_native_tables_are_untouched() -> None:
    pos, table = torch.randn(1, 4, 6, 8), torch.randn(7, 8)
    assert blocks.resample_position(pos, (4, 6)) is pos
    assert blocks.resample_relative(table, 4) is table


def test_resampled_tables_keep_their_meaning() -> None:
    """A linear ramp stays a linear ramp of the same range, and its middle (distance 0) stays in the middle."""
    table = torch.linspace(-3, 3, 7).unsqueeze(1)
    larger = blocks.resample_relative(table, 8)
    assert larger.shape == (15, 1)
    assert larger[7].abs() < 1e-6
    assert (larger.diff(dim=0) >= 0).all()
    pos = torch.linspace(-1, 1, 8).view(1, 8, 1, 1).expand(1, 8, 8, 2)
    resized = blocks.resample_position(pos, (12, 10))
    assert resized.shape == (1, 12, 10, 2)
    assert resized.mean().abs() < 1e-5
    assert (resized[0, :, 0, 0].diff() > 0).all()


def test_patch_embed_refuses_a_rest() -> None:
    embed = blocks.PatchEmbed(8)
    assert embed(torch.zeros(1, 3, 32, 48)).shape == (1, 2, 3, 8)
    with pytest.raises(ValueError, match="not a multiple of the patch side 16"):
        embed(torch.zeros(1, 3, 40, 48))
