"""LiteViT, Lite-SAM's encoder: convolutions and pooling alone, four stages in cells of 2, 4, 8 and 16 px.

Use     `build("lite_sam_640")`, `build("lite_sam_1024")`: one network, two native sides; `block=1` … `5`, `widths=…`
Source  Lite-SAM (arXiv 2407.08965). Its tables tell parameters and multiply-accumulates of four sizes and five blocks;
        the layers behind them are ours, fitted until every such number is met within 2 % (PROFILES), since nothing
        else was published. PoolFormer (arXiv 2111.11418) for the form of a block.

A block adds to its input weighted averages over squares of three sizes, less the input itself (then a depthwise
convolution), and after that an MLP. A neck joins the last two stages. Nothing attends: cost grows with the area.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frisket.errors import UserError
from frisket.kernels.squares import square_mean
from frisket.models.blocks import ConvBN, DropPath, LayerNorm2d
from frisket.models.encoder import STRIDE, Entry, Tap, check_taps

SQUARES = ((3, 5, 7), (3, 5, 7), (3, 7, 11), (3, 7, 11))
"""Sides of the squares that a stage's blocks average over; ours."""
GAIN = 0.1
"""What a block's two branches are multiplied by at the start; ours: PoolFormer's 1e-5 opens too slowly here."""


@dataclass(frozen=True)
class LiteViTConfig:
    """Shape of a LiteViT; the defaults are profile R. Raises UserError for sizes that do not fit together."""

    image_size: int = 640
    """Side of the native input in pixels; no weight depends on it."""
    widths: tuple[int, ...] = (64, 96, 128, 256)
    """Channels of the four stages; about twice the cost: 96, 128, 192, 384; three times: 128, 160, 256, 512."""
    depths: tuple[int, ...] = (2, 3, 2, 2)
    """Blocks of the four stages."""
    mlp_ratios: tuple[float, ...] = (2, 2, 2, 2)
    """Hidden channels of the MLP to the width, in the four stages."""
    block: Literal[1, 2, 3, 4, 5] = 5
    """Table 1's: 1, 2 PoolFormer's; 3 BatchNorm for GroupNorm; 4 three squares for one; 5 learned weights, and a
    depthwise convolution in all stages but the first."""
    neck_width: int = 96
    """Channels of the neck."""
    out_channels: int = 256
    """Of the embedding."""
    decoder_hidden: int = 1024
    """Hidden channels of the mask decoder's MLPs; ours, for 4.2 M in all. 2048 takes the weights of SAM's decoder."""

    def __post_init__(self) -> None:
        for name in ("widths", "depths", "mlp_ratios"):
            if len(getattr(self, name)) != 4 or min(getattr(self, name)) <= 0:
                raise UserError(f"{name} {getattr(self, name)} must be four numbers above 0: change {name}")
        if self.block not in (1, 2, 3, 4, 5):
            raise UserError(f"block {self.block} must be 1 to 5: change block")
        if self.image_size % STRIDE:
            raise UserError(f"image_size {self.image_size} is not a multiple of {STRIDE}: change image_size")


class PoolMixer(nn.Module):
    """The token mixer MSPM (block 5): weighted averages over squares, their border left out, less the input; then a
    depthwise convolution where asked. (B, C, h, w) in and out."""

    no_decay = ("weights",)

    def __init__(self, width: int, squares: Sequence[int], learned: bool, depthwise: bool) -> None:
        super().__init__()
        self.squares = tuple(squares)
        if learned:
            self.weights = nn.Parameter(torch.full((len(squares), width), 1 / len(squares)))
        if depthwise:
            self.local = ConvBN(width, width, 3, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        means = (square_mean(x, side) for side in self.squares)
        if hasattr(self, "weights"):
            mixed = sum(mean * weight[:, None, None] for mean, weight in zip(means, self.weights, strict=True)) - x
        else:
            mixed = sum(means) / len(self.squares) - x
        return self.local(mixed) if hasattr(self, "local") else mixed


class PoolBlock(nn.Module):
    """PoolFormer's form: x + gain * mixer(norm(x)), then x + gain * mlp(norm(x)). (B, C, h, w) in and out."""

    def __init__(
        self, width: int, squares: Sequence[int], ratio: float = 2, *, block: int = 5, local: bool = True
    ) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.norm1, self.norm2 = (nn.GroupNorm(1, width) if block <= 2 else nn.BatchNorm2d(width) for _ in range(2))
        self.mixer = PoolMixer(width, squares if block >= 4 else (3,), block == 5, block == 5 and local)
        self.gain1, self.gain2 = (nn.Parameter(torch.full((width,), GAIN)) for _ in range(2))
        self.mlp = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.GELU(), nn.Conv2d(hidden, width, 1))
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.gain1[:, None, None] * self.mixer(self.norm1(x)))
        return x + self.drop_path(self.gain2[:, None, None] * self.mlp(self.norm2(x)))


