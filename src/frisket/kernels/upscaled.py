"""What masks look like at the photograph's size, told from their low-resolution logits without enlarging them.

Use     full = measure(low, frame, offset=1.0, at_least=0.95)     # stability, area and box of each mask at full size
        rles = encode(low, frame)                                 # the masks themselves, as COCO RLE
Source  Our choice. Enlarging (frisket.geometry.upscale_logits) is linear, and along each axis a pixel is a convex
        combination of at most three neighbouring cells. So pixels whose 3 x 3 cells all lie on one side of a level lie
        there too and are counted by the block; only blocks that a level crosses, along the contours, are evaluated.
Exact   An evaluated pixel may differ from the plain way by rounding, at most ROUNDING times its largest cell. Pixels
        that close to a level are counted apart: they bound stability and box from both sides. A mask whose bounds leave
        open whether it reaches `at_least`, or where its box ends, is enlarged after all; so `kept`, and the boxes of
        the kept, are those of `enlarged`, the plain way.

Compiled by numba for the CPU (on first use, cached); on other devices `blocks_torch` does the same with torch.
Shape letters: N masks, G side of the low grid, Q and K blocks down and across, P blocks that are crossed.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from frisket.geometry import Frame, bilinear_twice, upscale_logits
from frisket.kernels import rle

ROUNDING = 2.0**-18
"""64 units in the last place of float32. Two bilinear steps one way and six products and four sums the other come to
less than 30; a photograph has a few pixels a mask that are this close to a level."""
VAGUE = 1e-3  # a kept mask's stability must be known this well
CROWDED = 0.25  # of all blocks crossed: with torch, enlarging is cheaper then
PATCHES = 1 << 16  # blocks evaluated at once, with torch
PIXELS = 1 << 25  # of enlarged masks held at once
FAR = 1 << 30


@dataclass
class Upscaled:
    """N masks at full size. kept: bool (N,), whether stability reaches the limit; stability: float (N,), pixels above
    +offset over pixels above -offset, NaN when there are none; area: long (N,), pixels above 0; boxes: long (N, 4),
    first column, first row, last column, last row (as SAM's generator: one less than COCO's), zeros for an empty mask;
    enlarged: how many masks were. Exact: kept, and of the kept the box and whether area is 0; their stability to VAGUE.
    """

    kept: Tensor
    stability: Tensor
    area: Tensor
    boxes: Tensor
    enlarged: int


def enlarged(low: Tensor, frame: Frame, *, offset: float, at_least: float) -> Upscaled:
    """The plain way: enlarge every mask (N, G, G) and count. In parts, so that memory stays bounded."""
    parts = [_counts_and_boxes(upscale_logits(part, frame), offset) for part in low.split(_at_once(frame)) if len(part)]
    counts = torch.cat([part[0] for part in parts]) if parts else _zeros(low, 3)
    boxes = torch.cat([part[1] for part in parts]) if parts else _zeros(low, 4)
    stability = counts[:, 0] / counts[:, 2]
    return Upscaled(_reaches(stability, at_least), stability, counts[:, 1], boxes, len(low))


def measure(low: Tensor, frame: Frame, *, offset: float, at_least: float) -> Upscaled:
    """The same for masks (N, G, G) of one photograph, mostly without enlarging them.

    at_least: the stability to reach; 0 or less keeps every mask, as in SAM even one whose stability is NaN.
    """
    _fits(low, frame)
    bounds = blocks_numba if low.device.type == "cpu" else blocks_torch
    sure, doubt, strict, loose, unknown = bounds(low.detach().float(), frame, (offset, 0.0, -offset))
    stability = sure[:, 0] / sure[:, 2]
    least = (sure[:, 0] - doubt[:, 0]) / (sure[:, 2] + doubt[:, 2])
    most = (sure[:, 0] + doubt[:, 0]) / (sure[:, 2] - doubt[:, 2]).clamp(min=0)  # x / 0 is inf: it may reach anything
    kept = _reaches(least, at_least)
    possible = _reaches(most, at_least) | ((sure[:, 2] <= doubt[:, 2]) & (doubt[:, 2] > 0))
    vague = (doubt > 0).any(dim=1) & ~(most - least <= VAGUE)
    again = (unknown | (possible & (~kept | vague | (strict != loose).any(dim=1)))).nonzero()[:, 0]
    measured = Upscaled(kept, stability, sure[:, 1], _closed(strict), len(again))
    if len(again):
        plain = enlarged(low[again], frame, offset=offset, at_least=at_least)
        for name in ("kept", "stability", "area", "boxes"):
            getattr(measured, name)[again] = getattr(plain, name)
    return measured


def encode(low: Tensor, frame: Frame) -> list[dict[str, Any]]:
    """COCO RLE of masks (N, G, G) at full size, logit > 0: what `upscale_logits` and `rle.encode` give, but for pixels
    within rounding of 0."""
    _fits(low, frame)
    if low.device.type == "cpu":
        sheet = np.empty((frame.original[1], frame.original[0]), np.bool_)
        rows, columns = (axis(frame, dim, low.device).arrays() for dim in (0, 1))
        rles = []
        for mask in low.detach().float().contiguous().numpy():
            _draw(mask, rows, columns, ROUNDING, sheet)
            rles.append(rle.encode_columns(sheet))
        return rles
    parts = ((upscale_logits(part, frame) > 0).mT.contiguous().cpu().numpy() for part in low.split(_at_once(frame)))
    return [rle.encode_columns(mask) for part in parts for mask in part]


def _fits(low: Tensor, frame: Frame) -> None:
    """Raises ValueError for masks of another grid: compiled code reads where the frame says."""
    if low.ndim != 3 or low.shape[1:] != (frame.grid, frame.grid) or frame.grid < 3:
        raise ValueError(
            f"masks of {frame} are (N, {frame.grid}, {frame.grid}), at least 3 x 3, not {tuple(low.shape)}"
        )


def _at_once(frame: Frame) -> int:
    return max(1, PIXELS // (frame.original[0] * frame.original[1]))


def _reaches(stability: Tensor, at_least: float) -> Tensor:
    return stability >= at_least if at_least > 0 else torch.ones_like(stability, dtype=torch.bool)


def _zeros(low: Tensor, columns: int) -> Tensor:
    return torch.zeros(len(low), columns, dtype=torch.long, device=low.device)


def _counts_and_boxes(full: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """Pixels above +offset, 0, -offset: long (N, 3); box of those above 0: long (N, 4), inclusive."""
    counts = torch.stack([(full > level).flatten(1).sum(1) for level in (offset, 0.0, -offset)], dim=1)
    above = full > 0
    edges = []
    for dim in (1, 2):
        hit = above.any(dim=dim)
        edges += [hit.int().argmax(1), hit.shape[1] - 1 - hit.flip(1).int().argmax(1)]
    boxes = torch.stack([edges[0], edges[2], edges[1], edges[3]], dim=1)
    return counts, boxes * (counts[:, 1:2] > 0)


# ---------------------------------------------------------------- blocks


@dataclass(frozen=True)
class Axis:
    """One axis of the enlargement, its pixels grouped by their first cell: Q blocks of up to k pixels.

    cell (Q,): first of the three cells; pixel (Q,): first pixel; size (Q,): pixels; weight (Q, k, 3); valid (Q, k).
    """

    cell: Tensor
    pixel: Tensor
    size: Tensor
    weight: Tensor
    valid: Tensor

    def arrays(self) -> tuple[np.ndarray, ...]:
        """cell, pixel, size and weight as numpy arrays."""
        return tuple(part.numpy() for part in (self.cell, self.pixel, self.size, self.weight))


@lru_cache(maxsize=16)
def enlargement(frame: Frame, dim: int, device: torch.device) -> Tensor:
    """(pixels, G): how much of each cell a row (dim 0) or column (dim 1) of the photograph holds, read off the
    enlargement of single cells."""
    side, length = frame.grid, frame.original[dim]
    unit = torch.eye(side, device=device)[:, :, None]
    response = bilinear_twice(unit, padded=(frame.side, 1), valid=(frame.size[dim], 1), original=(length, 1))
    return response.reshape(side, length).T


def lattice(low: Tensor, frame: Frame, rows: Tensor, columns: Tensor) -> Tensor:
    """Masks (N, G, G) at the crossings of long `rows` (R,) and `columns` (C,) of the photograph: (N, R, C), what
    `upscale_logits` has there, to rounding."""
    down, across = (enlargement(frame, dim, low.device)[at] for dim, at in ((0, rows), (1, columns)))
    with torch.autocast(low.device.type, enabled=False):  # its products would be rounded to half precision
        return down @ low.float() @ across.T


@lru_cache(maxsize=16)
def axis(frame: Frame, dim: int, device: torch.device) -> Axis:
    """Blocks of the rows (dim 0) or columns (dim 1)."""
    side, length = frame.grid, frame.original[dim]
    response = enlargement(frame, dim, device)
    used = response != 0
    first = used.int().argmax(dim=1).clamp(max=side - 3)
    last = side - 1 - used.flip(1).int().argmax(dim=1)
    if int((last - first).max()) > 2:
        raise AssertionError("a pixel of the enlarged mask draws on more than three cells")
    cell, group, size = torch.unique_consecutive(first, return_inverse=True, return_counts=True)
    pixel = size.cumsum(0) - size
    place = torch.arange(length, device=device) - pixel[group]
    weight = torch.zeros(len(cell), int(size.max()), 3, device=device)
    weight[group, place] = response.gather(1, first[:, None] + torch.arange(3, device=device))
    valid = torch.arange(weight.shape[1], device=device) < size[:, None]
    return Axis(cell, pixel, size, weight, valid)


Bounds = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of N masks: pixels above each of three levels (N, 3), how many pixels are within rounding of it (N, 3), the box of
what is surely above the middle level and of what may be (N, 4), open (FAR, FAR, -1, -1) where that is nothing, and
masks it was not worth looking at (N,)."""


