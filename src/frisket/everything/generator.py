"""Segment everything: a grid of clicks over the photograph, three masks each, then filters that keep the good ones.

Use     predictor.set_image("photo.jpg"); found = everything(predictor, EverythingConfig())   # found.rles, found.iou, …
        for points, prediction in grid_batches(predictor, 16): …      # low-resolution logits, unfiltered
        candidates = survivors(predictor, config)                     # low-resolution logits after filters and NMS
Add     a strategy: one function like `grid`, which yields `Candidates`, and its line in STRATEGIES.
Source  The automatic mask generator of Segment Anything (arXiv 2304.02643, appendix B) with the released defaults and
        names of settings. Predicted IoU above and stability at or above their limits, box NMS by predicted IoU, in each
        crop and then over crops (smaller crops first); boxes reach from first to last pixel.
Ours    Stability and boxes are told from low-resolution logits (frisket.kernels.upscaled): the kept set is that of the
        plain generator, which enlarges every mask. An empty mask is never kept, and nothing found is no error.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from frisket.errors import UserError, nearest
from frisket.everything.crops import Crop, crops, near_inner_edge
from frisket.geometry import Frame, boxes_of_masks
from frisket.kernels import rle
from frisket.kernels.nms import nms
from frisket.kernels.upscaled import encode, judge
from frisket.predict.predictor import Predictor
from frisket.sample import Prediction


@dataclass
class EverythingConfig:
    """SAM's settings under SAM's names; 0 switches a limit or the clean-up off.

    strategy: one of STRATEGIES; points_per_side: of the grid over the photograph; points_per_batch: decoded at once;
    stability_score_offset: logits above and below 0; box_nms_thresh, crop_nms_thresh: largest box IoU of two kept
    masks; crop_n_layers: layer i adds 2^i x 2^i overlapping crops, each with a grid that
    crop_n_points_downscale_factor^i divides; crop_overlap_ratio: of the photograph's short side, in layer 1;
    min_mask_region_area: islands and holes below so many pixels are removed.
    """

    strategy: str = "grid"
    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0

    def check(self) -> None:
        """Raise UserError naming the first setting that makes no sense."""
        if self.strategy not in STRATEGIES:
            raise UserError(f"strategy '{self.strategy}' does not exist: {nearest(self.strategy, STRATEGIES)}")
        for name in ("points_per_side", "points_per_batch", "crop_n_points_downscale_factor"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("crop_n_layers", "min_mask_region_area", "stability_score_offset"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.crop_overlap_ratio < 1:
            raise UserError(f"crop_overlap_ratio={self.crop_overlap_ratio} must be at least 0 and less than 1")


@dataclass
class Candidates:
    """N masks of one picture that passed the filters.

    points (N, 2): the click of each, that picture's pixels; logits (N, G, G) on the grid of its padded input; iou (N,):
    predicted; stability (N,); boxes: long (N, 4), first and last column and row, (x0, y0, x1, y1); asked: how many
    masks there were before the filters, highest: the best predicted IoU among those.
    """

    points: Tensor
    logits: Tensor
    iou: Tensor
    stability: Tensor
    boxes: Tensor
    asked: int
    highest: float

    def __len__(self) -> int:
        return len(self.iou)

    @staticmethod
    def pick(parts: list["Candidates"], chosen: Tensor) -> "Candidates":
        """Those of long `chosen` (K,), counted through all `parts` (at least one), which are not joined on the way:
        the logits of a dense grid take gigabytes."""
        ends = torch.tensor([len(part) for part in parts], device=chosen.device).cumsum(0)
        owner = torch.bucketize(chosen, ends, right=True)
        picked = {}
        for name in ("points", "logits", "iou", "stability", "boxes"):
            first = getattr(parts[0], name)
            picked[name] = first.new_empty(len(chosen), *first.shape[1:])
            for number, part in enumerate(parts):
                mine = owner == number
                picked[name][mine] = getattr(part, name)[chosen[mine] - (ends[number] - len(part))]
        asked, highest = sum(part.asked for part in parts), max(part.highest for part in parts)
        return Candidates(**picked, asked=asked, highest=highest)


@dataclass
class Everything:
    """N masks of the photograph, in the generator's order (best predicted IoU first, when there are no crops).

    rles: COCO RLE; boxes: float (N, 4) xyxy, ending after the last pixel; areas: long (N,); iou, stability (N,);
    points (N, 2); crops: long (N, 4) xyxy, where the photograph was cut; size: its (h, w); asked: masks before the
    filters, highest: the best predicted IoU among those. All on the CPU, in original pixels.
    """

    rles: list[dict[str, Any]]
    boxes: Tensor
    areas: Tensor
    iou: Tensor
    stability: Tensor
    points: Tensor
    crops: Tensor
    size: tuple[int, int]
    asked: int
    highest: float

    def __len__(self) -> int:
        return len(self.rles)

    def records(self) -> list[dict[str, Any]]:
        """One annotation for each mask with the fields of SA-1B; bbox and crop_box are xywh."""

        def xywh(box: list[float]) -> list[float]:
            return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

        return [
            {
                "segmentation": self.rles[n],
                "area": int(self.areas[n]),
                "bbox": xywh(self.boxes[n].tolist()),
                "predicted_iou": float(self.iou[n]),
                "point_coords": [self.points[n].tolist()],
                "stability_score": float(self.stability[n]),
                "crop_box": xywh(self.crops[n].tolist()),
            }
            for n in range(len(self))
        ]


# ---------------------------------------------------------------- asking


def grid_points(points_per_side: int, size: tuple[int, int]) -> Tensor:
    """SAM's grid: points (n * n, 2) at ((i + 0.5) / n) of width and height of a picture (h, w), row by row, in its
    pixels."""
    steps = (torch.arange(points_per_side, dtype=torch.float64) + 0.5) / points_per_side
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return (torch.stack([x, y], dim=-1).reshape(-1, 2) * torch.tensor([size[1], size[0]])).float()


def ask_points(predictor: Predictor, points: Tensor) -> Prediction:
    """One foreground click a row, points (P, 2) original px: three masks each, logits (P, 3, G, G) and IoU (P, 3)."""
    return predictor.ask(predictor.prompts(points=points[:, None]), multimask=True)


def grid_batches(
    predictor: Predictor, points_per_side: int = 32, *, batch: int = 64
) -> Iterator[tuple[Tensor, Prediction]]:
    """The grid's answers, `batch` points at a time: (points (P, 2) original px, logits (P, 3, G, G) and IoU (P, 3)).

    The predictor's photograph must be set. Logits stay on the model's device, on the grid of the padded input;
    `frisket.geometry.upscale_logits(logits.flatten(0, 1), predictor.frame)` brings them to the photograph's size.
    """
    for points in grid_points(points_per_side, predictor.frame.original).split(batch):
        yield points, ask_points(predictor, points)


def grid(predictor: Predictor, config: EverythingConfig) -> Iterator[Candidates]:
    """SAM's own strategy: every point of a regular grid."""
    for points, prediction in grid_batches(predictor, config.points_per_side, batch=config.points_per_batch):
        yield sift(points, prediction, predictor.frame, config)


