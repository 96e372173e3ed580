"""`frisket show YAML… key=value…`: print the resolved configuration, defaults included; nothing is run.

    frisket show configs/distill_lightening.yaml configs/on/a100.yaml optim.lr=4e-4

A training configuration is checked as `frisket train` checks it, and its encoder is printed with all its own settings
(its image_size follows data.image_size). ${oc.env:NAME} stays as written where NAME is not set.

The schema is found from the keys: `recipe:` is a training run, `task:` an evaluation, `source:` a preparation; anything
else is the verb whose config knows most of the keys (an unknown one is then refused by it).
"""

import importlib
from collections.abc import Sequence

from frisket import config as settings
from frisket.cli import eval as evaluating
from frisket.cli import train as training
from frisket.engine.evaluate import Suite
from frisket.engine.fit import check
from frisket.errors import UserError
from frisket.recipes.base import RecipeConfig, knobs, specs

VERBS = (
    ("frisket.cli.predict", "PredictConfig"),
    ("frisket.bench.harness", "BenchConfig"),
)


def run(files: Sequence[str], overrides: Sequence[str]) -> int:
    """Print the configuration as YAML. Raises UserError for an unknown key or recipe."""
    if not files and not overrides:
        raise UserError("nothing to show: give a YAML, e.g. frisket show configs/distill_lightening.yaml")
    with settings.unset_kept():
        config = settings.load(schema(files, overrides), files, overrides)
    if isinstance(config, RecipeConfig):
        check(config)
        for spec in specs(config).values():
            whole = knobs(spec.name, spec.encoder)
            spec.encoder = {key: value for key, value in whole.items() if key in spec.encoder or key != "image_size"}
    print(settings.show(config), end="")
    return 0


def schema(files: Sequence[str], overrides: Sequence[str]) -> type:
    """Return the config dataclass that these sources fill."""
    if settings.peek(files, overrides, "recipe"):
        return training.chosen(files, overrides).Config
    if settings.peek(files, overrides, "tasks"):
        return Suite
    if settings.peek(files, overrides, "task"):
        return evaluating.chosen(files, overrides).Config
    if settings.peek(files, overrides, "source"):
        return importlib.import_module("frisket.cli.prep").PrepConfig
    given = {key for file in files for key in settings.read(file)} | {
        o.partition("=")[0].split(".")[0] for o in overrides
    }
    known = {f"{module}.{name}": getattr(importlib.import_module(module), name) for module, name in VERBS}
    return min(known.values(), key=lambda schema: len(given - set(settings.keys(schema))))
