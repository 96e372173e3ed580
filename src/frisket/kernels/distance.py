"""How deep a pixel lies in a mask: the exact squared Euclidean distance to the nearest pixel outside.

Use     squared = squared_depths(mask)         # int32 (H, W), 0 outside; the picture's border counts as outside
        depth, owner = deepest(masks, layer, 3, middle)        # of many masks of one picture, the deepest at each pixel
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
    line = np.empty(width + 2, np.int64)  # of a parabola, what is left at 0; places are counted from the outside pixel
    centre = np.empty(width + 2, np.int64)  # of the envelope's parabolas
    begin = np.empty(width + 2, np.int64)  # where each starts to be the lowest
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
            line[0], line[end] = 0, end * end
            for p in range(1, end):
                line[p] = np.int64(rise[y, first + p - 1]) ** 2 + p * p
            last, centre[0], begin[0] = 0, 0, 0
            c, own, start = 0, 0, 0  # centre, line and begin of the last one
            for p in range(1, end + 1):  # two parabolas differ by a line: no division tells which is lower at a place
                while last and line[p] - own < 2 * (p - c) * start:
                    last -= 1
                    c, start = centre[last], begin[last]
                    own = line[c]
                away, above = 2 * (p - c), line[p] - own
                if above < away * end:
                    # a float is exact enough: quotients that are not whole are at least 1 / (2 width) from whole
                    c, own, start = p, line[p], max(int(np.floor(above / np.float64(away))) + 1, 0)
                    last += 1
                    centre[last], begin[last] = c, start
            for p in range(end - 1, 0, -1):
                while begin[last] > p:
                    last -= 1
                out[y, first + p - 1] = line[centre[last]] + p * (p - 2 * centre[last])
    return out


def deepest(masks: np.ndarray, layer: np.ndarray, layers: int, middle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(depth, owner), each (layers, H, W): how deep the deepest mask lies at each pixel, and its number.

    masks: bool (N, H, W); layer: int (N,), where each is laid. depth: float32, 0 outside all and 1 where a mask is
    deepest; owner: int32, -1 outside all; the first of equally deep ones. A mask without a pixel is the pixel
    middle[n], int (N, 2), (x, y).
    """
    shape = (layers, *masks.shape[1:])
    depth, owner = np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
    _deepest(np.ascontiguousarray(masks, np.bool_).view(np.uint8), layer, middle, depth, owner)
    return np.sqrt(depth, out=depth), owner


@numba.njit(cache=True, nogil=True)
def _deepest(masks, layer, middle, depth, owner):  # pragma: no cover (compiled)
    """`depth` and `owner` filled, the depth squared."""
    for n in range(len(masks)):
        into, whose = depth[layer[n]], owner[layer[n]]
        y0, y1, x0, x1 = _tight(masks[n])
        if y1 == 0:
            x, y = middle[n, 0], middle[n, 1]
            if into[y, x] < 1:
                into[y, x], whose[y, x] = 1, n
            continue
        squared = _squared(masks[n, y0:y1, x0:x1])
        most = np.float32(0)
        for y in range(y1 - y0):
            for x in range(x1 - x0):
                most = max(most, np.float32(squared[y, x]))
        for y in range(y1 - y0):
            for x in range(x1 - x0):
                if squared[y, x]:
                    here = np.float32(squared[y, x]) / most  # all in float32: equal depths must stay equal
                    if here > into[y0 + y, x0 + x]:
                        into[y0 + y, x0 + x], whose[y0 + y, x0 + x] = here, n


@numba.njit(cache=True, nogil=True)
def _tight(mask):  # pragma: no cover (compiled)
    """First and last row + 1, first and last column + 1; all 0 of an empty mask. Loops that a compiler makes wide."""
    height, width = mask.shape
    columns = np.zeros(width, np.uint8)
    y0, y1, x0, x1 = 0, 0, 0, 0
    for y in range(height):
        row, hit = mask[y], np.uint8(0)
        for x in range(width):
            hit |= row[x]
        if hit:
            y0, y1 = y0 if y1 else y, y + 1
            for x in range(width):
                columns[x] |= row[x]
    for x in range(width):
        if columns[x]:
            x0, x1 = x0 if x1 else x, x + 1
    return y0, y1, x0, x1


@numba.njit(cache=True, nogil=True)
def ways(owner, boxes):  # pragma: no cover (compiled)
    """From each pixel's middle to the left, upper, right and lower side of its owner's box: float32 (L, 4, H, W).

    owner: int32 (L, H, W), -1: nobody, and then 0; boxes: float32 (N, 4) xyxy, from 0 to 1 over the picture's sides.
    """
    layers, height, width = owner.shape
    out = np.zeros((layers, 4, height, width), np.float32)
    for n in range(layers):
        for y in range(height):
            for x in range(width):
                if owner[n, y, x] >= 0:
                    box = boxes[owner[n, y, x]]
                    across, down = np.float32((x + 0.5) / width), np.float32((y + 0.5) / height)
                    out[n, 0, y, x], out[n, 1, y, x] = across - box[0], down - box[1]
                    out[n, 2, y, x], out[n, 3, y, x] = box[2] - across, box[3] - down
    return out
