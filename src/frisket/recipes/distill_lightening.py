"""SAM-Lightening, stage 1: dynamic layer-wise distillation of the dilated-attention encoder (arXiv 2403.09195, 3.2).

Run `sbatch slurm/distill_lightening.sh` or `make distill-lightening LOCAL=1`. The loss per step is

    sum_k a_k d_k mean|| LN0(F_t[t_k]) - P_k(F_s[s_k]) ||^2  +  a_neck mean|| E_t - E_s ||^2      over valid tokens

with K focus pairs of blocks (s_k of the student, t_k of the teacher), shallow to deep. The paper's schedule of weights
was not readable; a_k, the layer map, LN0, the mean and d_k = k / K are our choice, each a switch.
Ablations: `distill.schedule=neck` (MobileSAM's plain embedding distillation), `distill.schedule=constant`.

The teacher is held outside the training (recipes/taught.py). Stored embeddings (`data.embeddings`) replace it: its neck
and, with `blocks` of `prep embed`, the features of t_k; its encoder then runs in validation only. The projections P_k
live in the training checkpoint (resume is exact) and are dropped from model.pt; so does the number of steps first
planned, which the schedule counts in: raising `trainer.max_steps` later does not move a cascade backwards. What has no
weight yet takes no optimizer step, so that Adam begins there when it joins (DeepSpeed steps all it holds). Prompt
encoder and decoder are the teacher's, frozen: the encoder is distilled with the decoder out of the loop ("decoupled");
`finetune_decoder` aligns it later.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frisket.errors import UserError
from frisket.losses import feature_loss, normalize_feature
from frisket.models.encoder import Tap
from frisket.models.sam import Sam
from frisket.recipes.recipe_config import ModelSpec
from frisket.recipes.taught import Taught, TaughtConfig
from frisket.sample import Batch, valid_tokens


@dataclass
class DistillConfig:
    """Which layers are compared, and their weights over time; all of it our choice (the paper names weights that move
    from shallow to deep layers; their formula was not readable)."""

    schedule: Literal["cascade", "constant", "neck"] = "cascade"
    """cascade: one layer after the other, then the neck; constant: all at once; neck: the embedding alone."""
    student_blocks: list[int] = field(default_factory=list)
    """The focus layers, counted from 1; empty: every second."""
    teacher_blocks: list[int] = field(default_factory=list)
    """Their partners; empty: those at the same relative depth."""
    stage_steps: int = field(default=0, metadata={"least": 0})
    """Steps one focus layer has before the next joins; 0: 15 % of the steps first planned."""
    layer_floor: float = field(default=0.1, metadata={"least": 0})
    """A layer's weight once the cascade has moved on."""
    neck_floor: float = field(default=0.2, metadata={"least": 0})
    """The neck's weight before its turn."""
    neck_full: float = field(default=2 / 3, metadata={"least": 0})
    """From this share of the steps first planned the neck's weight is 1."""
    deeper_is_heavier: bool = True
    """Layer k of K weighs k / K."""
    normalize_teacher: bool = True
    """The teacher's features pass a LayerNorm without parameters (LN0)."""


@dataclass
class Config(TaughtConfig):
    """A frozen teacher and the encoder it teaches."""

    student: ModelSpec = field(default_factory=lambda: ModelSpec("lightening"))
    """What to teach; its prompt encoder and decoder are the teacher's."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """What is compared."""


def focus_pairs(student_depth: int, teacher_depth: int, config: DistillConfig) -> list[tuple[int, int]]:
    """Pairs (student block, teacher block), from 1, shallow to deep; none for schedule 'neck'.

    Default: every second student block s and teacher block round(s * teacher_depth / student_depth), which gives
    12 -> 6 the map i -> 2 i and ViT-H -> 6 the map {2, 4, 6} -> {11, 21, 32}. Raises UserError on bad indices.
    """
    if config.schedule == "neck":
        return []
    if not (student_depth and teacher_depth):
        raise UserError(
            f"distill.schedule={config.schedule} compares features, and the student has {student_depth} taps and the "
            f"teacher {teacher_depth}: set distill.schedule=neck"
        )
    students = config.student_blocks or list(range(2, student_depth + 1, 2)) or [1]
    teachers = config.teacher_blocks or [max(1, int(s * teacher_depth / student_depth + 0.5)) for s in students]
    if len(students) != len(teachers):
        raise UserError(
            f"distill.student_blocks has {len(students)} entries and distill.teacher_blocks {len(teachers)}: give pairs"
        )
    for name, blocks, depth in (("student", students, student_depth), ("teacher", teachers, teacher_depth)):
        twice = name == "student" and len(set(blocks)) < len(blocks)  # a shallow teacher may teach two blocks with one
        if twice or blocks != sorted(blocks) or not all(1 <= block <= depth for block in blocks):
            raise UserError(f"distill.{name}_blocks={blocks} must rise within 1..{depth}, the {name}'s blocks")
    return list(zip(students, teachers))


def layer_weights(step: int, count: int, *, steps: int, config: DistillConfig) -> tuple[list[float], float]:
    """Return ([a_1 d_1, …, a_K d_K], a_neck) at `step` of `steps` first planned, for K = `count` focus pairs.

    cascade: with u = step / stage, pair k rises over u in (k-1, k), then falls by half per stage to layer_floor; the
    neck rises over u in (K, K+1) from neck_floor and is 1 for the last part of the run. constant: all 1 (times d_k).
    """
    depth = [(k + 1) / count if config.deeper_is_heavier else 1.0 for k in range(count)]
    if config.schedule != "cascade":
        return depth, 1.0
    u = step / (config.stage_steps or max(1.0, 0.15 * steps))
    layers = []
    for k in range(count):
        rise = min(1.0, max(0.0, u - k))
        fall = max(config.layer_floor, 1 - 0.5 * max(0.0, u - (k + 1)))
        layers.append(rise * fall * depth[k])
    neck = 1.0 if step >= config.neck_full * steps else max(config.neck_floor, min(1.0, max(0.0, u - count)))
    return layers, neck


def on_one_grid(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Features (B, h, w, C) of two taps over one grid, the coarser of the two: the finer is averaged over its cells."""
    grid = (min(mine.shape[1], theirs.shape[1]), min(mine.shape[2], theirs.shape[2]))
    pooled = (
        x if x.shape[1:3] == grid else F.adaptive_avg_pool2d(x.movedim(-1, 1), grid).movedim(1, -1)
        for x in (mine, theirs)
    )
    return next(pooled), next(pooled)


