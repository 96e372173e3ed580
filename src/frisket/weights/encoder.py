"""The image encoder of any checkpoint as a start for ours: MAE's and ImageNet's ViTs, TinyViT's, a whole Sam's.

Use     said = start(sam.image_encoder, state, "mae_pretrain_vit_base.pth")
Source  SAM, appendix A (its encoder starts from MAE, arXiv 2111.06377). Position tables are resampled as those of a Sam
        asked at another side; a class token's place is dropped, a packed qkv is cut where ours is three layers.
"""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from frisket.errors import UserError
from frisket.models.blocks import resample_position, resample_relative
from frisket.weights.layout import some

INSIDE = re.compile(r"^(?:_forward_module\.|module\.|model\.|sam\.|backbone\.|image_encoder\.|encoder\.|visual\.)+")
WRAPPERS = ("state_dict", "model", "module")
RELATIVE = re.compile(r"\.rel_pos_[hw]$")


def unwrapped(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file under an encoder's own names; those of a Sam's other parts, of two, are left out."""
    while inner := next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None):
        content = inner
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if any("image_encoder." in key for key in tensors):
        tensors = {key: value for key, value in tensors.items() if "image_encoder." in key}
    return {INSIDE.sub("", key): value for key, value in tensors.items()}


@torch.no_grad()
def start(encoder: nn.Module, state: Mapping[str, Tensor], name: str) -> str:
    """Give `encoder` what of `state` fits it, in place. Returns the sentence that says what did and what did not.

    Raises UserError where nothing of its blocks fits, or a weight is not finite.
    """
    given, wanted, resampled, taken = _named(dict(state), encoder), encoder.state_dict(), [], {}
    for key, mine in wanted.items():
        if key not in given:
            continue
        theirs = _fitted(key, given[key], tuple(mine.shape))
        if theirs.shape == mine.shape:
            taken[key] = theirs
            resampled += [key] * (theirs is not given[key])
    if not any(value.ndim > 1 and key not in resampled for key, value in taken.items()):
        raise UserError(
            f"encoder_from={name} fits nothing of this encoder (it has {some(given)}; wanted: {some(wanted)}): give a "
            "checkpoint of the same architecture"
        )
    if bad := [key for key, value in taken.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise UserError(f"encoder_from={name} holds NaN or infinity in {some(bad)}: give another checkpoint")
    encoder.load_state_dict(taken, strict=False)
    own, unused = [key for key in wanted if key not in taken], [key for key in given if key not in taken]
    return f"encoder_from={name}: {len(taken)} of {len(wanted)} tensors taken" + "".join(
        f"; {text}: {some(keys)}"
        for text, keys in (("resampled", resampled), ("left at their own start", own), ("not used", unused))
        if keys
    )


def _named(state: dict[str, Tensor], encoder: nn.Module) -> dict[str, Tensor]:
    """Under the encoder's names: timm's linear layers as SAM's, packed qkv as q, k, v where the encoder has these."""
    wanted = dict(encoder.named_parameters())
    for key in [key for key in state if key not in wanted and key.replace(".mlp.fc", ".mlp.lin") in wanted]:
        state[key.replace(".mlp.fc", ".mlp.lin")] = state.pop(key)
    for key in [key for key in state if ".qkv." in key and key.replace(".qkv.", ".q.") in wanted]:
        packed = state.pop(key)
        state |= {key.replace(".qkv.", f".{part}."): value for part, value in zip("qkv", packed.chunk(3))}
    return state


def _fitted(key: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A position table at our side; anything else as it is."""
    if RELATIVE.search(key) and value.ndim == 2 and value.shape[1] == shape[1]:
        return resample_relative(value, (shape[0] + 1) // 2)
    if key == "pos_embed" and len(shape) == 4 and value.shape[-1] == shape[-1]:
        if value.ndim == 3:  # (1, 1 + side * side, C), MAE's and timm's, or without a class token
            side = isqrt(value.shape[1])
            value = value[:, value.shape[1] - side * side :].unflatten(1, (side, side))
        return resample_position(value, (shape[1], shape[2]))
    return value
