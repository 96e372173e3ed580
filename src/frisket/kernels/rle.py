"""COCO run-length masks read straight into a small grid: the full-size mask is never built.

Use     `fill_many(rles, rows, columns)` gives (M, h, w) uint8, where rows[i] and columns[j] name the source pixel that
        output cell (i, j) samples; `check`, `area`, `counts`, `encode` and `thumbnails` do what
        their names say.
Source  The format is pycocotools' (runs down the columns, starting with background; in strings 6-bit characters, the
        difference to the run before last from the fourth run on). The sampling fill is our choice.

A mask is {"size": [H, W], "counts": text, bytes or list of runs}, as in SA-1B, COCO and LVIS. Any text is safe to read:
damage raises ValueError with the reason, and nothing is read or written out of bounds. Compiled by numba on first use
and cached on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

Rle = Mapping[str, Any]

_TRUNCATED, _CHARACTER, _TOO_LONG, _NEGATIVE, _BEYOND = -1, -2, -3, -4, -5
_DAMAGE = {
    _TRUNCATED: "its counts string ends in the middle of a run",
    _CHARACTER: "its counts string holds a character outside '0'..'o'",
    _TOO_LONG: "its counts string holds a run of more than 35 bits",
    _NEGATIVE: "it has a negative run",
    _BEYOND: "its runs are longer than its picture",
}
_SIDE_LIMIT = 1 << 20  # pixels a side; keeps every product below far inside int64


@numba.njit(cache=True, nogil=True)
def _parse(text, runs, pixels):  # pragma: no cover (compiled)
    """Runs of a compressed string into `runs` (at least len(text) long). Returns their number or an error code.

    Nothing can wrap: a run is refused as soon as it, or all so far, are longer than the picture's `pixels`.
    """
    number, at, end, left = 0, 0, text.size, pixels
    while at < end:
        value, shift, more = np.int64(0), 0, True
        while more:
            if at >= end:
                return _TRUNCATED
            if shift > 30:
                return _TOO_LONG
            c = np.int64(text[at]) - 48
            if c < 0 or c > 63:
                return _CHARACTER
            value |= (c & 31) << shift
            shift += 5
            at += 1
            more = (c & 32) != 0
            if not more and (c & 16) != 0:
                value |= np.int64(-1) << shift
        if number > 2:
            value += runs[number - 2]
        if value < 0:
            return _NEGATIVE
        if value > left:
            return _BEYOND
        left -= value
        runs[number] = value
        number += 1
    return number


@numba.njit(cache=True, nogil=True)
def _first(samples, first):  # pragma: no cover (compiled)
    """first[s] = number of outputs that sample a source index below s: outputs first[s]..first[s+1] sample s.

    `samples` must rise, lie in 0..first.size-2 and may end in -1s (padding). Returns False when it does not.
    """
    limit = first.size - 1
    s = 0
    i = 0
    while i < samples.size and samples[i] >= 0:
        if samples[i] >= limit or (i > 0 and samples[i] < samples[i - 1]):
            return False
        while s <= samples[i]:
            first[s] = i
            s += 1
        i += 1
    while s <= limit:
        first[s] = i
        s += 1
    while i < samples.size:
        if samples[i] >= 0:
            return False
        i += 1
    return True


@numba.njit(cache=True, nogil=True)
def _fill(runs, number, first_row, first_column, out):  # pragma: no cover (compiled)
    """Set to 1 the cells of `out` that sample a foreground run. The runs must sum to H * W (the caller checks)."""
    height = first_row.size - 1
    column, row = 0, 0
    for n in range(number):
        run = runs[n]
        stop = row + run
        if n & 1 and run > 0:
            c, low = column, row
            while stop > 0:
                high = min(stop, height)
                j0, j1 = first_column[c], first_column[c + 1]
                if j1 > j0:
                    for i in range(first_row[low], first_row[high]):
                        for j in range(j0, j1):
                            out[i, j] = 1
                stop -= height
                low = 0
                c += 1
        row += run
        if row >= height:
            column += row // height
            row %= height


@numba.njit(cache=True, nogil=True)
def _runs_of(pixels, words, runs):  # pragma: no cover (compiled)
    """Runs of a flat bool array, starting with background. Returns their number (at most len(pixels) + 1).

    words: the same memory, 8 pixels each; those of one colour are passed over whole.
    """
    number, start, value = 0, 0, False
    p = 0
    while p < pixels.size:
        w = p >> 3
        if p & 7 == 0 and w < words.size and words[w] == (0x0101010101010101 if value else 0):
            p += 8
            continue
        if pixels[p] != value:
            runs[number] = p - start
            number += 1
            start = p
            value = not value
        p += 1
    runs[number] = pixels.size - start
    return number + 1


@numba.njit(cache=True, nogil=True)
def _write(runs, text):  # pragma: no cover (compiled)
    """Compressed string of `runs` into `text` (8 characters a run suffice). Returns its length."""
    at = 0
    for n in range(runs.size):
        value = runs[n]
        if n > 2:
            value -= runs[n - 2]
        more = True
        while more:
            c = value & 31
            value >>= 5
            more = value != (-1 if c & 16 else 0)
            text[at] = c + (80 if more else 48)
            at += 1
    return at


def _size(rle: Rle) -> tuple[int, int]:
    """(H, W) of a mask, validated."""
    try:
        height, width = (int(n) for n in rle["size"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"its size is not [height, width]: {error!r}") from error
    if not (0 < height <= _SIDE_LIMIT and 0 < width <= _SIDE_LIMIT):
        raise ValueError(f"its size {height} x {width} is not a picture's")
    return height, width


def counts(rle_counts: str | bytes | Sequence[int], pixels: int = _SIDE_LIMIT**2) -> NDArray[np.int64]:
    """Run lengths of a mask's counts, background first: a compressed string, its bytes, or a list of runs.

    Raises ValueError with the reason for a damaged string, a negative run, runs that are longer than the picture's
    `pixels` together, or anything that is not one of the three.
    """
    if isinstance(rle_counts, str):
        if not rle_counts.isascii():
            raise ValueError(_DAMAGE[_CHARACTER])
        rle_counts = rle_counts.encode("ascii")
    if isinstance(rle_counts, bytes):
        runs = np.empty(len(rle_counts), np.int64)
        number = _parse(np.frombuffer(rle_counts, np.uint8), runs, pixels)
        if number < 0:
            raise ValueError(_DAMAGE[number])
        return runs[:number]
    if not isinstance(rle_counts, (list, tuple, np.ndarray)):
        raise ValueError(f"its counts are neither a string nor a list of runs but {type(rle_counts).__name__}")
    runs = np.asarray(rle_counts) if len(rle_counts) else np.empty(0, np.int64)
    if runs.ndim != 1 or runs.dtype.kind not in "iu":
        raise ValueError("its counts are not a flat list of whole numbers")
    if runs.size and runs.min() < 0:
        raise ValueError(_DAMAGE[_NEGATIVE])
    if runs.sum(dtype=np.float64) > pixels:  # a float neither wraps nor rounds below 2^53, far more than any picture
        raise ValueError(_DAMAGE[_BEYOND])
    return runs.astype(np.int64, copy=False)


def _table(samples: ArrayLike, size: int, axis: str) -> NDArray[np.int64]:
    first = np.empty(size + 1, np.int64)
    if np.ndim(samples) != 1 or not _first(np.ascontiguousarray(samples, np.int64), first):
        raise ValueError(f"the sampled {axis} must rise within 0..{size - 1} and end in -1 where there is padding")
    return first


def _checked(rle: Rle, size: tuple[int, int]) -> NDArray[np.int64]:
    """Runs of a mask that must have the given size."""
    height, width = _size(rle)
    if (height, width) != size:
        raise ValueError(f"its size is {height} x {width}, not {size[0]} x {size[1]}")
    if "counts" not in rle:
        raise ValueError("it has no counts")
    runs = counts(rle["counts"], height * width)
    if runs.sum() != height * width:
        raise ValueError(f"its runs sum to {runs.sum()}, but its size {height} x {width} has {height * width} pixels")
    return runs


def check(rle: Rle, size: tuple[int, int]) -> None:
    """Validate a mask against its picture's (H, W) without decoding a pixel. Raises ValueError with the reason."""
    _checked(rle, (int(size[0]), int(size[1])))


