"""What the recipe tests share: hand-made batches, and a fit on the CPU through Lightning's own Trainer."""

from collections.abc import Callable, Sequence
from pathlib import Path

import lightning as L
import pytest
import torch
from tinyfit import Curve, trainer_of
from torch import Tensor

from frisket.data.module import ShardData, collate
from frisket.geometry import Frame, boxes_of_masks
from frisket.recipes.base import Recipe
from frisket.sample import Batch, Sample


@pytest.fixture
def batch_of() -> Callable[..., Batch]:
    """A function (masks per image [(M, 16, 16), …], sizes [(h, w), …]) -> Batch of 64 px noise images."""

    def make(masks: Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None) -> Batch:
        samples = []
        for number, group in enumerate(masks):
            size = sizes[number] if sizes else (64, 64)
            image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
            areas = group.flatten(1).sum(1) * 16.0
            frame = Frame(size, size, 64)
            samples.append(Sample(f"sa_{number}", image, group, boxes_of_masks(group) * 4, areas, frame))
        return collate(samples)

    return make


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., tuple[list[float], L.Trainer]]:
    """A function (recipe, steps, validate=False) -> (losses, trainer): trains on the recipe's own data config."""

    def run(recipe: Recipe, steps: int, validate: bool = False) -> tuple[list[float], L.Trainer]:
        curve = Curve()
        trainer = trainer_of(tmp_path, steps, curve, validate=validate)
        data = ShardData(recipe.config.data)
        data.stamp, data.taps, data.targets = recipe.stamp(), recipe.taps(), recipe.targets()
        trainer.fit(recipe, datamodule=data)
        assert trainer.global_step == steps
        return curve.losses, trainer

    return run
