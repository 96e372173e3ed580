"""Thinning of a binary picture to lines one pixel wide: what MATLAB's `bwmorph(…, 'thin', Inf)` does.

Use     `thin(picture)` gives the thinned bool (H, W); what lies outside the picture counts as background.
Source  Guo and Hall, "Parallel thinning with two-subiteration algorithms" (1989), as restated by Lam, Lee and Suen,
        "Thinning methodologies" (1992), page 879; the Berkeley edge benchmark thins so. The worklist is our choice.

A subiteration looks at all pixels at once and deletes those whose eight neighbours meet its conditions; the two kinds
alternate until neither deletes anything. Whether a pixel goes depends on its neighbours alone, so that after the first
round only pixels beside a deleted one are looked at again. Compiled by numba on first use and cached on disk.
"""

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray


def removable(kind: int) -> NDArray[np.bool_]:
    """Which of the 256 neighbourhoods subiteration `kind` (0 or 1) deletes.

    Bit k of the index is neighbour k: 0 east, then counter-clockwise (1 north-east, 2 north, … 7 south-east).
    """
    table = np.zeros(256, bool)
    for code in range(256):
        x = [code >> k & 1 for k in range(8)]
        ring = [*x, x[0]]
        crossings = sum(1 for k in (0, 2, 4, 6) if not x[k] and (x[k + 1] or ring[k + 2]))
        pairs = sum(x[k] | x[k + 1] for k in (0, 2, 4, 6)), sum(x[k + 1] | ring[k + 2] for k in (0, 2, 4, 6))
        if kind == 0:
            kept_side = (x[1] or x[2] or not x[7]) and x[0]
        else:
            kept_side = (x[5] or x[6] or not x[3]) and x[4]
        table[code] = crossings == 1 and 2 <= min(pairs) <= 3 and not kept_side
    return table


_TABLES = np.stack([removable(0), removable(1)])


def thin(picture: ArrayLike) -> NDArray[np.bool_]:
    """The bool picture (H, W) thinned until nothing changes. Raises ValueError for another number of axes."""
    pixels = np.asarray(picture)
    if pixels.ndim != 2:
        raise ValueError(f"a picture to thin has two axes, not {pixels.ndim}")
    padded = np.zeros((pixels.shape[0] + 2, pixels.shape[1] + 2), np.uint8)
    padded[1:-1, 1:-1] = pixels != 0
    _thin(padded.reshape(-1), padded.shape[1], _TABLES)
    return padded[1:-1, 1:-1].astype(bool)


@numba.njit(cache=True, nogil=True)
def _thin(pixels, width, tables):  # pragma: no cover (compiled)
    """Thin `pixels`, a flat picture with a border of zeros and rows of `width`, in place."""
    around = np.array([1, 1 - width, -width, -1 - width, -1, width - 1, width, width + 1])
    size = pixels.size
    waiting = np.empty((2, size), np.int32)  # to be looked at in subiteration 0 and 1
    count = np.zeros(2, np.int64)
    listed = np.zeros((2, size), np.uint8)
    doomed = np.empty(size, np.int32)
    for at in range(size):
        if pixels[at]:
            inside = True
            for k in range(8):
                inside = inside and pixels[at + around[k]] != 0
            if not inside:
                for kind in range(2):
                    waiting[kind, count[kind]] = at
                    count[kind] += 1
                    listed[kind, at] = 1
    kind = 0
    while count[0] or count[1]:
        number = 0
        for n in range(count[kind]):
            at = waiting[kind, n]
            listed[kind, at] = 0
            if pixels[at]:
                code = 0
                for k in range(8):
                    code |= np.int64(pixels[at + around[k]]) << k
                if tables[kind, code]:
                    doomed[number] = at
                    number += 1
        count[kind] = 0
        for n in range(number):
            pixels[doomed[n]] = 0
        for n in range(number):
            for k in range(8):
                at = doomed[n] + around[k]
                if pixels[at]:
                    for other in range(2):
                        if not listed[other, at]:
                            listed[other, at] = 1
                            waiting[other, count[other]] = at
                            count[other] += 1
        kind = 1 - kind
