"""How near a student is to its teacher, and whether either looks at the photograph at all. Pure comparison of two Sams.

    measures = compare(student, teacher, batch)          # {"box": (N,), "agreement_box": (N,), …, "neck_error": (B,)}

mIoU against the truth hides much: a prompt's box alone scores 60. Four more numbers do not: the error of the image
embedding, agreement (IoU of the two models' masks for the same prompt), the teacher's own score beside the student's,
and image dependence, the score that is lost when each photograph is answered from another one's embedding.
All IoU are taken on the decoder's grid, inside the photograph, of the output with the highest predicted IoU of three.
Source: our choice; agreement is what EdgeSAM and MobileSAM show in pictures, without a number.
"""

import torch
from torch import Tensor

from frisket.losses import logits_iou
from frisket.models.sam import Sam
from frisket.prompts import central_points
from frisket.sample import FOREGROUND, Batch, Prompts, valid_cells, valid_tokens

PROMPTS = ("box", "click1")
MEASURES = (
    *PROMPTS, *(f"{who}_{prompt}" for who in ("teacher", "agreement", "other") for prompt in PROMPTS), "neck_error"
)  # fmt: skip
"""What `compare` returns. other_…: the student's IoU when it answers from another photograph's embedding."""

CURVES = ("teacher/box", "teacher/click1", "agreement/box", "agreement/click1", "neck_error", "dependence/box",
          "dependence/click1")  # fmt: skip
"""What `curves` may return, by the names that a validation logs and an evaluation writes."""


def curves(measures: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `compare` returns beside the model's own IoU, under the names of CURVES: values whose mean is wanted."""
    named = {
        f"{who}/{prompt}": measures.get(f"{who}_{prompt}") for who in ("teacher", "agreement") for prompt in PROMPTS
    }
    named["neck_error"] = measures.get("neck_error")
    for prompt in PROMPTS:
        other = measures.get(f"other_{prompt}")
        named[f"dependence/{prompt}"] = None if other is None else measures[prompt] - other
    return {name: value for name, value in named.items() if value is not None}


def prompts_of(batch: Batch) -> dict[str, Prompts]:
    """{"box": the objects' boxes, "click1": one click each, at the innermost cell of its mask}."""
    clicks = central_points(batch.masks)[:, None]
    labels = torch.full(clicks.shape[:2], FOREGROUND, dtype=torch.long, device=clicks.device)
    return {"box": Prompts(boxes=batch.boxes), "click1": Prompts(points=clicks, labels=labels)}


def neck_errors(student: Tensor, teacher: Tensor, *, valid: Tensor) -> Tensor:
    """Mean squared difference (B,) of image embeddings (B, D, h, w) over channels and valid tokens bool (B, h, w)."""
    error = (student.float() - teacher.float()).square().mean(dim=1)
    weight = valid.to(error.dtype)
    return (error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1)


@torch.no_grad()
def compare(
    student: Sam,
    teacher: Sam | None,
    batch: Batch,
    *,
    embeddings: Tensor | None = None,
    others: Tensor | None = None,
) -> dict[str, Tensor]:
    """Per object (N,): the student's IoU by box and by click, the teacher's, their agreement, and the student's from
    another photograph's embedding; per photograph (B,): "neck_error". Without a teacher only what needs none.

    embeddings: the student's (B, D, h, w) of the batch, computed when None; others: long (B,), whose embedding each
    photograph gets instead of its own; None takes the batch's next one, and of a single photograph none is measured.
    """
    mine = student.encode(batch.images, batch.sizes) if embeddings is None else embeddings
    theirs = None if teacher is None else teacher.encode(batch.images, batch.sizes)
    if others is None and batch.num_images > 1:
        others = torch.arange(batch.num_images, device=mine.device).roll(-1)
    valid = valid_cells(batch)
    measures: dict[str, Tensor] = {}
    for name, prompts in prompts_of(batch).items():

        def answer(sam: Sam, embedding: Tensor, owner: Tensor, prompts: Prompts = prompts) -> Tensor:
            return sam.decode(embedding, owner, prompts, multimask=True).best()[0]

        logits = answer(student, mine, batch.image_index)
        measures[name] = logits_iou(logits, batch.masks, valid=valid)
        if teacher is not None and theirs is not None:
            wanted = answer(teacher, theirs, batch.image_index)
            measures[f"teacher_{name}"] = logits_iou(wanted, batch.masks, valid=valid)
            measures[f"agreement_{name}"] = logits_iou(logits, wanted > 0, valid=valid)
        if others is not None:
            # gathered first: a single embedding would be broadcast to every prompt, whatever the index says
            strange = answer(student, mine[others], batch.image_index)
            measures[f"other_{name}"] = logits_iou(strange, batch.masks, valid=valid)
    if theirs is not None:
        tokens = valid_tokens(batch, mine.shape[-1])
        measures["neck_error"] = neck_errors(mine, theirs, valid=tokens)
    return measures
