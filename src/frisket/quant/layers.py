"""The layers of a Sam, made to compute with quantized weights and inputs; and BatchNorm, folded away before.

Use     layers = quantize(sam, QuantConfig(), kinds)     # in place: {name: layer}, float until scales are known
        for layer in layers.values(): layer.active = True
What    Every Linear, Conv2d and ConvTranspose2d of the chosen parts (weights: symmetric, a scale for each output
        channel; inputs: one scale, symmetric for Linear, in two ranges after GELU, affine for convolutions) and every
        `Attend` (queries, keys and values symmetric, what comes out of softmax in two ranges). Norms, softmax, GELU,
        biases and the prompt encoder stay float. An encoder takes part by being made of these; attention of its own
        stays float.
Trained `learn(layers)` makes the scales parameters, as factors of what they are: `stretch` and `weight_stretch`. The
        split of softmax and the zero points stay as they were searched.
How     A layer's class is changed in place: keys of the state dict, hooks and references stay, the weights stay
        floating point under their own names, and scales join them.
Source  TinySAM (arXiv 2312.13789, section 3.2); which layers, and convolutions' affine inputs, as in what it released.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from functools import partial
from itertools import pairwise
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from frisket.errors import UserError
from frisket.models.blocks import Attend
from frisket.models.sam import Sam
from frisket.quant.quantizers import affine, after_gelu, after_softmax, span, straight, stretched, symmetric, widest

Kind = Literal["symmetric", "affine", "gelu", "softmax"]


@dataclass
class QuantConfig:
    """How many bits, and of what."""

    weight_bits: int = field(default=8, metadata={"least": 2, "most": 8})
    """Of weights."""
    activation_bits: int = field(default=8, metadata={"least": 2, "most": 8})
    """Of layers' inputs and of attention's operands."""
    conv_bits: int = field(default=8, metadata={"least": 2, "most": 8})
    """Of convolutions' inputs, which the paper's operations count as 8 bits at any width; ours."""
    parts: list[str] = field(default_factory=lambda: ["image_encoder", "mask_decoder"])
    """Of the Sam."""
    skip: list[str] = field(
        default_factory=lambda: ["*.patch_embed.*", "*.iou_prediction_head.*", "*.output_hypernetworks_mlps.*"]
    )
    """Names, with wildcards, of layers that stay float; ours: the first convolutions and the decoder's heads."""
    attention: bool = True
    """Attention's two products too."""
    two_ranges: bool = True
    """After GELU and softmax; false: one range, symmetric after GELU, affine after softmax."""


