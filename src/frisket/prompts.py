"""Masks become prompts: boxes, noised boxes, random and central points, points from the error of a prediction.

Shapes: N objects, G grid side, S = 4 G input side. Masks are bool (N, G, G) on the grid; points (N, 2) and boxes (N, 4)
come out in input pixels. Randomness comes from a CPU generator, so a step can be replayed on any device.
Source: SAM App. A for the simulated annotator, SAM D.1 for the central point; what they leave open is marked.
"""

import numpy as np
import torch
from torch import Generator, Tensor

from frisket.geometry import CELL, cell_to_input
from frisket.kernels.distance import squared_depths
from frisket.sample import BOTTOM_RIGHT, IGNORED, TOP_LEFT


def random_points(masks: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """One pixel drawn uniformly from each mask: points (N, 2) and whether there was any, bool (N,).

    An empty mask yields the grid's centre and False.
    """
    count, side = len(masks), masks.shape[-1]
    flat = masks.flatten(1).to(torch.int32).cumsum(dim=1, dtype=torch.int32)
    total = flat[:, -1]
    chance = torch.rand(count, generator=generator).to(masks.device)
    rank = (chance * total).to(torch.int32).clamp(max=(total - 1).clamp(min=0)) + 1  # the rank-th foreground pixel
    index = torch.searchsorted(flat, rank[:, None]).clamp(max=side * side - 1)[:, 0]
    there = total > 0
    index = torch.where(there, index, torch.full_like(index, side * side // 2 + side // 2))
    return cell_to_input(torch.stack([index % side, index // side], dim=1)), there


def weighed_points(masks: Tensor, weights: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """As `random_points`, a cell's chance its weight, (N, G, G), 0 or more; (our choice: Lite-SAM's heat as the weight
    gives the clicks that its AutoPPN proposes)."""
    side = masks.shape[-1]
    flat = (weights.double() * masks).flatten(1).cumsum(dim=1)
    chance = torch.rand(len(masks), generator=generator, dtype=torch.double).to(masks.device)
    index = torch.searchsorted(flat, (chance * flat[:, -1])[:, None], right=True)[:, 0].clamp(max=side * side - 1)
    return cell_to_input(torch.stack([index % side, index // side], dim=1)), flat[:, -1] > 0


def error_points(
    prediction: Tensor, truth: Tensor, generator: Generator, *, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One correcting click each: a uniform pixel where prediction and truth differ, labelled by the truth there.

    Returns points (N, 2) and labels (N,). Where nothing differs the click is a background pixel (label 0, SAM 2's
    rule); where there is no background either, the label is IGNORED and the decoder never sees the point.
    valid: bool (N, G, G), clicks never land outside it.
    """
    valid = torch.ones_like(truth) if valid is None else valid
    wrong = (prediction ^ truth) & valid
    area = torch.where(wrong.flatten(1).any(1)[:, None, None], wrong, ~truth & valid)
    points, there = random_points(area, generator)
    cells = ((points + 0.5) / CELL - 0.5).round().long()
    rows = torch.arange(len(truth), device=truth.device)
    labels = truth[rows, cells[:, 1], cells[:, 0]].long()
    return points, torch.where(there, labels, torch.full_like(labels, IGNORED))


def central_points(masks: Tensor) -> Tensor:
    """The innermost grid cell of each mask as a point (N, 2) in input pixels; see `central_pixels`."""
    return cell_to_input(torch.from_numpy(central_pixels(masks.cpu().numpy()))).to(masks.device)


def central_pixels(masks: np.ndarray) -> np.ndarray:
    """The innermost pixel (x, y) of each mask, int64 (N, 2), in the frame of the bool masks (N, H, W).

    First row-major maximum of the exact distance to the outside, to which the border belongs, so that a border-touching
    object is not clicked on the border (RITM's rule; our default). An empty mask yields the middle of the image.
    """
    points = np.empty((len(masks), 2), dtype=np.int64)
    points[:] = (masks.shape[2] // 2, masks.shape[1] // 2)
    for row, mask in enumerate(masks):
        if mask.any():
            distance, x0, y0 = depths(mask)
            y, x = np.unravel_index(int(distance.argmax()), distance.shape)
            points[row] = (x + x0, y + y0)
    return points


def depths(mask: np.ndarray) -> tuple[np.ndarray, int, int]:
    """How deep each pixel of a non-empty bool mask (H, W) lies in it, over its tight box: int32 (h, w), and x0, y0.

    The exact squared distance to the nearest pixel outside, the picture's border counting as outside.
    """
    rows, columns = tight(mask)
    return squared_depths(mask[rows, columns]), columns.start, rows.start


def tight(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns of a non-empty mask's tight box; `mask[tight(mask)]` is the mask inside it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def noised_boxes(
    boxes: Tensor, generator: Generator, *, side: int, scale: float = 0.1, cap: float = 20.0, kind: str = "gaussian"
) -> Tensor:
    """Boxes (N, 4) with each coordinate moved by noise of `scale` times that side's length, at most `cap` px at S=1024.

    kind 'gaussian' takes the paper's standard deviation literally; 'uniform' is SAM 2's reading. The cap shrinks with
    S, so a small input gets the same relative noise (our choice). Clamped to the S x S input; corners stay ordered.
    """
    lengths = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    limit = cap * side / 1024
    if kind == "uniform":
        noise = (2 * torch.rand(boxes.shape, generator=generator).to(boxes) - 1) * (scale * lengths).clamp(max=limit)
    else:
        noise = (torch.randn(boxes.shape, generator=generator).to(boxes) * scale * lengths).clamp(-limit, limit)
    moved = (boxes + noise).clamp(0, side)
    low, high = torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:])
    return torch.cat([low, high], dim=1)


def box_corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) as their two corner points (N, 2, 2) with labels (N, 2) = top-left, bottom-right.

    The same tokens a box prompt gives; used to mix box- and point-prompted objects in one decoder call.
    """
    labels = torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=boxes.device).expand(len(boxes), 2)
    return boxes.reshape(-1, 2, 2), labels