Strategy = Callable[[Predictor, EverythingConfig], Iterator[Candidates]]
STRATEGIES: dict[str, Strategy] = {"grid": grid}
"""name -> function that asks about the predictor's photograph and yields what passes `sift`, batch by batch."""


# ---------------------------------------------------------------- keeping


def sift(points: Tensor, prediction: Prediction, frame: Frame, config: EverythingConfig) -> Candidates:
    """The masks of one batch, P points (P, 2) and C masks each, that pass the two filters and are not empty."""
    count = prediction.iou.shape[1]
    iou, logits = prediction.iou.flatten(), prediction.logits.flatten(0, 1)
    sure = iou > config.pred_iou_thresh if config.pred_iou_thresh > 0 else torch.ones_like(iou, dtype=torch.bool)
    index = sure.nonzero()[:, 0]
    found = judge(logits[index], frame, offset=config.stability_score_offset, at_least=config.stability_score_thresh)
    kept = found.kept & (found.area > 0)
    index = index[kept]
    clicks = points.to(index.device)[index // count]
    best = float(iou.max()) if len(iou) else -math.inf
    return Candidates(clicks, logits[index], iou[index], found.stability[kept], found.boxes[kept], len(iou), best)


def survivors(predictor: Predictor, config: EverythingConfig, crop: Crop | None = None) -> Candidates:
    """All of the predictor's picture that pass the filters and box NMS, best predicted IoU first.

    crop: where that picture was cut from the photograph; masks that its inner edges may have cut are left out.
    """
    parts = list(STRATEGIES[config.strategy](predictor, config))
    if not parts:
        raise AssertionError(f"strategy '{config.strategy}' asked about nothing")
    boxes, iou = torch.cat([part.boxes for part in parts]), torch.cat([part.iou for part in parts])
    index = torch.arange(len(iou), device=iou.device)
    if crop is not None:
        index = index[~near_inner_edge(boxes, crop)]
    return Candidates.pick(parts, index[nms(boxes[index], iou[index], config.box_nms_thresh)])


@torch.inference_mode()
def everything(predictor: Predictor, config: EverythingConfig | None = None) -> Everything:
    """Every mask of the predictor's photograph, see `Everything`. Finding none is an answer, not an error.

    Raises UserError for settings that make no sense, and for crops of a photograph that was set already fitted.
    """
    config = config or EverythingConfig()
    config.check()
    size = predictor.frame.original
    whole, *inner = crops(size, config.crop_n_layers, config.crop_overlap_ratio)
    parts = [_of(predictor, config, whole)]
    if inner and tuple(predictor.image.shape[1:]) != size:
        raise UserError("crop_n_layers needs the photograph at its own size: use set_image, or crop_n_layers=0")
    for crop in inner:
        cut = Predictor(predictor.sam, image_size=predictor.side, batch=predictor.batch)
        window = predictor.image[:, crop.y0 : crop.y1, crop.x0 : crop.x1]
        cut.set_image(window.permute(1, 2, 0).numpy())
        side = max(1, config.points_per_side // config.crop_n_points_downscale_factor**crop.layer)
        parts.append(_of(cut, replace(config, points_per_side=side), crop))
    found = _join(parts, size)
    if inner:
        area = (found.crops[:, 2:] - found.crops[:, :2]).prod(dim=1)
        found = _pick(found, nms(_inclusive(found.boxes), 1.0 / area, config.crop_nms_thresh))
    if config.min_mask_region_area > 0:
        found = _cleaned(found, config)
    return found


def _of(predictor: Predictor, config: EverythingConfig, crop: Crop) -> Everything:
    """What the predictor's picture, cut out as `crop`, holds, in the photograph's pixels."""
    found = survivors(predictor, config, crop)
    corner = torch.tensor([crop.x0, crop.y0])
    boxes = found.boxes.cpu() + corner.repeat(2)
    boxes[:, 2:] += 1
    rles = [rle.placed(one, crop.whole, (crop.y0, crop.x0)) for one in encode(found.logits, predictor.frame)]
    return Everything(
        rles,
        boxes.float(),
        torch.tensor([rle.area(one) for one in rles], dtype=torch.long),
        found.iou.cpu(),
        found.stability.cpu(),
        found.points.cpu() + corner,
        torch.tensor([[crop.x0, crop.y0, crop.x1, crop.y1]]).expand(len(found), 4),
        crop.whole,
        found.asked,
        found.highest,
    )


TENSORS = ("boxes", "areas", "iou", "stability", "points", "crops")


def _join(parts: list[Everything], size: tuple[int, int]) -> Everything:
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS}
    asked, highest = sum(part.asked for part in parts), max(part.highest for part in parts)
    rles = [one for part in parts for one in part.rles]
    return Everything(rles, **joined, size=size, asked=asked, highest=highest)


def _pick(found: Everything, chosen: Tensor) -> Everything:
    return replace(
        found, rles=[found.rles[n] for n in chosen.tolist()], **{name: getattr(found, name)[chosen] for name in TENSORS}
    )


def _inclusive(boxes: Tensor) -> Tensor:
    """Boxes as NMS compares them: to the last pixel."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - 1], dim=1)


# ---------------------------------------------------------------- small regions


def _cleaned(found: Everything, config: EverythingConfig) -> Everything:
    """Small holes and islands removed, then box NMS once more in which untouched masks win."""
    scores = torch.ones(len(found))
    found = replace(found, rles=list(found.rles), boxes=found.boxes.clone(), areas=found.areas.clone())
    rows, columns = (np.arange(length) for length in found.size)
    for n, one in enumerate(found.rles):
        mask = rle.fill_many([one], rows, columns)[0].astype(bool)
        better = without_islands(without_holes(mask, config.min_mask_region_area), config.min_mask_region_area)
        if not np.array_equal(mask, better):
            scores[n] = 0
            found.rles[n] = rle.encode(better)
            found.boxes[n] = boxes_of_masks(torch.from_numpy(better)[None])[0]
            found.areas[n] = int(better.sum())
    limit = max(config.box_nms_thresh, config.crop_nms_thresh)
    return _pick(found, nms(_inclusive(found.boxes), scores, limit))


def regions_of(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected regions of a bool mask (H, W), numbered from 1, and how many; pixels that share a corner connect."""
    numbers = np.zeros(mask.shape, np.int32)
    return numbers, int(ndimage.label(mask, np.ones((3, 3), bool), output=numbers))  # type: ignore[arg-type]


def without_holes(mask: np.ndarray, smallest: int) -> np.ndarray:
    """bool (H, W) with background regions of less than `smallest` pixels filled."""
    regions, _ = regions_of(~mask)
    small = np.bincount(regions.ravel()) < smallest
    small[0] = False
    return mask | small[regions]


def without_islands(mask: np.ndarray, smallest: int) -> np.ndarray:
    """bool (H, W) without regions of less than `smallest` pixels; the largest stays when all are small."""
    regions, count = regions_of(mask)
    if not count:
        return mask
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    wanted = sizes >= smallest
    wanted[0] = False
    if not wanted.any():
        wanted[sizes.argmax()] = True
    return wanted[regions]