def blocks_numba(low: Tensor, frame: Frame, levels: tuple[float, float, float]) -> Bounds:
    """`Bounds` of float32 masks (N, G, G) on the CPU."""
    rows, columns = (axis(frame, dim, low.device).arrays() for dim in (0, 1))
    sure, doubt = np.zeros((len(low), 3), np.int64), np.zeros((len(low), 3), np.int64)
    boxes = np.empty((2, len(low), 4), np.int64)
    boxes[..., :2], boxes[..., 2:] = FAR, -1
    limits = np.array(levels, np.float32)
    for number, mask in enumerate(low.contiguous().numpy()):
        _count(mask, rows, columns, limits, ROUNDING, sure[number], doubt[number], boxes[:, number])
    strict, loose = (torch.from_numpy(part) for part in boxes)
    return torch.from_numpy(sure), torch.from_numpy(doubt), strict, loose, torch.zeros(len(low), dtype=torch.bool)


@numba.njit(cache=True, nogil=True)
def _extremes(low, top, least, most):  # pragma: no cover (compiled)
    """Least and largest of three cells down from row `top`, for every column of `low` (G, G)."""
    for c in range(low.shape[1]):
        a, b, d = low[top, c], low[top + 1, c], low[top + 2, c]
        least[c] = min(a, b, d)
        most[c] = max(a, b, d)


