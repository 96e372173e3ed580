"""Bare state dicts, as Meta publishes them and others save them: named by their keys and shapes.

Ours carry a record besides, which says what shapes cannot. {"model": …}, {"state_dict": …} and prefixes (`module.` of
DDP, `model.` of other trainers) are unwrapped.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frisket.errors import UserError
from frisket.models import zoo
from frisket.models.sam import Sam
from frisket.models.zoo import entries
from frisket.weights.layout import Shapes, differences, fingerprint, layout, shape, some
from frisket.weights.stored import Stored, model, tensors

PART = "image_encoder."
WRAPPERS = ("state_dict", "model")
RECORD = "frisket"


def read(content: Mapping[str, Any], path: Path) -> Stored:
    """The Sam that its record names, or the one of the zoo with exactly these keys and shapes. Raises UserError saying
    what else the file is."""
    inner = content
    while wrapped := [key for key in WRAPPERS if isinstance(inner.get(key), Mapping)]:
        inner = inner[wrapped[0]]
    state, record = tensors(inner, path), _note(inner).get(RECORD)
    if isinstance(record, Mapping):
        return Stored(*model(record, path), state)
    prefixes = {key[: key.index(PART)] for key in state if PART in key}
    if not prefixes:
        what = "a Lightning checkpoint" if "pytorch-lightning_version" in content else "a state dict"
        raise UserError(
            f"{path} is {what} of another model ({len(state)} tensors: {some(state)}), none of them under '{PART}': "
            "give a Segment Anything model"
        )
    if len(prefixes) > 1:
        raise UserError(f"{path} holds several models ({some(sorted(prefixes))}): save the one you want by itself")
    prefix = prefixes.pop()
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return Stored(_identify(state, path), {}, state)


def noted(sam: Sam) -> dict[str, Tensor]:
    """A copy of its state dict, on the CPU, which any module of its keys takes with strict=True; `read` finds the
    record where torch keeps the modules' versions."""
    state = sam.state_dict()
    for key, value in state.items():  # cloned: a view would bring its whole storage along
        state[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    _note(state)[RECORD] = zoo.record(sam)
    return state


def _note(state: Mapping[str, Any]) -> dict[str, Any]:
    """What torch's `_metadata` says of the whole; {} where there is none."""
    facts = getattr(state, "_metadata", None)
    note = facts.get("") if isinstance(facts, Mapping) else None
    return note if isinstance(note, dict) else {}


@cache
def _published(name: str) -> dict[str, tuple[int, ...]]:
    return layout(name)


def _identify(state: Mapping[str, Tensor], path: Path) -> str:
    """The zoo name whose layout this is. Raises UserError with settings that fit, or the differences to the likest."""
    print_ = fingerprint(state)
    for name in entries():
        if fingerprint(_published(name)) == print_:
            return name
    shapes = {(key, tuple(value.shape)) for key, value in state.items()}
    likest = max(entries(), key=lambda name: len(shapes & set(_published(name).items())))
    if fit := settings(state):
        name, changes, silent = fit
        told = ", ".join(f"{key}={value}" for key, value in changes.items())
        more = f", and perhaps others of {', '.join(silent)}, which leave no trace in shapes" if silent else ""
        raise UserError(
            f"{path} is no model of the zoo as published, but fits '{name}' with {told}{more}: "
            "frisket.models.zoo.build it so, load_state_dict, and frisket.checkpoint.save the whole"
        )
    wrong = differences(_published(likest), state)
    raise UserError(f"{path} is no model of the zoo; the likest is '{likest}' ({wrong}): is it the right file?")


def settings(state: Shapes) -> tuple[str, dict[str, Any], list[str]] | None:
    """(zoo name, changes, fields that shapes do not tell) of the row nearest to a state dict; None when none fits."""
    inner = {key.removeprefix(PART): shape(value) for key, value in state.items() if key.startswith(PART)}
    fits: list[tuple[str, dict[str, Any], list[str]]] = []
    for name, row in entries().items():
        tell = getattr(row.encoder, "settings_of", None)
        try:
            told = tell(inner) if tell else {}
            silent = [key for key in vars(row.config) if key not in told]
            any_heads = {"heads": 1} if "heads" in silent else {}  # whatever their number, the shapes are the same
            if not told or differences(layout(name, **told, **any_heads), state):
                continue
        except (LookupError, ArithmeticError, UserError):  # another kind of encoder
            continue
        fits.append((name, {key: value for key, value in told.items() if value != getattr(row.config, key)}, silent))
    return min(fits, key=lambda fit: len(fit[1]), default=None)
