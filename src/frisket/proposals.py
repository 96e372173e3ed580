"""What AutoPPN learns from masks, and how far it is from it: targets and losses as pure functions.

Use     wanted = targets(masks, boxes, shares)         # of one photograph; the loader's workers do it (frisket.data)
        loss = hard_heat_loss(heat, wanted.heat, valid=inside(sizes, G, CELL)) + box_loss(ways, wanted)
Source  Lite-SAM (arXiv 2407.08965): the distance transform instead of Gaussians at box centres, losses apart for small
        (below 5 % of the photograph), medium and large (above 25 %) objects. The formulas behind these words are ours,
        and so is hard mining; `focal_heat_loss` and `bells` are the baseline's, CornerNet's (arXiv 1808.01244) and
        CenterNet's (arXiv 1904.07850).

Shapes: N masks, B images, g groups (3, or 1), G grid side; boxes in sides S of the input.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frisket.geometry import CELL
from frisket.kernels.distance import deepest, ways

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
OVERLAP = 0.7
"""Of its box with one whose corners lie within a bell's radius of its own, at least (CenterNet)."""


class Targets(NamedTuple):
    """heat: (…, g, G, G), 1 where an object is deepest, falling to 0 at its edge; boxes: (…, g, 4, G, G), the ways from
    a cell's centre to the left, upper, right and lower side of the object that is deepest there."""

    heat: Tensor
    boxes: Tensor


def group_of(shares: Tensor) -> Tensor:
    """0 small, 1 medium, 2 large, long, of objects' shares of the photograph; exactly 5 % and 25 % are medium."""
    return (shares >= SMALL).long() + (shares > LARGE).long()


def targets(
    masks: Tensor, boxes: Tensor, shares: Tensor, *, groups: int = 3, kind: Literal["depth", "gaussian"] = "depth"
) -> Targets:
    """Of one photograph's masks bool (N, G, G), boxes (N, 4) xyxy input px and shares (N,) of it: heat (g, G, G) and
    boxes (g, 4, G, G). On the CPU.

    The depth of a cell is its exact distance to the nearest outside the mask (the picture's border is outside), of the
    deepest one's. A mask without a cell, too small for the grid, is the cell at the middle of its box. Masks above MOST
    are left out. kind gaussian: a bell at the middle of the box instead.
    """
    side, objects = masks.shape[-1], shares <= MOST
    if not objects.all():
        masks, boxes, shares = masks[objects], boxes[objects], shares[objects]
    layer = (group_of(shares) if groups == 3 else torch.zeros(len(shares), dtype=torch.long)).numpy()
    corners = (boxes / (CELL * side)).float().numpy()
    middle = ((corners[:, :2] + corners[:, 2:]) / 2 * side).astype(np.int64).clip(0, side - 1)
    if kind == "depth":
        heat, owner = deepest(masks.numpy(), layer, groups, middle)
    else:
        heat, owner = bells((corners[:, 2:] - corners[:, :2]) * side, layer, groups, middle, side)
    return Targets(torch.from_numpy(heat), torch.from_numpy(ways(owner, corners)))


def bells(
    sizes: np.ndarray, layer: np.ndarray, layers: int, middle: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """CenterNet's targets, as `deepest` gives depths: of boxes of `sizes` (N, 2), (w, h) in cells, a Gaussian at the
    middle cell (N, 2), (x, y), cut off at its radius, of a deviation of a sixth of 2 radius + 1 cells."""
    heat, owner = np.zeros((layers, side, side), np.float32), np.full((layers, side, side), -1, np.int32)
    for n, ((width, height), (x, y)) in enumerate(zip(np.ceil(sizes).clip(1), middle, strict=True)):
        total, area = width + height, 4 * (1 - OVERLAP) * width * height
        radius = int(min(  # one box in the other, the other in it, or both beside each other
            (total - np.sqrt(total**2 - area)) / 4,
            (np.sqrt(total**2 + area / OVERLAP) - total) / 4,
            (total - np.sqrt(total**2 - area / (1 + OVERLAP))) / 2,
        ))  # fmt: skip
        along = np.arange(-radius, radius + 1)
        bell = np.exp(-18 * (along[:, None] ** 2 + along**2) / (2 * radius + 1) ** 2).astype(np.float32)
        low, left = max(0, y - radius), max(0, x - radius)
        window = np.s_[layer[n], low : y + radius + 1, left : x + radius + 1]
        bell = bell[low - y + radius :, left - x + radius :][: heat[window].shape[0], : heat[window].shape[1]]
        higher = bell > heat[window]
        heat[window][higher], owner[window][higher] = bell[higher], n
    return heat, owner


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
