"""Lite-SAM from nothing (arXiv 2407.08965): encoder, AutoPPN and mask decoder learn together, in one stage.

Run `sbatch slurm/train_lite.sh` or `make train-lite LOCAL=1`. The loss is SAM's over a simulated session, as in
train_sam, plus AutoPPN's for heat maps and boxes (recipes/proposing.py), weighed one to one; the paper says that
training is end to end, and no more. Ours: the session, its share of points from the heat maps, all weights.
"""

from dataclasses import dataclass, field

from torch import Tensor

from frisket.models.sam import Sam
from frisket.recipes import train_sam
from frisket.recipes.interactive import InteractiveConfig
from frisket.recipes.proposing import Proposing, ProposingConfig
from frisket.recipes.recipe_config import ModelSpec
from frisket.sample import Batch


@dataclass
class Config(train_sam.Config, ProposingConfig):
    """train_sam's settings and AutoPPN's."""

    model: ModelSpec = field(default_factory=lambda: ModelSpec("lite_sam_640"))
    """What to train."""
    prompts: InteractiveConfig = field(default_factory=lambda: InteractiveConfig(from_heat=0.25))
    """The simulated session."""
    detach_ppn: bool = False
    """AutoPPN learns from the embedding and does not change it: no gradient of its into the encoder."""


class Module(Proposing, train_sam.Module):
    """Everything is trained: image encoder, AutoPPN, prompt encoder, mask decoder."""

    config: Config

    def build_sam(self) -> Sam:
        return self.propose(super().build_sam())

    def loss(self, embeddings: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = super().loss(embeddings, batch)
        ppn, more = self.ppn_loss(embeddings.detach() if self.config.detach_ppn else embeddings, batch)
        return loss + ppn, terms | {f"ppn_{name}": value for name, value in more.items()}
