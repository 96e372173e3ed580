"""What recipes share that distil a teacher into a student: who teaches, who is taught, stored embeddings. No recipe.

The teacher is held outside the module tree: it is in no checkpoint, no optimizer and no DDP bucket. The student starts
with the teacher's prompt encoder and mask decoder (their shapes are those of every Sam), its encoder at random, unless
`init_from` gives it all three.
"""

from dataclasses import dataclass
from typing import Any

from frisket import checkpoint
from frisket.data.embeddings import Stamp
from frisket.errors import UserError, warn
from frisket.models.sam import Sam
from frisket.recipes.base import Recipe
from frisket.recipes.recipe_config import ModelSpec, RecipeConfig, build_model
from frisket.sample import Batch


@dataclass
class TaughtConfig(RecipeConfig):
    """A frozen teacher."""

    teacher: str = "sam_vit_h"
    """A zoo name, run folder or checkpoint file."""


class Taught(Recipe):
    """A recipe with a teacher."""

    config: TaughtConfig

    def build_pair(self, spec: ModelSpec) -> Sam:
        """Load the teacher and return the student, built as `spec` says where `init_from` does not, everything of it
        still to be trained. Raises UserError where their embeddings do not fit together."""
        teacher = self.floating("teacher", self.config.teacher)
        started = self.initial()
        sam = started or build_model(spec, self.config.data.image_size)
        self.hear(teacher, sam)
        if started is None:
            sam.prompt_encoder.load_state_dict(teacher.prompt_encoder.state_dict())
            sam.mask_decoder.load_state_dict(teacher.mask_decoder.state_dict())
        return sam

    def hear(self, teacher: Sam, student: Sam) -> None:
        """Let `teacher` teach. Raises UserError where their embeddings do not fit together."""
        self.teachers = [teacher.requires_grad_(False).eval()]  # a list hides it from nn.Module: state_dict, DDP
        side, asked = teacher.image_size, self.config.data.image_size
        if side != asked:
            warn(f"teacher={self.config.teacher} is of {side} px and is asked at {asked} px")
        mine, theirs = student.image_encoder.channels, teacher.image_encoder.channels
        if mine != theirs:
            raise UserError(f"the student's embedding has {mine} channels and the teacher's {theirs}: make them equal")

    @property
    def teacher(self) -> Sam:
        """The frozen teacher, not part of this module's parameters."""
        return self.teachers[0]

    def stamp(self) -> Stamp | None:
        """Stored embeddings must come from this very teacher, at this input side."""
        if self.config.data.embeddings is None:
            return None
        return Stamp(checkpoint.weights_digest(self.teacher.image_encoder), self.config.data.image_size)

    def on_fit_start(self) -> None:
        self.teachers = [self.teacher.to(self.device)]

    def asks_encoder(self) -> bool:
        """Whether the teacher's encoder runs in a training step: not where its embeddings are stored."""
        data = self._trainer and getattr(self._trainer, "datamodule", None)
        return not (data and data.has_embeddings)

    def model_flops_per_image(self) -> float:
        """And the teacher's encoder, forward, where it runs."""
        teacher = 2.0 * self.teacher.image_encoder.macs(self.config.data.image_size) if self.asks_encoder() else 0.0
        return super().model_flops_per_image() + teacher

    def reference(self) -> Sam:
        return self.teacher

    def gallery_columns(self, batch: Batch) -> dict[str, Any]:
        return {"teacher": self.predict_boxes(self.teacher, batch)} | super().gallery_columns(batch)
