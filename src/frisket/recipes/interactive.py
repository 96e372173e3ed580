"""SAM's interactive training loop, once: simulate a person prompting, clicking on errors and refining. Not a recipe.

Source: SAM, appendix A (11 rounds: a point or a noised box; eight clicks in the error region of the carried mask; two
rounds with the mask prompt alone, one at a random place and one last). Rounds are averaged, not summed (our choice: the
gradient norm, hence clipping, does not depend on their number). `train_sam` and `finetune_decoder` are settings of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from frisket.errors import UserError
from frisket.losses import mask_losses
from frisket.models.sam import Sam
from frisket.prompts import box_corners, error_points, noised_boxes, random_points, weighed_points
from frisket.proposals import group_of
from frisket.sample import FOREGROUND, IGNORED, Batch, Prompts, valid_cells


@dataclass
class InteractiveConfig:
    """The simulated annotator and the loss weights. Rounds = 1 + clicks + refines (11 in the paper)."""

    clicks: int = field(default=8, metadata={"least": 0})
    """Rounds that add a click in the error of the carried mask."""
    refines: int = field(default=2, metadata={"least": 0})
    """Rounds with the mask prompt alone; one of them comes last."""
    box_probability: float = field(default=0.5, metadata={"least": 0, "most": 1})
    """Of beginning with a box rather than a point."""
    from_heat: float = field(default=0.0, metadata={"least": 0, "most": 1})
    """Of first points, those drawn where the object's heat map is high, not uniformly; needs AutoPPN's targets."""
    box_noise: float = field(default=0.1, metadata={"least": 0})
    """Of each coordinate, as a share of the box's side."""
    box_noise_cap: float = field(default=20.0, metadata={"least": 0})
    """Most that a coordinate moves, in pixels of a 1024 px input."""
    box_noise_kind: Literal["gaussian", "uniform"] = "gaussian"
    """SAM does not say; SAM 2 draws uniformly."""
    focal: float = field(default=20.0, metadata={"least": 0})
    """Weight of the focal loss."""
    focal_alpha: float = field(default=0.25, metadata={"least": 0, "most": 1})
    """Weight of foreground against background; SAM does not say, this is RetinaNet's."""
    dice: float = field(default=1.0, metadata={"least": 0})
    """Weight of the dice loss."""
    iou: float = field(default=1.0, metadata={"least": 0})
    """Weight of the predicted IoU's error."""
    ignore_padding: bool = True
    """Padded cells do not count (our choice)."""

    @property
    def rounds(self) -> int:
        """1 + clicks + refines."""
        return 1 + self.clicks + self.refines


def first_prompts(batch: Batch, config: InteractiveConfig, generator: Generator) -> Prompts:
    """Round 1: for each object a noised box or a random point of its mask, in one list of labelled points.

    A point row is (point, ignored), a box row its two corners: both kinds share one decoder call, and each gets exactly
    the tokens SAM gives it (the prompt encoder closes point rows with SAM's padding token).
    """
    side = batch.images.shape[-1]
    boxes = noised_boxes(
        batch.boxes, generator, side=side, scale=config.box_noise, cap=config.box_noise_cap, kind=config.box_noise_kind
    )
    corners, corner_labels = box_corners(boxes)
    points, _ = random_points(batch.masks, generator)
    if config.from_heat:
        deep, there = weighed_points(batch.masks, own_heat(batch), generator)
        chosen = (torch.rand(len(points), generator=generator) < config.from_heat).to(points.device) & there
        points = torch.where(chosen[:, None], deep, points)
    points = torch.stack([points, torch.zeros_like(points)], dim=1)
    point_labels = torch.tensor([FOREGROUND, IGNORED], device=points.device).expand(len(points), 2)
    by_box = (torch.rand(len(points), generator=generator) < config.box_probability).to(points.device)
    return Prompts(
        points=torch.where(by_box[:, None, None], corners, points),
        labels=torch.where(by_box[:, None], corner_labels, point_labels),
    )


def own_heat(batch: Batch) -> Tensor:
    """(N, G, G): of each object the heat map of its size. Raises UserError where the loader made none."""
    if batch.heat is None:
        raise UserError("prompts.from_heat needs AutoPPN's targets, which only train_lite has: set prompts.from_heat=0")
    whole = torch.tensor([frame.original[0] * frame.original[1] for frame in batch.frames], device=batch.areas.device)
    shares = batch.areas / whole[batch.image_index]
    return batch.heat[batch.image_index, group_of(shares).clamp(max=batch.heat.shape[1] - 1)]


