"""Align the mask decoder to a distilled encoder (SAM-Lightening's last step, arXiv 2403.09195; our reading).

Run `make finetune-decoder` after `make distill-lightening`: `init_from` names that run's folder. The image encoder and
the prompt encoder are frozen (the paper's figure 1), BatchNorm and dropout included; the decoder, which starts from the
teacher's weights, learns from ground-truth masks with SAM's loss. The prompt session is a setting (3 rounds).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from frisket.errors import UserError
from frisket.models.sam import Sam
from frisket.recipes.base import Recipe, RecipeConfig
from frisket.recipes.interactive import InteractiveConfig, interactive_loss, unused_parts
from frisket.sample import Batch


@dataclass
class Config(RecipeConfig):
    """init_from is needed: the run folder or model.pt whose encoder the decoder is aligned to."""

    prompts: InteractiveConfig = field(default_factory=lambda: InteractiveConfig(clicks=1, refines=1))
    """The simulated session."""
    train_prompt_encoder: bool = False
    """FastSAM3D's variant (arXiv 2403.09827), an ablation."""


class Module(Recipe):
    """Only the mask decoder is trained (and the prompt encoder in the ablation)."""

    config: Config

    def build_sam(self) -> Sam:
        sam = self.initial()
        if sam is None:
            raise UserError(
                "finetune_decoder needs init_from: the distilled student's run folder, e.g. runs/distill_lightening"
            )
        self.freeze(sam.image_encoder)
        if not self.config.train_prompt_encoder:
            self.freeze(sam.prompt_encoder)
        self.freeze(*unused_parts(sam, self.config.prompts))
        return sam

    def training_step(self, batch: Batch, index: int) -> Tensor:
        with torch.no_grad():
            embeddings = self.sam.encode(batch.images, batch.sizes)
        loss, terms = interactive_loss(
            self.sam, embeddings, batch, self.config.prompts, self.generator(batch),
            at_once=self.config.place.prompts_at_once,
        )  # fmt: skip
        self.report("train", {"loss": loss} | {f"loss/{k}": v for k, v in terms.items()}, batch_size=batch.num_images)
        return loss
