"""TinyViT-5M with SAM's neck: the student of MobileSAM and TinySAM; convolutions first, then attention in windows.

Use     `build("tiny_sam")`, `build("mobile_sam")`: one network and two public files, whose names and shapes it has.
Source  TinyViT (arXiv 2207.10666); MobileSAM (arXiv 2306.14289) for SAM's neck on it; TinySAM (arXiv 2312.13789).

An image passes four stages, in cells of 4, 8, 16 and 16 px; a reduction between two stages halves the grid, but for the
last one, which only widens. The bias of attention is read from its table at every call: the public code keeps a copy
that goes stale when weights are loaded after `.eval()`. The files hold an ImageNet classifier that nothing executes; it
is kept, frozen, so that they load strictly. The public code takes 1024 px only; this takes what the contract says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from frisket.errors import UserError
from frisket.models.blocks import Attend, ConvBN, DropPath, neck, window_merge, window_partition
from frisket.models.encoder import STRIDE, Entry, Tap, check_taps


@dataclass(frozen=True)
class TinyViTConfig:
    """Shape of a TinyViT; the defaults are TinyViT-5M. Raises UserError for sizes that do not fit together."""

    image_size: int = 1024
    """Side of the native input in pixels; no weight depends on it."""
    widths: tuple[int, ...] = (64, 128, 160, 320)
    """Channels of the four stages."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks of the four stages: inverted bottlenecks in the first, attention in the others."""
    heads: tuple[int, ...] = (4, 5, 10)
    """Of attention, in the last three stages; they share the width."""
    windows: tuple[int, ...] = (7, 14, 7)
    """Side, in cells, of the squares that the last three stages attend in."""
    mlp_ratio: float = 4.0
    """Hidden channels of the MLP to the width."""
    expand: int = 4
    """Hidden channels of the inverted bottlenecks to the width."""
    classes: int = 1000
    """Of the classifier that the public files hold and nothing executes."""
    out_channels: int = 256
    """Of the embedding."""

    def __post_init__(self) -> None:
        for name, length in (("widths", 4), ("depths", 4), ("heads", 3), ("windows", 3)):
            if len(getattr(self, name)) != length or min(getattr(self, name)) < 1:
                raise UserError(f"{name} {getattr(self, name)} must be {length} numbers from 1: change {name}")
        for width, heads in zip(self.widths[1:], self.heads, strict=True):
            if width % heads:
                raise UserError(f"TinyViT width {width} is not a multiple of heads {heads}: change one of the two")
        if self.image_size % STRIDE:
            raise UserError(f"image_size {self.image_size} is not a multiple of {STRIDE}: change image_size")


class PatchEmbed(nn.Module):
    """Two convolutions of stride 2: (B, 3, H, W) -> (B, width, H/4, W/4).

    Raises ValueError when a side is no multiple of 16: the stages would round it up without a word.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvBN(3, width // 2, 3, 2), nn.GELU(), ConvBN(width // 2, width, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] % STRIDE or x.shape[-1] % STRIDE:
            raise ValueError(f"input {tuple(x.shape[-2:])} is not a multiple of {STRIDE}")
        return self.seq(x)


class MBConv(nn.Module):
    """Inverted bottleneck with a residual: widen, depthwise 3 x 3, narrow, add, GELU. (B, C, h, w) in and out."""

    def __init__(self, width: int, expand: int) -> None:
        super().__init__()
        hidden = width * expand
        self.conv1, self.act1 = ConvBN(width, hidden), nn.GELU()
        self.conv2, self.act2 = ConvBN(hidden, hidden, 3, groups=hidden), nn.GELU()
        self.conv3, self.act3 = ConvBN(hidden, width, gamma=0), nn.GELU()
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        return self.act3(x + self.drop_path(self.conv3(self.act2(self.conv2(self.act1(self.conv1(x)))))))


class Reduction(nn.Module):
    """From a stage to the next: (B, C, h, w) -> (B, out, h / stride, w / stride)."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.act = nn.GELU()
        self.conv1, self.conv2, self.conv3 = ConvBN(width, out), ConvBN(out, out, 3, stride, out), ConvBN(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.act(self.conv2(self.act(self.conv1(x)))))


def distances(side: int, device: torch.device) -> Tensor:
    """Entry |row_i - row_j| * side + |column_i - column_j| of the bias table for each pair of cells of a window: (N, N)
    with N = side * side, row-major. The public files number their tables in this order."""
    cells = torch.arange(side * side, device=device)
    rows, columns = cells // side, cells % side
    return (rows[:, None] - rows).abs() * side + (columns[:, None] - columns).abs()


