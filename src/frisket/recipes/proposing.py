"""What recipes share that train an AutoPPN (Lite-SAM, arXiv 2407.08965): its settings, targets and losses. No recipe.

The loader's workers make the targets, of all masks of a photograph whatever `data.masks_per_image` draws: one that is
left out would be learned as background. Formulas: frisket.proposals. Validation adds `val/recall`: objects with one of
the picked points inside, of all.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from frisket.errors import UserError
from frisket.eval.metrics import Mean
from frisket.geometry import CELL, inside
from frisket.models.auto_ppn import AutoPPN, AutoPPNConfig, Picked, Proposals, pick
from frisket.models.sam import Sam
from frisket.picture import Panel, heated
from frisket.proposals import Targets, box_loss, focal_heat_loss, hard_heat_loss, targets
from frisket.recipes.base import Recipe
from frisket.recipes.recipe_config import RecipeConfig
from frisket.sample import Batch

SHOWN = 64
"""Points in a gallery's picture, the surest: all would hide it."""


@dataclass
class PpnConfig:
    """What is learned, and how; Table 2's rows are settings."""

    stem: Literal["mspm", "conv"] = "mspm"
    """Pooling of three sizes, or the baseline's 3 x 3 convolution."""
    groups: Literal[1, 3] = 3
    """A heat map for each size of objects, or one for all; ours."""
    targets: Literal["depth", "gaussian"] = "depth"
    """What heat maps are to be: each cell's depth in its object, or the baseline's bells at the middles of boxes."""
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
class ProposingConfig(RecipeConfig):
    """A recipe's with an AutoPPN."""

    ppn: PpnConfig = field(default_factory=PpnConfig)
    """What AutoPPN learns."""


class Proposing(Recipe):
    """A recipe that trains an AutoPPN."""

    config: ProposingConfig
    proposes = True

    def propose(self, sam: Sam) -> Sam:
        """`sam` with the AutoPPN that the settings ask for; one of that shape goes on learning. Raises UserError where
        it would learn nothing."""
        ppn = self.config.ppn
        if not ppn.heat and not ppn.box:
            raise UserError("ppn.heat=0 and ppn.box=0 leave nothing to learn: give one a weight")
        wanted = AutoPPNConfig(channels=sam.image_encoder.channels, stem=ppn.stem, groups=ppn.groups)
        if sam.auto_ppn is None or sam.auto_ppn.config != wanted:
            sam.propose(wanted)
        self.recall = Mean()
        return sam

    @property
    def ppn(self) -> AutoPPN:
        """What is trained."""
        assert self.sam.auto_ppn is not None
        return self.sam.auto_ppn

    def targets(self) -> partial[Targets]:
        return partial(targets, groups=self.config.ppn.groups, kind=self.config.ppn.targets)

    def ppn_loss(self, embedding: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, {"heat", "box"}: its terms, unweighted) of the proposals from an embedding (B, D, h, w)."""
        assert batch.heat is not None and batch.ways is not None  # the loader was given `targets`
        wanted, config = Targets(batch.heat, batch.ways), self.config.ppn
        heat, boxes = self.ppn(embedding)
        valid = inside(batch.sizes, heat.shape[-1], CELL)
        if config.loss == "focal":
            loss = focal_heat_loss(heat, wanted.heat, valid=valid)
        else:
            loss = hard_heat_loss(heat, wanted.heat, valid=valid, grouped=config.grouped)
        terms = {"heat": loss, "box": box_loss(boxes, wanted)}
        return config.heat * terms["heat"] + config.box * terms["box"], terms

    def proposed(self, batch: Batch) -> tuple[Proposals, Picked]:
        """What AutoPPN says of a batch, and the points that are picked from it."""
        proposals = self.ppn(self.sam.encode(batch.images, batch.sizes))
        return proposals, pick(proposals, batch.sizes, self.config.ppn.points)

    @torch.no_grad()
    def gallery_columns(self, batch: Batch) -> dict[str, Any]:
        """And the heat maps with the surest of the picked points."""
        (heat, _), picked = self.proposed(batch)
        shown = []
        surest = [points[scores > 0][:SHOWN].cpu() for points, scores in zip(picked.points, picked.scores, strict=True)]
        for photo, chances, (height, width), points in zip(
            batch.images, heat.sigmoid(), batch.sizes.tolist(), surest, strict=True
        ):
            seen = chances[:, : -(-height // CELL), : -(-width // CELL)]
            image, labels = heated(photo[:, :height, :width], seen), torch.ones(len(points))
            shown.append(Panel(image, title="heat, picked points", points=points, labels=labels))
        return {"heat": shown} | super().gallery_columns(batch)

    def validation_step(self, batch: Batch, index: int) -> None:
        super().validation_step(batch, index)
        with torch.no_grad():
            points, _, scores, _ = self.proposed(batch)[1]
        cells = (points / CELL).long()[batch.image_index]
        inner = batch.masks[torch.arange(len(cells), device=cells.device)[:, None], cells[..., 1], cells[..., 0]]
        self.recall.update((inner & (scores > 0)[batch.image_index]).any(1).float())

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.report("val", {"recall": self.recall.compute()})
        self.recall.reset()
