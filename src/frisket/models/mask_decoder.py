"""SAM's mask decoder: a two-way transformer between a few tokens and the image, then masks by dot product.

Use     `logits, iou = MaskDecoder()(image_embeddings, image_pe, sparse, dense, multimask_output=True)`.
Source  Segment Anything (arXiv 2304.02643) appendix A; key names of the public checkpoints.

Shape letters: N prompts, T tokens (1 IoU, 4 masks, then the prompt's), P = h*w pixels of the embedding, C = 256.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from frisket.models.blocks import Attend, LayerNorm2d, MLPBlock


class ProjectedAttention(nn.Module):
    """Attention, inner width `width // shrink`: q (N, a, C), k and v (N, b, C) -> (N, a, C).

    `seen`: bool, broadcasting to (N, heads, a, b); False hides a key.
    """

    def __init__(self, width: int, heads: int, shrink: int = 1) -> None:
        super().__init__()
        inner = width // shrink
        self.heads = heads
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.attend = Attend()
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1))
            for projection, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        return self.out_proj(self.attend(q, k, v, seen).flatten(-2))


class TwoWayBlock(nn.Module):
    """Tokens attend to each other, tokens to pixels, an MLP on the tokens, pixels to tokens; LayerNorm after each, and
    dropout before that, where training asks for it (SAM, appendix A: 0.1)."""

    def __init__(self, width: int, heads: int, hidden: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = ProjectedAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = ProjectedAttention(width, heads, shrink=2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLPBlock(width, hidden, nn.ReLU)
        self.norm3 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = ProjectedAttention(width, heads, shrink=2)
        self.norm4 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.0)

    def forward(
        self, tokens: Tensor, pixels: Tensor, token_pe: Tensor, pixel_pe: Tensor, seen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.first:
            # SAM's first layer replaces the tokens: no residual and no position code.
            tokens = self.dropout(self.self_attn(tokens, tokens, tokens, seen))
        else:
            placed = tokens + token_pe
            tokens = tokens + self.dropout(self.self_attn(placed, placed, tokens, seen))
        tokens = self.norm1(tokens)
        keys = pixels + pixel_pe
        looked = self.cross_attn_token_to_image(tokens + token_pe, keys, pixels)
        tokens = self.norm2(tokens + self.dropout(looked))
        tokens = self.norm3(tokens + self.dropout(self.mlp(tokens)))
        looked = self.cross_attn_image_to_token(keys, tokens + token_pe, tokens, seen)
        pixels = self.norm4(pixels + self.dropout(looked))
        return tokens, pixels


class TwoWayTransformer(nn.Module):
    """Two-way blocks and a last look of the tokens at the pixels: (N, T, C), (N, P, C) -> the same shapes."""

    def __init__(self, depth: int, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(width, heads, hidden, first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = ProjectedAttention(width, heads, shrink=2)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, prompt: Tensor, pixels: Tensor, pixel_pe: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        tokens = prompt
        for layer in self.layers:
            tokens, pixels = layer(tokens, pixels, prompt, pixel_pe, seen)
        looked = self.final_attn_token_to_image(tokens + prompt, pixels + pixel_pe, pixels)
        return self.norm_final_attn(tokens + looked), pixels


class Head(nn.Module):
    """Linear layers with ReLU between (none after the last): (..., widths[0]) -> (..., widths[-1])."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


class MaskDecoder(nn.Module):
    """Prompt tokens and image embedding to mask logits and predicted IoU: one mask, or three for an unclear prompt."""

    no_decay = ("iou_token", "mask_tokens")

    def __init__(self, channels: int = 256, depth: int = 2, heads: int = 8, hidden: int = 2048, masks: int = 4) -> None:
        super().__init__()
        self.channels, self.masks = channels, masks
        self.transformer = TwoWayTransformer(depth, channels, heads, hidden)
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(masks, channels)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 4, channels // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            Head(channels, channels, channels, channels // 8) for _ in range(masks)
        )
        self.iou_prediction_head = Head(channels, channels, channels, masks)

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool | None,
        ignored: Tensor | None = None,
        with_tokens: bool = False,
    ) -> tuple[Tensor, ...]:
        """Low-resolution logits (N, C, 4h, 4w) and predicted IoU (N, C), C = 3 with `multimask_output`, 1 without, all
        4 with None; and if asked, the transformer's own tokens (N, 5, 256) that they are made of: that of the IoU, then
        the four masks'.

        image_embeddings: (1, 256, h, w), shared by all prompts, or (N, 256, h, w), one for each prompt; image_pe:
        (1, 256, h, w); sparse_prompt_embeddings: (N, T, 256); dense_prompt_embeddings: (N, 256, h, w), or 1 for all;
        ignored: bool (N, T), tokens that must not be seen. All names but the last two are segment_anything's.
        Raises ValueError when the embeddings are neither one nor one for each prompt.
        """
        count, (h, w) = sparse_prompt_embeddings.shape[0], image_embeddings.shape[-2:]  # len() would fix it in a trace
        if len(image_embeddings) not in (1, count):
            raise ValueError(f"{len(image_embeddings)} image embeddings for {count} prompts: give 1 or {count}")
        own = torch.cat((self.iou_token.weight, self.mask_tokens.weight)).expand(count, -1, -1)
        prompt = torch.cat((own, sparse_prompt_embeddings.to(own.dtype)), dim=1)
        pixels = (image_embeddings + dense_prompt_embeddings).flatten(2).transpose(1, 2).expand(count, -1, -1)
        pixel_pe = image_pe.flatten(2).transpose(1, 2)
        tokens, pixels = self.transformer(prompt, pixels, pixel_pe, self._seen(ignored))

        # Only the tokens that are returned reach the heads; the four are otherwise independent of each other.
        wanted = {None: range(self.masks), True: range(1, self.masks), False: range(1)}[multimask_output]
        upscaled = self.output_upscaling(pixels.transpose(1, 2).unflatten(2, (h, w)))
        weights = torch.stack([self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in wanted], dim=1)
        logits = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])
        iou = self.iou_prediction_head(tokens[:, 0])[:, wanted.start : wanted.stop]
        return (logits, iou, tokens[:, : 1 + self.masks]) if with_tokens else (logits, iou)

    def _seen(self, ignored: Tensor | None) -> Tensor | None:
        """Attention mask (N, 1, 1, T): False hides ignored prompt tokens wherever tokens are the keys."""
        if ignored is None:
            return None
        own = ignored.new_ones(ignored.shape[0], 1 + self.masks)
        return torch.cat((own, ~ignored), dim=1)[:, None, None, :]
