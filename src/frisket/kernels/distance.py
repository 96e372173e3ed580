"""How deep a pixel lies in a mask: the exact squared Euclidean distance to the nearest pixel outside.

Use     squared = squared_depths(mask)         # int32 (H, W), 0 outside; the picture's border counts as outside
Source  The two passes of Felzenszwalb and Huttenlocher (Theory of Computing 2012): distances down the columns, then
        along each row the lower envelope of parabolas, here run by run of foreground, since no envelope reaches past a
        pixel outside. Whole numbers throughout, so pixels of equal depth are equal; `scipy.ndimage` squared is the
        tests' reference. Compiled by numba on first use and cached on disk.
"""

import numba
import numpy as np


def squared_depths(mask: np.ndarray) -> np.ndarray:
    """int32 (H, W) of a bool mask (H, W). Raises ValueError for anything but two dimensions."""
    if mask.ndim != 2:
        raise ValueError(f"a mask has two dimensions, not {mask.ndim}")
    return _squared(np.ascontiguousarray(mask, np.bool_)) if mask.size else np.zeros(mask.shape, np.int32)


@numba.njit(cache=True, nogil=True)
def _squared(mask):  # pragma: no cover (compiled)
    height, width = mask.shape
    rise = np.zeros((height, width), np.int32)  # to the nearest outside pixel in the column
    for x in range(width):
        rise[0, x] = mask[0, x]
    for y in range(1, height):
        for x in range(width):
            rise[y, x] = rise[y - 1, x] + 1 if mask[y, x] else 0
    for x in range(width):
        rise[height - 1, x] = min(rise[height - 1, x], 1)
    for y in range(height - 2, -1, -1):
        for x in range(width):
            rise[y, x] = min(rise[y, x], rise[y + 1, x] + 1)
    out = np.zeros((height, width), np.int32)
    centre = np.empty(width + 2, np.int64)  # of the envelope's parabolas, places counted from the outside pixel
    begin = np.empty(width + 2, np.int64)  # where each starts to be the lowest
    high = np.empty(width + 2, np.int64)
    for y in range(height):
        x = 0
        while x < width:
            if not mask[y, x]:
                x += 1
                continue
            first = x
            while x < width and mask[y, x]:
                x += 1
            end = x - first + 1  # the run's pixels are 1 … end - 1; 0 and end lie outside
            high[0], high[end] = 0, 0
            for p in range(1, end):
                high[p] = np.int64(rise[y, first + p - 1]) ** 2
            last = 0
            centre[0], begin[0] = 0, 0
            for p in range(1, end + 1):
                while True:
                    before = centre[last]
                    # a float is exact enough: quotients that are not whole are at least 1 / (2 width) from whole
                    start = int(
                        np.floor((high[p] + p * p - high[before] - before * before) / np.float64(2 * (p - before)))
                    )
                    start += 1
                    if last > 0 and start <= begin[last]:
                        last -= 1
                    else:
                        break
                if start <= end:
                    last += 1
                    centre[last], begin[last] = p, max(start, 0)
            stop = end
            for n in range(last, -1, -1):
                for p in range(max(begin[n], 1), min(stop, end - 1) + 1):
                    out[y, first + p - 1] = (p - centre[n]) ** 2 + high[centre[n]]
                stop = begin[n] - 1
    return out
