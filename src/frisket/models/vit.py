"""SAM's plain ViT image encoder (B, L, H): the teacher, with decomposed relative positions folded into attention.

Use     `ImageEncoderViT(ViTConfig())(x)`; the named sizes are the rows at the end.
Source  Segment Anything (arXiv 2304.02643) appendix A; ViTDet (arXiv 2203.16527) for windows and relative positions.

SAM adds to each attention logit a row term and a column term, both dot products of the unscaled query with a table:
    logit(i, j) = scale * q_i.k_j + q_i.Rh[row_i - row_j] + q_i.Rw[col_i - col_j]
Written out, that bias is an N x N array per head (1.07 GB for ViT-H in fp32 at 1024 px).
It is exactly a longer dot product,
    q' = [scale*q, q.Rh[row_i - 0..h-1], q.Rw[col_i - 0..w-1]]      k' = [k, onehot(row_j), onehot(col_j)]
so any flash kernel computes it without ever holding the array. tests/models/plainvit.py is the plain form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frisket.bounds import bounded
from frisket.errors import UserError
from frisket.kernels.attention import attention
from frisket.models.blocks import (
    DropPath,
    MLPBlock,
    PatchEmbed,
    neck,
    plain_vit,
    resample_position,
    resample_relative,
    window_merge,
    window_partition,
)
from frisket.models.encoder import STRIDE, Entry, Tap, check_taps


@dataclass(frozen=True)
class ViTConfig:
    """Shape of a SAM ViT; the defaults are ViT-B. Raises UserError for sizes that do not fit together."""

    image_size: int = field(default=1024, metadata={"least": 16, "most": 16384})
    """Side of the native input in pixels."""
    width: int = field(default=768, metadata={"least": 1, "most": 16384})
    """Channels of the tokens."""
    depth: int = field(default=12, metadata={"least": 1, "most": 512})
    """Blocks."""
    heads: int = field(default=12, metadata={"least": 1, "most": 1024})
    """Of attention; they share the width."""
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    """Blocks, from 0, that attend over the whole image."""
    window: int = field(default=14, metadata={"least": 1, "most": 1024})
    """Side, in tokens, of the squares that the other blocks attend in."""
    out_channels: int = field(default=256, metadata={"least": 1, "most": 16384})
    """Of the embedding."""
    mlp_ratio: float = field(default=4.0, metadata={"least": 0, "most": 64})
    """Hidden channels of the MLP to the width."""

    def __post_init__(self) -> None:
        bounded(self, "ViT: ")
        if self.width % self.heads:
            raise UserError(f"ViT width {self.width} is not a multiple of heads {self.heads}: change one of the two")
        if self.image_size % STRIDE:
            raise UserError(f"image_size {self.image_size} is not a multiple of {STRIDE}: change image_size")
        outside = [i for i in self.global_blocks if not 0 <= i < self.depth]
        if outside:
            raise UserError(f"global_blocks {outside} lie outside depth {self.depth}: change global_blocks")


def relative_terms(q: Tensor, table_h: Tensor, table_w: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row logits (B, N, H, h) and column logits (B, N, H, w) of queries (B, N, H, d); tables (2h-1, d), (2w-1, d)."""
    b, n, heads, d = q.shape
    h, w = grid
    rows, columns = torch.arange(h, device=q.device), torch.arange(w, device=q.device)
    by_row = table_h[rows[:, None] - rows[None, :] + h - 1].to(q.dtype)  # (query row, key row, d)
    by_column = table_w[columns[:, None] - columns[None, :] + w - 1].to(q.dtype)
    q = q.reshape(b, h, w, heads, d)
    row_logits = torch.einsum("bhwnd,hkd->bhwnk", q, by_row).reshape(b, n, heads, h)
    column_logits = torch.einsum("bhwnd,wkd->bhwnk", q, by_column).reshape(b, n, heads, w)
    return row_logits, column_logits


