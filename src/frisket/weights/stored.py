"""What every form becomes when it is read, and the reading that all forms share: nothing in a file is ever run.

A record names the model: {"name", "changes", "plugin" (the module to load first, if it is one), "form"}. Our choice.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frisket.errors import UserError, nearest
from frisket.files import check_zip
from frisket.models.zoo import names
from frisket.weights.layout import some

PREFIX = "sam."
"""Of the trained Sam inside a training module's state dict."""
FORMS = ("float", "quantized")
"""How a Sam computes, a record's `form`; "float" where it says nothing."""


@dataclass(frozen=True)
class Stored:
    """A Sam on disk."""

    name: str
    """In the zoo."""
    changes: dict[str, Any]
    """Of the encoder's config."""
    state: dict[str, Tensor]
    """Under Sam's own keys."""
    quantization: dict[str, Any] | None = None
    """`Sam.quantization`, for frisket.quant.packed to build it by."""


def model(record: Mapping[str, Any], path: Path) -> tuple[str, dict[str, Any]]:
    """(name, changes) of a record. Raises UserError for a model, a form or a plug-in that is not here."""
    name, changes, form, plugin = (record.get(key) for key in ("name", "changes", "form", "plugin"))
    if (form or "float") not in FORMS:
        raise UserError(f"{path} holds weights of form {form!r} and this frisket reads {', '.join(FORMS)}: update it")
    if name not in names() and isinstance(plugin, str):
        raise UserError(f"{path} holds '{name}', a model of the plug-in {plugin}: load that too, plugins=[{plugin}]")
    if name not in names() or not isinstance(changes, Mapping):
        raise UserError(f"{path} names the model {name!r}: {nearest(str(name), names())}")
    # `patch` was a setting once, which only ever worked at 16
    return str(name), {str(key): value for key, value in changes.items() if (key, value) != ("patch", 16)}


def quantization(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of a record; None where it is of a float model."""
    kept = {key: record.get(key) for key in ("quant", "kinds", "provenance")}
    return kept if record.get("form") == "quantized" else None


def own(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The student's weights out of a training module's; the teacher and projections are not ours to load."""
    mine = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    if not mine:
        raise UserError(f"{path} has no '{PREFIX}*' weights (it has {some(state)}): is it a frisket checkpoint?")
    return mine


def tensors(state: Any, path: Path) -> dict[str, Tensor]:
    """`state` as a state dict. Raises UserError when it is none."""
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{path} holds no state dict: is it the right file?")
    other = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if other:
        raise UserError(f"{path} is no state dict: {some(other)} is not a tensor; is it the right file?")
    return {str(key): value for key, value in state.items()}


def unpickle(path: Path, *, mmap: bool = False, checked: bool = False) -> dict[str, Any]:
    """The table a file holds, by torch's weights-only unpickler; first every checksum is compared, unless `checked`.

    Raises UserError for a damaged file, one that holds code, and one that is no table.
    """
    if not checked and zipfile.is_zipfile(path):
        check_zip(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds {code[1]}, which is more than weights," if code else "is damaged"
        raise UserError(f"{path} {what} and is refused: get or save it again") from error
    except Exception as error:  # torch's unpickler takes any bytes for a program, and stumbles in any way
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise UserError(f"{path} cannot be read ({said}): it is cut short or damaged, get it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a table of weights: is it the right file?")
    return content
