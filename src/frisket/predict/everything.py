"""Segment everything: a grid of clicks over the photograph, each asked for three masks.

Use     for points, prediction in grid_batches(predictor, 16): …      # low-resolution logits, unfiltered
Source  The automatic mask generator of Segment Anything (arXiv 2304.02643, appendix B and the released defaults).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from frisket.predict.predictor import Predictor
from frisket.sample import Prediction


def grid_points(points_per_side: int, size: tuple[int, int]) -> Tensor:
    """SAM's grid: points (n * n, 2) at ((i + 0.5) / n) of width and height of a picture (h, w), row by row, in its
    pixels."""
    steps = (torch.arange(points_per_side, dtype=torch.float64) + 0.5) / points_per_side
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return (torch.stack([x, y], dim=-1).reshape(-1, 2) * torch.tensor([size[1], size[0]])).float()


def ask_points(predictor: Predictor, points: Tensor) -> Prediction:
    """One foreground click a row, points (P, 2) original px: three masks each, logits (P, 3, G, G) and IoU (P, 3)."""
    return predictor.ask(predictor.prompts(points=points[:, None]), multimask=True)


def grid_batches(
    predictor: Predictor, points_per_side: int = 32, *, batch: int = 64
) -> Iterator[tuple[Tensor, Prediction]]:
    """The grid's answers, `batch` points at a time: (points (P, 2) original px, logits (P, 3, G, G) and IoU (P, 3)).

    The predictor's photograph must be set. Logits stay on the model's device, on the grid of the padded input;
    `frisket.geometry.upscale_logits(logits.flatten(0, 1), predictor.frame)` brings them to the photograph's size.
    """
    for points in grid_points(points_per_side, predictor.frame.original).split(batch):
        yield points, ask_points(predictor, points)
