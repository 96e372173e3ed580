"""Sam = image encoder + prompt encoder + mask decoder: the one model every recipe trains and every judge asks.

Use     embeddings = sam.encode(images, sizes)
        prediction = sam.decode(embeddings, image_index, prompts, multimask=True)
Source  Segment Anything (arXiv 2304.02643); `decode` over many images at once is our choice (SAM loops over images).
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from frisket.models.auto_ppn import AutoPPN, AutoPPNConfig
from frisket.models.mask_decoder import MaskDecoder
from frisket.models.prompt_encoder import PromptEncoder
from frisket.sample import IGNORED, Prediction, Prompts

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
SAM_HIDDEN = 2048
"""Hidden channels of the decoder's MLPs in SAM."""
PROPOSALS = "auto_ppn"
"""Of `changes`, where a Sam has the part; its key in the state dict, too."""


class Sam(nn.Module):
    """The three parts under Meta's names, and Lite-SAM's AutoPPN where there is one. `name` and `changes` are what
    `frisket.models.zoo.build` was given.

    `image_encoder` is an nn.Module that meets `frisket.models.encoder.ImageEncoder`.
    """

    image_encoder: Any  # Python's types cannot say that it is both
    quantization: dict[str, Any] | None = None
    """How `frisket.quant` made its layers compute, as plain data; None: in floating point."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, image_encoder: Any, name: str, changes: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.name, self.changes = name, dict(changes or {})
        self.image_size: int = image_encoder.config.image_size
        self.image_encoder = image_encoder
        self.prompt_encoder = PromptEncoder(self.image_size, image_encoder.channels)
        hidden = getattr(image_encoder.config, "decoder_hidden", SAM_HIDDEN)
        self.mask_decoder = MaskDecoder(image_encoder.channels, hidden=hidden)
        self.auto_ppn: AutoPPN | None = None
        # Not persistent: the public checkpoints do not hold them, and strict loading wants exactly their keys.
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)

    def propose(self, config: AutoPPNConfig) -> AutoPPN:
        """Add an AutoPPN with random weights, which every checkpoint of this Sam then holds."""
        self.auto_ppn = AutoPPN(config).to(self.device)
        self.changes = self.changes | {PROPOSALS: asdict(config)}
        return self.auto_ppn

    @property
    def form(self) -> str:
        """float or quantized."""
        return "float" if self.quantization is None else "quantized"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.pixel_mean.device

    def preprocess(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Normalized float (B, 3, S, S) of uint8 RGB of that shape; exactly 0 outside the valid (h, w), `sizes` (B, 2).

        Zero after normalization is the mean colour: SAM pads last.
        """
        side_h, side_w = images.shape[-2:]
        rows = torch.arange(side_h, device=images.device) < sizes[:, 0, None].to(images.device)
        columns = torch.arange(side_w, device=images.device) < sizes[:, 1, None].to(images.device)
        valid = (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)
        normalized = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        return torch.where(valid, normalized, 0.0)

    def encode(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Image embeddings (B, 256, S/16, S/16) of uint8 RGB (B, 3, S, S) with valid (h, w) in `sizes` (B, 2)."""
        return self.image_encoder(self.preprocess(images, sizes))

    def decode(self, embeddings: Tensor, image_index: Tensor, prompts: Prompts, multimask: bool | None) -> Prediction:
        """Answer N prompts about B images in one pass: logits float (N, C, G, G) and predicted IoU (N, C), C = 3 with
        `multimask`, 1 without, all 4 with None.

        embeddings: (B, 256, h, w) of any native or other side; image_index: long (N,), the image each prompt asks
        about; prompts: input pixels (see `frisket.sample`; label -2 hides a point exactly). Differentiable.
        Raises ValueError for prompts that hold nothing.
        """
        if prompts.points is None and prompts.boxes is None and prompts.masks is None:
            raise ValueError("prompts hold no points, no boxes and no masks")
        size = (embeddings.shape[-2], embeddings.shape[-1])
        encoder = self.prompt_encoder
        points = None if prompts.points is None or prompts.labels is None else (prompts.points, prompts.labels)
        sparse, dense = encoder(points, prompts.boxes, prompts.masks, size)
        # Only labels can ask for an ignored token; always passing the mask then avoids a look at the device's data.
        tokens = encoder.tokens(points, prompts.boxes) if points is not None else None
        ignored = None if tokens is None else tokens[1] == IGNORED
        # A single image is broadcast instead of copied to every prompt.
        paired = embeddings if len(embeddings) == 1 else embeddings[image_index]
        answer = self.mask_decoder(paired, encoder.get_dense_pe(size), sparse, dense, multimask, ignored, True)
        return Prediction(*(part.float() for part in answer))

    def forward(
        self, images: Tensor, sizes: Tensor, image_index: Tensor, prompts: Prompts, multimask: bool
    ) -> Prediction:
        """`encode` then `decode`."""
        return self.decode(self.encode(images, sizes), image_index, prompts, multimask)
