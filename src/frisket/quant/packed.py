"""A quantized Sam as one file: whole numbers, their scales, and what stayed float. No code is in it, or ever run.

Use     write(sam, "model.safetensors", config=config, kinds=kinds, provenance={…}); sam = read("model.safetensors")
Form    safetensors. `<layer>.weight` of a quantized layer is int8 levels (at any number of bits), its scales and its
        operands' are float32, everything else as it was, BatchNorm folded. The header's "frisket" is JSON: the model's
        record, the settings of quantization, and a digest of these and of all tensors, compared at every load.
Source  our choice. A pickled module, as the published quantized TinySAM is, would run code.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
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
from frisket.quant.layers import Kind, QuantConfig, Quantized, fold, quantize
from frisket.quant.quantizers import levels
from frisket.weights.layout import differences, digest
from frisket.weights.stored import model

SUFFIX = ".safetensors"
FORMAT = 1


def write(
    sam: Sam, path: Path | str, *, config: QuantConfig, kinds: Mapping[str, Kind], provenance: Mapping[str, Any]
) -> None:
    """Write a Sam whose layers `quantize` changed and `search` gave scales, atomically. provenance: plain data.

    Raises UserError when the disk is full.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in sam.state_dict().items()}
    for name, layer in _layers(sam).items():
        whole = (layer.weight.detach() / layer.weight_scale).round().clamp(*levels(layer.bits))
        state[f"{name}.weight"] = whole.to(torch.int8).cpu().contiguous()
    about = {
        "format": FORMAT, **zoo.record(sam), "quant": asdict(config), "kinds": dict(kinds),
        "provenance": dict(provenance),
    }  # fmt: skip
    about = json.loads(json.dumps(about)) | {"digest": _digest(about, state)}
    with atomic(path) as tmp:
        save_file(state, tmp, metadata={"frisket": json.dumps(about)})


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
    name, changes = model(about, path)
    try:
        config, kinds = QuantConfig(**about["quant"]), dict(about["kinds"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not tell how it was quantized ({error}): make it again") from error
    with torch.random.fork_rng(devices=[]):
        sam = zoo.build(name, **changes)
    fold(sam, values=False)
    layers = quantize(sam, config, kinds)
    if wrong := differences(sam.state_dict(), state):
        raise UserError(f"{path} is not the '{name}' that its record says ({wrong}): make it again")
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{path} holds NaN or infinity in {key}: quantize a model that is finite")
    for key in _layers(sam):
        state[f"{key}.weight"] = state[f"{key}.weight"].float() * state[f"{key}.weight_scale"]
    sam.load_state_dict(state, strict=True)
    for layer in layers.values():
        layer.active = True
    sam.form = "quantized"
    return sam


def _digest(about: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Of the record, which decides what the numbers mean, and of all tensors."""
    record = json.dumps(about, sort_keys=True).encode()
    return hashlib.sha256(record + digest(state).encode()).hexdigest()


def _layers(sam: Sam) -> dict[str, Quantized]:
    """Those with a weight."""
    return {name: part for name, part in sam.named_modules() if isinstance(part, Quantized)}
