"""Rows: TinySAM's encoder as `frisket export` writes it, int8 in onnxruntime, against its fp32 there and in PyTorch.

    frisket bench rows=[onnx_int8,onnx_int8_torch] [checkpoint=runs/quant_tiny]

One picture of 1024 px, on the CPU always, each side with the bench's threads. Weights are random and their scales those
with which everything fits; or they are those of a quantized checkpoint and its float model, at its own side. The guard:
onnxruntime's embedding is that of the same quantized operations in torch.
"""

from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frisket import checkpoint
from frisket.bench.harness import Case, Row, Setting, at_least, at_most
from frisket.engine.export import ExportRun, float_model
from frisket.export.graph import runnable, write_encoder
from frisket.export.session import opened
from frisket.models.sam import Sam
from frisket.models.zoo import build
from frisket.quant.layers import Kind, QuantConfig, fold, quantize

QUICK = {"image_size": 64, "widths": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "heads": (1, 2, 2), "windows": (4, 4, 2)}


def random_sam(quick: bool) -> Sam:
    """TinySAM with random weights, no gamma or bias of 0, BatchNorm folded."""
    sam = build("tiny_sam", **(QUICK if quick else {})).eval().requires_grad_(False)
    for part in sam.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.bias, std=0.1)
    fold(sam)
    return sam


def calibrate(sam: Sam, image: Tensor) -> None:
    """Quantize its encoder, in place, with the scales in which what `image` shows just fits."""
    kinds: dict[str, Kind] = {
        name: "gelu" if name.endswith(".fc2") else "symmetric" if isinstance(part, nn.Linear) else "affine"
        for name, part in sam.named_modules()
        if not name.endswith("encoder.head")  # nothing executes it
    }
    layers = quantize(sam, QuantConfig(parts=["image_encoder"]), kinds)
    handles = [
        layer.register_forward_pre_hook(
            lambda layer, given: cast(Any, layer).start(*given[: cast(Any, layer).operand_count])
        )
        for layer in layers.values()
    ]
    sam.image_encoder(image)
    for handle in handles:
        handle.remove()
    for layer in layers.values():
        layer.active = True


@cache
def made(quick: bool, seed: int, threads: int, trained: str) -> tuple[Sam, Any, Sam, Any, Tensor, list[int]]:
    """(float Sam, its session, the quantized one, its session, a picture, the files' bytes)."""
    torch.manual_seed(seed)
    sam = checkpoint.load(trained).requires_grad_(False) if trained else None
    if sam is not None and sam.form == "quantized":
        exact, side = float_model(ExportRun(checkpoint=trained), sam), sam.image_size
        image = torch.randn(1, 3, side, side)
    else:
        exact = random_sam(quick)
        torch.manual_seed(seed)
        sam, side = random_sam(quick), exact.image_size
        image = F.interpolate(torch.randn(1, 3, side // 8, side // 8), size=(side, side), mode="bicubic")
        calibrate(sam, image)
    with TemporaryDirectory() as folder:
        fp32, int8 = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        write_encoder(exact, fp32, side)
        write_encoder(runnable(sam), int8, side)
        sizes = [file.stat().st_size for file in (fp32, int8)]
        return exact, opened(fp32, threads), sam, opened(int8, threads), image, sizes


def int8_row(setting: Setting, torch_too: bool) -> Case:
    """Against PyTorch, or against onnxruntime."""
    exact, fp32, sam, int8, image, sizes = made(
        setting.quick, setting.seed, torch.get_num_threads(), setting.checkpoint
    )
    given = {"image": image.numpy()}

    def cosine(session: Any, model: Sam) -> float:
        answer = torch.from_numpy(session.run(None, given)[0])
        return float(F.cosine_similarity(answer, model.image_encoder(image), dim=1).mean())

    guards = [
        at_least("cosine to torch", lambda: cosine(int8, sam), 0.999),
        at_least("of fp32", lambda: cosine(fp32, exact), 0.9999),
        at_most("share of its bytes", lambda: sizes[1] / sizes[0], 0.3 if exact.image_size == 1024 else 0.5),
    ]
    baseline = (lambda: exact.image_encoder(image)) if torch_too else (lambda: fp32.run(None, given))
    note = f"{exact.name}, {tuple(image.shape)}; files of {sizes[0]} and {sizes[1]} bytes, fp32 and int8"
    return Case(baseline, lambda: int8.run(None, given), guards, note, "int8")


_row = partial(Row, cpu=True, needs="onnxruntime")
_int8, _int8_torch = (partial(int8_row, torch_too=torch_too) for torch_too in (False, True))
ROWS = [
    _row(
        "onnx_int8",
        "encoder in onnxruntime, int8 vs fp32: TinySAM at 1024 px, or checkpoint=",
        _int8,
    ),
    _row("onnx_int8_torch", "the same, int8 in onnxruntime vs fp32 in PyTorch", _int8_torch),
]