class Module(Taught):
    """The student's image encoder and the projections are trained."""

    config: Config

    def build_sam(self) -> Sam:
        config = self.config
        self.planned = config.trainer.max_steps
        sam = self.build_pair(self.config.student)
        self.freeze(sam.prompt_encoder, sam.mask_decoder)
        student = sam.image_encoder
        mine, theirs = student.taps, self.teacher.image_encoder.taps
        self.pairs = focus_pairs(len(mine), len(theirs), config.distill)
        self.projections = nn.ModuleList(nn.Linear(mine[s - 1].width, theirs[t - 1].width) for s, t in self.pairs)
        return sam

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["frisket"]["planned"] = self.planned

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.planned = checkpoint["frisket"].get("planned", self.planned)

    def on_train_start(self) -> None:
        super().on_train_start()
        distill, last = self.config.distill, self.config.trainer.max_steps
        if distill.schedule == "cascade" and self.trainer.is_global_zero:
            stage, whole = distill.stage_steps or 0.15 * self.planned, distill.neck_full * self.planned
            kept = "" if last == self.planned else f", kept though trainer.max_steps={last}"
            said = f"a layer joins every {stage:.0f} steps, the neck is whole from step {whole:.0f}"
            print(f"cascade, in the {self.planned} steps first planned{kept}: {said}", flush=True)

    def taps(self) -> dict[int, Tap]:
        return {block: self.teacher.image_encoder.taps[block - 1] for _, block in self.pairs}

    def weights(self) -> tuple[list[float], float]:
        """`layer_weights` of this step."""
        return layer_weights(self.global_step, len(self.pairs), steps=self.planned, config=self.config.distill)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        config = self.config.distill
        images = self.sam.preprocess(batch.images, batch.sizes)
        neck, features = self.sam.image_encoder.forward_features(images, [s - 1 for s, _ in self.pairs])
        teacher_neck, teacher_features = self.teach(images, batch)
        weights, neck_weight = layer_weights(self.global_step, len(self.pairs), steps=self.planned, config=config)
        seen = valid_tokens(batch, neck.shape[-1])
        terms = {"neck": feature_loss(neck.movedim(1, -1), teacher_neck.movedim(1, -1), valid=seen)}
        loss = neck_weight * terms["neck"]
        for (block, _), weight, project, mine, theirs in zip(
            self.pairs, weights, self.projections, features, teacher_features
        ):
            mine, theirs = on_one_grid(mine, theirs)
            target = normalize_feature(theirs) if config.normalize_teacher else theirs
            seen = valid_tokens(batch, mine.shape[1])
            terms[f"block{block}"] = feature_loss(project(mine), target, valid=seen)
            loss = loss + weight * terms[f"block{block}"]
        shares = {f"weight/block{block}": weight for (block, _), weight in zip(self.pairs, weights)}
        self.report(
            "train",
            {"loss": loss, **{f"loss/{k}": v for k, v in terms.items()}, **shares, "weight/neck": neck_weight},
            batch_size=batch.num_images,
        )
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """While a weight is 0, zero gradients become none. They were made all the same: DDP waits for every one."""
        layers, neck = self.weights()
        if all(layers) and neck:
            return
        graded = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = torch.stack(torch._foreach_norm([p.grad for p in graded])).tolist() if graded else []
        for parameter, norm in zip(graded, norms):
            if norm == 0:
                parameter.grad = None

    @torch.no_grad()
    def teach(self, images: Tensor, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The teacher's neck (B, 256, h, w) and its focus features (B, h, w, D), stored if the batch brings them."""
        if batch.embedding is None:
            return self.teacher.image_encoder.forward_features(images, [t - 1 for _, t in self.pairs])
        stored = dict(zip(self.taps(), batch.features, strict=True))
        return batch.embedding, [stored[block].movedim(1, -1).float() for _, block in self.pairs]
