"""Train any encoder from ground-truth masks, the way SAM itself was trained (SAM, appendix A).

Run `frisket train configs/train_sam.yaml`. The loss is 20 focal + 1 dice + 1 (predicted IoU - IoU)^2 over a simulated
interactive session; see recipes/interactive.py. It gives the demo its teacher, and labs a supervised baseline.
"""

from dataclasses import dataclass, field

from torch import Tensor

from frisket.models.sam import Sam
from frisket.recipes.base import ModelSpec, Recipe, RecipeConfig, build_model
from frisket.recipes.interactive import InteractiveConfig, interactive_loss, unused_parts
from frisket.sample import Batch


@dataclass
class Config(RecipeConfig):
    """model: what to train; prompts: the simulated session. `init_from` starts from existing weights instead."""

    model: ModelSpec = field(default_factory=ModelSpec)
    prompts: InteractiveConfig = field(default_factory=InteractiveConfig)


class Module(Recipe):
    """Everything is trained: image encoder, prompt encoder, mask decoder."""

    config: Config

    def build_sam(self) -> Sam:
        config = self.config
        sam = self.initial() or build_model(config.model, config.data.image_size)
        self.freeze(*unused_parts(sam, config.prompts))
        return sam

    def training_step(self, batch: Batch, index: int) -> Tensor:
        embeddings = self.sam.encode(batch.images, batch.sizes)
        loss, terms = interactive_loss(self.sam, embeddings, batch, self.config.prompts, self.generator(batch))
        self.report("train", {"loss": loss} | {f"loss/{k}": v for k, v in terms.items()}, batch_size=batch.num_images)
        return loss
