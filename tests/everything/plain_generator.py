"""SAM's automatic mask generator as its paper and defaults describe it, with every mask at full size: for comparison.

Nothing here is shared with frisket but the model itself (`encode`, `decode`): own resizing to the input, own points,
own enlargement, thresholds on the enlarged logits, NMS pair by pair, regions by OpenCV, RLE by pycocotools.
"""

import math
from itertools import product
from types import SimpleNamespace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask

from frisket.sample import Prompts

DEFAULTS = {
    "points_per_side": 32, "points_per_batch": 64, "pred_iou_thresh": 0.88, "stability_score_thresh": 0.95,
    "stability_score_offset": 1.0, "box_nms_thresh": 0.7, "crop_n_layers": 0, "crop_nms_thresh": 0.7,
    "crop_overlap_ratio": 512 / 1500, "crop_n_points_downscale_factor": 1, "min_mask_region_area": 0,
}  # fmt: skip


def generate(sam, image: np.ndarray, **changes) -> tuple[list[dict], int]:
    """Masks of uint8 (H, W, 3), each {mask bool (H, W), iou, stability, point, box inclusive xyxy, crop}; and how many
    there were before the filters."""
    how = SimpleNamespace(**DEFAULTS | changes)
    height, width = image.shape[:2]
    found, asked = [], 0
    for crop, layer in crop_boxes(height, width, how):
        x0, y0, x1, y1 = crop
        here = []
        for mask in masks_of(
            sam, image[y0:y1, x0:x1], how.points_per_side // how.crop_n_points_downscale_factor**layer, how
        ):
            asked += 1
            if how.pred_iou_thresh > 0 and not mask["iou"] > how.pred_iou_thresh:
                continue
            if how.stability_score_thresh > 0 and not mask["stability"] >= how.stability_score_thresh:
                continue
            box = box_of(mask["mask"])
            box = (box[0] + x0, box[1] + y0, box[2] + x0, box[3] + y0)
            edges = zip(box, crop, (0, 0, width, height))
            if any(abs(b - c) <= 20 and not abs(b - w) <= 20 for b, c, w in edges):
                continue
            whole = np.zeros((height, width), bool)
            whole[y0:y1, x0:x1] = mask["mask"]
            point = (mask["point"][0] + x0, mask["point"][1] + y0)
            here.append({**mask, "mask": whole, "box": box, "point": point, "crop": crop})
        found += suppress(here, [m["iou"] for m in here], how.box_nms_thresh)
    if how.crop_n_layers:
        areas = [(m["crop"][2] - m["crop"][0]) * (m["crop"][3] - m["crop"][1]) for m in found]
        found = suppress(found, [1 / a for a in areas], how.crop_nms_thresh)
    if how.min_mask_region_area:
        untouched = []
        for m in found:
            filled, changed = remove(m["mask"], how.min_mask_region_area, holes=True)
            m["mask"], also = remove(filled, how.min_mask_region_area, holes=False)
            m["box"] = box_of(m["mask"])
            untouched.append(float(not changed and not also))
        found = suppress(found, untouched, max(how.box_nms_thresh, how.crop_nms_thresh))
    return found, asked


def crop_boxes(height: int, width: int, how) -> list[tuple[tuple[int, int, int, int], int]]:
    boxes = [((0, 0, width, height), 0)]
    for i in range(how.crop_n_layers):
        n = 2 ** (i + 1)
        overlap = int(how.crop_overlap_ratio * min(height, width) * (2 / n))
        w = math.ceil((overlap * (n - 1) + width) / n)
        h = math.ceil((overlap * (n - 1) + height) / n)
        lefts, tops = [int((w - overlap) * k) for k in range(n)], [int((h - overlap) * k) for k in range(n)]
        boxes += [((x, y, min(x + w, width), min(y + h, height)), i + 1) for x, y in product(lefts, tops)]
    return boxes


@torch.no_grad()
def masks_of(sam, image: np.ndarray, points_per_side: int, how):
    """Every mask of a grid over one picture, enlarged to its size, before any filter."""
    side, (height, width) = sam.image_size, image.shape[:2]
    scale = side / max(height, width)
    h, w = int(height * scale + 0.5), int(width * scale + 0.5)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    small = F.interpolate(pixels, (h, w), mode="bilinear", antialias=True) if (h, w) != (height, width) else pixels
    padded = F.pad(small, (0, side - w, 0, side - h))
    embedding = sam.encode(padded, torch.tensor([[h, w]]))
    steps = (np.arange(points_per_side) + 0.5) / points_per_side
    grid = [(x * width, y * height) for y in steps for x in steps]
    for start in range(0, len(grid), how.points_per_batch):
        points = grid[start : start + how.points_per_batch]
        # in float32, as a predictor holds points: the decoder makes 1e-3 of a logit out of the last bit of a point
        scaled = torch.tensor(points, dtype=torch.float32)[:, None] * torch.tensor([w / width, h / height])
        prompts = Prompts(points=scaled, labels=torch.ones(len(points), 1, dtype=torch.long))
        low = sam.decode(embedding, torch.zeros(len(points), dtype=torch.long), prompts, multimask=True)
        for point, logits, ious in zip(points, low.logits, low.iou):
            full = F.interpolate(logits[None], (side, side), mode="bilinear", align_corners=False)
            full = F.interpolate(full[..., :h, :w], (height, width), mode="bilinear", align_corners=False)[0]
            for mask, iou in zip(full, ious):
                inner, outer = mask > how.stability_score_offset, mask > -how.stability_score_offset
                stability = float(inner.sum() / outer.sum())
                yield {"mask": (mask > 0).numpy(), "iou": float(iou), "stability": stability, "point": point}


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """First and last column and row, (x0, y0, x1, y1)."""
    ys, xs = np.nonzero(mask)
    return (int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())) if len(xs) else (0, 0, 0, 0)


def suppress(found: list[dict], scores: list[float], limit: float) -> list[dict]:
    """Greedy NMS on boxes, best score first, earlier ones first among equals."""
    kept: list[dict] = []
    for n in sorted(range(len(found)), key=lambda n: (-scores[n], n)):
        if all(box_iou(found[n]["box"], other["box"]) <= limit for other in kept):
            kept.append(found[n])
    return kept


def box_iou(a: tuple, b: tuple) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    return wide * high / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high)


def remove(mask: np.ndarray, least: int, holes: bool) -> tuple[np.ndarray, bool]:
    """Holes filled or islands dropped that have fewer than `least` pixels, and whether there were any."""
    count, regions, stats, _ = cv2.connectedComponentsWithStats((mask ^ holes).astype(np.uint8), 8)
    sizes = stats[1:, -1]
    small = [n + 1 for n in range(count - 1) if sizes[n] < least]
    if not small:
        return mask, False
    if holes:
        return mask | np.isin(regions, small), True
    large = [n for n in range(1, count) if n not in small] or [int(np.argmax(sizes)) + 1]
    return np.isin(regions, large), True


def mask_iou(masks: list[np.ndarray], rles: list[dict]) -> np.ndarray:
    """IoU (n, m) of plain masks and RLEs, by pycocotools."""
    plain = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    return np.asarray(coco_mask.iou(plain, rles, [0] * len(rles))).reshape(len(plain), len(rles))