class Scaled(nn.Module):
    """Its scales, the buffers, stay float32 where the weights become half precision (DeepSpeed casts modules)."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Scaled":
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, moved in self._buffers.items():
            scale = kept[name]
            if moved is not None and scale is not None and moved.dtype != scale.dtype:
                self._buffers[name] = scale.to(moved.device)
        return self


class Input(Scaled):
    """Quantizes one operand. Kind 'symmetric', 'affine', 'gelu' (two ranges) or 'softmax' (scale: the split)."""

    def __init__(self, kind: Kind, bits: int) -> None:
        super().__init__()
        self.kind, self.bits = kind, bits
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero", torch.zeros(()))
        self.register_parameter("stretch", None)

    scale: Tensor
    zero: Tensor
    stretch: nn.Parameter | None

    def start(self, x: Tensor) -> None:
        """Scales with which all of x fits; the searched range begins here."""
        if self.kind == "affine":
            self.scale, self.zero = span(x, self.bits)
        elif self.kind == "softmax":
            self.scale = torch.full_like(self.scale, 2.0**-4)
        else:
            self.scale = widest(x.clamp(min=0) if self.kind == "gelu" else x, self.bits)

    def forward(self, x: Tensor) -> Tensor:
        """In float32, whatever comes in: half precision would round to other levels."""
        if self.kind == "affine":
            quantizer = partial(affine, zero=self.zero, bits=self.bits)
        else:
            chosen = {"symmetric": symmetric, "gelu": after_gelu, "softmax": after_softmax}[self.kind]
            quantizer = partial(chosen, bits=self.bits)
        if self.stretch is None:
            return quantizer(x.float(), self.scale).to(x.dtype)
        apiece = math.prod(x.shape[1:])  # of a photograph or prompt: the same however a batch is divided
        return straight(quantizer, x, stretched(self.scale, self.stretch, apiece, self.bits))


class Quantized(Scaled):
    """What the quantized layers share. `active` False computes in floating point."""

    active = False
    operand_count = 1
    weight: nn.Parameter
    weight_scale: Tensor
    weight_stretch: nn.Parameter | None
    input: Input
    bits: int
    axis = 0  # of the weight's output channels

    def begin(self, bits: int, kind: Kind, input_bits: int) -> None:
        """Become quantized; called once, right after the class was changed."""
        self.bits, self.input = bits, Input(kind, input_bits)
        self.register_buffer("weight_scale", self.widest())
        self.register_parameter("weight_stretch", None)

    def widest(self) -> Tensor:
        """The weight's scales with which every channel just fits."""
        return widest(self.weight.detach(), self.bits, self.axis)

    def start(self, x: Tensor) -> None:
        """Scales with which everything fits."""
        self.weight_scale = self.widest()
        self.input.start(x)

    def operands(self) -> list[Input]:
        """What is quantized besides the weight."""
        return [self.input]

    def quantized_weight(self) -> Tensor:
        """On the grid, in floating point."""
        if self.weight_stretch is None:
            return symmetric(self.weight, self.weight_scale, self.bits)
        shared_by = self.weight.numel() // self.weight_scale.numel()
        scale = stretched(self.weight_scale, self.weight_stretch, shared_by, self.bits)
        return straight(partial(symmetric, bits=self.bits), self.weight, scale)

    def pair(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight to compute with."""
        return (self.input(x), self.quantized_weight()) if self.active else (x, self.weight)


class QuantLinear(Quantized, nn.Linear):
    """y = x W^T + b."""

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.pair(x)
        return F.linear(x, weight, self.bias)


class QuantConv2d(Quantized, nn.Conv2d):
    """A convolution; padding is exactly 0."""

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.pair(x)
        return self._conv_forward(x, weight, self.bias)


class QuantConvTranspose2d(Quantized, nn.ConvTranspose2d):
    """A transposed convolution."""

    axis = 1

    def forward(self, x: Tensor, output_size: Any = None) -> Tensor:
        x, weight = self.pair(x)
        return F.conv_transpose2d(
            x,
            weight,
            self.bias,
            self.stride,
            cast(Any, self.padding),  # torch's types: a transposed convolution's may be a word
            self.output_padding,
            self.groups,
            self.dilation,  # type: ignore[arg-type]
        )


class QuantAttend(Attend):
    """Attention as two products of quantized operands; the softmax between them in float32."""

    active = False
    operand_count = 3
    q: Input
    k: Input
    v: Input
    p: Input

    def begin(self, bits: int, two_ranges: bool) -> None:
        """Become quantized; called once, right after the class was changed."""
        self.q, self.k, self.v = (Input("symmetric", bits) for _ in range(3))
        self.p = Input("softmax" if two_ranges else "affine", bits)

    def start(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Scales with which everything fits."""
        for operand, values in ((self.q, q), (self.k, k), (self.v, v)):
            operand.start(values)
        self.p.start(torch.ones_like(self.p.scale))

    def operands(self) -> list[Input]:
        """All four, in the order of the search."""
        return [self.q, self.k, self.p, self.v]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        if not self.active:
            return super().forward(q, k, v, bias)
        if self.training and q.requires_grad:  # the scores, by far the largest, are made again for the backward pass
            return checkpoint(self.products, q, k, v, bias, use_reentrant=False, preserve_rng_state=False)
        return self.products(q, k, v, bias)

    def products(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Both, of quantized operands."""
        scores = (self.q(q).transpose(1, 2) @ self.k(k).permute(0, 2, 3, 1)).float() * q.shape[-1] ** -0.5
        if bias is not None:
            scores = scores.masked_fill(~bias, float("-inf")) if bias.dtype == torch.bool else scores + bias
        return (self.p(scores.softmax(-1)).to(v.dtype) @ self.v(v).transpose(1, 2)).transpose(1, 2)


SWAPS: dict[type, type] = {
    nn.Linear: QuantLinear,
    nn.Conv2d: QuantConv2d,
    nn.ConvTranspose2d: QuantConvTranspose2d,
    Attend: QuantAttend,
}
Layer = QuantLinear | QuantConv2d | QuantConvTranspose2d | QuantAttend


def fold(module: nn.Module, *, values: bool = True) -> None:
    """Fold every BatchNorm2d into the convolution right before it in a Sequential, in place; it becomes an Identity.

    values False: the shape alone, for weights that are loaded afterwards. Raises UserError where a gamma is 0: such a
    channel is silent, and training could never wake it on a folded model.
    """
    for where, part in module.named_modules():
        children = list(part.named_children()) if isinstance(part, nn.Sequential) else []
        for (_, conv), (name, norm) in pairwise(children):
            if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
                continue
            silent = int((norm.weight == 0).sum()) if values else 0
            if silent:
                raise UserError(
                    f"{where}.{name} has {silent} channels with gamma 0 and cannot be folded: train the model first"
                )
            assert norm.running_var is not None and norm.running_mean is not None
            gain = norm.weight / (norm.running_var + norm.eps).sqrt()
            bias = conv.bias if conv.bias is not None else torch.zeros_like(norm.bias)
            trained = conv.weight.requires_grad
            conv.weight = nn.Parameter((conv.weight * gain[:, None, None, None]).detach(), trained)
            conv.bias = nn.Parameter((norm.bias + (bias - norm.running_mean) * gain).detach(), trained)
            setattr(part, name, nn.Identity())


def quantize(sam: Sam, config: QuantConfig, kinds: Mapping[str, Kind]) -> dict[str, Layer]:
    """Make the layers of `sam`, folded, quantized layers; in place. Returns {name: layer}, in the order of its parts.

    kinds: of each layer's input (frisket.quant.search's `kinds_of`); a layer without one stays float. Raises UserError
    for a part that there is not.
    """
    for part in config.parts:
        if not isinstance(getattr(sam, part, None), nn.Module):
            raise UserError(f"quant.parts: a Sam has no '{part}': image_encoder, prompt_encoder, mask_decoder")
    layers: dict[str, Layer] = {}
    for name, module in sam.named_modules():
        swap = SWAPS.get(type(module))
        wanted = name in kinds and name.split(".")[0] in config.parts and (config.attention or swap is not QuantAttend)
        if swap is None or not wanted or any(fnmatch(name, pattern) for pattern in config.skip):
            continue
        cast(Any, module).__class__ = swap
        if isinstance(module, QuantAttend):
            module.begin(config.activation_bits, config.two_ranges)
        elif isinstance(module, QuantLinear):
            kind = kinds[name] if config.two_ranges else "symmetric"
            module.begin(config.weight_bits, kind, config.activation_bits)
        elif isinstance(module, Quantized):
            module.begin(config.weight_bits, kinds[name], config.conv_bits)
        layers[name] = module  # type: ignore[assignment]
    sam.quantization = {"quant": asdict(config), "kinds": dict(kinds)}
    return layers


def learn(layers: Iterable[Quantized | QuantAttend], *, weights: bool = True, inputs: bool = True) -> None:
    """Make scales parameters that start at what they are: those of weights, of inputs, or both."""
    for layer in layers:
        if weights and isinstance(layer, Quantized):
            layer.weight_stretch = nn.Parameter(torch.zeros_like(layer.weight_scale).flatten())  # flat: not decayed
        for operand in layer.operands() if inputs else []:
            if operand.kind != "softmax":
                operand.stretch = nn.Parameter(torch.zeros_like(operand.scale).reshape(1))  # DeepSpeed wants an axis
