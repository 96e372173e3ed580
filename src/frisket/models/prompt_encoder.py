"""SAM's prompt encoder: points and boxes become tokens, a mask becomes a dense map added to the image embedding.

Use     `sparse, dense = PromptEncoder(1024)(points=(coords, labels), boxes=None, masks=None)`.
Source  Segment Anything (arXiv 2304.02643) section 3 and appendix A, key names of the public checkpoints;
        the labels 2, 3 are those of SAM's ONNX decoder, IGNORED is our choice.

Coordinates are (x, y) in input pixels (integer = pixel centre; 0.5 is added here as in SAM).
"""

import math

import torch
from torch import Tensor, nn

from frisket.models.blocks import LayerNorm2d
from frisket.models.encoder import STRIDE
from frisket.sample import BOTTOM_RIGHT, IGNORED, PADDING, TOP_LEFT


class FourierPosition(nn.Module):
    """Random Fourier features of positions in [0, 1]: (..., 2) -> (..., 2 * half)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, half: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, half))

    def forward(self, xy: Tensor) -> Tensor:
        # Two products instead of a matmul: autocast would round a matmul to bf16, and the sine of that is noise.
        matrix = self.positional_encoding_gaussian_matrix.float()
        xy = 2.0 * xy.float() - 1.0
        angle = 2.0 * math.pi * (xy[..., :1] * matrix[0] + xy[..., 1:] * matrix[1])
        return torch.cat((angle.sin(), angle.cos()), dim=-1)


class PromptEncoder(nn.Module):
    """Prompts to (sparse tokens, dense map) for inputs of side `image_size` px, one token cell every 16 px.

    `size` of the methods is the token grid (h, w); left out, it is the native one. Coordinates are normalised by the
    input that grid covers, `16 h` by `16 w` pixels.
    """

    no_decay = ("point_embeddings", "not_a_point_embed", "no_mask_embed")

    def __init__(self, image_size: int, channels: int = 256, mask_channels: int = 16) -> None:
        super().__init__()
        self.image_size, self.channels = image_size, channels
        self.pe_layer = FourierPosition(channels // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, channels) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, channels)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(mask_channels // 4),
            nn.GELU(),
            nn.Conv2d(mask_channels // 4, mask_channels, kernel_size=2, stride=2),
            LayerNorm2d(mask_channels),
            nn.GELU(),
            nn.Conv2d(mask_channels, channels, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, channels)

    @property
    def native_size(self) -> tuple[int, int]:
        """Token grid (h, w) of the native input side."""
        return self.image_size // STRIDE, self.image_size // STRIDE

    def get_dense_pe(self, size: tuple[int, int] | None = None) -> Tensor:
        """Position code of every token cell's centre: (1, channels, h, w)."""
        h, w = size or self.native_size
        device = self.no_mask_embed.weight.device
        y = (torch.arange(h, device=device) + 0.5) / h
        x = (torch.arange(w, device=device) + 0.5) / w
        xy = torch.stack((x[None, :].expand(h, w), y[:, None].expand(h, w)), dim=-1)
        return self.pe_layer(xy).permute(2, 0, 1).unsqueeze(0).to(self.no_mask_embed.weight.dtype)

    def tokens(self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """All prompt tokens as labelled points: coords (N, T, 2) input px and labels (N, T); None when there are none.

        points: (coords (N, K, 2), labels (N, K)); boxes: (N, 4) xyxy. As SAM does, a row that has points but no box
        gets one PADDING token at the end; a row whose points already hold box corners gets IGNORED there instead.
        """
        parts: list[tuple[Tensor, Tensor]] = []
        if points is not None:
            coords, labels = points
            parts.append((coords, labels))
            if boxes is None:
                cornered = (labels >= TOP_LEFT).any(dim=1, keepdim=True)
                end = torch.where(cornered, IGNORED, PADDING).to(labels.dtype)
                parts.append((coords.new_zeros(coords.shape[0], 1, 2), end))
        if boxes is not None:
            corners = torch.tensor((TOP_LEFT, BOTTOM_RIGHT), device=boxes.device)
            parts.append((boxes.reshape(-1, 2, 2), corners.expand(len(boxes), 2)))
        if not parts:
            return None
        return torch.cat([coords for coords, _ in parts], dim=1), torch.cat([labels for _, labels in parts], dim=1)

    def embed(self, coords: Tensor, labels: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Tokens (N, T, channels) of labelled points (N, T, 2), (N, T); IGNORED gives zeros."""
        h, w = size or self.native_size
        extent = torch.tensor((w * STRIDE, h * STRIDE), device=coords.device)
        position = self.pe_layer((coords.float() + 0.5) / extent)
        position = position.to(self.no_mask_embed.weight.dtype)
        kinds = torch.cat(
            [self.get_parameter(f"point_embeddings.{kind}.weight") for kind in range(4)]
            + [self.not_a_point_embed.weight]
        )
        row = torch.where(labels >= 0, labels, len(kinds) - 1).long()
        tokens = kinds[row] + position * (labels >= 0).unsqueeze(-1)
        return tokens * (labels != IGNORED).unsqueeze(-1)

    def dense(self, masks: Tensor | None, count: int, size: tuple[int, int] | None = None) -> Tensor:
        """Dense prompt (N, channels, h, w): of mask logits (N, 1, 4h, 4w), or `no_mask_embed` for `count` rows.

        Raises ValueError when the masks are not 4 times the token grid.
        """
        h, w = size or self.native_size
        if masks is None:
            return self.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(count, -1, h, w)
        if tuple(masks.shape[-3:]) != (1, 4 * h, 4 * w):
            raise ValueError(f"mask prompt {tuple(masks.shape)} must be (N, 1, {4 * h}, {4 * w}) logits")
        return self.mask_downscaling(masks.to(self.no_mask_embed.weight.dtype))

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sparse tokens (N, T, channels) and dense map (N, channels, h, w); T is 0 for a mask alone.

        points: (coords (N, K, 2) input px, labels (N, K)); boxes: (N, 4) xyxy input px; masks: (N, 1, 4h, 4w) logits.
        IGNORED labels are excluded only by a decoder that is told so (`Sam.decode` does).
        """
        tokens = self.tokens(points, boxes)
        if tokens is None:
            count = 1 if masks is None else len(masks)
            sparse = self.no_mask_embed.weight.new_zeros(count, 0, self.channels)
        else:
            sparse = self.embed(*tokens, size)
        return sparse, self.dense(masks, sparse.shape[0], size)
