"""Tiny Sams for the tests beside this file, every parameter random: no zeros or ones left to hide a missing term."""

from collections.abc import Callable

import pytest
import torch

from frisket.models.sam import Sam
from frisket.models.zoo import build


def randomize(sam: Sam, seed: int = 0) -> Sam:
    """Move every parameter off its initial value, so that biases, norms and position tables count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            scale = 0.3 if "rel_pos" in name else 0.1 if parameter.dim() == 1 or "pos_embed" in name else 0.02
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return sam.eval()


@pytest.fixture
def tiny() -> Callable[..., Sam]:
    """A function (image_size, **changes) -> random Sam: ViT, 3 blocks, the last one global."""

    def make(image_size: int = 128, **changes: object) -> Sam:
        torch.manual_seed(0)
        settings = {"width": 48, "depth": 3, "heads": 3, "global_blocks": (2,), **changes}
        return randomize(build("sam_vit_t", image_size=image_size, **settings))

    return make
