"""Where pixels are: the Frame between a photograph and the model's input, resizing, boxes and mask overlap.

Three frames, named everywhere: *original* (the photograph), *input* (longest side scaled to S, then zero-padded right
and bottom to S x S) and *grid* (S/4 x S/4 over the padded input: the mask decoder's own resolution). Points and boxes
are float (x, y) / (x0, y0, x1, y1). Pixel-index convention of SAM: integer (x, y) is the pixel at that column and
row; the prompt encoder adds the half pixel. Source: SAM's released pre- and post-processing.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 4
"""Input pixels per cell of the mask grid, along each side."""


@dataclass(frozen=True)
class Frame:
    """The way from a photograph to the model's input and back.

    original: (h, w) of the photograph in pixels; size: (h, w) of its valid part in the S x S input; side: S.
    """

    original: tuple[int, int]
    size: tuple[int, int]
    side: int

    @classmethod
    def fit(cls, original: tuple[int, int], side: int) -> "Frame":
        """Scale the longest side of `original` (h, w) to `side`, rounding as SAM does, never below one pixel."""
        scale = side / max(original)
        height, width = (min(side, max(1, int(edge * scale + 0.5))) for edge in original)
        return cls((int(original[0]), int(original[1])), (height, width), side)

    @property
    def grid(self) -> int:
        """Side of the low-resolution mask grid, S // 4."""
        return self.side // CELL

    def valid_tokens(self, patch: int = 16) -> tuple[int, int]:
        """(rows, cols) of patch tokens that hold at least one pixel of the photograph."""
        return -(-self.size[0] // patch), -(-self.size[1] // patch)

    def _scale(self, like: Tensor) -> Tensor:
        return like.new_tensor([self.size[1] / self.original[1], self.size[0] / self.original[0]])

    def to_input(self, xy: Tensor) -> Tensor:
        """Points (..., 2) from original to input pixels."""
        return xy * self._scale(xy)

    def to_original(self, xy: Tensor) -> Tensor:
        """Points (..., 2) from input to original pixels."""
        return xy / self._scale(xy)

    def boxes_to_input(self, boxes: Tensor) -> Tensor:
        """Boxes (N, 4) xyxy from original to input pixels."""
        return boxes * self._scale(boxes).repeat(2)

    def boxes_to_original(self, boxes: Tensor) -> Tensor:
        """Boxes (N, 4) xyxy from input to original pixels."""
        return boxes / self._scale(boxes).repeat(2)


def cell_to_input(cells: Tensor) -> Tensor:
    """Centres of grid cells (..., 2) as (x, y), in input pixels (pixel-index convention)."""
    return (cells.float() + 0.5) * CELL - 0.5


def inside(sizes: Tensor, count: int, pixels: int) -> Tensor:
    """bool (B, count, count): which cells of `pixels` px have their centre on a photograph of valid (h, w) `sizes`."""
    centres = (torch.arange(count, device=sizes.device) + 0.5) * pixels
    rows, columns = centres < sizes[:, :1], centres < sizes[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a uint8 image (3, H, W) to (3, h, w): bilinear, antialiased when shrinking, as PIL (<= 1 level off)."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def pad_square(images: Tensor, side: int) -> Tensor:
    """Pictures (..., h, w) with zeros added at the right and below: (..., side, side)."""
    return F.pad(images, (0, side - images.shape[-1], 0, side - images.shape[-2]))


def upscale_logits(low: Tensor, frame: Frame) -> Tensor:
    """Bring low-resolution mask logits (N, g, g) of the padded grid to (N, H, W) of the original photograph.

    SAM's two steps: bilinear to S x S, crop the valid part, bilinear to the original size.
    """
    return bilinear_twice(low, padded=(frame.side, frame.side), valid=frame.size, original=frame.original)


def bilinear_twice(
    low: Tensor, *, padded: tuple[int, int], valid: tuple[int, int], original: tuple[int, int]
) -> Tensor:
    """(N, g, g') to `padded` (h, w) bilinearly, its corner `valid` cut out, that to `original`: (N, *original)."""
    full = F.interpolate(low[:, None].float(), size=padded, mode="bilinear", align_corners=False)
    return F.interpolate(full[..., : valid[0], : valid[1]], size=original, mode="bilinear", align_corners=False)[:, 0]


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Tight boxes (N, 4) of bool masks (N, H, W): first column, first row, last column + 1, last row + 1.

    An empty mask gives zeros.
    """
    if masks.shape[0] == 0:
        return torch.zeros((0, 4), device=masks.device)
    edges = []
    for dim, length in ((1, masks.shape[2]), (2, masks.shape[1])):
        hit = masks.any(dim=dim)
        first = hit.int().argmax(dim=1)
        last = length - hit.flip(1).int().argmax(dim=1)
        edges.append((first, torch.where(hit.any(1), last, torch.zeros_like(last))))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], dim=1).float()


def mask_areas(masks: Tensor) -> Tensor:
    """Set pixels, long (N,), of bool masks (N, ...)."""
    if masks.device.type != "cpu":
        return masks.flatten(1).sum(1)
    # torch adds bools up one by one on a CPU; numpy counts them ten times as fast
    return torch.tensor([np.count_nonzero(mask) for mask in masks.numpy()], dtype=torch.long)


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (N,) of paired bool masks (N, ...); two empty masks agree perfectly (1)."""
    inter, union = mask_areas(a & b), mask_areas(a | b)
    return torch.where(union > 0, inter / union.clamp(min=1), torch.ones_like(union, dtype=torch.float))