def area(rle: Rle) -> int:
    """Foreground pixels of a mask at its own size. Raises ValueError for a damaged mask."""
    return int(_checked(rle, _size(rle))[1::2].sum())


def fill(rle: Rle, rows: ArrayLike, columns: ArrayLike, out: NDArray[np.uint8]) -> None:
    """Sample a mask: out[i, j] = mask[rows[i], columns[j]], and 0 where either index is -1.

    rows (h,) and columns (w,) are source indices that rise (equal ones allowed) and may end in -1s; out (h, w) uint8 is
    overwritten. Raises ValueError, with `out` untouched, for a damaged mask or indices that break these rules.
    """
    height, width = _size(rle)
    runs = _checked(rle, (height, width))
    first_row, first_column = _table(rows, height, "rows"), _table(columns, width, "columns")
    if out.shape != (np.size(rows), np.size(columns)) or out.dtype != np.uint8:
        raise ValueError(f"out must be uint8 {(np.size(rows), np.size(columns))}, not {out.dtype} {out.shape}")
    out[...] = 0
    _fill(runs, runs.size, first_row, first_column, out)


def fill_many(rles: Sequence[Rle], rows: ArrayLike, columns: ArrayLike) -> NDArray[np.uint8]:
    """`fill` for masks of one picture, which all have its size: (M, h, w) uint8 of 0 and 1.

    Raises ValueError naming the number of the damaged mask.
    """
    out = np.zeros((len(rles), np.size(rows), np.size(columns)), np.uint8)
    if not rles:
        return out
    at = 0
    try:
        size = _size(rles[0])
        first_row, first_column = _table(rows, size[0], "rows"), _table(columns, size[1], "columns")
        for at, rle in enumerate(rles):
            runs = _checked(rle, size)
            _fill(runs, runs.size, first_row, first_column, out[at])
    except ValueError as error:
        raise ValueError(f"mask {at}: {error}") from error
    return out


