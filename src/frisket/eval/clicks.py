"""Where people's evaluation scripts click: the first point of an object, and the next one on what went wrong.

Use     first = first_clicks("innermost", masks)                  # (N, 2) float (x, y), original pixels
        points, labels = next_clicks("clicker", prediction, truth, clicked)
Rules   innermost       first maximum of the exact distance to the outside, the border counts as outside (SAM D.1, RITM)
        innermost_1024  the same on the mask brought to longest side 1024 by nearest sampling (EdgeSAM; theirs takes an
                        approximate distance, so a click may differ by 1-2 px)
        mass            rounded centre of mass if it lies in the mask, else the first pixel whose shortest run to the
                        outside in four directions reaches 20, or the largest (segment-anything-fast)
        uniform         any pixel of the mask (EfficientSAM)
        error           deepest pixel of prediction XOR truth, labelled by the truth (SAM D.1)
        clicker         deepest pixel of the deeper of the missed and the wrongly added parts, never twice (RITM)
        error_uniform   any cell where the low-resolution prediction is wrong; none when under 10 are (EdgeSAM)
Shapes  N objects; masks bool (N, H, W); points (x, y) in original pixels unless said. Pure functions; chance comes from
        the numpy generators given, one for each object, so that neither ranks nor order change a click.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frisket.geometry import Frame
from frisket.prompts import CELL, central_pixels, depths
from frisket.sample import BACKGROUND, FOREGROUND, IGNORED

EDGESAM_SIDE = 1024
GOOD_ENOUGH = 20  # pixels of run: where segment-anything-fast stops its search
FEWEST = 10  # wrong cells below which EdgeSAM clicks no more


# ---------------------------------------------------------------- the first click


def first_clicks(rule: str, masks: np.ndarray) -> np.ndarray:
    """First clicks (N, 2) float64 of non-empty bool masks (N, H, W), original pixels, by a rule without chance."""
    if rule == "innermost":
        return central_pixels(masks).astype(np.float64)
    if rule == "innermost_1024":
        return np.array([innermost_1024(mask) for mask in masks]).reshape(-1, 2)
    if rule == "mass":
        return np.array([mass(mask) for mask in masks], np.float64).reshape(-1, 2)
    raise ValueError(f"there is no rule '{rule}' for the first click")


def innermost_1024(mask: np.ndarray) -> tuple[float, float]:
    """The innermost pixel of a mask after nearest sampling to longest side 1024, back in original pixels.

    (0, 0) when the sampling loses the mask, as the original's argmax over nothing gives.
    """
    frame = Frame.fit((mask.shape[0], mask.shape[1]), EDGESAM_SIDE)
    scaled = _nearest(torch.from_numpy(mask)[None], frame.size)[0].numpy()
    if not scaled.any():
        return 0.0, 0.0
    (x, y), (height, width) = central_pixels(scaled[None])[0], frame.size
    return float(x * mask.shape[1] / width), float(y * mask.shape[0] / height)


def mass(mask: np.ndarray) -> tuple[int, int]:
    """The rounded centre of mass when it lies in the mask, else the pixel with the longest shortest run (see above)."""
    rows, columns = np.nonzero(mask)
    y, x = int(np.rint(rows.mean())), int(np.rint(columns.mean()))
    if mask[y, x]:
        return x, y
    run = shortest_runs(mask)
    enough = np.flatnonzero(run >= GOOD_ENOUGH)
    at = int(enough[0]) if len(enough) else int(run.argmax())
    return at % mask.shape[1], at // mask.shape[1]


def shortest_runs(mask: np.ndarray) -> np.ndarray:
    """Foreground pixels beyond each pixel up, down, left or right, the fewest of the four: int (H, W), -1 outside."""
    beyond = []
    for axis in (0, 1):
        index = np.arange(mask.shape[axis]).reshape((-1, 1) if axis == 0 else (1, -1))
        before = np.maximum.accumulate(np.where(mask, -1, index), axis=axis)  # the last outside pixel so far
        after = np.flip(np.minimum.accumulate(np.flip(np.where(mask, mask.shape[axis], index), axis), axis=axis), axis)
        beyond += [index - before - 1, after - index - 1]
    return np.where(mask, np.minimum.reduce(beyond), -1)


def anywhere(mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """A pixel (x, y) of a non-empty mask, each as likely as any other."""
    inside = np.flatnonzero(mask)
    at = int(inside[rng.integers(len(inside))])
    return at % mask.shape[1], at // mask.shape[1]


# ---------------------------------------------------------------- the next click


def error_click(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    """(x, y, label) of the deepest wrong pixel; label IGNORED when nothing is wrong."""
    x, y, depth = _deepest(prediction ^ truth, ())
    label = FOREGROUND if truth[y, x] else BACKGROUND
    return x, y, label if depth else IGNORED


def clicker_click(
    prediction: np.ndarray, truth: np.ndarray, clicked: Sequence[tuple[int, int]]
) -> tuple[int, int, int]:
    """(x, y, label) of RITM's clicker: the deepest pixel not `clicked` (x, y) yet, of the missed part if that is
    strictly deeper, else of the wrongly added one. With nothing wrong it clicks (0, 0) as background, as RITM does."""
    missed, added = _deepest(truth & ~prediction, clicked), _deepest(prediction & ~truth, clicked)
    if missed[2] > added[2]:
        return missed[0], missed[1], FOREGROUND
    return added[0], added[1], BACKGROUND


def _deepest(mask: np.ndarray, clicked: Sequence[tuple[int, int]]) -> tuple[int, int, int]:
    """(x, y, squared depth) of the first deepest pixel; (0, 0, 0) when there is none."""
    if not mask.any():
        return 0, 0, 0
    distance, x0, y0 = depths(mask)
    for x, y in clicked:
        if 0 <= y - y0 < distance.shape[0] and 0 <= x - x0 < distance.shape[1]:
            distance[y - y0, x - x0] = 0
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    depth = int(distance[y, x])
    return (int(x) + x0, int(y) + y0, depth) if depth else (0, 0, 0)


def next_clicks(
    rule: str, prediction: np.ndarray, truth: np.ndarray, clicked: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The next click of every object: points (N, 2) float64 original pixels and labels (N,) int64.

    rule "error" or "clicker"; prediction and truth: bool (N, H, W); clicked: (N, K, 2) so far.
    """
    clicks = [
        error_click(p, t) if rule == "error" else clicker_click(p, t, [(int(x), int(y)) for x, y in c])
        for p, t, c in zip(prediction, truth, clicked, strict=True)
    ]
    return np.array([f[:2] for f in clicks], np.float64), np.array([f[2] for f in clicks], np.int64)


