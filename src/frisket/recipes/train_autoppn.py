"""AutoPPN on a frozen Sam: it learns where to click, from masks (Lite-SAM, arXiv 2407.08965).

Run `sbatch slurm/train_autoppn.sh` or `make train-autoppn LOCAL=1`. Any model with an embedding of 256 channels is a
host; nothing of it changes, and its checkpoint then holds the AutoPPN, too. What it learns: recipes/proposing.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from frisket.errors import UserError
from frisket.models.sam import Sam
from frisket.recipes.proposing import Proposing, ProposingConfig
from frisket.sample import Batch


@dataclass
class Config(ProposingConfig):
    """init_from is needed: the host."""


class Module(Proposing):
    """Only the AutoPPN is trained."""

    config: Config

    def build_sam(self) -> Sam:
        sam = self.initial()
        if sam is None:
            raise UserError(
                "train_autoppn needs init_from: the model that gets an AutoPPN, e.g. runs/distill_lightening"
            )
        self.freeze(sam.image_encoder, sam.prompt_encoder, sam.mask_decoder)
        return self.propose(sam)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        with torch.no_grad():
            embedding = self.sam.encode(batch.images, batch.sizes)
        loss, terms = self.ppn_loss(embedding, batch)
        self.report("train", {"loss": loss} | {f"loss/{k}": v for k, v in terms.items()}, batch_size=batch.num_images)
        return loss
