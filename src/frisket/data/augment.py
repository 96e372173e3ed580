"""Other views of a photograph: mirrored, and scaled and cut at random (large-scale jitter). Masks and boxes go along.

Use     view = drawn((480, 640), 1024, flip=0.5, jitter=(0.1, 2.0), rng=rng); decode(…, frame=view)
Source  SAM, appendix A: jitter of 0.1 to 2.0 where data are few, none on SA-1B; the jitter itself: Ghiasi et al.
        (arXiv 2012.07177): scale, then cut at a random place, or pad at the right and below. Mirroring: everybody's.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frisket.geometry import CELL, Frame, boxes_of_masks, resize_image


@dataclass(frozen=True)
class View(Frame):
    """A Frame that shows a window of the photograph, which is first mirrored (where `mirrored`), then scaled.

    size: (h, w) of the window, in input pixels; scaled: (h, w) of the whole photograph in the same; corner: (top, left)
    of the window in that. Coordinates are those of pixel edges: column 0 begins at x = 0.
    """

    scaled: tuple[int, int] = (0, 0)
    corner: tuple[int, int] = (0, 0)
    mirrored: bool = False

    def _scale(self, like: Tensor) -> Tensor:
        return like.new_tensor([self.scaled[1] / self.original[1], self.scaled[0] / self.original[0]])

    def _mirror(self, xy: Tensor) -> Tensor:
        width = xy.new_tensor([self.original[1], 0.0])
        return width + xy * xy.new_tensor([-1.0, 1.0]) if self.mirrored else xy

    def to_input(self, xy: Tensor) -> Tensor:
        """Points (..., 2) from original to input pixels; they may lie outside the window."""
        return self._mirror(xy) * self._scale(xy) - xy.new_tensor(self.corner[::-1])

    def to_original(self, xy: Tensor) -> Tensor:
        """Points (..., 2) from input to original pixels."""
        return self._mirror((xy + xy.new_tensor(self.corner[::-1])) / self._scale(xy))

    def boxes_to_input(self, boxes: Tensor) -> Tensor:
        """Boxes (N, 4) xyxy from original to input pixels; they may reach outside the window."""
        return _ordered(self.to_input(boxes.unflatten(-1, (2, 2))))

    def boxes_to_original(self, boxes: Tensor) -> Tensor:
        """Boxes (N, 4) xyxy from input to original pixels."""
        return _ordered(self.to_original(boxes.unflatten(-1, (2, 2))))

    def image(self, whole: Tensor) -> Tensor:
        """The window (3, h, w) of the photograph, uint8 (3, H, W) of any size."""
        scaled = resize_image(whole, self.scaled)
        scaled = scaled.flip(-1) if self.mirrored else scaled
        (top, left), (height, width) = self.corner, self.size
        return scaled[:, top : top + height, left : left + width].contiguous()

    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows, cols) int64, each (S/4,): the original row / column under each grid cell's centre, -1 in the padding;
        rising, so that a mirrored view has its columns from right to left (see `turned`)."""
        centre = CELL * np.arange(self.grid, dtype=np.int64) + CELL // 2
        parts = []
        for length, whole, first, valid in zip(self.original, self.scaled, self.corner, self.size, strict=True):
            parts.append(np.where(centre < valid, (first + centre) * length // whole, -1))
        rows, cols = parts
        if self.mirrored:
            seen = int((cols >= 0).sum())
            cols[:seen] = self.original[1] - 1 - cols[:seen][::-1]
        return rows, cols

    def turned(self, grids: np.ndarray) -> np.ndarray:
        """Masks (M, G, G) sampled at `samples`, as the view shows them."""
        if not self.mirrored:
            return grids
        seen = int((self.samples()[1] >= 0).sum())
        return np.concatenate([grids[..., :seen][..., ::-1], grids[..., seen:]], axis=-1)

    def cut(self, boxes: Tensor, areas: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (N, 4) in input pixels and areas (N,) in original ones of what the window shows of masks (N, G, G)."""
        edge = boxes.new_tensor([*self.size[::-1]] * 2)
        inside = torch.minimum(boxes.clamp(min=0), edge)
        crossing = (inside != boxes).any(1)
        tight = boxes_of_masks(masks) * CELL  # to a cell
        grown = tight + boxes.new_tensor([-CELL, -CELL, CELL, CELL])
        tightened = torch.cat(
            [torch.maximum(inside[:, :2], grown[:, :2]), torch.minimum(inside[:, 2:], grown[:, 2:])], 1
        )
        shown = masks.flatten(1).sum(1) * CELL**2 / self._scale(areas).prod()
        return torch.where(crossing[:, None], tightened, inside), torch.where(crossing, shown, areas)


def _ordered(corners: Tensor) -> Tensor:
    """Two corners (N, 2, 2) of boxes, in any order, as xyxy (N, 4)."""
    return torch.cat([corners.amin(-2), corners.amax(-2)], dim=-1)


def drawn(
    original: tuple[int, int], side: int, *, flip: float, jitter: tuple[float, float], rng: np.random.Generator
) -> View:
    """A view for an input of `side`: mirrored with probability `flip`, scaled by a factor drawn from `jitter` (1: the
    longest side fills the input)."""
    mirrored, factor = bool(rng.random() < flip), float(rng.uniform(*jitter))
    scaled = Frame.fit(original, max(1, round(side * factor))).size
    height, width = (min(side, edge) for edge in scaled)
    corner = (int(rng.integers(scaled[0] - height + 1)), int(rng.integers(scaled[1] - width + 1)))
    return View(original, (height, width), side, scaled, corner, mirrored)
