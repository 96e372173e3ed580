"""How near a student is to its teacher, and whether either looks at the photograph at all. Pure comparison of two Sams.

    measures = compare(student, asked(teacher, batch), batch)  # {"box": (N,), …, "neck_error": (B,)}

mIoU against the truth hides much: a prompt's box alone scores 60. Four more numbers do not: the error of the image
embedding, agreement (IoU of the two models' masks for the same prompt), the teacher's own score beside the student's,
and image dependence, the score that is lost when each photograph is answered from another one's embedding.
All IoU are taken on the decoder's grid, inside the photograph, of the output with the highest predicted IoU of three.
Source: our choice; agreement is what EdgeSAM and MobileSAM show in pictures, without a number.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from frisket.losses import logits_iou
from frisket.models.sam import Sam
from frisket.prompts import box_corners, central_points
from frisket.sample import FOREGROUND, IGNORED, Batch, Prompts, valid_cells, valid_tokens

PROMPTS = ("box", "click1")
AT_ONCE = 64
"""Prompts decoded at once."""
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


def prompts_of(batch: Batch) -> Prompts:
    """2 N prompts: the objects' boxes, then one click each, at the innermost cell of its mask.

    A box is its two corners and a click's second point is ignored, so that both stand in one call of the decoder.
    """
    corners, corner_labels = box_corners(batch.boxes)
    clicks = central_points(batch.masks)[:, None]
    labels = torch.tensor([FOREGROUND, IGNORED], device=clicks.device).expand(len(clicks), 2)
    points = torch.cat([corners, torch.cat([clicks, torch.zeros_like(clicks)], dim=1)])
    return Prompts(points=points, labels=torch.cat([corner_labels, labels]))


def answers(sam: Sam, embeddings: Tensor, owners: Tensor, prompts: Prompts) -> Tensor:
    """Logits (P, G, G) that `sam` believes in most, for P prompts about embeddings[owners]; so many at once that memory
    stays small."""
    parts = [slice(first, first + AT_ONCE) for first in range(0, max(1, len(owners)), AT_ONCE)]
    every = [sam.decode(embeddings, owners[part], prompts[part], multimask=True).best()[0] for part in parts]
    return torch.cat(every)


def neck_errors(student: Tensor, teacher: Tensor, *, valid: Tensor) -> Tensor:
    """Mean squared difference (B,) of image embeddings (B, D, h, w) over channels and valid tokens bool (B, h, w)."""
    error = (student.float() - teacher.float()).square().mean(dim=1)
    weight = valid.to(error.dtype)
    return (error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1)


class Asked(NamedTuple):
    """What a teacher says of a batch: its image embedding (B, D, h, w), its logits (2, N, G, G) by box and by click."""

    embedding: Tensor
    logits: Tensor


@torch.no_grad()
def asked(teacher: Sam, batch: Batch) -> Asked:
    """Ask a teacher what `compare` compares: once, for any number of students."""
    embedding, owners = teacher.encode(batch.images, batch.sizes), batch.image_index.repeat(len(PROMPTS))
    return Asked(embedding, answers(teacher, embedding, owners, prompts_of(batch)).unflatten(0, (len(PROMPTS), -1)))


@torch.no_grad()
def compare(student: Sam, teacher: Asked | None, batch: Batch) -> dict[str, Tensor]:
    """Per object (N,), one at least: the student's IoU by box and by click, the teacher's, their agreement, and the
    student's from the embedding of the batch's next photograph; per photograph (B,): "neck_error". Without a teacher
    only what needs none; of a single photograph nothing that needs another.
    """
    mine = student.encode(batch.images, batch.sizes)
    prompts, owners, seen = prompts_of(batch), batch.image_index.repeat(len(PROMPTS)), mine
    if batch.num_images > 1:  # the same prompts once more, about the next embeddings
        seen, again = torch.cat([mine, mine.roll(-1, 0)]), torch.arange(len(owners), device=mine.device).repeat(2)
        prompts, owners = prompts[again], torch.cat([owners, owners + batch.num_images])
    logits = answers(student, seen, owners, prompts).unflatten(0, (-1, len(PROMPTS), len(batch.masks)))
    valid = valid_cells(batch)
    measured: dict[str, Tensor] = dict(zip(("", "other_"), logits_iou(logits, batch.masks, valid=valid)))
    if teacher is not None:
        measured["teacher_"] = logits_iou(teacher.logits, batch.masks, valid=valid)
        measured["agreement_"] = logits_iou(logits[0], teacher.logits > 0, valid=valid)
    measures = {f"{who}{prompt}": value for who, part in measured.items() for prompt, value in zip(PROMPTS, part)}
    if teacher is not None:
        tokens = valid_tokens(batch, mine.shape[-1])
        measures["neck_error"] = neck_errors(mine, teacher.embedding, valid=tokens)
    return measures