def relative_attention(
    q: Tensor, k: Tensor, v: Tensor, table_h: Tensor, table_w: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Attention with SAM's relative positions, N x N never held: (B, N, H, d) in and out, N = h*w row-major."""
    h, w = grid
    d = q.shape[-1]
    row_logits, column_logits = relative_terms(q, table_h, table_w, grid)
    one_row = torch.eye(h, device=q.device, dtype=k.dtype).repeat_interleave(w, dim=0)  # (N, h)
    one_column = torch.eye(w, device=q.device, dtype=k.dtype).repeat(h, 1)  # (N, w)
    one_hot = torch.cat((one_row, one_column), dim=1)[None, :, None].expand(*k.shape[:3], h + w)
    long_q = torch.cat((q * d**-0.5, row_logits.to(q.dtype), column_logits.to(q.dtype)), dim=-1)
    long_k = torch.cat((k, one_hot), dim=-1)
    # Fused kernels want one head width for q, k and v; without the zeros SDPA on CPU falls back to the N x N form.
    long_v = F.pad(v, (0, h + w))
    return attention(long_q, long_k, long_v, scale=1.0)[..., :d]


class Attention(nn.Module):
    """Multi-head attention over a whole (B, h, w, C) map or window, with relative tables of a native side."""

    no_decay = ("rel_pos_h", "rel_pos_w")

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        q, k, v = self.qkv(x).reshape(b, h * w, 3, self.heads, c // self.heads).unbind(dim=2)
        tables = resample_relative(self.rel_pos_h, h), resample_relative(self.rel_pos_w, w)
        return self.proj(relative_attention(q, k, v, *tables, grid=(h, w)).reshape(b, h, w, c))


class Block(nn.Module):
    """Pre-norm transformer block on (B, h, w, C); `window` 0 attends globally, else within windows of that side."""

    def __init__(self, config: ViTConfig, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config.width, config.heads, window or config.image_size // STRIDE)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = MLPBlock(config.width, int(config.width * config.mlp_ratio))
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        if self.window:
            # Zeros are added after norm1 and take part in attention, as in SAM (64 tokens become 70).
            y = window_merge(self.attn(window_partition(y, self.window)), (x.shape[1], x.shape[2]))
        else:
            y = self.attn(y)
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ImageEncoderViT(nn.Module):
    """SAM's encoder, an `ImageEncoder`; its taps are its blocks.

    At the native side the stored position tables are used as they are; at another they are resampled on the fly.
    """

    no_decay = ("pos_embed",)
    may_differ: tuple[str, ...] = ()

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        side = config.image_size // STRIDE
        self.config, self.channels = config, config.out_channels
        self.taps = (Tap(config.width),) * config.depth
        self.patch_embed = PatchEmbed(config.width)
        self.pos_embed = nn.Parameter(torch.empty(1, side, side, config.width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        windows = [0 if i in config.global_blocks else config.window for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, window) for window in windows)
        self.neck = neck(config.width, config.out_channels)
        self.layer_names = (("patch_embed", "pos_embed"), *((f"blocks.{i}",) for i in range(config.depth)))

    def forward_features(self, x: Tensor, taps: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """As the contract says."""
        check_taps(taps, self)
        tokens = self.patch_embed(x)
        tokens = tokens + resample_position(self.pos_embed, (tokens.shape[1], tokens.shape[2]))
        kept = {}
        for i, block in enumerate(self.blocks):
            tokens = block(tokens)
            if i in taps:
                kept[i] = tokens
        return self.neck(tokens.permute(0, 3, 1, 2)), [kept[tap] for tap in taps]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x, ())[0]

    @staticmethod
    def settings_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """As the contract says: all of them."""
        told = plain_vit(shapes)
        tables = [shapes[f"blocks.{i}.attn.rel_pos_h"] for i in range(told["depth"])]
        reach = [(rows + 1) // 2 for rows, _ in tables]
        side = told["image_size"] // STRIDE
        told["heads"] = told["width"] // tables[0][1]
        told["global_blocks"] = tuple(i for i, cells in enumerate(reach) if cells == side)
        windows = {cells for cells in reach if cells != side}
        return told | ({"window": windows.pop()} if windows else {})

    def macs(self, side: int) -> int:
        """As the contract says; windows filled up to their size count, and relative positions as SAM writes them."""
        config, rows, c = self.config, side // STRIDE, self.config.width
        total = rows * rows * STRIDE**2 * 3 * c
        for block in range(config.depth):
            reach = rows if block in config.global_blocks else config.window
            tokens = (-(-rows // reach) * reach) ** 2
            total += tokens * c * (4 * c + 2 * reach**2 + 2 * reach)  # projections, scores and values, relative terms
            total += 2 * rows * rows * c * int(c * config.mlp_ratio)
        return total + rows * rows * self.channels * (c + 9 * self.channels)


ENCODERS = {
    "sam_vit_b": Entry(
        ViTConfig(),
        ImageEncoderViT,
        "Segment Anything, ViT-B: 89.7 M parameters, 486 GMAC at 1024 px",
        "sam_vit_b_01ec64.pth",
        "download Meta's sam_vit_b_01ec64.pth and put it there",
    ),
    "sam_vit_l": Entry(
        ViTConfig(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
        ImageEncoderViT,
        "Segment Anything, ViT-L: 308.3 M parameters, 1493 GMAC at 1024 px",
        "sam_vit_l_0b3195.pth",
        "download Meta's sam_vit_l_0b3195.pth and put it there",
    ),
    "sam_vit_h": Entry(
        ViTConfig(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
        ImageEncoderViT,
        "Segment Anything, ViT-H: 637.0 M parameters, 2981 GMAC at 1024 px",
        "sam_vit_h_4b8939.pth",
        "download Meta's sam_vit_h_4b8939.pth and put it there",
    ),
    "sam_vit_t": Entry(
        ViTConfig(width=192, depth=6, heads=3, global_blocks=(2, 5)),
        ImageEncoderViT,
        "ours: the SAM recipe at a size a laptop can train (tests, demo); no public checkpoint",
    ),
}
