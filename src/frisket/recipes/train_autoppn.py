"""AutoPPN on a frozen Sam: it learns where to click, from masks (Lite-SAM, arXiv 2407.08965).

Run `sbatch slurm/train_autoppn.sh` or `make train-autoppn LOCAL=1`. Any model with an embedding of 256 channels is a
host; nothing of it changes, and its checkpoint then holds the AutoPPN, too. Targets and losses: frisket.proposals.
Validation adds `val/recall`: objects with one of the picked points inside, of all.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from frisket.errors import UserError
from frisket.eval.metrics import Mean
from frisket.geometry import CELL, inside
from frisket.models.auto_ppn import AutoPPN, AutoPPNConfig, pick
from frisket.models.sam import Sam
from frisket.proposals import Targets, box_loss, focal_heat_loss, hard_heat_loss, targets
from frisket.recipes.base import Recipe, RecipeConfig
from frisket.sample import Batch


@dataclass
class PpnConfig:
    """What is learned, and how; Table 2's rows are settings."""

    stem: Literal["mspm", "conv"] = "mspm"
    """Pooling of three sizes, or the baseline's 3 x 3 convolution."""
    groups: Literal[1, 3] = 3
    """A heat map for each size of objects, or one for all; ours."""
    loss: Literal["hard", "focal"] = "hard"
    """Of heat maps: square errors with hard mining (ours), or the baseline's focal loss."""
    grouped: bool = True
    """Sizes of objects weigh alike in the hard loss; false: cells do."""
    heat: float = field(default=1.0, metadata={"least": 0})
    """Weight of the heat maps' loss; ours."""
    box: float = field(default=1.0, metadata={"least": 0})
    """Weight of the boxes' loss; ours."""
    points: int = field(default=256, metadata={"least": 1})
    """Picked in validation."""


@dataclass
class Config(RecipeConfig):
    """init_from is needed: the host."""

    ppn: PpnConfig = field(default_factory=PpnConfig)
    """What is learned."""


class Module(Recipe):
    """Only the AutoPPN is trained."""

    config: Config
    proposes = True

    def build_sam(self) -> Sam:
        sam, ppn = self.initial(), self.config.ppn
        if sam is None:
            raise UserError(
                "train_autoppn needs init_from: the model that gets an AutoPPN, e.g. runs/distill_lightening"
            )
        if not ppn.heat and not ppn.box:
            raise UserError("ppn.heat=0 and ppn.box=0 leave nothing to learn: give one a weight")
        self.freeze(sam.image_encoder, sam.prompt_encoder, sam.mask_decoder)
        wanted = AutoPPNConfig(channels=sam.image_encoder.channels, stem=ppn.stem, groups=ppn.groups)
        if sam.auto_ppn is None or sam.auto_ppn.config != wanted:  # else it goes on learning
            sam.propose(wanted)
        self.recall = Mean()
        return sam

    @property
    def ppn(self) -> AutoPPN:
        """What is trained."""
        assert self.sam.auto_ppn is not None
        return self.sam.auto_ppn

    def training_step(self, batch: Batch, index: int) -> Tensor:
        with torch.no_grad():
            embedding = self.sam.encode(batch.images, batch.sizes)
        wanted = Targets(*(part.to(self.device) for part in targets_of(batch, self.ppn.config.groups)))
        terms = self.terms(embedding, wanted, batch.sizes)
        loss = self.config.ppn.heat * terms["heat"] + self.config.ppn.box * terms["box"]
        self.report("train", {"loss": loss} | {f"loss/{k}": v for k, v in terms.items()}, batch_size=batch.num_images)
        return loss

    def terms(self, embedding: Tensor, wanted: Targets, sizes: Tensor) -> dict[str, Tensor]:
        """{"heat", "box"}: both losses, unweighted, of the proposals from an embedding (B, D, h, w)."""
        heat, boxes = self.ppn(embedding)
        valid = inside(sizes, heat.shape[-1], CELL)
        if self.config.ppn.loss == "focal":
            loss = focal_heat_loss(heat, wanted.heat, valid=valid)
        else:
            loss = hard_heat_loss(heat, wanted.heat, valid=valid, grouped=self.config.ppn.grouped)
        return {"heat": loss, "box": box_loss(boxes, wanted)}

    def validation_step(self, batch: Batch, index: int) -> None:
        super().validation_step(batch, index)
        with torch.no_grad():
            proposals = self.ppn(self.sam.encode(batch.images, batch.sizes))
            points, _, scores, _ = pick(proposals, batch.sizes, self.config.ppn.points)
        cells = (points / CELL).long()[batch.image_index]
        inner = batch.masks[torch.arange(len(cells))[:, None], cells[..., 1], cells[..., 0]]
        self.recall.update((inner & (scores > 0)[batch.image_index]).any(1).float())

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.report("val", {"recall": self.recall.compute()})
        self.recall.reset()


def targets_of(batch: Batch, groups: int) -> Targets:
    """Of a batch's masks, on the CPU."""
    whole = torch.tensor([frame.original[0] * frame.original[1] for frame in batch.frames])
    owners = batch.image_index.cpu()
    shares = batch.areas.cpu() / whole[owners]
    return targets(batch.masks.cpu(), batch.boxes.cpu(), shares, owners, images=batch.num_images, groups=groups)
