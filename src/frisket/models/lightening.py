"""SAM-Lightening's image encoder: a small ViT whose attention is cut into segments and thinned by an interval.

Use     `LighteningEncoder(LighteningConfig())(x)` with x (B, 3, S, S) normalised gives (B, 256, S/16, S/16); usually
        through `frisket.models.zoo.build("lightening")`.
Source  SAM-Lightening (arXiv 2403.09195): 384 wide, 6 deep, absolute positions only, SAM's neck. Our choices, since the
        paper's text leaves them open and its code does not attend over tokens: all offsets are attended with all heads;
        segments of 1024 tokens with interval 4, so that attention is a tenth of the work; row and column order by
        turns, because in one order alone the columns (rows) of different offset would never meet before the neck; one
        output projection, since two linear layers in a row are one.

Cost of the default at 1024 x 1024: 13,204,096 parameters and 52.34 GMAC, of which attention proper 4.83 (dense: 77.3);
`LighteningEncoder.macs` counts exactly, the test compares.

Shape letters: B images, h and w token rows and columns, C width, S segments, P places of a segment, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frisket.bounds import bounded
from frisket.errors import UserError
from frisket.kernels.attention import parse
from frisket.kernels.dilated import Layout, attend
from frisket.models.blocks import DropPath, MLPBlock, PatchEmbed, neck, plain_vit, resample_position
from frisket.models.encoder import STRIDE, Entry, Tap, check_taps


@dataclass(frozen=True)
class LighteningConfig:
    """Shape of a LighteningEncoder. Raises UserError for sizes that do not fit together.

    segment and dilation hold one entry for all blocks or one a block; a plain number or list is taken too.
    """

    image_size: int = field(default=1024, metadata={"least": 16, "most": 16384})
    """Side of the native input in pixels; the position table has (image_size / 16) ** 2 entries."""
    width: int = field(default=384, metadata={"least": 1, "most": 16384})
    """Channels of the tokens."""
    depth: int = field(default=6, metadata={"least": 1, "most": 512})
    """Blocks."""
    heads: int = field(default=6, metadata={"least": 1, "most": 1024})
    """Of attention; they share the width."""
    mlp_ratio: float = field(default=4.0, metadata={"least": 0, "most": 64})
    """Hidden channels of the MLP to the width."""
    segment: tuple[int, ...] = field(default=(1024,), metadata={"least": 0, "most": 1 << 20})
    """Tokens of a segment; 0 is all tokens in one. With window "2d" a square number."""
    dilation: tuple[int, ...] = field(default=(4,), metadata={"most": 1024})
    """Interval r: a token attends to every r-th token of its segment. 1 is plain attention inside segments."""
    offsets: Literal["all", "longnet"] = "all"
    """"all": every head serves every offset. "longnet": head j serves offset j % r, as the paper's figure draws it."""
    window: Literal["1d", "2d"] = "1d"
    """"1d": a segment is a run of the flattened grid. "2d": a square."""
    alternate: bool = True
    """Odd blocks number the tokens column by column. False is the literal reading, rows only."""
    out_channels: int = field(default=256, metadata={"least": 1, "most": 16384})
    """Of the embedding."""
    backend: Literal["auto", "flash", "sdpa", "plain"] = "auto"
    """Attention backend, see `frisket.kernels.attention`."""

    def __post_init__(self) -> None:
        bounded(self, "lightening: ")
        for name in ("segment", "dilation"):
            value: Any = getattr(self, name)
            value = (int(value),) if isinstance(value, int) else tuple(int(n) for n in value)
            object.__setattr__(self, name, value)
            if len(value) not in (1, self.depth):
                raise UserError(f"lightening: {name} has {len(value)} entries; give 1, or {self.depth}, one a block")
        if self.image_size % STRIDE or self.width % self.heads:
            raise UserError(
                f"lightening: image_size {self.image_size} must be a multiple of {STRIDE}, and width {self.width} of "
                f"heads {self.heads}"
            )
        if self.offsets not in ("all", "longnet"):
            raise UserError(f"lightening: offsets is 'all' or 'longnet', not '{self.offsets}'")
        parse(self.backend, "lightening: backend")
        try:
            for block in range(self.depth):
                self.layout(block, (1, 1))
        except ValueError as error:
            raise UserError(f"lightening: {error}") from error

    def layout(self, block: int, grid: tuple[int, int]) -> Layout:
        """How block number `block` orders, cuts and thins the tokens of a (rows, columns) grid."""
        segment, dilation = self.segment[block % len(self.segment)], self.dilation[block % len(self.dilation)]
        order = "column" if self.alternate and block % 2 else "row"
        return Layout(grid, segment or None, dilation, order, self.window)  # type: ignore[arg-type]


