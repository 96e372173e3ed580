"""Segment everything: a strategy asks for masks of the photograph and its crops; filters, NMS and RLE are the same for
all of them.

Use     predictor.set_image("photo.jpg"); masks = everything(predictor, grid.Config())   # masks.rles, masks.iou, …
        candidates = survivors(predictor, config)                     # low-resolution logits after filters and NMS
Add     a strategy: a file like grid.py beside this one, see frisket.everything.strategy.
Source  The automatic mask generator of Segment Anything (arXiv 2304.02643, appendix B) with the released defaults and
        names of settings. Box NMS by predicted IoU in each crop and then over crops (smaller crops first); boxes reach
        from first to last pixel.
Ours    Stability and boxes are told from low-resolution logits (frisket.kernels.upscaled): the kept set is that of the
        plain generator, which enlarges every mask. An empty mask is never kept, and keeping none is no error.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from frisket.errors import UserError
from frisket.everything import grid
from frisket.everything.candidates import Candidates, Filters
from frisket.everything.crops import Crop, crops, near_inner_edge
from frisket.everything.regions import without_holes, without_islands
from frisket.everything.result import Everything
from frisket.everything.strategy import bound
from frisket.geometry import boxes_of_masks
from frisket.kernels import rle
from frisket.kernels.nms import nms
from frisket.kernels.upscaled import encode
from frisket.predict.predictor import Predictor


def survivors(predictor: Predictor, config: Filters, crop: Crop | None = None) -> Candidates:
    """All of the predictor's picture that pass the filters and box NMS, best predicted IoU first.

    crop: where that picture was cut from the photograph; masks that its inner edges may have cut are left out.
    """
    parts = list(bound(config).ask(predictor, crop.layer if crop else 0))
    if not parts:
        raise AssertionError(f"strategy '{config.strategy}' asked about nothing")
    boxes, iou = torch.cat([part.boxes for part in parts]), torch.cat([part.iou for part in parts])
    index = torch.arange(len(iou), device=iou.device)
    if crop is not None:
        index = index[~near_inner_edge(boxes, crop)]
    return Candidates.pick(parts, index[nms(boxes[index], iou[index], config.box_nms_thresh)])


@torch.inference_mode()
def everything(predictor: Predictor, config: Filters | None = None) -> Everything:
    """Every mask of the predictor's photograph, see `Everything`; SAM's grid without a config.

    Raises UserError for crops of a photograph that was set already fitted.
    """
    config = config or grid.Config()
    size = predictor.frame.original
    whole, *inner = crops(size, config.crop_n_layers, config.crop_overlap_ratio)
    parts = [_of(predictor, config, whole)]
    if inner and tuple(predictor.image.shape[1:]) != size:
        raise UserError("crop_n_layers needs the photograph at its own size: use set_image, or crop_n_layers=0")
    for crop in inner:
        cut = Predictor(predictor.sam, image_size=predictor.side, batch=predictor.batch)
        window = predictor.image[:, crop.y0 : crop.y1, crop.x0 : crop.x1]
        cut.set_image(window.permute(1, 2, 0).numpy())
        parts.append(_of(cut, config, crop))
    masks = Everything.join(parts)
    if inner:
        area = (masks.crops[:, 2:] - masks.crops[:, :2]).prod(dim=1)
        masks = masks.pick(nms(_inclusive(masks.boxes), 1.0 / area, config.crop_nms_thresh))
    return _cleaned(masks, config) if config.min_mask_region_area > 0 else masks


def _of(predictor: Predictor, config: Filters, crop: Crop) -> Everything:
    """What the predictor's picture, cut out as `crop`, holds, in the photograph's pixels."""
    kept = survivors(predictor, config, crop)
    corner = torch.tensor([crop.x0, crop.y0])
    boxes = kept.boxes.cpu() + corner.repeat(2)
    boxes[:, 2:] += 1
    rles = [rle.placed(mask, crop.whole, (crop.y0, crop.x0)) for mask in encode(kept.logits, predictor.frame)]
    return Everything(
        rles,
        boxes.float(),
        torch.tensor([rle.area(mask) for mask in rles], dtype=torch.long),
        kept.iou.cpu(),
        kept.stability.cpu(),
        kept.points.cpu() + corner,
        torch.tensor([[crop.x0, crop.y0, crop.x1, crop.y1]]).expand(len(kept), 4),
        crop.whole,
        kept.asked,
        kept.highest,
    )


def _inclusive(boxes: Tensor) -> Tensor:
    """Boxes as NMS compares them: to the last pixel."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - 1], dim=1)


def _cleaned(masks: Everything, config: Filters) -> Everything:
    """Small holes and islands removed, then box NMS once more in which untouched masks win."""
    scores = torch.ones(len(masks))
    masks = replace(masks, rles=list(masks.rles), boxes=masks.boxes.clone(), areas=masks.areas.clone())
    rows, columns = (np.arange(length) for length in masks.size)
    for n, encoded in enumerate(masks.rles):
        mask = rle.fill_many([encoded], rows, columns)[0].astype(bool)
        better = without_islands(without_holes(mask, config.min_mask_region_area), config.min_mask_region_area)
        if not np.array_equal(mask, better):
            scores[n] = 0
            masks.rles[n] = rle.encode(better)
            masks.boxes[n] = boxes_of_masks(torch.from_numpy(better)[None])[0]
            masks.areas[n] = int(better.sum())
    limit = max(config.box_nms_thresh, config.crop_nms_thresh)
    return masks.pick(nms(_inclusive(masks.boxes), scores, limit))
