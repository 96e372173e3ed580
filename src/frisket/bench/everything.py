"""Row: what segment everything does after the decoder, from low-resolution logits against every mask at full size.

    frisket bench rows=[everything_filters]

66 masks of a photograph of 1500 x 2250 px (a third of a batch of 64 points): ragged blobs around clicks, of three sizes
and many slopes. The baseline is the plain generator: enlarge every mask that passes predicted IoU, count stability,
take boxes, encode with pycocotools, NMS. Ours must keep the same masks in the same order.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from frisket.bench.harness import Case, Row, Setting, at_least, at_most
from frisket.everything import grid
from frisket.everything.candidates import Candidates, Filters, sift
from frisket.geometry import Frame, boxes_of_masks, upscale_logits
from frisket.kernels.nms import nms
from frisket.kernels.upscaled import encode
from frisket.sample import Prediction

AT_ONCE = 8  # full-size masks the baseline holds: 27 MB each


def answers(count: int, frame: Frame, generator: torch.Generator) -> tuple[Tensor, Prediction]:
    """`count` points (P, 2) in original pixels and three masks for each, as a trained decoder might give them."""
    side = frame.grid
    height, width = (length / 4 for length in frame.size)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    steps = torch.arange(side)
    away = torch.hypot(steps[None, None] - centre[:, :1, None], steps[None, :, None] - centre[:, 1:, None])
    texture = torch.randn(count * 3, 1, 24, 24, generator=generator)
    texture = F.interpolate(texture, size=(side, side), mode="bicubic").reshape(count, 3, side, side)
    radius = side * torch.tensor([0.05, 0.12, 0.3])[:, None, None]
    slope = 10 ** (1.3 + torch.rand(count, 3, 1, 1, generator=generator))
    logits = slope * (1 - away[:, None] / radius + 0.15 * texture)
    return frame.to_original(centre * 4), Prediction(logits, 0.8 + 0.2 * torch.rand(count, 3, generator=generator))


def plain(predictions: Iterable[Prediction], frame: Frame, config: Filters) -> tuple[Tensor, list[dict[str, Any]]]:
    """Predicted IoU and RLE of the kept masks of all batches, best first, as SAM's generator finds them."""
    scores, boxes, rles = [], [], []
    for prediction in predictions:
        iou, logits = prediction.iou.flatten(), prediction.logits.flatten(0, 1)
        passed = iou > config.pred_iou_thresh
        for part, score in zip(logits[passed].split(AT_ONCE), iou[passed].split(AT_ONCE)):
            full = upscale_logits(part, frame)
            inner, outer = full > config.stability_score_offset, full > -config.stability_score_offset
            stable = inner.flatten(1).sum(1) / outer.flatten(1).sum(1) >= config.stability_score_thresh
            masks = full[stable] > 0
            scores.append(score[stable])
            boxes.append(boxes_of_masks(masks) - masks.new_tensor([0, 0, 1, 1], dtype=torch.float))  # to the last pixel
            rles += [coco_mask.encode(np.asfortranarray(mask.cpu().numpy().view(np.uint8))) for mask in masks]
    kept = nms(torch.cat(boxes), torch.cat(scores), config.box_nms_thresh)
    return torch.cat(scores)[kept], [rles[n] for n in kept.tolist()]


def ours(points: Tensor, prediction: Prediction, frame: Frame, config: Filters) -> tuple[Tensor, list[dict[str, Any]]]:
    """The same by `frisket.everything`."""
    sifted = sift(points, prediction, frame, config)
    kept = Candidates.pick([sifted], nms(sifted.boxes, sifted.iou, config.box_nms_thresh))
    return kept.iou, encode(kept.logits, frame)


def filters_row(setting: Setting) -> Case:
    """Filters, NMS and RLE of a batch."""
    size, side, count = ((90, 140), 128, 8) if setting.quick else ((1500, 2250), 1024, 22)
    frame, config = Frame.fit(size, side), grid.Config()
    points, prediction = answers(count, frame, torch.Generator().manual_seed(setting.seed))
    prediction = Prediction(prediction.logits.to(setting.device), prediction.iou.to(setting.device))
    wanted, masks = plain([prediction], frame, config)

    def differing() -> float:
        kept, _ = ours(points, prediction, frame, config)
        return float(len(set(kept.tolist()) ^ set(wanted.tolist())) + (kept.tolist() != wanted.tolist()))

    def worst() -> float:
        _, rles = ours(points, prediction, frame, config)
        iou = coco_mask.iou(rles, masks, [0] * len(masks))  # type: ignore[arg-type]
        return float(np.min(np.diagonal(np.asarray(iou)), initial=1.0))

    note = f"{3 * count} masks of {size[0]} x {size[1]}, {len(wanted)} kept"
    guards = [
        at_most("kept differently", differing, 0),
        at_least("least mask IoU", worst, 0.99),
        at_least("kept", lambda: float(len(wanted)), 1),
    ]
    return Case(
        lambda: plain([prediction], frame, config), lambda: ours(points, prediction, frame, config), guards, note
    )


ROWS = [Row("everything_filters", "everything's filters and RLE vs all masks at full size", filters_row)]
