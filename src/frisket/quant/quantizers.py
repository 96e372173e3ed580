"""Quantizers as pure functions: a tensor and its scale in, the nearest numbers of the grid out, in floating point.

Source  TinySAM (arXiv 2312.13789), equation 10, and its two ranges for what comes out of GELU and softmax (after
        PTQ4ViT, arXiv 2111.12293). Rounding passes gradients straight through, so a scale's gradient is that of LSQ
        (arXiv 1902.08153): training can go on from any of them.
Ours    The two softmax ranges are chosen between, not added up: the released layers count what lies above the split
        twice. torchao's and onnxruntime's quantizers have no two ranges and no attention products; their affine grid is
        `affine` here, with a zero point that both read.
Trained `straight` is what training computes with, `stretched` the scale that it learns (LSQ's, as a factor of the one
        that was searched: always positive, and a step is a share of it).

Scales broadcast against the tensor. b bits give the levels -2^(b-1) .. 2^(b-1) - 1.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

GELU_LEAST = 0.16997124254703522
"""GELU is never below minus this (at -0.7518)."""


def levels(bits: int) -> tuple[int, int]:
    """The lowest and highest level of a signed grid."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def rounded(x: Tensor) -> Tensor:
    """x to whole numbers; the gradient of x."""
    return x + (x.round() - x).detach()


def symmetric(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Equation 10: clip(round(x / scale)) levels of width `scale` around 0."""
    return rounded(x / scale).clamp(*levels(bits)) * scale


def affine(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """2^b levels of width `scale`, of which level `zero` (a whole number) is 0."""
    return ((rounded(x / scale) + zero).clamp(0, 2**bits - 1) - zero) * scale


def after_gelu(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Two ranges: positive levels of width `scale`, and the negative ones over GELU's whole negative side."""
    low, high = levels(bits)
    step = GELU_LEAST / -low
    return torch.where(x >= 0, rounded(x / scale).clamp(0, high) * scale, (rounded(x / step)).clamp(low, 0) * step)


def after_softmax(x: Tensor, split: Tensor, bits: int) -> Tensor:
    """Two ranges: from `split` up levels over (0, 1], below it as many over (0, split)."""
    high = levels(bits)[1]
    coarse, fine = 1 / high, split / high
    return torch.where(x >= split, rounded(x / coarse).clamp(0, high) * coarse, rounded(x / fine).clamp(0, high) * fine)


class _Straight(torch.autograd.Function):
    """Keeps the input as it came, and computes the rest again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, quantizer: Callable[[Tensor, Tensor], Tensor], x: Tensor, scale: Tensor) -> Tensor:
        ctx.quantizer = quantizer
        ctx.save_for_backward(x, scale)
        return quantizer(x.float(), scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        x, scale = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        with torch.enable_grad():
            quantized = ctx.quantizer(x.float(), scale).to(x.dtype)
        of_x, of_scale = torch.autograd.grad(quantized, (x, scale), gradients)
        return None, of_x, of_scale


def straight(quantizer: Callable[[Tensor, Tensor], Tensor], x: Tensor, scale: Tensor) -> Tensor:
    """quantizer(x, scale) in float32, x's type out; gradients are the quantizer's own, and memory that of x alone."""
    return _Straight.apply(quantizer, x, scale)  # type: ignore[return-value]


def stretched(scale: Tensor, stretch: Tensor, shared_by: int, bits: int) -> Tensor:
    """scale e^stretch; the gradient of `stretch` is divided by sqrt(numbers that share it x highest level), as in LSQ
    (arXiv 1902.08153, section 2.2): else it would dwarf those of weights. What rounds to the last level counts as
    inside, as in torch's learnable quantizer; LSQ ends the inside half a step before."""
    wide = stretch.float()
    graded = wide.detach() + (wide - wide.detach()) / math.sqrt(max(1, shared_by) * levels(bits)[1])
    return scale * graded.exp().view_as(scale)


def widest(x: Tensor, bits: int, axis: int | None = None) -> Tensor:
    """The scale with which the largest magnitude still fits: of the whole tensor, or of each slice along `axis`, with
    ones elsewhere. 1 where all is 0."""
    largest = (
        x.abs().amax() if axis is None else x.abs().amax(dim=[d for d in range(x.ndim) if d != axis], keepdim=True)
    )
    return torch.where(largest > 0, largest / (2 ** (bits - 1) - 0.5), torch.ones_like(largest))


def span(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of `affine` with which all of x, and 0, fits."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = torch.where(high > low, (high - low) / (2**bits - 1), torch.ones_like(high))
    return scale, (-low / scale).round()
