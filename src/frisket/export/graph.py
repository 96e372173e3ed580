"""A Sam as two ONNX graphs: encoder.onnx and decoder.onnx. A quantized one computes its linear layers in integers.

Use     sam = runnable(sam); write_encoder(sam, "encoder.onnx", 1024); write_decoder(sam, "decoder.onnx", 1024)
Graphs  encoder: image float (1, 3, S, S), normalized, zeros in the padding -> embedding (1, 256, S/16, S/16).
        decoder: embedding; points float (N, K, 2) in input pixels; labels int64 (N, K): 0 beside, 1 on, 2 and 3 the
        corners of a box, -1 padding, -2 nothing -> logits (N, 4, S/4, S/4) and predicted IoU (N, 4); output 0 is for
        prompts that are clear, 1 to 3 for those that are not, a single click.
int8    A linear layer is QuantizeLinear (uint8, one scale) and DequantizeLinear before a product with int8 weights
        (a scale for each channel) and an int32 bias; onnxruntime makes one integer product of these. Fewer than 8 bits
        ride in 8, cut off before. Other weights are int8 times scale, which onnxruntime multiplies out as it loads.
Ours    What is not computed in integers, by measurement in onnxruntime 1.31 (TinyViT, 512 px, one thread of a CPU with
        VNNI and AMX; fp32 = 1): linear layers alone .73; convolutions too, as ConvInteger, 1.8, or with their 1 x 1 as
        linear layers, whose transposes cost, 1.0; their inputs on the grid but computed in float .96; attention's
        products too 1.7 at 256 px. So these operands stay float, nearer to the float model than the quantized one is.
        The two ranges after GELU would be two products; one range over both, of as many levels, is finer above 0 and
        coarser below. `runnable` makes all this of a model in torch, so that what onnxruntime computes has a twin.
        An x86 CPU without VNNI adds in 16 bits and can overflow: set session.x64quantprecision to 1 there.
"""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from frisket.errors import UserError
from frisket.export.packages import needed
from frisket.models.encoder import STRIDE
from frisket.models.sam import Sam
from frisket.quant.layers import QuantAttend, QuantConv2d, QuantConvTranspose2d, QuantLinear
from frisket.quant.quantizers import GELU_LEAST, levels
from frisket.sample import Prompts

OPSET = 20
BIAS = 2**30  # an int32 bias reaches so far


def runnable(sam: Sam) -> Sam:
    """The same, its quantized layers as the graphs compute them: linear layers in one affine range each, the others'
    inputs float. In place."""
    for part in sam.modules():
        if isinstance(part, QuantLinear):
            operand = part.input
            if operand.kind == "gelu":
                high = operand.scale * levels(operand.bits)[1]
                operand.scale = (high + GELU_LEAST) / (2**operand.bits - 1)
                operand.zero = (GELU_LEAST / operand.scale).round()
            elif operand.kind == "symmetric":
                operand.zero = torch.full_like(operand.zero, 2 ** (operand.bits - 1))
            operand.kind = "affine"
        elif isinstance(part, QuantConv2d | QuantConvTranspose2d | QuantAttend):
            if not isinstance(part, QuantAttend):
                part.weight.data = part.quantized_weight().detach()  # of a training checkpoint they are not yet
            part.active = False
    return sam


