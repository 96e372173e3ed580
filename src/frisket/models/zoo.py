"""The door to all models: name, shape, paper, public checkpoint.

Use     `sam = build("sam_vit_b")`, `build("lightening", depth=4)`; every keyword is a field of the encoder's config.
Source  our choice: the rows stand in the encoders' own files (`ENCODERS`, see `frisket.models.encoder`), in this folder
        or in a plug-in.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from enum import Enum
from typing import Any

import torch

from frisket import plugins
from frisket.errors import UserError, nearest
from frisket.models.auto_ppn import AutoPPNConfig
from frisket.models.encoder import MEMBERS, Entry
from frisket.models.sam import PROPOSALS, Sam

MODELS = plugins.Room("frisket.models", "model", "ENCODERS")
"""The files of this folder that hold rows, and plug-ins."""
LIMIT = 1 << 31
"""Weights of an encoder, three times ViT-H's: more is a mistake in a setting. Our choice."""


def _rows() -> Iterator[tuple[str, str | None, Entry]]:
    """(name, the plug-in's dotted name or None, row) of every model, ours first."""
    for file in MODELS.files():
        yield from ((name, None, row) for name, row in MODELS.find(file).ENCODERS.items())
    for dotted, module in plugins.loaded().items():
        yield from ((name, dotted, row) for name, row in getattr(module, "ENCODERS", {}).items())


def entries() -> dict[str, Entry]:
    """{name: row} of every model; a plug-in does not replace ours."""
    rows: dict[str, Entry] = {}
    for name, _, row in _rows():
        rows.setdefault(name, row)
    return rows


def names() -> list[str]:
    """Every name `build` knows."""
    return list(entries())


def entry(name: str) -> Entry:
    """The row called `name`. Raises UserError with the nearest right name."""
    rows = entries()
    if name not in rows:
        raise UserError(f"no model is called '{name}' in frisket.models.zoo: {nearest(str(name), rows)}")
    return rows[name]


def plain(value: Any) -> Any:
    """A config value as plain data a weights-only checkpoint can hold: lists become tuples, enums their value."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    return value


def build(name: str, **encoder_changes: Any) -> Sam:
    """A Sam with random weights whose encoder is `name`, with some fields of its config changed; `auto_ppn`, a mapping
    of AutoPPNConfig's fields, adds that part.

    Raises UserError for an unknown name or field (with the nearest right one), for values the config refuses or that
    make more than LIMIT weights, and for a plug-in's encoder that lacks a member of the contract.
    """
    row = entry(name)
    known = [*(field.name for field in fields(row.config)), PROPOSALS]
    for key in encoder_changes:
        if key not in known:
            raise UserError(f"model '{name}' has no setting '{key}': {nearest(key, known)}")
    changes = {key: plain(value) for key, value in encoder_changes.items()}
    try:
        config = config_of(name, changes)
        with torch.device("meta"):  # no memory yet
            weights = sum(weight.numel() for weight in row.encoder(config).parameters()) if changes else 0
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:  # a word for a number, a size below 1
        raise UserError(f"{encoder_changes} is no '{name}': {str(error).splitlines()[0]:.200}") from error
    if weights > LIMIT:
        raise UserError(
            f"{changes} makes '{name}' a model of {weights:.1e} weights, and {LIMIT:.1e} is the most there is"
        )
    encoder = row.encoder(config)
    if lacking := [member for member in MEMBERS if not hasattr(encoder, member)]:
        raise UserError(f"model '{name}' lacks {', '.join(lacking)}: see frisket.models.encoder.ImageEncoder")
    sam = Sam(encoder, name, changes)
    proposals = changes.get(PROPOSALS)
    if proposals is not None:
        try:
            sam.propose(AutoPPNConfig(**proposals))
        except TypeError as error:
            known = [field.name for field in fields(AutoPPNConfig)]
            raise UserError(f"{PROPOSALS}={proposals} must be settings of AutoPPN: {', '.join(known)}") from error
    return sam


def config_of(name: str, changes: Mapping[str, Any]) -> Any:
    """The encoder's config as `build` makes it."""
    return replace(entry(name).config, **{key: value for key, value in changes.items() if key != PROPOSALS})


def spec(sam: Sam) -> tuple[str, dict[str, Any]]:
    """The (name, changes) that build a Sam of the same shape."""
    return sam.name, dict(sam.changes)


def record(sam: Sam) -> dict[str, Any]:
    """What a checkpoint remembers of a Sam: `name`, `changes`; `plugin`, the module to load first, if it is one; `form`
    and how, if it is quantized."""
    origin = next((plugin for name, plugin, _ in _rows() if name == sam.name), None)
    return {
        "name": sam.name,
        "changes": dict(sam.changes),
        **({"plugin": origin} if origin else {}),
        **({"form": sam.form, **sam.quantization} if sam.quantization else {}),
    }
