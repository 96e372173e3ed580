"""Rows: two ways to segment everything, against SAM's grid, ours and plain, with the same trained model.

    FRISKET_DATA_ROOT=…  frisket bench rows=[everything_hierarchical] checkpoint=runs/distill_tiny repeats=3
    FRISKET_DATA_ROOT=…  frisket bench rows=[everything_autoppn,everything_litesam] checkpoint=runs/train_lite

everything_litesam is Lite-SAM's own comparison: against SAM's generator as released, which enlarges every mask.
From photographs in memory to RLE: encoder, clicks, filters, NMS. The photographs are all of
$FRISKET_DATA_ROOT/sa1b_images when that folder is there, else a made one. The filters' limits are SAM's or, where a
model never rates itself so high, its own (frisket.everything.limits), equal for both sides. The guard is how well the
grid's masks are found again: the mean, over them, of the best IoU with a mask of ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from frisket import checkpoint
from frisket.bench.everything import plain
from frisket.bench.harness import Case, Row, Setting, at_least
from frisket.bench.records import photographs
from frisket.everything import autoppn, grid, hierarchical
from frisket.everything.candidates import Filters
from frisket.everything.generator import everything
from frisket.everything.limits import own_limits
from frisket.models import zoo
from frisket.models.sam import Sam
from frisket.predict.predictor import Predictor

Masks = list[dict[str, Any]]
"""Of one photograph, COCO RLE."""
LEAST = 0.5  # of the mean best IoU; published for TinySAM's two rounds: .6061 against masks where the grid has .6137


def strategy_row(setting: Setting, make: Callable[[Setting], Filters], plainly: bool = False) -> Case:
    """Everything in all photographs: by the grid, and by another strategy. plainly: that as SAM released it."""
    sam = model(setting)
    pictures, source = photographs(setting)
    configs = [limited(sam, picture, make(setting), setting.quick) for picture in pictures]

    def theirs() -> list[Masks]:
        by = released if plainly else segment
        return [by(sam, picture, config) for picture, (config, _) in zip(pictures, configs, strict=True)]

    def ours() -> list[Masks]:
        return [segment(sam, picture, config) for picture, (_, config) in zip(pictures, configs, strict=True)]

    again, kept = ours(), theirs()  # in this order: a model without AutoPPN is refused before the grid's minutes
    guards = [
        at_least("the grid's masks, mean best IoU", lambda: found_again(kept, again), 0 if setting.quick else LEAST),
        at_least("masks of the grid", lambda: float(sum(len(masks) for masks in kept)), 1),
    ]
    if plainly:  # what is slow must be slow for the same masks
        fast = [segment(sam, picture, config) for picture, (config, _) in zip(pictures, configs, strict=True)]
        guards.append(at_least("of the plain grid in ours", lambda: found_again(kept, fast), 0.99))
    return Case(theirs, ours, guards, f"{len(pictures)} of {source}, {sam.name}, {sam.image_size} px")


def model(setting: Setting) -> Sam:
    """The checkpoint's, or with quick and none a tiny random one."""
    if setting.checkpoint:
        return checkpoint.load(setting.checkpoint).eval().to(setting.device)
    size = {"image_size": 64, "width": 32, "depth": 1, "heads": 2, "global_blocks": (0,)}
    return zoo.build("sam_vit_t", auto_ppn={}, **size).eval().to(setting.device)


def limited(sam: Sam, picture: np.ndarray, config: Filters, quick: bool) -> tuple[Filters, Filters]:
    """The grid's settings and `config`, with limits that some mask of the grid passes."""
    plain = grid.Config(points_per_side=8 if quick else 32)
    predictor = Predictor(sam)
    predictor.set_image(picture)
    if not everything(predictor, plain).rles:
        plain = own_limits(predictor, plain)
    limits = {name: getattr(plain, name) for name in ("pred_iou_thresh", "stability_score_thresh")}
    return plain, replace(config, **limits)


def segment(sam: Sam, picture: np.ndarray, config: Filters) -> Masks:
    """All masks of one photograph, from its pixels."""
    predictor = Predictor(sam)
    predictor.set_image(picture)
    return everything(predictor, config).rles


@torch.inference_mode()
def released(sam: Sam, picture: np.ndarray, config: Filters) -> Masks:
    """The same by the grid as SAM's generator goes about it: every mask enlarged to the photograph's own size."""
    assert isinstance(config, grid.Config)
    predictor = Predictor(sam)
    predictor.set_image(picture)
    points = grid.grid_points(config.points_per_side, predictor.frame.original)
    asked = (grid.ask_points(predictor, batch) for batch in points.split(config.points_per_batch))
    return plain(asked, predictor.frame, config)[1]


def found_again(wanted: Sequence[Masks], masks: Sequence[Masks]) -> float:
    """The mean, over the masks wanted, of the best IoU with any mask of the same photograph; 0 where there is none."""
    best: list[float] = []
    for theirs, ours in zip(wanted, masks, strict=True):
        if not ours:
            best += [0.0] * len(theirs)
        elif theirs:
            iou = np.asarray(coco_mask.iou(theirs, ours, [0] * len(ours)))  # type: ignore[arg-type]
            best += iou.max(axis=1).tolist()
    return fmean(best) if best else float("nan")


def two_rounds(setting: Setting) -> Filters:
    """TinySAM's strategy. quick: a random model is sure of nothing, so nothing would be covered."""
    if setting.quick:
        return hierarchical.Config(sparse_points_per_side=4, points_per_side=8, high_score_thresh=0.0)
    return hierarchical.Config(high_score_thresh=setting.high_score_thresh)


def hierarchical_row(setting: Setting) -> Case:
    """TinySAM's two rounds."""
    return strategy_row(setting, two_rounds)


def autoppn_row(setting: Setting) -> Case:
    """Lite-SAM's proposals. Raises UserError for a checkpoint without AutoPPN."""
    return strategy_row(setting, lambda _: autoppn.Config())


def litesam_row(setting: Setting) -> Case:
    """The same against SAM's released generator. Raises UserError for a checkpoint without AutoPPN."""
    return strategy_row(setting, lambda _: autoppn.Config(), plainly=True)


ROWS = [
    Row(
        "everything_hierarchical",
        "8 x 8, then 32 x 32 clicks where needed, vs all 1,024",
        hierarchical_row,
        trained=True,
    ),
    Row("everything_autoppn", "256 proposals of AutoPPN vs 1,024 clicks", autoppn_row, trained=True),
    Row(
        "everything_litesam", "256 proposals, ours, vs SAM's plain generator of 1,024 clicks", litesam_row, trained=True
    ),
]
