"""`frisket show YAML… key=value…`: print the resolved configuration, defaults included; nothing is run.

    frisket show configs/distill_lightening.yaml configs/on/a100.yaml optim.lr=4e-4

A training configuration is checked as `frisket train` checks it; its encoder (whose image_size follows data.image_size)
and the strategy of `everything:` are printed with all their own settings. ${oc.env:NAME} stays as written where NAME is
not set.

Whose settings they are follows from the keys: `recipe:` is a training run, `task:` or `tasks:` an evaluation, `source:`
a preparation; else from the file's name, which begins with its verb (predict.yaml, bench_quick.yaml), or from you:

    frisket show predict mine.yaml
"""

import importlib
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from frisket import config as settings
from frisket.cli.main import CHOOSES, VERBS, stem
from frisket.engine.fit import check
from frisket.errors import UserError
from frisket.everything.strategy import chosen
from frisket.models import zoo
from frisket.recipes.recipe_config import RecipeConfig, knobs, specs


def run(files: Sequence[str], overrides: Sequence[str]) -> int:
    """Print the configuration as YAML. Raises UserError for an unknown key or recipe."""
    if not files and not overrides:
        raise UserError("nothing to show: give a YAML, e.g. frisket show distill_lightening")
    name, files = verb(files, overrides)
    schema = importlib.import_module(f"frisket.cli.{stem(name)}").schema(files, overrides)
    with settings.unset_kept():
        config = settings.load(schema, files, overrides)
        about = settings.describe(schema)
        if isinstance(config, RecipeConfig):
            check(config)
            for key, spec in specs(config).items():
                encoder = zoo.entry(spec.name).config
                about += settings.describe(type(encoder), f"{key}.encoder.", encoder)
                whole = knobs(spec.name, spec.encoder)
                spec.encoder = {k: value for k, value in whole.items() if k in spec.encoder or k != "image_size"}
        elif isinstance(block := getattr(config, "everything", None), dict):
            strategy = chosen(block)
            about += settings.describe(type(strategy), "everything.")
            config.everything = asdict(strategy)
        print("\n".join(commented(config, about)))
    return 0


def verb(files: Sequence[str], overrides: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The verb that these words are settings of, and its files: see the top of this file. Raises UserError when nothing
    tells."""
    if files and files[0] in VERBS and (len(files) > 1 or not settings.find(files[0])):
        return files[0], files[1:]
    for name, keys in CHOOSES.items():
        if any(settings.peek(files, overrides, key) for key in keys):
            return name, files
    for file in files:
        if (name := Path(file).stem.split("_")[0]) in VERBS:
            return name, files
    raise UserError(f"nothing tells whose settings these are: write frisket show VERB …, with {', '.join(VERBS)}")


def commented(config: Any, about: Sequence[settings.Knob]) -> list[str]:
    """The configuration's YAML, with what each key is, and its default where it has another value, as comments."""
    by_key, values = {knob.key: knob for knob in about}, settings.flatten(config)
    lines, path = settings.show(config).splitlines(), []
    for number, line in enumerate(lines):
        if not (name := re.match(r" *(\w+):(.*)", line)):
            continue
        depth = name.start(1)
        path = [part for part in path if part[0] < depth] + [(depth, name[1])]
        key = ".".join(part for _, part in path)
        continued = name[2] and number + 1 < len(lines) and lines[number + 1].startswith(" " * (depth + 1))
        if key in by_key and not continued:  # a comment inside a long text would be part of it
            knob, value = by_key[key], settings.written(values.get(key))
            default = f"(default {knob.default})" if key in values and value != knob.default != "required" else ""
            lines[number] += "".join(f"  # {text}" for text in [f"{knob.about} {default}".strip()] if text)
    return lines
