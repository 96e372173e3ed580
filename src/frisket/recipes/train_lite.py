"""Lite-SAM from nothing (arXiv 2407.08965): encoder, AutoPPN and mask decoder learn together, in one stage.

Run `sbatch slurm/train_lite.sh` or `make train-lite LOCAL=1`. The loss is SAM's over a simulated session, as in
train_sam, plus AutoPPN's for heat maps and boxes (recipes/proposing.py), weighed one to one; the paper says that
training is end to end, and no more. Ours: the session, its share of points from the heat maps, all weights.
"""

from dataclasses import dataclass, field

from torch import Tensor

from frisket.models.sam import Sam
from frisket.recipes.base import ModelSpec, build_model
from frisket.recipes.interactive import InteractiveConfig, interactive_loss, unused_parts
from frisket.recipes.proposing import Proposing, ProposingConfig
from frisket.recipes.train_sam import StartConfig, begin
from frisket.sample import Batch


@dataclass
class Config(ProposingConfig):
    """`init_from` starts from existing weights, as they are, instead of `model` and `start`."""

    start: StartConfig = field(default_factory=StartConfig)
    """How random weights begin."""
    model: ModelSpec = field(default_factory=lambda: ModelSpec("lite_sam_640"))
    """What to train."""
    prompts: InteractiveConfig = field(default_factory=lambda: InteractiveConfig(from_heat=0.25))
    """The simulated session."""
    detach_ppn: bool = False
    """AutoPPN learns from the embedding and does not change it: no gradient of its into the encoder."""


class Module(Proposing):
    """Everything is trained: image encoder, AutoPPN, prompt encoder, mask decoder."""

    config: Config

    def build_sam(self) -> Sam:
        config = self.config
        sam = self.initial() or begin(build_model(config.model, config.data.image_size), config.start)
        self.freeze(*unused_parts(sam, config.prompts))
        return self.propose(sam)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        embeddings = self.sam.encode(batch.images, batch.sizes)
        loss, terms = interactive_loss(
            self.sam, embeddings, batch, self.config.prompts, self.generator(batch),
            at_once=self.config.place.prompts_at_once,
        )  # fmt: skip
        ppn, more = self.ppn_loss(embeddings.detach() if self.config.detach_ppn else embeddings, batch)
        loss, terms = loss + ppn, terms | {f"ppn_{name}": value for name, value in more.items()}
        self.report("train", {"loss": loss} | {f"loss/{k}": v for k, v in terms.items()}, batch_size=batch.num_images)
        return loss
