"""Dilated attention: cut the tokens into segments, thin each segment by an interval, attend, put the rows back.

Use     `dilated_attention(q, k, v, Layout((64, 64), segment=1024, dilation=4))`, or `attend` when the caller holds the
        tokens before the projections (see below). `dense_reference` is the oracle: the same maths as an N x N mask.
Source  SAM-Lightening (arXiv 2403.09195) section on Dilated Flash Attention, after LongNet (arXiv 2307.02486, sec. 3).
        Attending all r offsets with all heads, column order and 2-D windows are our choices.

Meaning. Tokens of an (h, w) grid are numbered row by row (order "row") or column by column ("column"). Window "1d":
token p lies in segment p // segment, at place p % segment. Window "2d": segments are squares of segment = side * side
tokens, and the place counts row by row (column by column) inside the square. A token's offset is place % dilation.
Offsets "all": a token attends exactly to the tokens of its own segment and offset, in every head. "longnet": the same,
but head j serves only the tokens of offset j % dilation; the other rows of that head are zero.

Why no copy is needed. A dense (B, N, H, d) buffer with N = S * L * r is (B*S, L, r, H, d), and r next to H merge into
one axis of r*H heads: (B*S, L, r*H, d) is a view, and so is the way back. This also holds for q, k, v that are slices
of a buffer packed per head, (B, N, H, 3, d); it does not for (B, N, 3, H, d), where r and H cannot merge.
Column order and 2-D windows need the tokens moved: move x once with `Layout.arrange` before the three projections
rather than q, k and v after them.

Shape letters: B images, N tokens, S segments, P places of a segment (filled up to a multiple of r), L = P / r,
r dilation, H heads, d width of one head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from frisket.kernels.attention import Backend, attention

Offsets = Literal["all", "longnet"]
Order = Literal["row", "column"]
Window = Literal["1d", "2d"]


def _up(n: int, step: int) -> int:
    return -(-n // step) * step


@dataclass(frozen=True)
class Layout:
    """How the tokens of one grid fall into segments; moves tokens there and back.

    grid (rows, columns) in tokens. segment is in tokens, None for one segment of all. Raises ValueError for a grid,
    segment or dilation below 1, a 2-D segment that is no square, and unknown words.
    """

    grid: tuple[int, int]
    segment: int | None
    dilation: int
    order: Order = "row"
    window: Window = "1d"

    def __post_init__(self) -> None:
        if min(self.grid) < 1 or self.dilation < 1 or (self.segment is not None and self.segment < 1):
            raise ValueError(f"grid, segment and dilation must be at least 1, not {self}")
        if self.order not in ("row", "column") or self.window not in ("1d", "2d"):
            raise ValueError(f"order is 'row' or 'column' and window '1d' or '2d', not {self.order!r}, {self.window!r}")
        if self.window == "2d" and self.segment is not None and math.isqrt(self.segment) ** 2 != self.segment:
            raise ValueError(f"a 2-D segment is a square of tokens, and {self.segment} is no square number")

    @property
    def _lines(self) -> tuple[int, int]:
        """The grid in the order of numbering: (lines, tokens of a line)."""
        return self.grid if self.order == "row" else (self.grid[1], self.grid[0])

    @property
    def _side(self) -> int | None:
        """Side of a 2-D window; None when segments are runs of the flattened grid."""
        return math.isqrt(self.segment) if self.window == "2d" and self.segment is not None else None

    @property
    def _run(self) -> int:
        """Tokens of a segment before filling. A run longer than the grid is the grid."""
        tokens = self.grid[0] * self.grid[1]
        return tokens if self.segment is None else self.segment if self._side else min(self.segment, tokens)

    @property
    def shape(self) -> tuple[int, int]:
        """(S, P): segments, and places of each, filled up to a multiple of the dilation."""
        side, (lines, length) = self._side, self._lines
        count = -(-lines // side) * -(-length // side) if side else -(-lines * length // self._run)
        return count, _up(self._run, self.dilation)

    @property
    def filled(self) -> bool:
        """Whether some places hold no token, so that keys must be masked."""
        return math.prod(self.shape) != self.grid[0] * self.grid[1]

    def arrange(self, x: Tensor) -> Tensor:
        """(B, h, w, ...) -> (B, S, P, ...), zeros in the places without a token. A view for whole rows in row order."""
        b, rest, (lines, length), side, run = x.shape[0], x.shape[3:], self._lines, self._side, self._run
        if self.order == "column":
            x = x.transpose(1, 2)
        if side:
            down, along = _up(lines, side), _up(length, side)
            x = _pad(_pad(x, 1, down), 2, along)
            x = x.reshape(b, down // side, side, along // side, side, *rest).transpose(2, 3)
            x = x.reshape(b, -1, run, *rest)
        else:
            x = _pad(x.reshape(b, lines * length, *rest), 1, _up(lines * length, run)).reshape(b, -1, run, *rest)
        return _pad(x, 2, self.shape[1])

    def restore(self, x: Tensor) -> Tensor:
        """(B, S, P, ...) -> (B, h, w, ...): undo `arrange`. A view for runs of the dense grid, in either order."""
        b, rest, (lines, length), side, run = x.shape[0], x.shape[3:], self._lines, self._side, self._run
        x = x[:, :, :run]
        if side:
            down, along = _up(lines, side), _up(length, side)
            x = x.reshape(b, down // side, along // side, side, side, *rest).transpose(2, 3)
            x = x.reshape(b, down, along, *rest)[:, :lines, :length]
        else:
            x = x.reshape(b, -1, *rest)[:, : lines * length].reshape(b, lines, length, *rest)
        return x.transpose(1, 2) if self.order == "column" else x

    def keys(self, device: torch.device) -> Tensor:
        """bool (S, L, r): the keys that count. True for every token.

        A group that holds no token at all is wholly True: its rows are thrown away, and a softmax over nothing would
        send NaN into the gradients of the shared projections.
        """
        r = self.dilation
        real = self.arrange(torch.ones(1, *self.grid, dtype=torch.bool, device=device))[0]
        real = real.reshape(self.shape[0], -1, r)
        return real | ~real.any(dim=1, keepdim=True)


def _pad(x: Tensor, axis: int, size: int) -> Tensor:
    """Zeros after the end of one axis up to `size`; x itself when it is long enough."""
    missing = size - x.shape[axis]
    return F.pad(x, [0, 0] * (x.ndim - 1 - axis) + [0, missing]) if missing else x


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    offsets: Offsets = "all",
    scale: float | None = None,
    backend: Backend | str | None = None,
) -> Tensor:
    """Dilated attention of tokens already arranged: q, k, v (B, S, P, H, d) -> (B, S, P, H, d).

    Dense q, k, v are read in place, and the result is a view of the kernel's output ("all"). Places without a token
    give rows without a meaning; `Layout.restore` drops them. Raises ValueError for unknown offsets.
    """
    if offsets not in ("all", "longnet"):
        raise ValueError(f"offsets is 'all' or 'longnet', not {offsets!r}")
    b, s, p, heads, width = q.shape
    r = layout.dilation
    keys = layout.keys(q.device) if layout.filled else None
    if offsets == "all":
        thin = (t.reshape(b * s, p // r, r * heads, width) for t in (q, k, v))
        bias = None
        if keys is not None:
            bias = keys.transpose(1, 2)[None, :, :, None, None].expand(b, s, r, heads, 1, p // r)
            bias = bias.reshape(b * s, r * heads, 1, p // r)
        return attention(*thin, scale=scale, bias=bias, backend=backend).reshape(b, s, p, heads, width)
    q, k, v = (t.reshape(b * s, p // r, r, heads, width) for t in (q, k, v))
    out = q.new_zeros(b * s, p // r, r, heads, width)
    for offset in range(min(r, heads)):  # heads offset, offset + r, ... serve this offset: slices, again no gather
        mine = (t[:, :, offset, offset::r] for t in (q, k, v))
        bias = None if keys is None else keys[:, :, offset].repeat(b, 1)[:, None, None]
        out[:, :, offset, offset::r] = attention(*mine, scale=scale, bias=bias, backend=backend)
    return out.reshape(b, s, p, heads, width)


def dilated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    offsets: Offsets = "all",
    scale: float | None = None,
    backend: Backend | str | None = None,
) -> Tensor:
    """Dilated attention over the tokens of a grid; the meaning of `layout`'s fields stands at the top of this file.

    q, k, v (B, N, H, d) with N = rows * columns of the grid, row by row whatever the order. N need not be a multiple of
    the segment, nor the segment of r: filled keys never count. Returns (B, N, H, d) in the dtype of q. Raises
    ValueError for wrong sizes or words.
    """
    b, n, heads, width = q.shape
    if n != math.prod(layout.grid) or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"q, k and v must be (B, {math.prod(layout.grid)}, H, d), not {[tuple(t.shape) for t in (q, k, v)]}"
        )
    q, k, v = (layout.arrange(t.reshape(b, *layout.grid, heads, width)) for t in (q, k, v))
    out = layout.restore(attend(q, k, v, layout, offsets=offsets, scale=scale, backend=backend))
    return out.reshape(b, n, heads, width)


def dense_reference(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, offsets: Offsets = "all", scale: float | None = None
) -> Tensor:
    """The oracle of `dilated_attention`: same arguments and result, from the definition, with an N x N mask.

    Of `layout` it reads the fields alone.
    """
    (rows, columns), segment, dilation = layout.grid, layout.segment, layout.dilation
    y, x = (t.flatten() for t in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    line, place, length = (y, x, columns) if layout.order == "row" else (x, y, rows)
    if layout.window == "1d" or segment is None:
        number = line * length + place
        run = rows * columns if segment is None else segment
        group, place = number // run, number % run
    else:
        side = math.isqrt(segment)
        group = (line // side) * (length + 1) + place // side
        place = (line % side) * side + place % side
    offset = place % dilation
    mask = (group[:, None] == group[None]) & (offset[:, None] == offset[None])
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores.masked_fill(~mask.to(q.device), float("-inf"))
    out = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)
    if offsets == "longnet":
        serves = offset[:, None] == torch.arange(q.shape[2])[None] % dilation
        out = out * serves.to(out)[None, :, :, None]
    return out
