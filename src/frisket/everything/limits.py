"""Limits that a checkpoint itself suggests, where none of its masks passes those asked for: SAM's 0.88 and 0.95 are of
SAM's own weights, and a small or young model never rates itself so high.

Use     if not len(masks): masks = everything(predictor, own_limits(predictor, config))
Rule    (our choice) of all masks of the whole photograph the tenth with the best predicted IoU, and of those the
        steadier half; NMS comes after. It says which masks the model prefers, not that they are good.
"""

import math
from dataclasses import replace

import torch

from frisket.everything.candidates import Filters
from frisket.everything.strategy import bound
from frisket.kernels.upscaled import VAGUE
from frisket.predict.predictor import Predictor

SHARE = 0.1  # of the masks, by predicted IoU
STEADY = 0.5  # of those, by stability


@torch.inference_mode()
def own_limits(predictor: Predictor, config: Filters) -> Filters:
    """`config` with pred_iou_thresh and stability_score_thresh by the rule above, in thousandths, 0 at the least;
    unchanged when the model draws nothing at all. Asks the strategy once more."""
    unfiltered = replace(config, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    parts = [(part.iou.float().cpu(), part.stability.float().cpu()) for part in bound(unfiltered).ask(predictor, 0)]
    iou, stability = (torch.cat(values) for values in zip(*parts, strict=True))
    if not len(iou):
        return config
    best = iou.argsort(descending=True)[: math.ceil(SHARE * len(iou))]
    steady = stability[best].sort(descending=True).values[math.ceil(STEADY * len(best)) - 1]
    # a stability is known to VAGUE
    return replace(
        config, pred_iou_thresh=_below(float(iou[best[-1]])), stability_score_thresh=_below(float(steady) - VAGUE)
    )


def _below(value: float) -> float:
    """The largest number of thousandths that is less than `value`, not less than 0."""
    return max(0.0, math.ceil(1000 * value - 1) / 1000)
