"""A small TinyViT Sam with random weights and no gamma of 0; and the same quantized, with the widest scales."""

from typing import Any

import torch
from torch import Tensor, nn

from frisket.models.sam import Sam
from frisket.models.zoo import build
from frisket.quant.layers import Kind, QuantConfig, fold, quantize
from frisket.sample import Prompts

SMALL = {"widths": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "heads": (1, 2, 2), "windows": (4, 4, 2), "classes": 4}
POINTS = torch.tensor([[[5.0, 6], [40, 50], [9, 60]]]).expand(5, -1, -1) + torch.arange(5)[:, None, None]
LABELS = torch.tensor([[1, 0, -2], [2, 3, 1], [2, 3, -2], [1, -1, -2], [1, -2, -2]])


def small(name: str = "tiny_sam") -> Sam:
    """Seeded; biases as large as a trained model's."""
    torch.manual_seed(3)
    settings: dict[str, dict[str, Any]] = {
        "tiny_sam": SMALL,
        "sam_vit_t": {"width": 48, "depth": 2, "heads": 3, "global_blocks": (1,)},
        "lite_sam_640": {"widths": (8, 12, 16, 20), "depths": (1, 1, 1, 1), "neck_width": 12},
    }
    sam = build(name, image_size=64, **settings[name]).eval()
    for part in sam.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.bias, std=0.1)
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
    return sam.requires_grad_(False)


def image() -> Tensor:
    """A normalized picture."""
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def quantized(bits: int = 8) -> Sam:
    """All layers active, their scales from one picture and a few prompts."""
    sam = small()
    fold(sam)
    kinds: dict[str, Kind] = {
        name: "gelu" if name.endswith("mlp.fc2") else "symmetric" if isinstance(part, nn.Linear) else "affine"
        for name, part in sam.named_modules()
        if not name.endswith("encoder.head")  # nothing executes it
    }
    layers = quantize(sam, QuantConfig(weight_bits=bits, activation_bits=bits), kinds)
    handles = [
        layer.register_forward_pre_hook(lambda layer, given: layer.start(*given[: layer.operand_count]))
        for layer in layers.values()
    ]
    sam.decode(sam.image_encoder(image()), torch.zeros(5, dtype=torch.long), Prompts(POINTS, LABELS), None)
    for handle in handles:
        handle.remove()
    for layer in layers.values():
        layer.active = True
        for operand in layer.operands():
            if operand.kind == "symmetric":
                operand.scale *= 0.7  # so that some values are cut off
    return sam