def grid_error_clicks(
    low: Tensor, truth: Tensor, frame: Frame, rngs: Sequence[np.random.Generator]
) -> tuple[np.ndarray, np.ndarray]:
    """EdgeSAM's next click: points (N, 2) float64 in INPUT pixels, and labels (N,), IGNORED with under 10 wrong cells.

    low: logits (N, G, G); truth: bool (N, H, W). The truth goes to the input frame by nearest and to the grid by
    bilinear sampling, and counts where any of it is left; a cell's point is its corner, as there.
    """
    grid = low.shape[-1]
    padded = torch.zeros(len(low), 1, frame.side, frame.side, device=low.device)
    padded[:, 0, : frame.size[0], : frame.size[1]] = _nearest(truth, frame.size).to(padded)
    seen = F.interpolate(padded, size=(grid, grid), mode="bilinear", align_corners=False)[:, 0] > 0
    padded.zero_()[..., : frame.size[0], : frame.size[1]] = 1
    valid = F.interpolate(padded[:1], size=(grid, grid), mode="bilinear", align_corners=False)[0, 0] > 0
    seen, wrong = seen.cpu().numpy(), (((low > 0) ^ seen) & valid).cpu().numpy()
    points, labels = np.zeros((len(low), 2)), np.full(len(low), IGNORED, np.int64)
    for n, rng in enumerate(rngs):
        cells = np.flatnonzero(wrong[n])
        if len(cells) >= FEWEST:
            y, x = divmod(int(cells[rng.integers(len(cells))]), grid)
            points[n] = (x * CELL, y * CELL)
            labels[n] = FOREGROUND if seen[n, y, x] else BACKGROUND
    return points, labels


# ---------------------------------------------------------------- EdgeSAM's ground truth


def round_trip(masks: Tensor) -> Tensor:
    """What EdgeSAM's script compares with: bool (N, H, W) -> nearest to longest side 1024 -> bilinear back -> > 0.

    Every mask grows by the reach of the bilinear kernel, so that even a perfect answer scores below 1. A pixel is above
    0 where any of its four taps is, which spares the arithmetic.
    """
    size = Frame.fit((masks.shape[1], masks.shape[2]), EDGESAM_SIDE).size
    for axis in (1, 2):
        first, second = (taps.to(masks.device) for taps in _taps(masks.shape[axis], size[axis - 1]))
        masks = masks.index_select(axis, first) | masks.index_select(axis, second)
    return masks


@lru_cache(maxsize=64)
def _taps(length: int, between: int) -> tuple[Tensor, Tensor]:
    """The (first, last) original index, each (length,), that reach an index by nearest to `between` and linear back."""
    nearest = F.interpolate(torch.arange(length)[None, None, :, None].float(), size=(between, 1), mode="nearest")
    weights = F.interpolate(torch.eye(between)[None, :, :, None], size=(length, 1), mode="bilinear")[0, :, :, 0]
    source = nearest[0, 0, :, 0].long()
    low, high = (weights > 0).int().argmax(dim=0), between - 1 - (weights > 0).flip(0).int().argmax(dim=0)
    return source[low], source[high]


def _nearest(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """bool (N, H, W) -> bool (N, *size), torch's nearest sampling."""
    return F.interpolate(masks[:, None].to(torch.uint8), size=size, mode="nearest")[:, 0].bool()