@numba.njit(cache=True, nogil=True)
def _count(low, rows, columns, levels, rounding, sure, doubt, boxes):  # pragma: no cover (compiled)
    """One mask's part of `Bounds`; boxes (2, 4) come open: FAR, FAR, -1, -1."""
    row_cell, row_pixel, row_size, row_weight = rows
    column_cell, column_pixel, column_size, column_weight = columns
    least, most = np.empty(low.shape[1], np.float32), np.empty(low.shape[1], np.float32)
    values = np.empty((row_weight.shape[1], column_weight.shape[1]), np.float32)
    high, middle, deep = levels[0], levels[1], levels[2]
    for q in range(row_cell.size):
        r = row_cell[q]
        _extremes(low, r, least, most)
        y0, y1 = row_pixel[q], row_pixel[q] + row_size[q] - 1
        for k in range(column_cell.size):
            c = column_cell[k]
            small = min(least[c], least[c + 1], least[c + 2])
            large = max(most[c], most[c + 1], most[c + 2])
            rim = np.float32(rounding) * max(abs(small), abs(large))
            x0, x1 = column_pixel[k], column_pixel[k] + column_size[k] - 1
            crossed = False
            for n in range(3):
                crossed |= not (small - rim > levels[n] or large + rim <= levels[n])
            if not crossed:
                for n in range(3):
                    if small > levels[n]:
                        sure[n] += row_size[q] * column_size[k]
                if small > middle:
                    for b in range(2):
                        _widen_to(boxes[b], x0, y0, x1, y1)
                continue
            s0, s1, s2, d0, d1, d2 = 0, 0, 0, 0, 0, 0
            for i in range(row_size[q]):
                w0, w1, w2 = row_weight[q, i, 0], row_weight[q, i, 1], row_weight[q, i, 2]
                a0 = w0 * low[r, c] + w1 * low[r + 1, c] + w2 * low[r + 2, c]
                a1 = w0 * low[r, c + 1] + w1 * low[r + 1, c + 1] + w2 * low[r + 2, c + 1]
                a2 = w0 * low[r, c + 2] + w1 * low[r + 1, c + 2] + w2 * low[r + 2, c + 2]
                for j in range(column_size[k]):
                    value = a0 * column_weight[k, j, 0] + a1 * column_weight[k, j, 1] + a2 * column_weight[k, j, 2]
                    values[i, j] = value
                    s0 += value > high
                    s1 += value > middle
                    s2 += value > deep
                    d0 += not abs(value - high) > rim  # so that NaN is in doubt
                    d1 += not abs(value - middle) > rim
                    d2 += not abs(value - deep) > rim
            sure[0] += s0
            sure[1] += s1
            sure[2] += s2
            doubt[0] += d0
            doubt[1] += d1
            doubt[2] += d2
            for b in range(2):
                if x0 >= boxes[b, 0] and y0 >= boxes[b, 1] and x1 <= boxes[b, 2] and y1 <= boxes[b, 3]:
                    continue  # the block lies in the box: nothing there can widen it
                limit = rim if b == 0 else -rim
                for i in range(row_size[q]):
                    for j in range(column_size[k]):
                        if values[i, j] - middle > limit:
                            _widen_to(boxes[b], x0 + j, y0 + i, x0 + j, y0 + i)


