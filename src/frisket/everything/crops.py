"""Where segment everything cuts a photograph: SAM's overlapping crops, and which masks a cut may have spoilt.

Use     whole, *inner = crops((1500, 2250), layers=1)
Source  Segment Anything (arXiv 2304.02643, appendix B) and its released generator.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EDGE = 20  # pixels: a box this close to a cut is taken as cut


@dataclass(frozen=True)
class Crop:
    """A window of a photograph (h, w) `whole`: columns x0 to x1 and rows y0 to y1, ends excluded. Layer 0 is all."""

    x0: int
    y0: int
    x1: int
    y1: int
    layer: int
    whole: tuple[int, int]


def crops(size: tuple[int, int], layers: int, overlap_ratio: float = 512 / 1500) -> list[Crop]:
    """The whole photograph (h, w), then layer i's 2^i x 2^i windows. They overlap by `overlap_ratio` of the short side
    in layer 1, half of that in layer 2, and so on."""
    height, width = size
    crops = [Crop(0, 0, width, height, 0, size)]
    for layer in range(1, layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / count))
        high, wide = (math.ceil((overlap * (count - 1) + length) / count) for length in size)
        for x0 in ((wide - overlap) * n for n in range(count)):
            for y0 in ((high - overlap) * n for n in range(count)):
                crops.append(Crop(x0, y0, min(x0 + wide, width), min(y0 + high, height), layer, size))
    return crops


def near_inner_edge(boxes: Tensor, crop: Crop) -> Tensor:
    """bool (N,): boxes (N, 4) in the crop's pixels with a side within EDGE of its and not of the photograph's."""
    offset = torch.tensor([crop.x0, crop.y0, crop.x0, crop.y0], device=boxes.device)
    cut = torch.tensor([crop.x0, crop.y0, crop.x1, crop.y1], device=boxes.device)
    rim = torch.tensor([0, 0, crop.whole[1], crop.whole[0]], device=boxes.device)
    placed = boxes + offset
    return (((placed - cut).abs() <= EDGE) & ((placed - rim).abs() > EDGE)).any(dim=1)
