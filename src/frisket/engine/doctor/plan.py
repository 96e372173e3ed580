"""What is about to start, as every check is given it: plan(recipe, config)."""

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch

from frisket.data.module import ShardData
from frisket.engine.batch import Division, divide
from frisket.engine.rundir import RunDir
from frisket.engine.strategy import launch, place
from frisket.recipes.base import Recipe
from frisket.recipes.recipe_config import RecipeConfig


@dataclass
class Plan:
    """Settings, and what follows from them."""

    module: type[Recipe]
    config: RecipeConfig
    run: RunDir
    where: dict[str, Any]
    """Of frisket.engine.strategy.place."""
    division: Division
    data: ShardData
    elsewhere: bool = False
    """Whether the place wants a GPU and there is none here: then counts are those of its settings."""
    recipe: Recipe | None = None
    """The module, once it is built."""

    @property
    def world(self) -> int:
        """Ranks in all."""
        return self.where["devices"] * self.where["num_nodes"]

    @property
    def rank(self) -> int:
        """Of this process; 0 where nobody launched it."""
        return self.where["plugins"][0].global_rank() if launch() else 0


def plan(recipe: ModuleType, config: RecipeConfig, *, anywhere: bool = False) -> Plan:
    """Resolve the settings here; with `anywhere` also those for a GPU that is not here. Raises UserError."""
    here = config.place
    lacking = here.accelerator in ("cuda", "gpu") and not torch.cuda.is_available()
    elsewhere = anywhere and lacking and not launch()
    where = place(replace(here, accelerator="cpu") if elsewhere else here)
    division = divide(
        config.data.global_batch, devices=where["devices"] * where["num_nodes"], at_once=here.images_per_device
    )
    data = ShardData(config.data, per_device=division.per_device, workers=here.workers, seed=config.seed)
    return Plan(recipe.Module, config, RunDir.of(config), where, division, data, elsewhere)
