"""`trainer.keep_best`: the model that a validation found best so far, as best.pt beside the run's model.pt.

What is kept are the weights that were judged (the average, where the run keeps one), in the form of model.pt, with step
and value in its provenance and in best.json. Errors are better when lower, everything else when higher; a later equal
is not better. Our choice.
"""

import json
import math
from pathlib import Path
from typing import Any

import lightning as L

from frisket import checkpoint
from frisket.errors import UserError, nearest
from frisket.files import write_json
from frisket.models.sam import Sam
from frisket.quant import packed
from frisket.runfiles import RunFiles
from frisket.weights import safe


def write(sam: Sam, path: Path, provenance: dict[str, Any]) -> None:
    """Write a Sam as `path`, model.pt's form, or where it is quantized as the packed file of that name."""
    if sam.quantization is None:
        checkpoint.save(sam, path, provenance=provenance)
    else:
        provenance = sam.quantization["provenance"] | provenance
        packed.write(sam, path.with_suffix(safe.SUFFIX), provenance=provenance)


def known(recipe: Any, measure: str) -> None:
    """Raise UserError for a measure that no validation of the recipe has."""
    if measure not in recipe.measures():
        raise UserError(
            f"trainer.keep_best={measure} is no measure of a validation: {nearest(measure, recipe.measures())}"
        )


class KeepBest(L.Callback):
    """Put it before an Average, which takes the judged weights away when a validation ends."""

    def __init__(self, run: RunFiles, measure: str) -> None:
        self.run, self.measure = run, measure

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Keep the model if it is the best so far."""
        value = float(trainer.callback_metrics.get(f"val/{self.measure}", math.nan))
        if trainer.is_global_zero and self.better(value):
            said = {"measure": self.measure, "value": value, "step": trainer.global_step}
            config = pl_module.config
            write(pl_module.sam, self.run.best, {"recipe": config.recipe, "run": self.run.path.name, **said})
            write_json(self.run.best_value, said)

    def better(self, value: float) -> bool:
        """Whether `value` beats the best so far; a NaN never does."""
        best = {}
        if self.run.best_value.is_file():
            best = json.loads(self.run.best_value.read_text(encoding="utf-8"))
        if best.get("measure") != self.measure:
            return not math.isnan(value)
        return value < best["value"] if self.measure.endswith("error") else value > best["value"]
