"""Rows: dilated attention against dense attention over the same tokens.

    frisket bench rows=[dilated_r2,dilated_r4,dilated_r4_sdpa]

4,096 tokens (a 1024 px image in patches of 16) x 768 channels in 12 heads, segments of 1024. Both sides compute in one
dtype: fp32 on a CPU, bf16 on a GPU. They differ in meaning (that is the method); the guard compares ours with the
masked dense oracle of its own meaning.
"""

from functools import partial

import torch
from torch import Tensor

from frisket.bench.harness import Case, Row, Setting, at_most
from frisket.kernels.attention import attention
from frisket.kernels.dilated import Layout, dense_reference, dilated_attention


def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense softmax attention as a textbook writes it, N x N held: (B, N, H, d) in and out."""
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(dim=-1), v)


def difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference of two tensors, in float64."""
    return float((a.double() - b.double()).abs().max())


def dilated(setting: Setting, dilation: int, baseline: str) -> Case:
    """Dilated attention, all offsets, against `baseline` ("naive" or "sdpa") dense attention."""
    side, heads, width, segment = (8, 2, 16, 16) if setting.quick else (64, 12, 64, 1024)
    dtype = torch.bfloat16 if setting.device.type == "cuda" else torch.float32
    exact = [torch.randn(1, side * side, heads, width, device=setting.device) for _ in range(3)]
    q, k, v = (t.to(dtype) for t in exact)
    layout = Layout((side, side), segment, dilation)

    def wrong(tensors: list[Tensor]) -> float:
        oracle = dense_reference(*(t.float() for t in tensors), layout=layout)
        return difference(dilated_attention(*tensors, layout=layout), oracle)

    guards = [at_most("max diff to dense oracle", lambda: wrong(exact), 1e-5)]
    if dtype != torch.float32:  # the rounding of bf16, 2^-8, on values of size 1
        guards.append(at_most("in bf16", lambda: wrong([q, k, v]), 2e-2))
    dense = naive if baseline == "naive" else attention
    note = f"{side * side} tokens, {heads} heads x {width}, segment {segment}, dilation {dilation}, all offsets"
    return Case(lambda: dense(q, k, v), lambda: dilated_attention(q, k, v, layout), guards, note, str(dtype)[6:])


ROWS = [
    Row("dilated_r2", "dilated attention r=2 vs naive dense", partial(dilated, dilation=2, baseline="naive")),
    Row("dilated_r4", "dilated attention r=4 vs naive dense", partial(dilated, dilation=4, baseline="naive")),
    Row("dilated_r4_sdpa", "dilated attention r=4 vs fused dense", partial(dilated, dilation=4, baseline="sdpa")),
]
