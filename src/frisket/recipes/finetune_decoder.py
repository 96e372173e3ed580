"""Align the mask decoder to a distilled encoder (SAM-Lightening's last step, arXiv 2403.09195; our reading).

Run `make finetune-decoder` after `make distill-lightening`: `init_from` names that run's folder. The image encoder and
the prompt encoder are frozen (the paper's figure 1), BatchNorm and dropout included; the decoder, which starts from the
teacher's weights, learns from ground-truth masks with SAM's loss. The prompt session is a setting (3 rounds).
`teacher=…` (ours): it learns that model's own answers to the same prompts instead, soft, all three candidates; the
masks then only say where to prompt.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from frisket.errors import UserError
from frisket.losses import answer_loss
from frisket.models.sam import Sam
from frisket.recipes.base import Recipe
from frisket.recipes.interactive import InteractiveConfig, first_prompts, interactive_loss, unused_parts
from frisket.recipes.recipe_config import RecipeConfig
from frisket.sample import Batch, valid_cells


@dataclass
class Config(RecipeConfig):
    """init_from is needed: the run folder or model.pt whose encoder the decoder is aligned to."""

    prompts: InteractiveConfig = field(default_factory=lambda: InteractiveConfig(clicks=1, refines=1))
    """The simulated session."""
    teacher: str = ""
    """Learn this Sam's answers instead of the masks, one round a prompt: a zoo name, run folder or checkpoint file."""
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
        self.teachers: list[Sam] = []  # a list hides it from nn.Module: out of state_dict, optimizer and DDP
        if self.config.teacher:
            self.teachers = [self.floating("teacher", self.config.teacher).requires_grad_(False)]
            if self.config.prompts.rounds > 1 or self.teachers[0].image_size != sam.image_size:
                raise UserError(
                    f"teacher={self.config.teacher} answers one round at its own {self.teachers[0].image_size} px: set "
                    "prompts.clicks=0 prompts.refines=0, and give a teacher of data.image_size"
                )
        self.freeze(sam.image_encoder)
        if not self.config.train_prompt_encoder:
            self.freeze(sam.prompt_encoder)
        self.freeze(*unused_parts(sam, self.config.prompts))
        return sam

    def on_fit_start(self) -> None:
        self.teachers = [teacher.to(self.device) for teacher in self.teachers]

    def reference(self) -> Sam | None:
        return next(iter(self.teachers), None)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        with torch.no_grad():
            embeddings = self.sam.encode(batch.images, batch.sizes)
        if teacher := self.reference():
            loss, terms = self.imitation(teacher, embeddings, batch)
        else:
            loss, terms = interactive_loss(
                self.sam, embeddings, batch, self.config.prompts, self.generator(batch),
                at_once=self.config.place.prompts_at_once,
            )  # fmt: skip
        self.report("train", {"loss": loss} | {f"loss/{k}": v for k, v in terms.items()}, batch_size=batch.num_images)
        return loss

    def imitation(self, teacher: Sam, embeddings: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss against the teacher's answers to the session's first prompts, from its own embeddings."""
        prompts = first_prompts(batch, self.config.prompts, self.generator(batch))
        with torch.no_grad():
            theirs = teacher.encode(batch.images, batch.sizes)
            wanted = teacher.decode(theirs, batch.image_index, prompts, multimask=True)
        mine = self.sam.decode(embeddings, batch.image_index, prompts, multimask=True)
        terms = answer_loss(mine.logits, mine.iou, wanted.logits, wanted.iou, valid=valid_cells(batch))
        return terms["mask"] + terms["iou"], terms
