"""SAM's interactive training loop, once: simulate a person prompting, clicking on errors and refining. Not a recipe.

Source: SAM, appendix A (11 rounds: a point or a noised box; eight clicks in the error region of the carried mask; two
rounds with the mask prompt alone, one at a random place and one last). Rounds are averaged, not summed (our choice: the
gradient norm, hence clipping, does not depend on their number). `train_sam` and `finetune_decoder` are settings of it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from frisket.losses import mask_losses
from frisket.models.sam import Sam
from frisket.prompts import box_corners, error_points, noised_boxes, random_points
from frisket.recipes.base import valid_cells
from frisket.sample import FOREGROUND, IGNORED, Batch, Prompts


@dataclass
class InteractiveConfig:
    """The simulated annotator and the loss weights. Rounds = 1 + clicks + refines (11 in the paper)."""

    clicks: int = 8
    refines: int = 2
    box_probability: float = 0.5
    box_noise: float = 0.1
    box_noise_cap: float = 20.0
    box_noise_kind: Literal["gaussian", "uniform"] = "gaussian"
    focal: float = 20.0
    focal_alpha: float = 0.25  # weight of foreground against background; SAM does not say, this is RetinaNet's
    dice: float = 1.0
    iou: float = 1.0
    ignore_padding: bool = True  # our choice: padded cells do not count

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
    points = torch.stack([points, torch.zeros_like(points)], dim=1)
    point_labels = torch.tensor([FOREGROUND, IGNORED], device=points.device).expand(len(points), 2)
    by_box = (torch.rand(len(points), generator=generator) < config.box_probability).to(points.device)
    return Prompts(
        points=torch.where(by_box[:, None, None], corners, points),
        labels=torch.where(by_box[:, None], corner_labels, point_labels),
    )


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
    sam: Sam, embeddings: Tensor, batch: Batch, config: InteractiveConfig, generator: Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (loss, {"focal", "dice", "iou"}), means over rounds.

    embeddings: (B, 256, h, w) of the batch's images. Round 1 trains the best of three masks, later rounds the single
    one. The carried mask is the one with the highest predicted IoU; its logits (never thresholded) are the mask prompt.
    """
    valid = valid_cells(batch)
    counted = valid if config.ignore_padding else None
    prompts = first_prompts(batch, config, generator)
    terms: dict[str, list[Tensor]] = {"focal": [], "dice": [], "iou": []}
    prediction = sam.decode(embeddings, batch.image_index, prompts, multimask=True)
    for click in [*click_rounds(config, generator), None]:
        losses = mask_losses(
            prediction.logits, prediction.iou, batch.masks,
            focal=config.focal, dice=config.dice, alpha=config.focal_alpha, valid=counted,
        )  # fmt: skip
        for name, value in losses.items():
            terms[name].append(value)
        if click is None:  # the last prediction has been judged
            break
        carried = prediction.best()[0].detach()
        if click:
            prompts = prompts.click(*error_points(carried > 0, batch.masks, generator, valid=valid))
        prompts = prompts.refine(carried)
        prediction = sam.decode(embeddings, batch.image_index, prompts, multimask=False)
    means = {name: torch.stack(values).mean() for name, values in terms.items()}
    return config.focal * means["focal"] + config.dice * means["dice"] + config.iou * means["iou"], means
