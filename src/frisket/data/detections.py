"""A detector's results file as arrays: boxes to prompt with, or masks to score; checked against the annotation file.

Use     boxes = read_boxes("coco_instances_results_vitdet.json", file); boxes.of(image_id) -> (xywh, categories, scores)
        masks = read_masks("results.json", file); masks.of(image_id) -> (rles, categories, scores)
Format  COCO's results JSON: a list of {"image_id", "category_id", "score", "bbox": [x, y, w, h] and/or "segmentation"}.
        Whichever is not wanted is dropped while reading: masks stay small, and a `bbox` beside a mask, from which
        pycocotools and lvis would take the area, is never seen.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from frisket.data.coco import CocoFile, rle_of
from frisket.errors import UserError

SLACK = 2.0  # pixels that a detector's box may leave its photograph by


class Detections:
    """Detections by image, in the order of the file. shapes: float64 (D, 4) xywh, or an object array of RLEs; digest:
    SHA-256 hex of the file."""

    def __init__(
        self, images: np.ndarray, categories: np.ndarray, scores: np.ndarray, shapes: np.ndarray, digest: str = ""
    ) -> None:
        order = np.argsort(images, kind="stable")
        self.images, self.categories, self.scores = images[order], categories[order], scores[order]
        self.shapes, self.digest = shapes[order], digest

    def __len__(self) -> int:
        return len(self.images)

    def of(self, image_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(shapes, categories, scores) of one image; empty when it has none."""
        start, stop = np.searchsorted(self.images, [image_id, image_id + 1])
        return self.shapes[start:stop], self.categories[start:stop], self.scores[start:stop]


def read_boxes(path: Path | str, file: CocoFile) -> Detections:
    """Boxes xywh of a results file. Raises UserError when it is missing, empty, not such a file, names images or
    categories that `file` has not, holds scores that are no numbers, or boxes that are not [x, y, width, height]."""
    rows, digest = _rows(path, lambda item: _row(item, "bbox", lambda box: _four(box)))
    images, categories, scores = _checked(path, rows, file)
    boxes = np.array([row[3] for row in rows], np.float64)
    for number in np.flatnonzero(~np.isfinite(boxes).all(axis=1)):
        raise UserError(f"{path}: detection {number} has no bbox of four numbers: write [x, y, width, height]")
    _are_xywh(path, images, boxes, file)
    return Detections(images, categories, scores, boxes, digest)


def read_masks(path: Path | str, file: CocoFile) -> Detections:
    """Masks of a results file, as RLE at the photographs' sizes. Raises UserError as `read_boxes`, and for damage."""
    rows, digest = _rows(path, lambda item: _row(item, "segmentation", lambda shape: shape))
    images, categories, scores = _checked(path, rows, file)
    sizes = {int(image["id"]): file.size(index) for index, image in enumerate(file.images)}
    shapes = np.empty(len(rows), object)
    for number, row in enumerate(rows):
        try:
            shapes[number] = rle_of(row[3], sizes[int(row[0])])
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise UserError(
                f"{path}: the segmentation of detection {number} is damaged or missing ({error})"
            ) from error
    return Detections(images, categories, scores, shapes, digest)


def _rows(path: Path | str, keep: Callable[[dict[str, Any]], Any]) -> tuple[list[tuple[Any, ...]], str]:
    """The file's entries, each reduced by `keep` as soon as it is read, and the file's digest."""
    if not Path(path).is_file():
        raise UserError(f"there is no results file {path}: give a detector's results as COCO writes them (.json)")
    try:
        data = Path(path).read_bytes()
        rows = json.loads(data, object_hook=keep)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable as JSON ({error}): write it again") from error
    if not isinstance(rows, list):
        raise UserError(f"{path} is not a list of detections: give COCO's results format, not an annotation file")
    if not rows:
        raise UserError(f"{path} holds no detection: nothing can be prompted or scored, run the detector again")
    for number, row in enumerate(rows):
        if not isinstance(row, tuple):
            raise UserError(f"{path}: entry {number} is no detection: each needs image_id, category_id, bbox and score")
    return rows, hashlib.sha256(data).hexdigest()


def _row(item: dict[str, Any], shape: str, change: Callable[[Any], Any]) -> Any:
    """(image, category, score, shape) of a detection; other objects in the file (an RLE) stay as they are."""
    if "image_id" not in item and "category_id" not in item:
        return item
    return item.get("image_id"), item.get("category_id"), item.get("score"), change(item.get(shape))


def _four(box: Any) -> tuple[float, ...]:
    good = isinstance(box, list) and len(box) == 4 and all(isinstance(edge, int | float) for edge in box)
    return tuple(box) if good else (np.nan,) * 4


def _checked(path: Path | str, rows: list[tuple[Any, ...]], file: CocoFile) -> tuple[np.ndarray, ...]:
    """image ids, category ids int64 and scores float64, each (D,)."""
    columns = []
    for place, name in enumerate(("image_id", "category_id", "score")):
        try:
            column = np.array([row[place] for row in rows], np.float64).reshape(len(rows))
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{path}: some detection's {name} is not a number ({error})") from error
        for number in np.flatnonzero(~np.isfinite(column)):
            raise UserError(f"{path}: the {name} of detection {number} is {rows[number][place]}: it must be a number")
        columns.append(column)
    images, categories = columns[0].astype(np.int64), columns[1].astype(np.int64)
    known = np.array([int(image["id"]) for image in file.images])
    unknown = ~np.isin(images, known)
    if unknown.any():
        raise UserError(
            f"{path}: {int(unknown.sum())} of {len(rows)} detections are of images that {file.path.name} does not "
            f"have, such as {images[unknown][0]}: give the results and the annotations of the same set"
        )
    unknown = ~np.isin(categories, list(file.categories))
    if unknown.any():
        raise UserError(
            f"{path}: category {categories[unknown][0]} of {int(unknown.sum())} detections is not in {file.path.name}: "
            "write the set's own category ids, not 0, 1, 2 …"
        )
    return images, categories, columns[2]


def _are_xywh(path: Path | str, images: np.ndarray, boxes: np.ndarray, file: CocoFile) -> None:
    """Refuse boxes that were written as corners, or in other pixels than the photograph's."""
    sizes = {int(image["id"]): file.size(index) for index, image in enumerate(file.images)}
    limits = np.array([sizes[int(image)][::-1] for image in images], np.float64) + SLACK
    first, second = boxes[:, :2], boxes[:, 2:]
    inside = (first >= -SLACK).all(axis=1)
    as_xywh = inside & (second >= 0).all(axis=1) & (first + second <= limits).all(axis=1)
    as_xyxy = inside & (second >= first).all(axis=1) & (second <= limits).all(axis=1)
    if as_xywh.all():
        return
    example = f"detection {int(np.flatnonzero(~as_xywh)[0])}, {[float(v) for v in boxes[~as_xywh][0]]}"
    if as_xyxy.all():
        raise UserError(
            f"{path}: the boxes are written as corners [x0, y0, x1, y1] ({example}, would leave its photograph): write "
            "[x, y, width, height]"
        )
    apart = (second < 0).any(axis=1) | (first >= limits).any(axis=1) | (first + second <= -SLACK).any(axis=1)
    if apart.any() or as_xywh.mean() < 0.8:
        raise UserError(
            f"{path}: {int((~as_xywh).sum())} of {len(boxes)} boxes are not [x, y, width, height] inside their "
            f"photographs ({example}): write original pixels"
        )
