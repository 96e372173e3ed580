"""Pieces of the recipe tests: settings, a bare CPU Trainer, what changed, and the golden curves.

FRISKET_WRITE_GOLDEN=1 pytest tests/recipes writes tests/golden/<recipe>.txt anew.
"""

import os
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from frisket.recipes.recipe_config import RecipeConfig

GOLDEN = Path(__file__).parents[1] / "golden"


class Curve(L.Callback):
    """Collects the training loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def trainer_of(
    folder: Path, steps: int, *callbacks: L.Callback, validate: bool = False, clip: float = 1.0
) -> L.Trainer:
    """A bare CPU Trainer: no logger, no checkpoint, no bar."""
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        gradient_clip_val=clip,
        check_val_every_n_epoch=None,
        val_check_interval=steps,
        limit_val_batches=1.0 if validate else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )


def settle(config: RecipeConfig, shards: Path, *, steps: int = 20, lr: float = 2e-3) -> None:
    """Tiny data and a quick optimizer, in place."""
    data = config.data
    data.train, data.val = str(shards / "train"), str(shards / "val")
    data.image_size, data.global_batch, data.masks_per_image = 64, 4, 4
    config.optim.lr, config.trainer.max_steps, config.place.accelerator = lr, steps, "cpu"


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    return {name: value.detach().clone() for name, value in [*module.named_parameters(), *module.named_buffers()]}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    """Names whose values are no longer bit for bit the same."""
    return {name for name, value in snapshot(module).items() if not torch.equal(value, before[name])}


def falls(losses: list[float]) -> bool:
    """Whether the last quarter's mean is below nine tenths of the first quarter's."""
    quarter = len(losses) // 4
    return sum(losses[-quarter:]) < 0.9 * sum(losses[:quarter])


def compare_golden(recipe: str, losses: list[float], tolerance: float) -> None:
    """Compare with tests/golden/<recipe>.txt; FRISKET_WRITE_GOLDEN=1 writes it instead.

    tolerance is relative. Machines round differently, and a click or a winning mask can flip on the last bit, after
    which two curves part slowly; a changed loss, schedule, data order or learning rate shows at once.
    """
    path = GOLDEN / f"{recipe}.txt"
    if os.environ.get("FRISKET_WRITE_GOLDEN"):
        lines = [f"{step} {loss:.6f}\n" for step, loss in enumerate(losses)]
        path.write_text("".join(lines))
    expected = [float(line.split()[1]) for line in path.read_text().splitlines()]
    assert len(losses) == len(expected)
    assert losses == pytest.approx(expected, rel=tolerance)
