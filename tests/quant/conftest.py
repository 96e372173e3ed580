"""A small TinyViT Sam that has seen a few batches, so that no gamma is 0, and batches of drawn photographs."""

from pathlib import Path

import pytest
import torch

from frisket.data.annotated import open_annotated, sample
from frisket.data.module import collate
from frisket.models.sam import Sam
from frisket.models.zoo import build
from frisket.sample import Batch

SMALL = {"widths": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "heads": (1, 2, 2), "windows": (4, 4, 2), "classes": 4}


@pytest.fixture
def tiny() -> Sam:
    torch.manual_seed(3)
    sam = build("tiny_sam", image_size=64, **SMALL).eval()
    for part in sam.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.normal_(part.bias, std=0.2)
            torch.nn.init.normal_(part.running_mean, std=0.2)
            torch.nn.init.uniform_(part.running_var, 0.5, 2)
    return sam.requires_grad_(False)


@pytest.fixture
def batches(tiny_shards: Path) -> list[Batch]:
    data = open_annotated(tiny_shards / "val")
    return [collate([sample(data[n], 64)]) for n in range(3)]