def click_rounds(config: InteractiveConfig, generator: Generator) -> list[bool]:
    """For rounds 2, 3, …: True adds a click, False refines with the mask prompt alone; the last is always a refine."""
    rounds = [True] * config.clicks
    for spare in range(config.refines - 1):
        place = int(torch.randint(0, len(rounds) + 1, (1,), generator=generator)) if rounds else spare
        rounds.insert(place, False)
    return rounds + [False] * (config.refines > 0)


def unused_parts(sam: Sam, config: InteractiveConfig) -> tuple[nn.Module, ...]:
    """What a session of one round never asks: the mask prompt's encoder and the single-mask output's head.

    Recipes freeze them, since DDP waits for the gradient of every trained parameter.
    """
    if config.rounds > 1:
        return ()
    return sam.prompt_encoder.mask_downscaling, sam.mask_decoder.output_hypernetworks_mlps[0]


def interactive_loss(
    sam: Sam,
    embeddings: Tensor,
    batch: Batch,
    config: InteractiveConfig,
    generator: Generator,
    *,
    at_once: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (loss, {"focal", "dice", "iou"}), means over rounds.

    embeddings: (B, 256, h, w) of the batch's images. Round 1 trains the best of three masks, later rounds the single
    one. The carried mask is the one with the highest predicted IoU; its logits (never thresholded) are the mask prompt.
    at_once: prompts whose activations are held at a time (see `asked`); the gradients are the same.
    """
    valid = valid_cells(batch)
    prompts = first_prompts(batch, config, generator)
    ask = partial(asked, sam, embeddings, batch, config=config, valid=valid, at_once=at_once)
    terms, carried = ask(prompts, multimask=True)
    rounds = [terms]
    for click in click_rounds(config, generator):
        if click:
            prompts = prompts.click(*error_points(carried > 0, batch.masks, generator, valid=valid))
        prompts = prompts.refine(carried)
        terms, carried = ask(prompts, multimask=False)
        rounds.append(terms)
    means = {name: torch.stack([terms[name] for terms in rounds]).mean() for name in rounds[0]}
    return config.focal * means["focal"] + config.dice * means["dice"] + config.iou * means["iou"], means


def asked(
    sam: Sam,
    embeddings: Tensor,
    batch: Batch,
    prompts: Prompts,
    *,
    multimask: bool,
    config: InteractiveConfig,
    valid: Tensor,
    at_once: int | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """One round: the loss terms, means over the N objects, and the logits (N, G, G) that are carried on, detached.

    Autograd keeps some 50 MiB for each prompt and round at 1024 px; `in_chunks` costs a third more decoder work.
    """

    def ask(rows: slice) -> tuple[dict[str, Tensor], Tensor]:
        prediction = sam.decode(embeddings, batch.image_index[rows], prompts[rows], multimask=multimask)
        terms = mask_losses(
            prediction.logits, prediction.iou, batch.masks[rows], focal=config.focal, dice=config.dice,
            alpha=config.focal_alpha, valid=valid[rows] if config.ignore_padding else None,
        )  # fmt: skip
        return terms, prediction.best()[0].detach()

    return in_chunks(ask, len(batch.masks), at_once)


def in_chunks(
    ask: Callable[[slice], tuple[dict[str, Tensor], Tensor]], count: int, at_once: int | None
) -> tuple[dict[str, Tensor], Tensor]:
    """ask(rows) -> (terms, each a mean over its rows; the rows' other values), over `count` rows, `at_once` at a time
    (None: all): the terms' means over all rows, the other values joined.

    A chunk is asked again in the backward pass, so that the activations of one chunk live at a time.
    """
    if at_once is None or not count:
        return ask(slice(None))
    chunks = [slice(first, min(first + at_once, count)) for first in range(0, count, at_once)]
    parts = [checkpoint(ask, rows, use_reentrant=False) for rows in chunks]  # with the same random numbers: dropout
    shares = [(rows.stop - rows.start) / count for rows in chunks]
    terms = {name: torch.stack([s * part[name] for s, (part, _) in zip(shares, parts)]).sum() for name in parts[0][0]}
    return terms, torch.cat([values for _, values in parts])
