"""Rows: the Lightening image encoder against SAM's ViT-B, one 1024 x 1024 image.

    frisket bench rows=[lightening_fp32,lightening_bf16,lightening_bf16_both]

Baseline: SAM ViT-B as Meta ships it, eager (fp32, and bf16 in the last row): windows of 14, and in every block the
N x N relative-position bias built and added to N x N scores. It is written out here plainly around the weights of our
own ViT (whose convolutions, norms and MLP it shares), and a guard says that our folded attention gives the same
embedding. Weights are random: the two encoders do not compute the same function; the ratio says what the student saves,
not how well it sees.
"""

from collections.abc import Iterable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from frisket.bench.attention import difference
from frisket.bench.harness import Case, Row, Setting, at_least, at_most
from frisket.kernels.dilated import dense_reference
from frisket.models import lightening, vit
from frisket.models.blocks import resample_position, resample_relative, window_merge, window_partition
from frisket.models.lightening import LighteningConfig, LighteningEncoder
from frisket.models.vit import Attention, ImageEncoderViT, ViTConfig

QUICK_VIT = ViTConfig(image_size=128, width=48, depth=3, heads=3, global_blocks=(2,), window=3)
QUICK_LIGHTENING = LighteningConfig(image_size=128, width=48, depth=2, heads=3, segment=(16,), dilation=(2,))


def plain_attention(layer: Attention, x: Tensor) -> Tensor:
    """SAM's attention with its N x N bias: (B, h, w, C) in and out."""
    b, h, w, c = x.shape
    heads = layer.heads
    q, k, v = layer.qkv(x).reshape(b, h * w, 3, heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2)  # 3 x (B*heads, N, d)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(1, 2)
    grid = q.reshape(-1, h, w, q.shape[-1])
    by_row = _relative(layer.rel_pos_h, h)
    by_column = _relative(layer.rel_pos_w, w)
    rows = torch.einsum("bhwd,hkd->bhwk", grid, by_row)
    columns = torch.einsum("bhwd,wkd->bhwk", grid, by_column)
    scores = scores.view(-1, h, w, h, w) + rows[..., :, None] + columns[..., None, :]
    out = scores.view(-1, h * w, h * w).softmax(dim=-1) @ v
    return layer.proj(out.view(b, heads, h, w, -1).permute(0, 2, 3, 1, 4).reshape(b, h, w, c))


def _relative(table: Tensor, side: int) -> Tensor:
    """(query, key, d) rows of a relative table."""
    place = torch.arange(side, device=table.device)
    return resample_relative(table, side)[place[:, None] - place[None, :] + side - 1]


def plain_vit(encoder: ImageEncoderViT, x: Tensor) -> Tensor:
    """SAM's image encoder as shipped, on the weights of ours: (B, 3, S, S) -> (B, 256, S/16, S/16)."""
    x = encoder.patch_embed(x)
    x = x + resample_position(encoder.pos_embed, (x.shape[1], x.shape[2]))
    for block in cast(Iterable[vit.Block], encoder.blocks):  # torch's types: modules only
        y = block.norm1(x)
        if block.window:
            windows = plain_attention(block.attn, window_partition(y, block.window))
            y = window_merge(windows, (x.shape[1], x.shape[2]))
        else:
            y = plain_attention(block.attn, y)
        x = x + y
        x = x + block.mlp(block.norm2(x))
    return encoder.neck(x.permute(0, 3, 1, 2))


def dense_lightening(encoder: LighteningEncoder, x: Tensor) -> Tensor:
    """The Lightening encoder by the definition: every block attends through the masked N x N oracle, fp32."""
    config = encoder.config
    x = encoder.patch_embed(x)
    b, h, w, c = x.shape
    x = x + resample_position(encoder.pos_embed, (h, w))
    for number, block in enumerate(cast(Iterable[lightening.Block], encoder.blocks)):
        layout, y = config.layout(number, (h, w)), block.norm1(x).reshape(b, h * w, c)
        q, k, v = (
            project(y).unflatten(-1, (config.heads, -1)) for project in (block.attn.q, block.attn.k, block.attn.v)
        )
        y = dense_reference(q, k, v, layout, offsets=config.offsets)
        x = x + block.attn.proj(y.flatten(2)).reshape(b, h, w, c)
        x = x + block.mlp(block.norm2(x))
    return encoder.neck(x.permute(0, 3, 1, 2))


def cosine(a: Tensor, b: Tensor) -> float:
    """Smallest cosine between two embeddings (B, C, h, w) over positions."""
    return float(F.cosine_similarity(a.double(), b.double(), dim=1).min())


def encoder_row(setting: Setting, dtype: torch.dtype, against: torch.dtype = torch.float32) -> Case:
    """Lightening in `dtype` against SAM ViT-B in `against`, weights and activations both."""
    teacher = ImageEncoderViT(QUICK_VIT if setting.quick else ViTConfig()).to(setting.device).eval()
    exact = LighteningEncoder(QUICK_LIGHTENING if setting.quick else LighteningConfig()).to(setting.device).eval()
    student = exact
    with torch.no_grad():
        for parameter in (*teacher.parameters(), *exact.parameters()):
            if parameter.abs().max() == 0:  # relative tables and biases start at zero, and would hide a missing term
                parameter.normal_(std=0.02)
        if dtype != torch.float32:
            student = LighteningEncoder(exact.config).to(setting.device, dtype).eval()
            student.load_state_dict(exact.state_dict())
    shipped = teacher
    if against != torch.float32:
        shipped = ImageEncoderViT(teacher.config).to(setting.device, against).eval()
        shipped.load_state_dict(teacher.state_dict())
    side = teacher.config.image_size
    x = torch.randn(1, 3, side, side, device=setting.device)
    y, z = x.to(dtype), x.to(against)
    folded = at_most("folded ViT to plain", lambda: difference(teacher(x), plain_vit(teacher, x)), 1e-4)
    if dtype == torch.float32:
        own = at_most("max diff to dense oracle", lambda: difference(student(y), dense_lightening(exact, x)), 1e-4)
    else:
        own = at_least("min cosine to fp32 dense oracle", lambda: cosine(student(y), dense_lightening(exact, x)), 0.999)
    note = f"1 x 3 x {side} x {side}; baseline {against}, eager, with the N x N bias, ours {dtype}"
    return Case(lambda: plain_vit(shipped, z), lambda: student(y), [own, folded], note, str(dtype)[6:])


FP32, BF16 = torch.float32, torch.bfloat16
ROWS = [
    Row("lightening_fp32", "Lightening fp32 vs SAM ViT-B fp32, 1024 px", partial(encoder_row, dtype=FP32)),
    Row("lightening_bf16", "Lightening bf16 vs SAM ViT-B fp32, 1024 px", partial(encoder_row, dtype=BF16), bf16=True),
    Row(
        "lightening_bf16_both",
        "Lightening bf16 vs SAM ViT-B bf16, 1024 px",
        partial(encoder_row, dtype=BF16, against=BF16),
        bf16=True,
    ),
]
