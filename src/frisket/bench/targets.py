"""Row: what AutoPPN is to learn of a photograph, from run lengths to heat maps, against SciPy's distance transform.

    frisket bench rows=[ppn_targets]

On the CPU always, as in a loader's worker. 100 blobs of 1500 x 2250 in the three groups, to the grid of 1024 px. Both
sides fill the same grids from runs and look at each mask's tight box only, so the ratio is that of what follows.
"""

import numpy as np
import torch
from scipy import ndimage

from frisket.bench.harness import Case, Row, Setting, at_most
from frisket.bench.records import MASKS, blobs
from frisket.data.sa1b import grid_samples
from frisket.geometry import CELL, Frame, boxes_of_masks
from frisket.kernels.rle import area, fill_many
from frisket.prompts import tight
from frisket.proposals import Targets, group_of, targets


def plain(masks: np.ndarray, boxes: np.ndarray, layer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heat (3, G, G) and ways (3, 4, G, G) of masks bool (N, G, G), boxes (N, 4) in sides of the input."""
    side = masks.shape[-1]
    heat, ways = np.zeros((3, side, side), np.float32), np.zeros((3, 4, side, side), np.float32)
    centre = (np.arange(side, dtype=np.float32) + 0.5) / side
    for mask, box, group in zip(masks, boxes, layer, strict=True):
        rows, columns = tight(mask)
        away = np.asarray(ndimage.distance_transform_edt(np.pad(mask[rows, columns], 1)))[1:-1, 1:-1]
        depth = np.rint(away**2).astype(np.float32) / np.rint(away.max() ** 2).astype(np.float32)
        deeper = depth > heat[group][rows, columns]
        heat[group][rows, columns][deeper] = depth[deeper]
        x, y = np.broadcast_to(centre[columns], depth.shape), np.broadcast_to(centre[rows, None], depth.shape)
        for k, way in enumerate((x - box[0], y - box[1], box[2] - x, box[3] - y)):
            ways[group, k][rows, columns][deeper] = way[deeper]
    return np.sqrt(heat), ways


def targets_row(setting: Setting) -> Case:
    """A photograph's targets."""
    size, side, count = ((90, 150), 64, 5) if setting.quick else ((1500, 2250), 1024, MASKS)
    rles = blobs(np.random.default_rng(setting.seed), size, count)
    rows, columns = grid_samples(Frame.fit(size, side))
    grids = fill_many(rles, rows, columns)
    rles = [mask for mask, grid in zip(rles, grids, strict=True) if grid.any()]
    boxes = boxes_of_masks(torch.from_numpy(grids[grids.any((1, 2))]).bool()) * CELL
    shares = torch.tensor([area(mask) / (size[0] * size[1]) for mask in rles])
    layer = group_of(shares).numpy()

    def filled() -> np.ndarray:
        return fill_many(rles, rows, columns).view(np.bool_)

    def baseline() -> tuple[np.ndarray, np.ndarray]:
        return plain(filled(), (boxes / side).numpy(), layer)

    def ours() -> Targets:
        return targets(torch.from_numpy(filled()), boxes, shares)

    def off() -> float:
        return max(float(np.abs(a - b.numpy()).max()) for a, b in zip(baseline(), ours(), strict=True))

    note = (
        f"{len(rles)} masks of {size[0]} x {size[1]} to a grid of side {side // CELL}, filling included on both sides"
    )
    return Case(baseline, ours, [at_most("max diff", off, 1e-6)], note)


ROWS = [Row("ppn_targets", "AutoPPN's targets of 100 masks vs SciPy's distance transform", targets_row, cpu=True)]