class Attention(nn.Module):
    """Multi-head dilated attention of a (B, h, w, C) map, with biases on all projections.

    q, k and v are three layers rather than SAM's packed `qkv`: their outputs are dense, so that segments and offsets
    are views of them (a slice of a packed (.., 3, H, d) output cannot be viewed so), and no gradient has to be stacked.
    """

    def __init__(self, config: LighteningConfig) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(config.width, config.width) for _ in range(4))
        self.heads, self.offsets, self.backend = config.heads, config.offsets, config.backend

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C); `layout` is of this (h, w)."""
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):  # autocast does not know the meta device
            # One cast instead of one per projection, and a lighter copy in column order.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        # Tokens move here, once and before the projections, when the order or window asks for it; else this is a view.
        x = layout.arrange(x)
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)) for project in (self.q, self.k, self.v))
        x = attend(q, k, v, layout, offsets=self.offsets, backend=self.backend)  # type: ignore[arg-type]
        return layout.restore(self.proj(x.flatten(-2)))


class Block(nn.Module):
    """Pre-LayerNorm transformer block of (B, h, w, C)."""

    def __init__(self, config: LighteningConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = MLPBlock(config.width, round(config.width * config.mlp_ratio))
        self.drop_path = DropPath()

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), layout))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class LighteningEncoder(nn.Module):
    """An `ImageEncoder` whose taps are its blocks, with SAM's parameter names where the part is SAM's (all but
    `attn.q/k/v`)."""

    no_decay = ("pos_embed",)
    may_differ: tuple[str, ...] = ("backend",)
    settings_of = staticmethod(plain_vit)

    def __init__(self, config: LighteningConfig | None = None) -> None:
        super().__init__()
        config = config or LighteningConfig()
        side = config.image_size // STRIDE
        self.config, self.channels = config, config.out_channels
        self.taps = (Tap(config.width),) * config.depth
        self.patch_embed = PatchEmbed(config.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.neck = neck(config.width, config.out_channels)
        self.layer_names = (("patch_embed", "pos_embed"), *((f"blocks.{i}",) for i in range(config.depth)))
        self._initialise()

    def _initialise(self) -> None:
        """ViT's usual start: normal(0.02) for linear layers and positions, which are the only sense of place here."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised (B, 3, 16 h, 16 w) -> (B, out_channels, h, w)."""
        return self.forward_features(x, ())[0]

    def forward_features(self, x: Tensor, taps: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """As the contract says. Raises ValueError also for sides that are no multiple of 16."""
        check_taps(taps, self)
        x = self.patch_embed(x)
        grid = (x.shape[1], x.shape[2])
        # The convolution leaves channels first; one copy here makes every later layer read dense rows.
        x = x.contiguous() + resample_position(self.pos_embed, grid)
        tapped = {}
        for number, block in enumerate(self.blocks):
            x = block(x, self.config.layout(number, grid))
            if number in taps:
                tapped[number] = x
        return self.neck(x.permute(0, 3, 1, 2)), [tapped[tap] for tap in taps]

    def macs(self, side: int) -> int:
        """As the contract says; tokens filled up to whole segments count."""
        config, rows, c, out = self.config, side // STRIDE, self.config.width, self.channels
        tokens = rows * rows
        total = tokens * 3 * STRIDE**2 * c
        for block in range(config.depth):
            layout = config.layout(block, (rows, rows))
            segments, places = layout.shape
            kept = places // layout.dilation
            total += 4 * segments * places * c * c + 2 * tokens * c * round(c * config.mlp_ratio)
            # Per offset, the scores and the values cost kept ** 2 each for every channel of the heads that serve it:
            # all of them, or (longnet) each head one offset.
            serving = layout.dilation * config.heads if config.offsets == "all" else config.heads
            total += 2 * segments * kept * kept * serving * (c // config.heads)
        return total + tokens * (c * out + 9 * out * out)


ENCODERS = {
    "lightening": Entry(
        LighteningConfig(),
        LighteningEncoder,
        "SAM-Lightening: dilated flash attention, 384 wide, 6 blocks, 13.2 M parameters, 52 GMAC at 1024 px; no public "
        "checkpoint in this layout",
    ),
}
