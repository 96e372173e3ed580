"""`frisket train YAML… key=value…`: train a recipe, or continue its run.

    frisket train configs/distill_lightening.yaml configs/on/a100.yaml optim.lr=4e-4

Exit code 75: stopped on request, with a checkpoint (slurm/env.sh then requeues); 130: the same after Ctrl-C. A second
Ctrl-C ends the program at once. Everything it does is in `frisket.engine.fit`; here the configuration is read.
"""

from collections.abc import Sequence
from types import ModuleType

from frisket import config as settings
from frisket.engine import signals
from frisket.engine.fit import fit
from frisket.errors import UserError, nearest
from frisket.recipes.base import RECIPES
from frisket.recipes.recipe_config import RecipeConfig


def run(files: Sequence[str], overrides: Sequence[str]) -> int:
    """Train until trainer.max_steps, or until asked to stop. Returns the exit code; raises UserError."""
    with signals.held():
        recipe = chosen(files, overrides)
        return fit(recipe, settings.load(recipe.Config, files, overrides))


def schema(files: Sequence[str], overrides: Sequence[str]) -> type[RecipeConfig]:
    """The config dataclass that these sources fill: the recipe's."""
    return chosen(files, overrides).Config


def chosen(files: Sequence[str], overrides: Sequence[str]) -> ModuleType:
    """The recipe's module that the configuration names. Raises UserError for an unknown name."""
    name = settings.peek(files, overrides, "recipe")
    if not name:
        raise UserError(f"no recipe is named: give a YAML with 'recipe: …' ({nearest('', RECIPES.names())})")
    return RECIPES.find(str(name))
