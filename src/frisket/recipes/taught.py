"""What recipes share that distil a teacher into a student: who teaches, who is taught, stored embeddings. No recipe.

The teacher is held outside the module tree: it is in no checkpoint, no optimizer and no DDP bucket. The student starts
with the teacher's prompt encoder and mask decoder (their shapes are those of every Sam), its encoder at random, unless
`init_from` gives it all three.
"""

from dataclasses import dataclass, field

from torch import Tensor

from frisket import checkpoint
from frisket.data.embeddings import Stamp
from frisket.errors import UserError, warn
from frisket.models.sam import Sam
from frisket.recipes.base import ModelSpec, Recipe, RecipeConfig, build_model
from frisket.sample import Batch


@dataclass
class TaughtConfig(RecipeConfig):
    """A frozen teacher and the model it teaches."""

    teacher: str = "sam_vit_h"
    """A zoo name, run folder or checkpoint file."""
    student: ModelSpec = field(default_factory=ModelSpec)
    """What to teach; its prompt encoder and decoder begin as the teacher's."""


class Taught(Recipe):
    """A recipe with a teacher."""

    config: TaughtConfig

    def build_pair(self) -> Sam:
        """Load the teacher and return the student, everything of it still to be trained. Raises UserError where their
        embeddings do not fit together."""
        config = self.config
        teacher = checkpoint.load(config.teacher, trust=config.trust).requires_grad_(False).eval()
        self.teachers = [teacher]  # a list hides it from nn.Module: out of state_dict, optimizer and DDP
        if teacher.image_size != config.data.image_size:
            warn(f"teacher={config.teacher} is of {teacher.image_size} px and is asked at {config.data.image_size} px")
        started = self.initial()
        sam = started or build_model(config.student, config.data.image_size)
        mine, theirs = sam.image_encoder.channels, teacher.image_encoder.channels
        if mine != theirs:
            raise UserError(f"the student's embedding has {mine} channels and the teacher's {theirs}: make them equal")
        if started is None:
            sam.prompt_encoder.load_state_dict(teacher.prompt_encoder.state_dict())
            sam.mask_decoder.load_state_dict(teacher.mask_decoder.state_dict())
        return sam

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

    def reference(self) -> Sam:
        return self.teacher

    def gallery_columns(self, batch: Batch) -> dict[str, Tensor]:
        return {"teacher": self.predict_boxes(self.teacher, batch)} | super().gallery_columns(batch)