def thumbnails(rles: Sequence[Rle], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Masks of one picture seen at another size: bool (M, h, w), nearest pixels.

    Raises ValueError naming the number of the damaged mask.
    """
    if not rles:
        return np.zeros((0, *size), np.bool_)
    whole = _size(rles[0])
    rows, columns = ((2 * np.arange(n) + 1) * length // (2 * n) for n, length in zip(size, whole, strict=True))
    return fill_many(rles, rows, columns).view(np.bool_)


def encode(mask: NDArray[Any]) -> dict[str, Any]:
    """Compress a mask (H, W), bool or uint8 (not 0 = foreground), to {"size": [H, W], "counts": str}.

    The string is the one pycocotools writes. Raises ValueError when the mask is not a two-dimensional picture.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or not mask.size:
        raise ValueError(f"a mask is (H, W) with at least one pixel, not {mask.shape}")
    return encode_columns((mask if mask.dtype == np.bool_ else mask != 0).T)


def encode_columns(columns: NDArray[np.bool_]) -> dict[str, Any]:
    """`encode` of a mask given column by column, bool (W, H): quickest when that is contiguous."""
    pixels = columns.ravel()
    runs = np.empty(pixels.size + 1, np.int64)
    runs = runs[: _runs_of(pixels, pixels[: pixels.size & ~7].view(np.int64), runs)]
    text = np.empty(8 * runs.size, np.uint8)
    size = [int(n) for n in columns.shape[::-1]]
    return {"size": size, "counts": text[: _write(runs, text)].tobytes().decode("ascii")}


def placed(rle: Rle, size: tuple[int, int], corner: tuple[int, int]) -> dict[str, Any]:
    """A mask of a window as one of its picture (H, W), the window's first pixel at `corner` (row, column).

    Raises ValueError for a damaged mask, or when the window does not lie in the picture.
    """
    height, width = _size(rle)
    if corner == (0, 0) and (height, width) == tuple(size):
        return dict(rle)
    y, x = corner
    if min(y, x) < 0 or y + height > size[0] or x + width > size[1]:
        raise ValueError(f"a window of {height} x {width} at {corner} does not lie in {size[0]} x {size[1]}")
    window = fill_many([rle], np.arange(height), np.arange(width))[0]
    whole = np.zeros(size, np.bool_)
    whole[y : y + height, x : x + width] = window
    return encode(whole)
