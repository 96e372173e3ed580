"""The moving average of the trained weights (`regularize.ema`): kept and saved beside them, judged in their place.

    average = Average(decay=0.9999)             # a callback; put it before whatever saves
    with average.shown(recipe): ...             # within, the recipe's Sam holds the average

After step t the average moves by 1 - min(decay, (1 + t) / (10 + t)) towards the weights: short runs forget their
start, too. Validation, its pictures, best.pt, model.pt, and whoever loads a checkpoint of the run see the average;
training and a resume go on with the weights themselves. BatchNorm's statistics are averaged like weights. Source:
Polyak and Juditsky 1992; the rise of the decay is TensorFlow's.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor

from frisket.callbacks import say
from frisket.engine.save import StepEnd
from frisket.weights.lightning import AVERAGE
from frisket.weights.stored import PREFIX


class Average(StepEnd):
    """One average, on every rank; saved from the first."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self._mean: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}  # the real ones, while the average is shown
        self._showing = contextlib.ExitStack()

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Begin with the weights, where no checkpoint brought an average."""
        if not self._mean and trainer.global_step:
            say(f"regularize.ema={self.decay}: the average begins at step {trainer.global_step}")
        self._mean = {key: self._mean.get(key, value).to(value, copy=True) for key, value in averaged(pl_module)}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        """Follow the weights after each step."""
        if self.stepped(trainer):
            step = trainer.global_step
            share = 1 - min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self._mean.values()), [value for _, value in averaged(pl_module)], share)

    @contextlib.contextmanager
    def shown(self, pl_module: Any) -> Iterator[None]:
        """Put the average in the weights' place."""
        places = dict(averaged(pl_module))
        self._weights = {key: value.clone() for key, value in places.items()}
        for key, value in self._mean.items():
            places[key].copy_(value)
        try:
            yield
        finally:
            for key, value in self._weights.items():
                places[key].copy_(value)
            self._weights = {}

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Judge the average."""
        self._showing.enter_context(self.shown(pl_module))

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Go on with the weights."""
        self._showing.close()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Both; also of a save that a stop asks for amid validation."""
        checkpoint[AVERAGE] = self._mean
        checkpoint["state_dict"].update({PREFIX + key: value for key, value in self._weights.items()})

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Go on with the average of a checkpoint, where it has one."""
        self._mean = checkpoint.get(AVERAGE, {})


def averaged(recipe: Any) -> Iterator[tuple[str, Tensor]]:
    """(Sam's key, tensor) of what changes in training: trained weights, and statistics."""
    frozen = {name for name, parameter in recipe.sam.named_parameters() if not parameter.requires_grad}
    for key, value in recipe.sam.state_dict().items():
        if key not in frozen and value.is_floating_point():
            yield key, value
