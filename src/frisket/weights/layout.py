"""Keys and shapes of state dicts: fingerprints, differences in words, digests. Our choice."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from frisket.models.zoo import build

SHOWN = 3  # keys named in a sentence

Shapes = Mapping[str, Any]
"""{key: tensor or plain shape}."""


def fingerprint(state: Shapes) -> str:
    """SHA-256 of a state dict's layout: the sorted lines "key 1x2x3\\n". Values may be tensors or plain shapes."""
    lines = (f"{key} {'x'.join(str(n) for n in shape(value))}\n" for key, value in state.items())
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def weights_digest(module: nn.Module) -> str:
    """`digest` of a module's weights: equal exactly when what it computes is."""
    return digest(module.state_dict())


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of names, shapes, types and values."""
    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        array = value.detach().cpu().contiguous()
        total.update(f"{name} {tuple(array.shape)} {array.dtype}\n".encode())
        total.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def differences(expected: Shapes, given: Shapes) -> str:
    """The first keys that are missing, unexpected or of another shape, in words; '' when there are none."""
    missing = [key for key in expected if key not in given]
    extra = [key for key in given if key not in expected]
    other = [
        f"{key} {_times(given[key])} instead of {_times(expected[key])}"
        for key in expected
        if key in given and shape(expected[key]) != shape(given[key])
    ]
    labelled = (("missing", missing), ("unexpected", extra), ("shape", other))
    return "; ".join(f"{label}: {some(keys)}" for label, keys in labelled if keys)


def layout(name: str, **changes: Any) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a zoo model, from the meta device: no memory, no random numbers."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in build(name, **changes).state_dict().items()}


def some(keys: Iterable[str]) -> str:
    """The first few keys, and how many more there are."""
    keys = list(keys)
    rest = len(keys) - SHOWN
    return ", ".join(keys[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def shape(value: Any) -> tuple[int, ...]:
    """Of a tensor, or the shape itself."""
    return tuple(value.shape) if isinstance(value, Tensor) else tuple(value)


def _times(value: Any) -> str:
    return "x".join(str(n) for n in shape(value)) or "scalar"