class LiteNeck(nn.Module):
    """The last two stages at 8 and 16 px to the embedding, top down: (B, C, 2h, 2w), (B, D, h, w) -> (B, out, h, w)."""

    def __init__(self, widths: Sequence[int], inner: int, out: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(ConvBN(width, inner) for width in widths)
        self.smooth = nn.ModuleList(nn.Sequential(*ConvBN(inner, inner, 3), nn.GELU()) for _ in widths)
        self.join = nn.Conv2d(2 * inner, out, 1, bias=False)
        self.norm = LayerNorm2d(out)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        coarse = self.lateral[1](coarse)
        fine = self.lateral[0](fine) + F.interpolate(coarse, scale_factor=2.0)
        parts = [F.avg_pool2d(self.smooth[0](fine), 2), self.smooth[1](coarse)]
        return self.norm(self.join(torch.cat(parts, dim=1)))


class LiteViT(nn.Module):
    """LiteViT, an `ImageEncoder`; its taps are the ends of its stages: 2, 4, 8 and 16 px."""

    may_differ = ()

    def __init__(self, config: LiteViTConfig) -> None:
        super().__init__()
        self.config, self.channels = config, config.out_channels
        widths = config.widths
        self.taps = tuple(Tap(width, 2 << stage) for stage, width in enumerate(widths))
        stem = widths[0] // 2
        self.stem = nn.Sequential(*ConvBN(3, stem, 3, 2), nn.GELU(), *ConvBN(stem, widths[0], 3))
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    PoolBlock(width, squares, ratio, block=config.block, local=stage > 0)
                    for _ in range(config.depths[stage])
                )
            )
            for stage, (width, squares, ratio) in enumerate(zip(widths, SQUARES, config.mlp_ratios, strict=True))
        )
        self.reductions = nn.ModuleList(
            nn.Sequential(*ConvBN(width, width, 3, 2, width), *ConvBN(width, out)) for width, out in pairwise(widths)
        )
        self.neck = LiteNeck(widths[2:], config.neck_width, config.out_channels)
        self.layer_names = (
            ("stem",),
            *(
                (f"stages.{s}.{b}", *((f"reductions.{s}",) if b == depth - 1 else ()))
                for s, depth in enumerate(config.depths)
                for b in range(depth)
            ),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
                nn.init.trunc_normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward_features(self, x: Tensor, taps: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """As the contract says. Raises ValueError when a side is no multiple of 16."""
        check_taps(taps, self)
        if x.shape[-2] % STRIDE or x.shape[-1] % STRIDE:
            raise ValueError(f"input {tuple(x.shape[-2:])} is not a multiple of {STRIDE}")
        x, kept = self.stages[0](self.stem(x)), []
        for reduce, stage in zip(self.reductions, self.stages[1:], strict=True):
            kept.append(x)
            x = stage(reduce(x))
        return self.neck(kept[-1], x), [(*kept, x)[tap].permute(0, 2, 3, 1) for tap in taps]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x, ())[0]

    def macs(self, side: int) -> int:
        """As the contract says; averages do not count."""
        config, widths = self.config, self.config.widths
        cells, stem = (side // 2) ** 2, widths[0] // 2
        total = cells * stem * (27 + 9 * widths[0])
        for stage, (width, ratio) in enumerate(zip(widths, config.mlp_ratios, strict=True)):
            if stage:
                cells //= 4
                total += cells * widths[stage - 1] * (9 + width)
            local = 9 if config.block == 5 and stage else 0
            total += config.depths[stage] * cells * width * (2 * int(width * ratio) + local)
        inner = config.neck_width
        fine = 4 * cells * inner * (widths[2] + 9 * inner)
        return total + fine + cells * inner * (widths[3] + 9 * inner + 2 * self.channels)


PROFILES: dict[str, dict[str, Any]] = {
    "tiny": {"widths": (32, 64, 96, 128), "block": 1},
    "2x": {"widths": (96, 128, 192, 384)},
    "3x": {"widths": (128, 160, 256, 512)},
    "q": {"depths": (3, 2, 2, 2), "mlp_ratios": (1.5, 2, 2, 2), "neck_width": 104},
}
"""Changes to the defaults, as `build` takes them: Table 1's other sizes; and profile Q, whose parameters come nearest
to the published in all sizes, and whose operations do so in a counter that adds norms and activations."""

ENCODERS = {
    "lite_sam_640": Entry(
        LiteViTConfig(), LiteViT, "Lite-SAM's LiteViT: 1.2 M parameters, 11 GMAC at 640 px; 4.2 M with its decoder"
    ),
    "lite_sam_1024": Entry(
        LiteViTConfig(image_size=1024), LiteViT, "Lite-SAM's LiteViT: 1.2 M parameters, 28 GMAC at 1024 px"
    ),
}
