"""A quantized Sam as one file: whole numbers, their scales, and what stayed float. No code is in it, or ever run.

Use     write(sam, "model.safetensors", provenance={…}); sam = read("model.safetensors")
Form    safetensors. `<layer>.weight` of a quantized layer is int8 levels (at any number of bits), its scales and its
        operands' are float32, everything else as it was, BatchNorm folded. The header's "frisket" is JSON: the model's
        record, the settings of quantization, and a digest of these and of all tensors, compared at every load.
Source  our choice. A pickled module, as the published quantized TinySAM is, would run code.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from frisket.errors import UserError
from frisket.files import atomic
from frisket.models import zoo
from frisket.models.sam import Sam
from frisket.quant.layers import QuantConfig, Quantized, fold, quantize
from frisket.quant.quantizers import levels
from frisket.weights.layout import differences, digest
from frisket.weights.stored import model

SUFFIX = ".safetensors"
FORMAT = 1


def write(sam: Sam, path: Path | str, *, provenance: Mapping[str, Any]) -> None:
    """Write a Sam whose layers `quantize` changed and `search` or training gave scales, atomically. provenance: plain
    data.

    Raises UserError when the disk is full.
    """
    state = settled({key: value.detach().cpu().contiguous() for key, value in sam.state_dict().items()})
    for name, layer in _layers(sam).items():
        whole = (state[f"{name}.weight"] / state[f"{name}.weight_scale"]).round().clamp(*levels(layer.bits))
        state[f"{name}.weight"] = whole.to(torch.int8).contiguous()
    about = {"format": FORMAT, **zoo.record(sam), "provenance": dict(provenance)}
    about = json.loads(json.dumps(about)) | {"digest": _digest(about, state)}
    with atomic(path) as tmp:
        tmp.touch()
        rights = tmp.stat().st_mode  # of a new file here; safetensors makes one for its owner alone
        save_file(state, tmp, metadata={"frisket": json.dumps(about)})
        tmp.chmod(rights)


def read(path: Path | str) -> Sam:
    """The Sam of a file, its layers quantized and active. Raises UserError for a file that is none, is damaged, is of a
    later format, or does not hold what its record says."""
    path = Path(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("frisket", "null"))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): it is cut short or damaged, make it again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        given = about.get("format") if isinstance(about, dict) else None
        raise UserError(f"{path} is no quantized model of this frisket (format {given}, not {FORMAT}): make it again")
    if _digest({key: value for key, value in about.items() if key != "digest"}, state) != about.get("digest"):
        raise UserError(f"{path} is damaged: its numbers are not those that were written, make it again")
    return restored(path, *model(about, path), about, state)


def build(path: Path, name: str, changes: Mapping[str, Any], about: Mapping[str, Any]) -> Sam:
    """A Sam with random weights, folded, its layers quantized and active as the record `about` of `path` says."""
    try:
        config, kinds = QuantConfig(**about["quant"]), dict(about["kinds"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not tell how it was quantized ({error}): make it again") from error
    with torch.random.fork_rng(devices=[]):
        sam = zoo.build(name, **changes)
    fold(sam, values=False)
    for layer in quantize(sam, config, kinds).values():
        layer.active = True
    assert sam.quantization is not None
    sam.quantization["provenance"] = dict(about.get("provenance") or {})
    return sam


def restored(
    path: Path, name: str, changes: Mapping[str, Any], about: Mapping[str, Any], state: Mapping[str, Tensor]
) -> Sam:
    """`build` with the weights of `state`: whole numbers, or floating point from which they are rounded. Raises
    UserError where they do not fit the record."""
    sam, state = build(path, name, changes, about), settled(state)
    if wrong := differences(sam.state_dict(), state):
        raise UserError(f"{path} is not the '{name}' that its record says ({wrong}): make it again")
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{path} holds NaN or infinity in {key}: quantize a model that is finite")
    for key in _layers(sam):
        if not state[f"{key}.weight"].is_floating_point():
            state[f"{key}.weight"] = state[f"{key}.weight"].float() * state[f"{key}.weight_scale"]
    sam.load_state_dict(state, strict=True)
    return sam


def settled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict whose learned scales (frisket.quant.layers' `learn`) have become plain ones."""
    plain = {key: value for key, value in state.items() if not key.endswith("stretch")}
    for key in state.keys() - plain.keys():
        scale = f"{key.removesuffix('stretch')}scale"
        plain[scale] = plain[scale] * state[key].float().exp().view_as(plain[scale])
    return plain


def _digest(about: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Of the record, which decides what the numbers mean, and of all tensors."""
    record = json.dumps(about, sort_keys=True).encode()
    return hashlib.sha256(record + digest(state).encode()).hexdigest()


def _layers(sam: Sam) -> dict[str, Quantized]:
    """Those with a weight."""
    return {name: part for name, part in sam.named_modules() if isinstance(part, Quantized)}
