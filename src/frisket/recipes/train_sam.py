"""Train any encoder from ground-truth masks, the way SAM itself was trained (SAM, appendix A).

Run `frisket train configs/train_sam.yaml`. The loss is 20 focal + 1 dice + 1 (predicted IoU - IoU)^2 over a simulated
interactive session; see recipes/interactive.py. It gives the demo its teacher, and labs a supervised baseline.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from frisket.models.mask_decoder import TwoWayBlock
from frisket.models.sam import Sam
from frisket.recipes.base import Recipe
from frisket.recipes.interactive import InteractiveConfig, interactive_loss, unused_parts
from frisket.recipes.recipe_config import ModelSpec, RecipeConfig, build_model
from frisket.sample import Batch


@dataclass
class StartConfig:
    """How random weights begin; the defaults are SAM's own start. Our choice, for runs of a thousand steps.

    From SAM's start, pixels attend to all prompt tokens alike, and finding out where a box lies takes hundreds of
    steps of all-background masks.
    """

    position_scale: float = field(default=1.0, metadata={"least": 0})
    """Below 1 it widens the position code's kernel (SAM: Gaussian frequencies of deviation 1, a kernel 8 % wide)."""
    attention_gain: float = field(default=0.0, metadata={"least": 0})
    """Above 0, the decoder's pixel-to-token attention begins with equal query and key maps, that many times the usual
    size: a pixel attends to prompts near it."""
    token_gain: float = field(default=0.0, metadata={"least": 0})
    """The same for the first self-attention, whose tokens otherwise all begin as their common mean."""


@dataclass
class Config(RecipeConfig):
    """`init_from` starts from existing weights, as they are, instead of `model` and `start`."""

    start: StartConfig = field(default_factory=StartConfig)
    """How random weights begin."""
    model: ModelSpec = field(default_factory=ModelSpec)
    """What to train."""
    prompts: InteractiveConfig = field(default_factory=InteractiveConfig)
    """The simulated session."""


class Module(Recipe):
    """Everything is trained: image encoder, prompt encoder, mask decoder."""

    config: Config

    def build_sam(self) -> Sam:
        config = self.config
        sam = self.initial() or begin(build_model(config.model, config.data.image_size), config.start)
        self.freeze(*unused_parts(sam, config.prompts))
        return sam

    def training_step(self, batch: Batch, index: int) -> Tensor:
        loss, terms = self.loss(self.sam.encode(batch.images, batch.sizes), batch)
        self.report("train", {"loss": loss} | {f"loss/{k}": v for k, v in terms.items()}, batch_size=batch.num_images)
        return loss

    def loss(self, embeddings: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, its terms) of the session about embeddings (B, D, h, w)."""
        config, generator = self.config, self.generator(batch)
        return interactive_loss(
            self.sam, embeddings, batch, config.prompts, generator, at_once=config.place.prompts_at_once
        )


@torch.no_grad()
def begin(sam: Sam, start: StartConfig) -> Sam:
    """`sam`, its random weights changed in place as `start` says."""
    sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.mul_(start.position_scale)
    layers = cast(Sequence[TwoWayBlock], sam.mask_decoder.transformer.layers)  # torch's types: modules only
    tied = [(layer.cross_attn_image_to_token, start.attention_gain) for layer in layers]
    for attention, gain in [*tied, (layers[0].self_attn, start.token_gain)]:
        if gain:
            attention.q_proj.weight.mul_(gain)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
    return sam
