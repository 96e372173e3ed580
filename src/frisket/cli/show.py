"""`frisket show YAML… key=value…`: print the resolved configuration, defaults included; nothing is run.

The schema is found from the keys: `recipe:` is a training run, `task:` an evaluation, `source:` a preparation; anything
else is the verb whose config knows most of the keys (an unknown one is then refused by it).
"""

import importlib
from collections.abc import Sequence

from frisket import config as settings
from frisket.cli.eval import Suite, task_module
from frisket.cli.train import recipe_module
from frisket.errors import UserError

VERBS = (
    ("frisket.cli.predict", "PredictConfig"),
    ("frisket.bench.harness", "BenchConfig"),
)


def run(files: Sequence[str], overrides: Sequence[str]) -> int:
    """Print the configuration as YAML. Raises UserError for an unknown key or recipe."""
    if not files and not overrides:
        raise UserError("nothing to show: give a YAML, e.g. frisket show configs/distill_lightening.yaml")
    print(settings.show(settings.load(schema(files, overrides), files, overrides)), end="")
    return 0


def schema(files: Sequence[str], overrides: Sequence[str]) -> type:
    """Return the config dataclass that these sources fill."""
    if settings.peek(files, overrides, "recipe"):
        return recipe_module(files, overrides).Config
    if settings.peek(files, overrides, "tasks"):
        return Suite
    if settings.peek(files, overrides, "task"):
        return task_module(files, overrides).Config
    if settings.peek(files, overrides, "source"):
        return importlib.import_module("frisket.cli.prep").PrepConfig
    given = {key for file in files for key in settings.read(file)} | {
        o.partition("=")[0].split(".")[0] for o in overrides
    }
    known = {f"{module}.{name}": getattr(importlib.import_module(module), name) for module, name in VERBS}
    return min(known.values(), key=lambda schema: len(given - set(settings.keys(schema))))