@numba.njit(cache=True, nogil=True)
def _widen_to(box, x0, y0, x1, y1):  # pragma: no cover (compiled)
    box[0] = min(box[0], x0)
    box[1] = min(box[1], y0)
    box[2] = max(box[2], x1)
    box[3] = max(box[3], y1)


@numba.njit(cache=True, nogil=True)
def _draw(low, rows, columns, rounding, sheet):  # pragma: no cover (compiled)
    """One mask (G, G) above 0 at full size, into bool (W, H): its columns lie one after the other."""
    row_cell, row_pixel, row_size, row_weight = rows
    column_cell, column_pixel, column_size, column_weight = columns
    least, most = np.empty(low.shape[1], np.float32), np.empty(low.shape[1], np.float32)
    sheet[:] = False
    for q in range(row_cell.size):
        r = row_cell[q]
        _extremes(low, r, least, most)
        for k in range(column_cell.size):
            c = column_cell[k]
            small = min(least[c], least[c + 1], least[c + 2])
            large = max(most[c], most[c + 1], most[c + 2])
            rim = np.float32(rounding) * max(abs(small), abs(large))
            if large + rim <= 0:
                continue
            y = row_pixel[q]
            for j in range(column_size[k]):
                x = column_pixel[k] + j
                if small - rim > 0:
                    sheet[x, y : y + row_size[q]] = True
                    continue
                w0, w1, w2 = column_weight[k, j, 0], column_weight[k, j, 1], column_weight[k, j, 2]
                a0 = w0 * low[r, c] + w1 * low[r, c + 1] + w2 * low[r, c + 2]
                a1 = w0 * low[r + 1, c] + w1 * low[r + 1, c + 1] + w2 * low[r + 1, c + 2]
                a2 = w0 * low[r + 2, c] + w1 * low[r + 2, c + 1] + w2 * low[r + 2, c + 2]
                for i in range(row_size[q]):
                    value = a0 * row_weight[q, i, 0] + a1 * row_weight[q, i, 1] + a2 * row_weight[q, i, 2]
                    sheet[x, y + i] = value > 0


