"""AutoPPN, Lite-SAM's prompt proposals: from an image embedding to heat maps of clicks, with a box for every cell.

Use     proposals = AutoPPN(AutoPPNConfig())(embedding)        # of any encoder with 256 channels at 16 px
        points, boxes, scores, groups = pick(proposals, sizes, 256)
Source  Lite-SAM (arXiv 2407.08965): objects as points, found at 4 px, heat maps apart for small, medium and large
        objects, a stem of multi-scale pooling. The layers are ours, fitted to the published counts (68 k parameters,
        0.87 GMAC at 640 px); the test for peaks is CenterNet's (arXiv 1904.07850).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frisket.errors import UserError
from frisket.geometry import CELL, cell_to_input, inside
from frisket.models.blocks import ConvBN
from frisket.models.encoder import STRIDE
from frisket.models.lite_vit import PoolBlock

PRIOR = -2.2
"""Of a cell's logit at the start: a chance of a tenth, as CenterNet's."""
PEAKS = (3, 7, 13)
"""Cells along the side of the square that a peak is the highest of: small, medium, large; ours."""


@dataclass(frozen=True)
class AutoPPNConfig:
    """Shape of an AutoPPN. Raises UserError for sizes that do not fit."""

    channels: int = 256
    """Of the image embedding."""
    width: int = 64
    """Channels inside."""
    stem: Literal["mspm", "conv"] = "mspm"
    """How far a cell hears before the maps are enlarged: pooling of three sizes, or Table 2's 3 x 3 convolution."""
    groups: Literal[1, 3] = 3
    """Heat maps: one for each of three sizes of objects, or Table 2's single one."""

    def __post_init__(self) -> None:
        if self.stem not in ("mspm", "conv") or self.groups not in (1, 3):
            raise UserError(f"AutoPPN: stem={self.stem} must be mspm or conv, and groups={self.groups} 1 or 3")
        if min(self.channels, self.width) < 1:
            raise UserError(f"AutoPPN: channels={self.channels} and width={self.width} must be 1 or more")


class Proposals(NamedTuple):
    """heat: logits (B, groups, G, G) on the grid of 4 px; boxes: (B, groups, 4, G, G), the ways from a cell's centre to
    the left, upper, right and lower side of its object, in sides S of the input."""

    heat: Tensor
    boxes: Tensor


class Head(nn.Sequential):
    """Depthwise 3 x 3, 1 x 1, and what is told of each cell: (B, C, G, G) -> (B, out, G, G)."""

    def __init__(self, width: int, out: int, bias: float) -> None:
        told = nn.Conv2d(width, out, 1)
        nn.init.constant_(told.bias, bias)  # type: ignore[arg-type]
        super().__init__(*ConvBN(width, width, 3, groups=width), *ConvBN(width, width), nn.GELU(), told)


class AutoPPN(nn.Module):
    """The network; `config` as it was made."""

    def __init__(self, config: AutoPPNConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.reduce = nn.Sequential(*ConvBN(config.channels, width), nn.GELU())
        self.stem = PoolBlock(width, (3, 7, 11)) if config.stem == "mspm" else nn.Conv2d(width, width, 3, padding=1)
        self.refine = nn.Sequential(*ConvBN(width, width, 3, groups=width), *ConvBN(width, width), nn.GELU())
        self.mix = PoolBlock(width, (3, 5, 7))
        self.heat = Head(width, config.groups, PRIOR)
        self.box = Head(width, 4 * config.groups, 0.0)

    def forward(self, embedding: Tensor) -> Proposals:
        """Of image embeddings (B, channels, S/16, S/16). In float32 from the heads on: half precision would make
        plateaus of peaks."""
        x = self.stem(self.reduce(embedding))
        x = F.interpolate(x, scale_factor=float(STRIDE // CELL), mode="bilinear", align_corners=False)
        x = self.mix(self.refine(x))
        return Proposals(self.heat(x).float(), self.box(x).float().unflatten(1, (self.config.groups, 4)))


class Picked(NamedTuple):
    """points: (B, K, 2) and boxes (B, K, 4) xyxy in input pixels; scores: (B, K) in 0 .. 1, falling; groups: (B, K)."""

    points: Tensor
    boxes: Tensor
    scores: Tensor
    groups: Tensor


def pick(proposals: Proposals, sizes: Tensor, count: int, *, fill: bool = False) -> Picked:
    """The `count` highest peaks of all groups; where there are fewer, cells that are none follow with score 0, or with
    `fill` the likeliest of them (each in its likeliest group) with their own. Padding has score 0, and never wins.

    sizes: valid (h, w) of each input, long (B, 2); of a side thinner than a cell the first cell counts, and points lie
    on the photograph. Works on the device, and waits for nothing there.
    """
    heat, boxes = proposals
    groups, side = heat.shape[1], heat.shape[-1]
    chance = heat.sigmoid() * inside(sizes.to(heat.device).clamp(min=CELL), side, CELL)[:, None]
    squares = PEAKS if groups == len(PEAKS) else PEAKS[:1] * groups
    highest = torch.stack(
        [F.max_pool2d(chance[:, g], square, 1, square // 2) for g, square in enumerate(squares)], dim=1
    )
    peaks, others = chance == highest, chance == chance.amax(1, keepdim=True)
    scores = torch.where(peaks | others if fill else peaks, chance, 0.0).flatten(1)
    order = torch.where(peaks & (chance > 0), 2.0, 0.0).flatten(1) + scores if fill else scores
    index = order.topk(min(count, order.shape[1]), dim=1).indices
    scores = scores.gather(1, index)
    group, cell = index // side**2, index % side**2
    cells = torch.stack([cell % side, cell // side], dim=-1)
    ways = boxes.flatten(3).permute(0, 1, 3, 2).flatten(1, 2).gather(1, index[..., None].expand(-1, -1, 4))
    points, whole = cell_to_input(cells), side * CELL
    centres, reach = points + 0.5, ways.clamp(min=0) * whole  # a box is told between pixels, a point in them
    corners = torch.cat([centres - reach[..., :2], centres + reach[..., 2:]], dim=-1)
    limit = sizes.to(corners).flip(1).repeat(1, 2)[:, None]
    return Picked(torch.minimum(points, limit[..., 2:] - 1), torch.minimum(corners.clamp(min=0), limit), scores, group)
