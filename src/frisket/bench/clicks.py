"""Row: the innermost pixel of masks, where most protocols click first, against SciPy's exact distance transform.

    frisket bench rows=[click_depth]

On the CPU always. 60 blobs with holes and ragged rims, 20 to 300 px wide, as a photograph's objects are. Both sides
look at each mask's tight box only, so the ratio is that of the distance transforms.
"""

import numpy as np
from scipy import ndimage

from frisket.bench.harness import Case, Row, Setting, at_most
from frisket.prompts import central_pixels

SIZE = (480, 640)


def blobs(count: int, seed: int) -> np.ndarray:
    """bool (count, *SIZE): unions of three discs minus one, with a rim of noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    masks = np.zeros((count, *SIZE), bool)
    for mask in masks:
        reach = 10 * 15 ** random.random()  # 10 … 150 px
        centre = random.random(2) * SIZE
        for sign in (1, 1, 1, 0):
            cy, cx = centre + random.normal(size=2) * reach / 2
            disc = np.hypot(y - cy, x - cx) + random.normal(size=SIZE) < reach * (0.9 if sign else 0.25)
            mask |= disc if sign else False
            mask &= True if sign else ~disc
    return masks[masks.any(axis=(1, 2))]


def plain(masks: np.ndarray) -> np.ndarray:
    """The innermost pixels (N, 2), (x, y), by SciPy."""
    pixels = np.empty((len(masks), 2), np.int64)
    for n, mask in enumerate(masks):
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        crop = mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
        distance = np.asarray(ndimage.distance_transform_edt(np.pad(crop, 1)))[1:-1, 1:-1]
        y, x = np.unravel_index(int(distance.argmax()), distance.shape)
        pixels[n] = x + xs[0], y + ys[0]
    return pixels


def clicks_row(setting: Setting) -> Case:
    """First clicks of a photograph's masks."""
    masks = blobs(3 if setting.quick else 60, setting.seed)
    wanted = plain(masks)

    def moved() -> float:
        return float((central_pixels(masks) != wanted).any(axis=1).sum())

    guards = [at_most("clicks elsewhere", moved, 0)]
    return Case(lambda: plain(masks), lambda: central_pixels(masks), guards, f"{len(masks)} masks in {SIZE}", "int32")


ROWS = [Row("click_depth", "innermost pixel of masks vs SciPy's distance transform", clicks_row, cpu=True)]