def blocks_torch(low: Tensor, frame: Frame, levels: tuple[float, float, float]) -> Bounds:
    """`Bounds` of float32 masks (N, G, G) on any device."""
    rows, columns = axis(frame, 0, low.device), axis(frame, 1, low.device)
    least, most = (_blockwise(low, pick, rows, columns) for pick in (torch.minimum, torch.maximum))
    slack = ROUNDING * torch.maximum(least.abs(), most.abs())
    crossed = torch.zeros_like(least, dtype=torch.bool)
    for level in levels:
        crossed |= ~((least - slack > level) | (most + slack <= level))
    crowded = crossed.flatten(1).sum(1) > CROWDED * len(rows.cell) * len(columns.cell)
    crossed &= ~crowded[:, None, None]

    sure, doubt = _zeros(low, 3), _zeros(low, 3)
    for number, level in enumerate(levels):
        whole = (least > level) & ~crossed
        sure[:, number] = ((whole * columns.size).sum(2) * rows.size).sum(1)
    strict = _block_boxes((least > levels[1]) & ~crossed, rows, columns)
    loose = strict.clone()
    for mask, q, k in (part.unbind(1) for part in crossed.nonzero().split(PATCHES)):
        values = _patches(low, rows, columns, mask, q, k)
        rim = slack[mask, q, k][:, None, None]
        for number, level in enumerate(levels):
            sure[:, number].index_add_(0, mask, (values > level).flatten(1).sum(1))
            doubt[:, number].index_add_(0, mask, (~((values - level).abs() > rim)).flatten(1).sum(1))
        _widen(strict, values - levels[1] > rim, mask, rows.pixel[q], columns.pixel[k])
        _widen(loose, values - levels[1] > -rim, mask, rows.pixel[q], columns.pixel[k])
    return sure, doubt, strict, loose, crowded


def _blockwise(low: Tensor, pick: Any, rows: Axis, columns: Axis) -> Tensor:
    """Least or largest of the 3 x 3 cells under every block: (N, Q, K)."""
    tall = pick(pick(low[:, :-2], low[:, 1:-1]), low[:, 2:])[:, rows.cell]
    return pick(pick(tall[:, :, :-2], tall[:, :, 1:-1]), tall[:, :, 2:])[:, :, columns.cell]


def _patches(low: Tensor, rows: Axis, columns: Axis, mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Enlarged values of P blocks, (P, down, across); -inf where a block is shorter. Sums of products, not matmuls:
    those may be rounded to TF32."""
    three = torch.arange(3, device=low.device)
    down, across = (rows.cell[q][:, None] + three)[:, :, None], (columns.cell[k][:, None] + three)[:, None, :]
    cells = low[mask[:, None, None], down, across]
    tall = (rows.weight[q][:, :, :, None] * cells[:, None]).sum(2)  # (P, down, 3)
    values = (tall[:, :, None] * columns.weight[k][:, None]).sum(3)
    return values.masked_fill(~(rows.valid[q][:, :, None] & columns.valid[k][:, None, :]), -torch.inf)


def _block_boxes(whole: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """Boxes (N, 4) around whole blocks (N, Q, K); an open box (FAR, FAR, -1, -1) where there is none."""
    edges = []
    for dim, blocks in ((1, columns), (2, rows)):
        hit = whole.any(dim=dim)
        edges.append(torch.where(hit, blocks.pixel, FAR).amin(1))
        edges.append(torch.where(hit, blocks.pixel + blocks.size - 1, -1).amax(1))
    return torch.stack([edges[0], edges[2], edges[1], edges[3]], dim=1)


def _widen(boxes: Tensor, above: Tensor, mask: Tensor, top: Tensor, left: Tensor) -> None:
    """Stretch boxes (N, 4) of masks `mask` (P,) around pixels `above` (P, down, across) of blocks at (top, left)."""
    for dim, edge, start in ((1, 0, left), (2, 1, top)):
        hit = above.any(dim=dim)
        place = start[:, None] + torch.arange(hit.shape[1], device=hit.device)
        boxes[:, edge].scatter_reduce_(0, mask, torch.where(hit, place, FAR).amin(1), "amin")
        boxes[:, edge + 2].scatter_reduce_(0, mask, torch.where(hit, place, -1).amax(1), "amax")


def _closed(boxes: Tensor) -> Tensor:
    """Open boxes, of empty masks, become zeros."""
    return torch.where(boxes[:, 2:3] < 0, torch.zeros_like(boxes), boxes)
