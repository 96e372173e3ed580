"""Strategy `grid`, SAM's own: a regular grid of clicks over the picture, three masks each.

Use     everything(predictor, Config(points_per_side=64))
        ask_points(predictor, grid_points(16, predictor.frame.original))      # low-resolution logits, unfiltered
Source  Segment Anything (arXiv 2304.02643, appendix B) with the released defaults and names of settings.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from frisket.everything.candidates import Candidates, Filters, sift
from frisket.everything.strategy import BaseStrategy
from frisket.predict.predictor import Predictor
from frisket.sample import Prediction


@dataclass
class Config(Filters):
    """SAM's grid."""

    strategy: str = "grid"
    """How masks are asked for: a file of frisket.everything, or a plug-in."""
    points_per_side: int = field(default=32, metadata={"least": 1, "most": 1024})
    """Of the grid over the whole photograph."""
    point_grids: list[Any] = field(default_factory=list)
    """Points of your own instead: for each crop layer a list of [x, y], in parts of the crop's width and height."""
    crop_n_points_downscale_factor: int = field(default=1, metadata={"least": 1})
    """Crops of layer i have a grid of points_per_side divided by this to the power of i."""

    def __post_init__(self) -> None:
        if self.point_grids:  # else a result would claim a grid that nobody asked
            self.points_per_side = 1


class Strategy(BaseStrategy):
    """Every point of the grid."""

    config: Config

    def ask(self, predictor: Predictor, layer: int) -> Iterator[Candidates]:
        """Batches of clicks, in rows from the top."""
        side = max(1, self.config.points_per_side // self.config.crop_n_points_downscale_factor**layer)
        height, width = predictor.frame.original
        points = grid_points(side, (height, width))
        if self.config.point_grids:
            points = torch.tensor(self.config.point_grids[layer]).reshape(-1, 2) * torch.tensor([width, height])
        for batch in points.split(self.config.points_per_batch):
            yield sift(batch, ask_points(predictor, batch), predictor.frame, self.config)

    def words(self) -> str:
        """How many points."""
        if self.config.point_grids:
            return f"{' + '.join(str(len(points)) for points in self.config.point_grids)} given points"
        return f"{self.config.points_per_side} x {self.config.points_per_side} points"


def grid_points(points_per_side: int, size: tuple[int, int]) -> Tensor:
    """SAM's grid: points (n * n, 2) at ((i + 0.5) / n) of width and height of a picture (h, w), row by row, in its
    pixels."""
    steps = (torch.arange(points_per_side, dtype=torch.float64) + 0.5) / points_per_side
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return (torch.stack([x, y], dim=-1).reshape(-1, 2) * torch.tensor([size[1], size[0]])).float()


def ask_points(predictor: Predictor, points: Tensor) -> Prediction:
    """One foreground click a row, points (P, 2) original px: three masks each, logits (P, 3, G, G) and IoU (P, 3)."""
    return predictor.ask(predictor.prompts(points=points[:, None]), multimask=True)
