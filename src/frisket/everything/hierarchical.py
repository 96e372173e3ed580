"""Strategy `hierarchical`, TinySAM's: a sparse grid of clicks, then a dense one only where no mask is sure of itself.

Use     everything(predictor, Config())      # on the command line: everything.strategy=hierarchical
Source  TinySAM (arXiv 2312.13789, section 3.3); as its released code has it: the limit is a logit of pixels of accepted
        masks, and the dense points lie around the sparse ones in whole pixels, half a step off SAM's grid.
Ours    `alignment: sam_grid` asks SAM's own points. The cover is read at the dense points alone, from low-resolution
        logits: no mask is enlarged. A full cover asks no second question (the released code crashes there).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from frisket.errors import UserError
from frisket.everything.candidates import Candidates, Filters, sift
from frisket.everything.grid import ask_points, grid_points
from frisket.everything.strategy import BaseStrategy
from frisket.kernels.upscaled import lattice
from frisket.predict.predictor import Predictor


@dataclass
class Config(Filters):
    """TinySAM's two rounds."""

    strategy: str = "hierarchical"
    """How masks are asked for: a file of frisket.everything, or a plug-in."""
    sparse_points_per_side: int = field(default=8, metadata={"least": 1, "most": 1024})
    """Of the first round's grid."""
    points_per_side: int = field(default=32, metadata={"least": 1, "most": 1024})
    """Of the second round's."""
    high_score_thresh: float = 8.5
    """A point is covered where a mask of the first round has a logit above it, and is not asked again."""
    alignment: Literal["paper", "sam_grid"] = "paper"
    """Where dense points lie: paper: whole steps around the sparse ones; sam_grid: the centres of SAM's grid."""

    def __post_init__(self) -> None:
        if self.alignment == "paper" and self.points_per_side % self.sparse_points_per_side:
            raise UserError(
                f"points_per_side {self.points_per_side} is no multiple of sparse_points_per_side "
                f"{self.sparse_points_per_side}: change one of the two, or set alignment=sam_grid"
            )


class Strategy(BaseStrategy):
    """Two rounds of clicks."""

    config: Config

    def ask(self, predictor: Predictor, layer: int) -> Iterator[Candidates]:
        """The sparse points' masks, then the dense points' that they leave uncovered."""
        config, frame = self.config, predictor.frame
        columns, rows = (self.lines(frame.original[dim]) for dim in (1, 0))
        covered = torch.zeros(len(rows), len(columns), dtype=torch.bool)
        for batch in grid_points(config.sparse_points_per_side, frame.original).split(config.points_per_batch):
            sure = sift(batch, ask_points(predictor, batch), frame, config)
            at = (lines.long().to(sure.logits.device) for lines in (rows, columns))
            covered |= (lattice(sure.logits, frame, *at) > config.high_score_thresh).any(dim=0).cpu()
            yield sure
        for batch in self.remaining(rows, columns, covered).split(config.points_per_batch):
            if len(batch):  # the parts of no points are one part of none
                yield sift(batch, ask_points(predictor, batch), frame, config)

    def lines(self, length: int) -> Tensor:
        """Where along an axis of so many pixels the dense points lie."""
        config = self.config
        dense = (torch.arange(config.points_per_side) + 0.5) / config.points_per_side * length
        if config.alignment == "sam_grid":
            return dense
        step = config.points_per_side // config.sparse_points_per_side
        sparse = (torch.arange(config.sparse_points_per_side) + 0.5) / config.sparse_points_per_side * length
        around = torch.arange(step) - (step - 1) // 2
        lines = (sparse[:, None] + around * max(1, length // config.points_per_side)).flatten()
        return lines[lines < length]  # the last may fall on the border

    def remaining(self, rows: Tensor, columns: Tensor, covered: Tensor) -> Tensor:
        """Points (P, 2) of the second round, row by row: crossings of `rows` (R,) and `columns` (C,) that are not
        `covered` (R, C) and not asked already."""
        open_ = ~covered
        if self.config.alignment == "paper":
            step = self.config.points_per_side // self.config.sparse_points_per_side
            first = (step - 1) // 2
            open_[first::step, first::step] = False
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        return torch.stack([x[open_], y[open_]], dim=1)

    def words(self) -> str:
        """Both grids."""
        sparse, dense = self.config.sparse_points_per_side, self.config.points_per_side
        aligned = "" if self.config.alignment == "paper" else ", on SAM's grid"
        where = f"where no logit is above {self.config.high_score_thresh:g}"
        return f"{sparse} x {sparse} points, then {dense} x {dense} {where}{aligned}"
