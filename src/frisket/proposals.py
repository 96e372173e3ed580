"""What AutoPPN learns from masks, and how far it is from it: targets and losses as pure functions.

Use     wanted = targets(masks, boxes, shares, image_index, images=B)
        terms = proposal_losses(heat, ways, wanted, valid=inside(sizes, G, CELL))
Source  Lite-SAM (arXiv 2407.08965): the distance transform instead of Gaussians at box centres, losses apart for small
        (below 5 % of the photograph), medium and large (above 25 %) objects. The formulas behind these words are ours,
        and so is hard mining; `focal_heat_loss` is the baseline's, CornerNet's (arXiv 1808.01244).

Shapes: N masks, B images, g groups (3, or 1), G grid side; boxes in sides S of the input.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frisket.geometry import CELL
from frisket.kernels.distance import squared_depths

SMALL, LARGE = 0.05, 0.25
"""Shares of the photograph: below the first an object is small, above the second it is large."""
MOST = 0.9
"""What covers more of the photograph is no object (SAM's rule)."""
NEAR = 0.5
"""Cells at least so deep, of 1, teach boxes."""
BETA = 0.05
"""Where the box loss turns from square to straight, in sides of the input."""
HARD, LEAST = 3, 1024
"""The loss of empty cells is that of the worst: so many for each cell of an object, and at least so many."""


class Targets(NamedTuple):
    """heat: (B, g, G, G), 1 where an object is deepest, falling to 0 at its edge; boxes: (B, g, 4, G, G), the ways from
    a cell's centre to the left, upper, right and lower side of the object that is deepest there."""

    heat: Tensor
    boxes: Tensor


def group_of(shares: Tensor) -> Tensor:
    """0 small, 1 medium, 2 large, long, of objects' shares of the photograph; exactly 5 % and 25 % are medium."""
    return (shares >= SMALL).long() + (shares > LARGE).long()


def targets(
    masks: Tensor, boxes: Tensor, shares: Tensor, image_index: Tensor, *, images: int, groups: int = 3
) -> Targets:
    """Of masks bool (N, G, G), boxes (N, 4) xyxy input px, shares (N,) of the photograph, image_index (N,). On the CPU.

    The depth of a cell is its exact distance to the nearest outside the mask (the picture's border is outside), of the
    deepest one's. A mask without a cell, too small for the grid, is the cell at the middle of its box. Masks above MOST
    are left out.
    """
    side = masks.shape[-1]
    heat, ways = (
        np.zeros((images, groups, side, side), np.float32),
        np.zeros((images, groups, 4, side, side), np.float32),
    )
    owners, group = image_index.tolist(), (group_of(shares) if groups == 3 else torch.zeros_like(image_index)).tolist()
    corners = (boxes / (CELL * side)).numpy()
    centres = (np.arange(side, dtype=np.float32) + 0.5) / side
    for n, mask in enumerate(masks.numpy()):
        if shares[n] > MOST:
            continue
        if not mask.any():
            mask = np.zeros_like(mask)
            x, y = (((corners[n, axis] + corners[n, axis + 2]) / 2 * side) for axis in (0, 1))
            mask[min(side - 1, max(0, int(y))), min(side - 1, max(0, int(x)))] = True
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        depth = np.sqrt(squared_depths(mask[box]).astype(np.float32))
        depth /= depth.max()
        here = heat[owners[n], group[n]][box]
        deeper = depth > here
        here[deeper] = depth[deeper]
        x, y = np.broadcast_to(centres[box[1]], depth.shape), np.broadcast_to(centres[box[0], None], depth.shape)
        there = ways[owners[n], group[n]]
        for k, way in enumerate((x - corners[n, 0], y - corners[n, 1], corners[n, 2] - x, corners[n, 3] - y)):
            there[k][box][deeper] = way[deeper]
    return Targets(torch.from_numpy(heat), torch.from_numpy(ways))


def hard_heat_loss(heat: Tensor, wanted: Tensor, *, valid: Tensor, grouped: bool = True) -> Tensor:
    """Mean square over cells of objects, plus that of the worst of the empty cells; summed over groups, or (not
    grouped, an ablation) of all groups' cells together.

    heat: logits, wanted: 0..1, both (B, g, G, G); valid: bool (B, G, G). Of each group max(HARD x its objects' cells,
    LEAST) empty cells count, in the whole batch; without an object only these.
    """
    error, inner = (heat.sigmoid() - wanted).square(), valid[:, None].expand_as(heat)
    parts = zip(error.unbind(1), wanted.unbind(1), inner.unbind(1)) if grouped else [(error, wanted, inner)]
    total = heat.new_zeros(())
    for errors, truth, photograph in parts:
        of_objects, empty = photograph & (truth > 0), photograph & (truth == 0)
        cells = of_objects.sum()
        hard = torch.minimum(empty.sum(), torch.clamp(HARD * cells, min=LEAST))
        worst = torch.where(empty, errors, 0.0).flatten().sort(descending=True).values
        counted = torch.arange(worst.numel(), device=worst.device) < hard  # no wait for the device to say how many
        total = total + (errors * of_objects).sum() / cells.clamp(min=1) + (worst * counted).sum() / hard.clamp(min=1)
    return total


def focal_heat_loss(heat: Tensor, wanted: Tensor, *, valid: Tensor) -> Tensor:
    """CornerNet's: peaks (wanted 1) as a focal loss of power 2, all else weighted (1 - wanted)^4; divided by peaks."""
    chance, peaks = heat.sigmoid(), (wanted == 1).float()
    at_peak = -((1 - chance) ** 2) * F.logsigmoid(heat) * peaks
    elsewhere = -((1 - wanted) ** 4) * chance**2 * F.logsigmoid(-heat) * (1 - peaks)
    return ((at_peak + elsewhere) * valid[:, None]).sum() / peaks.sum().clamp(min=1)


def box_loss(boxes: Tensor, wanted: Targets) -> Tensor:
    """Smooth l1 (turning at BETA) of the four ways (B, g, 4, G, G), over cells at least NEAR deep, weighted by their
    depth; mean over groups, 0 for one without an object."""
    weight = wanted.heat * (wanted.heat >= NEAR)
    error = F.smooth_l1_loss(boxes, wanted.boxes, reduction="none", beta=BETA).mean(dim=2)
    return ((error * weight).sum(dim=(0, 2, 3)) / weight.sum(dim=(0, 2, 3)).clamp(min=1e-6)).mean()
