"""The one page of models: name, shape, paper, public checkpoint.

Use     `sam = build("sam_vit_b")`, `build("lightening", depth=4)`; every keyword is a field of the encoder's config.
Source  sizes of Segment Anything (arXiv 2304.02643) and SAM-Lightening; `sam_vit_t` is ours, for tests and demos.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

from torch import nn

from frisket.errors import UserError, nearest
from frisket.models.lightening import LighteningConfig, LighteningEncoder
from frisket.models.sam import Sam
from frisket.models.vit import ImageEncoderViT, ViTConfig


@dataclass(frozen=True)
class Entry:
    """One row: the config as published, the class it goes to, where it comes from, Meta's file name or None."""

    config: Any
    encoder: Callable[[Any], nn.Module]
    paper: str
    checkpoint: str | None = None


ENCODERS: dict[str, Entry] = {
    "sam_vit_b": Entry(
        ViTConfig(),
        ImageEncoderViT,
        "Segment Anything, ViT-B: 89.7 M parameters, 486 GMAC at 1024 px",
        "sam_vit_b_01ec64.pth",
    ),
    "sam_vit_l": Entry(
        ViTConfig(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
        ImageEncoderViT,
        "Segment Anything, ViT-L: 308.3 M parameters, 1493 GMAC at 1024 px",
        "sam_vit_l_0b3195.pth",
    ),
    "sam_vit_h": Entry(
        ViTConfig(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
        ImageEncoderViT,
        "Segment Anything, ViT-H: 637.0 M parameters, 2980 GMAC at 1024 px",
        "sam_vit_h_4b8939.pth",
    ),
    "sam_vit_t": Entry(
        ViTConfig(width=192, depth=6, heads=3, global_blocks=(2, 5)),
        ImageEncoderViT,
        "ours: the SAM recipe at a size a laptop can train (tests, demo); no public checkpoint",
    ),
    "lightening": Entry(
        LighteningConfig(),
        LighteningEncoder,
        "SAM-Lightening: dilated flash attention, 384 wide, 6 blocks; no public checkpoint in this layout",
    ),
}


def names() -> list[str]:
    """Every name `build` knows."""
    return list(ENCODERS)


def plain(value: Any) -> Any:
    """A config value as plain data a weights-only checkpoint can hold: lists become tuples, enums their value."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    return value


def build(name: str, **encoder_changes: Any) -> Sam:
    """A Sam with random weights whose encoder is `name`, with some fields of its config changed.

    Raises UserError for an unknown name or field (with the nearest right one) and for values the config refuses.
    """
    if name not in ENCODERS:
        raise UserError(f"no model is called '{name}' in frisket.models.zoo: {nearest(name, ENCODERS)}")
    entry = ENCODERS[name]
    known = [field.name for field in fields(entry.config)]
    for key in encoder_changes:
        if key not in known:
            raise UserError(f"model '{name}' has no setting '{key}': {nearest(key, known)}")
    changes = {key: plain(value) for key, value in encoder_changes.items()}
    return Sam(entry.encoder(replace(entry.config, **changes)), name, changes)


def spec(sam: Sam) -> tuple[str, dict[str, Any]]:
    """The (name, changes) that build a Sam of the same shape: what a checkpoint remembers."""
    return sam.name, dict(sam.changes)