class _Linear(QuantLinear):
    """One that was made `runnable`, its weights whole numbers (in, out)."""

    levels: Tensor
    scale: Tensor
    whole_bias: Tensor
    bias_scale: Tensor
    given: Tensor
    zero: Tensor

    def begin_graph(self) -> None:
        """Once, right after the class was changed."""
        given = self.input.scale.reshape(())
        bias = self.bias.detach() if self.bias is not None else torch.zeros(len(self.weight))
        # a channel of next to no weight would push the bias out of its int32
        scale = torch.maximum(self.weight_scale.flatten(), bias.abs() / (given * BIAS))
        whole = (self.weight / scale[:, None]).round().clamp(*levels(self.bits)).to(torch.int8)
        self.register_buffer("levels", whole.t().contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("whole_bias", (bias / (given * scale)).round().to(torch.int32))
        self.register_buffer("bias_scale", given * scale)
        self.register_buffer("given", given)
        self.register_buffer("zero", self.input.zero.reshape(()).to(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # onnxruntime fuses products of two axes
        if self.input.bits < 8:
            least, most = -self.zero.float(), 2**self.input.bits - 1 - self.zero.float()
            flat = flat.clamp(least * self.given, most * self.given)
        whole = _op("QuantizeLinear", (flat, self.given, self.zero), torch.uint8)
        operand = _op("DequantizeLinear", (whole, self.given, self.zero), torch.float32)
        weight, bias = (
            _op(
                "DequantizeLinear",
                (whole, scale, torch.zeros(scale.shape, dtype=whole.dtype)),
                torch.float32,
                axis=axis,
            )
            for whole, scale, axis in ((self.levels, self.scale, 1), (self.whole_bias, self.bias_scale, 0))
        )  # onnxruntime fuses nothing where the zeros are left out
        return (operand @ weight + bias).reshape(*x.shape[:-1], -1)


class _Weights:
    """A convolution whose weights are whole numbers times their scale."""

    levels: Tensor
    weight_scale: Tensor

    def begin_graph(self) -> None:
        """Once, right after the class was changed."""
        layer = cast(Any, self)
        whole = (layer.weight / layer.weight_scale).round().clamp(*levels(layer.bits))
        layer.register_buffer("levels", whole.to(torch.int8))

    def pair(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight to compute with."""
        return x, self.levels.float() * self.weight_scale


class _Conv2d(_Weights, QuantConv2d):
    pass


class _ConvTranspose2d(_Weights, QuantConvTranspose2d):
    pass


GRAPH: dict[type, type] = {QuantLinear: _Linear, QuantConv2d: _Conv2d, QuantConvTranspose2d: _ConvTranspose2d}


def _op(name: str, inputs: tuple[Tensor, ...], dtype: torch.dtype, **attributes: int) -> Tensor:
    """An ONNX operation that keeps its first input's shape."""
    return torch.onnx.ops.symbolic(name, inputs, cast(Any, attributes), dtype=dtype, shape=inputs[0].shape)


class _Decoder(nn.Module):
    """The decoder with its prompts as tensors."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, embedding: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        index = torch.zeros(points.shape[0], dtype=torch.long)
        answer = self.sam.decode(embedding, index, Prompts(points, labels), None)
        return answer.logits, answer.iou


def write_encoder(sam: Sam, path: Path | str, side: int) -> None:
    """Write encoder.onnx of a float or `runnable` Sam for inputs of `side` px. Raises UserError without the packages,
    or for a network that ONNX cannot say."""
    image = torch.zeros(1, 3, side, side)
    _write(sam.image_encoder, (image,), path, ["image"], ["embedding"])


def write_decoder(sam: Sam, path: Path | str, side: int) -> None:
    """Write decoder.onnx, for any number of prompts and of points to each; raises as `write_encoder`."""
    rows = side // STRIDE
    given = torch.zeros(1, sam.image_encoder.channels, rows, rows), torch.zeros(3, 2, 2), torch.ones(3, 2).long()
    dims = torch.export.Dim("prompts", min=1), torch.export.Dim("points", min=1)
    shapes = ({}, {0: dims[0], 1: dims[1]}, {0: dims[0], 1: dims[1]})
    _write(_Decoder(sam), given, path, ["embedding", "points", "labels"], ["logits", "iou"], shapes)


def _write(
    module: nn.Module,
    given: tuple[Tensor, ...],
    path: Path | str,
    inputs: list[str],
    outputs: list[str],
    shapes: tuple[dict[int, Any], ...] | None = None,
) -> None:
    """Trace, translate, and write whole."""
    needed("onnx", "onnxscript", "onnx_ir")
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateInitializersPass

    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # it misses torchvision
    undo = _enter(module)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module, given, input_names=inputs, output_names=outputs, dynamic_shapes=shapes, opset_version=OPSET,
                dynamo=True, verbose=False,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{Path(path).name}: torch cannot turn this model into ONNX ({reason})") from error
    finally:
        undo()
    assert program is not None
    DeduplicateInitializersPass(size_limit=2**20)(program.model)  # each block brings the same table of distances
    ClearMetadataAndDocStringPass()(program.model)  # torch writes where each line of the model's source lies
    program.save(str(path), external_data=False)


def _enter(module: nn.Module) -> Callable[[], None]:
    """Make the quantized layers graph layers, in place; returns what takes it back."""
    changed = [(part, type(part), set(part._buffers)) for part in module.modules() if type(part) in GRAPH]
    for part, kind, _ in changed:
        cast(Any, part).__class__ = GRAPH[kind]
        cast(Any, part).begin_graph()

    def undo() -> None:
        for part, kind, buffers in changed:
            part.__class__ = kind
            for name in set(part._buffers) - buffers:
                delattr(part, name)

    return undo
