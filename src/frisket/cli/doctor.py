"""`frisket doctor YAML… key=value…`: everything that could stop a training after hours of waiting, looked at now.

    frisket doctor configs/distill_lightening.yaml configs/on/a100.yaml
    DRY_RUN=1 sbatch slurm/distill_lightening.sh        # by all ranks of a job, where it will run

The words are those of `frisket train`, and nothing is trained or left behind. A line for each check: ok and what was
seen, or FAIL, the cause and the mend. Exit code 1 if anything fails. See frisket.engine.doctor.
"""

import shlex
from collections.abc import Sequence

from frisket import config as settings
from frisket.cli.train import chosen
from frisket.engine.doctor.run import examine
from frisket.engine.fit import check
from frisket.recipes.recipe_config import RecipeConfig


def schema(files: Sequence[str], overrides: Sequence[str]) -> type[RecipeConfig]:
    """The config dataclass that these sources fill: the recipe's."""
    return chosen(files, overrides).Config


def run(files: Sequence[str], overrides: Sequence[str]) -> int:
    """Examine what the words say. Returns 0, or 1 when a check fails; raises UserError."""
    recipe = chosen(files, overrides)
    config = settings.load(recipe.Config, files, overrides)
    check(config)
    return examine(recipe, config, shlex.join(["frisket", "train", *files, *overrides]))