class Attention(nn.Module):
    """Norm, then attention among the cells of a window with a bias by distance: (B, w, w, C) in and out."""

    no_decay = ("attention_biases",)

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attend = Attend()
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        # q, k and v of a head lie side by side: the layout of the files is (head, which, d), not SAM's
        q, k, v = self.qkv(self.norm(x)).reshape(b, h * w, self.heads, 3, c // self.heads).unbind(dim=3)
        bias = self.attention_biases[:, distances(self.window, x.device)]
        return self.proj(self.attend(q, k, v, bias[None].to(q.dtype)).reshape(b, h, w, c))


class Mlp(nn.Module):
    """Norm and two linear layers: (..., width) in and out."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.act = nn.LayerNorm(width), nn.GELU()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(self.norm(x))))


class Block(nn.Module):
    """Attention in windows, a depthwise convolution (which alone carries news from one window to the next) and an MLP:
    (B, C, h, w) in and out. The convolution has no residual and no activation."""

    def __init__(self, width: int, heads: int, window: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attn = Attention(width, heads, window)
        self.local_conv = ConvBN(width, width, 3, groups=width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        # Zeros fill up the windows before the norm and take part in attention, as in the published network.
        attended = window_merge(self.attn(window_partition(y, self.attn.window)), (y.shape[1], y.shape[2]))
        y = y + self.drop_path(attended)
        y = self.local_conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (y + self.drop_path(self.mlp(y))).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Blocks, then a reduction if there is another stage."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: Reduction | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        if downsample is not None:
            self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.downsample(x) if hasattr(self, "downsample") else x


class TinyViT(nn.Module):
    """TinyViT with SAM's neck, an `ImageEncoder`; its taps are the reduced ends of its stages: 8, 16, 16 and 16 px."""

    may_differ = ()

    def __init__(self, config: TinyViTConfig) -> None:
        super().__init__()
        self.config, self.channels = config, config.out_channels
        widths = config.widths
        self.taps = (Tap(widths[1], 8), Tap(widths[2]), Tap(widths[3]), Tap(widths[3]))
        self.patch_embed = PatchEmbed(widths[0])
        # the reduction to the last stage keeps the grid (the published rule goes by its width)
        reductions = [Reduction(a, b, stride) for (a, b), stride in zip(pairwise(widths), (2, 2, 1), strict=True)]
        stages = [Stage([MBConv(widths[0], config.expand) for _ in range(config.depths[0])], reductions[0])]
        for i, (heads, window) in enumerate(zip(config.heads, config.windows, strict=True), start=1):
            blocks = [Block(widths[i], heads, window, config.mlp_ratio) for _ in range(config.depths[i])]
            stages.append(Stage(blocks, reductions[i] if i < 3 else None))
        self.layers = nn.ModuleList(stages)
        self.norm_head = nn.LayerNorm(widths[3]).requires_grad_(False)
        self.head = nn.Linear(widths[3], config.classes).requires_grad_(False)
        self.neck = neck(widths[3], config.out_channels)
        self.layer_names = (
            ("patch_embed",),
            *(
                (f"layers.{s}.blocks.{b}", *((f"layers.{s}.downsample",) if b == depth - 1 else ()))
                for s, depth in enumerate(config.depths)
                for b in range(depth)
            ),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward_features(self, x: Tensor, taps: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """As the contract says."""
        check_taps(taps, self)
        x, kept = self.patch_embed(x), []
        for stage in self.layers:
            x = stage(x)
            kept.append(x)
        return self.neck(x), [kept[tap].permute(0, 2, 3, 1) for tap in taps]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x, ())[0]

    @staticmethod
    def settings_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """As the contract says: all of them but the native side, of which no weight tells."""

        def depth(stage: int) -> int:
            return len({key.split(".")[3] for key in shapes if key.startswith(f"layers.{stage}.blocks.")})

        tables = [shapes[f"layers.{stage}.blocks.0.attn.attention_biases"] for stage in (1, 2, 3)]
        widths = tuple(shapes[f"layers.{stage}.downsample.conv1.c.weight"][1] for stage in (0, 1, 2))
        return {
            "widths": (*widths, shapes["neck.0.weight"][1]),
            "depths": tuple(depth(stage) for stage in range(4)),
            "heads": tuple(heads for heads, _ in tables),
            "windows": tuple(isqrt(cells) for _, cells in tables),
            "mlp_ratio": shapes["layers.1.blocks.0.mlp.fc1.weight"][0] / widths[1],
            "expand": shapes["layers.0.blocks.0.conv1.c.weight"][0] // widths[0],
            "classes": shapes["head.weight"][0],
            "out_channels": shapes["neck.0.weight"][0],
        }

    def macs(self, side: int) -> int:
        """As the contract says; windows filled up to their size count."""
        config, widths = self.config, self.config.widths
        cells, first = (side // 4) ** 2, widths[0]
        stem = first // 2  # channels between its two convolutions, the first of which has four times the cells
        total = cells * stem * (4 * 27 + 9 * first)
        total += config.depths[0] * cells * config.expand * first * (2 * first + 9)
        for (width, out), stride in zip(pairwise(widths), (2, 2, 1), strict=True):
            total += cells * width * out
            cells //= stride**2
            total += cells * out * (9 + out)
        for i, (window, stride) in enumerate(zip(config.windows, (8, 16, 16), strict=True), start=1):
            width, rows = widths[i], side // stride
            filled = (-(-rows // window) * window) ** 2
            attending = filled * width * (4 * width + 2 * window**2)  # projections; scores and values
            total += config.depths[i] * (attending + rows**2 * width * (9 + 2 * int(width * config.mlp_ratio)))
        return total + (side // STRIDE) ** 2 * self.channels * (widths[3] + 9 * self.channels)


ENCODERS = {
    "tiny_sam": Entry(
        TinyViTConfig(),
        TinyViT,
        "TinySAM: TinyViT-5M with SAM's neck, 6.1 M parameters, 39 GMAC at 1024 px",
        "tinysam_42.3.pth",
        "download tinysam_42.3.pth of xinghaochen/TinySAM's release 3.0 and put it there",
    ),
    "mobile_sam": Entry(
        TinyViTConfig(),
        TinyViT,
        "MobileSAM: the same network, 6.1 M parameters, 39 GMAC at 1024 px",
        "mobile_sam.pt",
        "copy weights/mobile_sam.pt of ChaoningZhang/MobileSAM there",
    ),
}
