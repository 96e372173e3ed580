"""A quantized Sam as one file: whole numbers, their scales, and what stayed float. No code is in it, or ever run.

Use     write(sam, "model.safetensors", provenance={…}); sam = frisket.checkpoint.load("model.safetensors")
Form    frisket.weights.safe. `<layer>.weight` of a quantized layer is int8 levels (at any number of bits), its scales
        and its operands' are float32, everything else as it was, BatchNorm folded; settings are in the record.
Source  our choice. A pickled module, as the published quantized TinySAM is, would run code.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frisket.errors import UserError
from frisket.models import zoo
from frisket.models.sam import Sam
from frisket.quant.layers import QuantConfig, Quantized, fold, quantize
from frisket.quant.quantizers import levels
from frisket.weights import safe
from frisket.weights.layout import differences


def write(sam: Sam, path: Path | str, *, provenance: Mapping[str, Any]) -> None:
    """Write a Sam whose layers `quantize` changed and `search` or training gave scales, atomically. provenance: plain
    data.

    Raises UserError when the disk is full.
    """
    state = settled({key: value.detach().cpu().contiguous() for key, value in sam.state_dict().items()})
    for name, layer in _layers(sam).items():
        whole = (state[f"{name}.weight"] / state[f"{name}.weight_scale"]).round().clamp(*levels(layer.bits))
        state[f"{name}.weight"] = whole.to(torch.int8).contiguous()
    safe.write(path, {**zoo.record(sam), "provenance": dict(provenance)}, state)


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


def _layers(sam: Sam) -> dict[str, Quantized]:
    """Those with a weight."""
    return {name: part for name, part in sam.named_modules() if isinstance(part, Quantized)}
