"""Small modules the encoders share: patch embedding, MLP, channel LayerNorm, neck, windows and resampling of tables.

Use     `from frisket.models.blocks import PatchEmbed, neck`; the attribute names are Meta's checkpoint keys.
Source  Segment Anything (arXiv 2304.02643) and its public checkpoints' layout; bicubic resampling of the position
        grid is our choice (plain ViT practice), linear resampling of relative tables is SAM's own rule.

Shape letters: B images, h and w token rows and columns, C channels, d channels of one head.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frisket.kernels.attention import attention
from frisket.models.encoder import STRIDE


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of each pixel of a (B, C, h, w) map; the same shape comes back."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # F.layer_norm is on autocast's float32 list, so the statistics stay exact under bf16.
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ConvBN(nn.Sequential):
    """A convolution without bias and its BatchNorm, children `c` and `bn`. (B, C, h, w) in and out."""

    def __init__(
        self, width: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, gamma: float = 1
    ) -> None:
        super().__init__()
        self.add_module("c", nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(out))
        nn.init.constant_(self.bn.weight, gamma)  # gamma 0: a residual branch starts as nothing

    c: nn.Conv2d
    bn: nn.BatchNorm2d


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382) of a residual branch (B, …): while training each image of the batch loses it
    with probability `rate`, and keeps 1 / (1 - rate) times it otherwise. `rate` is no weight: `drop_paths` sets it."""

    rate = 0.0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        kept = torch.empty(len(x), *(1,) * (x.ndim - 1), device=x.device).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate)).to(x.dtype)


def residual_blocks(encoder: nn.Module) -> list[nn.Module]:
    """The blocks whose branches pass a DropPath called `drop_path`, from the input on."""
    return [part for part in encoder.modules() if isinstance(getattr(part, "drop_path", None), DropPath)]


def drop_paths(encoder: nn.Module, rate: float) -> int:
    """Let the last residual block drop with `rate`, the first never, those between in a line. Returns their number."""
    blocks = residual_blocks(encoder)
    for number, block in enumerate(blocks):
        block.drop_path.rate = rate * number / max(1, len(blocks) - 1)  # type: ignore[union-attr]
    return len(blocks)


class Attend(nn.Module):
    """frisket.kernels.attention's `attention` as a place in a model that can be seen, and replaced, from outside."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return attention(q, k, v, bias=bias)


class MLPBlock(nn.Module):
    """Two linear layers with an activation between: (..., width) -> (..., width)."""

    def __init__(self, width: int, hidden: int, act: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.act(self.lin1(x)))


class PatchEmbed(nn.Module):
    """Patches of 16 x 16 pixels to tokens: (B, 3, H, W) -> (B, H/16, W/16, width), channels last.

    Raises ValueError when a side is no multiple of 16: a convolution would drop the rest without a word.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=STRIDE, stride=STRIDE)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] % STRIDE or x.shape[-1] % STRIDE:
            raise ValueError(f"input {tuple(x.shape[-2:])} is not a multiple of the patch side {STRIDE}")
        return self.proj(x).permute(0, 2, 3, 1)


def neck(width: int, out: int = 256) -> nn.Sequential:
    """SAM's neck, keys 0..3: 1x1 conv, LayerNorm2d, 3x3 conv, LayerNorm2d. (B, width, h, w) -> (B, out, h, w)."""
    return nn.Sequential(
        nn.Conv2d(width, out, kernel_size=1, bias=False),
        LayerNorm2d(out),
        nn.Conv2d(out, out, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(out),
    )


def plain_vit(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What {key: shape} of a state dict of a ViT with SAM's key names tells of its config; else a LookupError."""
    width, channels = shapes["patch_embed.proj.weight"][0], shapes["neck.0.weight"][0]
    return {
        "image_size": STRIDE * shapes["pos_embed"][1],
        "width": width,
        "depth": sum(key.startswith("blocks.") and key.endswith(".norm1.weight") for key in shapes),
        "mlp_ratio": shapes["blocks.0.mlp.lin1.weight"][0] / width,
        "out_channels": channels,
    }


def resample_position(pos: Tensor, size: tuple[int, int]) -> Tensor:
    """Position grid (1, H, W, C) -> (1, h, w, C), bicubic. The native size comes back untouched (the same tensor)."""
    if tuple(pos.shape[1:3]) == tuple(size):
        return pos
    grid = F.interpolate(pos.permute(0, 3, 1, 2).float(), size=size, mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).to(pos.dtype)


def resample_relative(table: Tensor, side: int) -> Tensor:
    """Relative-position table (2*native-1, d) -> (2*side-1, d), linear. The native size comes back untouched."""
    if table.shape[0] == 2 * side - 1:
        return table
    rows = F.interpolate(table.t().unsqueeze(0).float(), size=2 * side - 1, mode="linear", align_corners=False)
    return rows.squeeze(0).t().to(table.dtype)


def window_partition(x: Tensor, window: int) -> Tensor:
    """(B, h, w, C) -> (B * windows, window, window, C); zeros fill the bottom and right up to whole windows."""
    b, h, w, c = x.shape
    down, right = -h % window, -w % window
    if down or right:
        x = F.pad(x, (0, 0, 0, right, 0, down))
    x = x.reshape(b, (h + down) // window, window, (w + right) // window, window, c)
    return x.transpose(2, 3).reshape(-1, window, window, c)


def window_merge(windows: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo `window_partition`: (B * windows, window, window, C) -> (B, h, w, C), `size` = (h, w), filling cut off."""
    window, c = windows.shape[1], windows.shape[-1]
    rows, columns = -(-size[0] // window), -(-size[1] // window)
    x = windows.reshape(-1, rows, columns, window, window, c).transpose(2, 3)
    return x.reshape(-1, rows * window, columns * window, c)[:, : size[0], : size[1]]
