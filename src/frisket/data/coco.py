"""COCO's and LVIS' annotation files: images in the order of their ids, each with its objects, masks as RLE.

Use     file = CocoFile("instances_val2017.json"); file.objects(0) -> Objects; file.categories[1].name -> "person"
        paths = file.photographs("/data/coco/val2017")
Format  COCO's instances JSON; LVIS v1 (and v0.5) adds `frequency` to categories, `neg_category_ids` and
        `not_exhaustive_category_ids` to images, and names photographs by `coco_url` alone, in train2017 and val2017.
Masks   polygons go through pycocotools' own routine, whose half-open conventions areas and boxes depend on.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from frisket.data.sa1b import PIXELS
from frisket.errors import UserError
from frisket.kernels import rle

IMAGES = {"instances_val2017.json": 5000, "lvis_v1_val.json": 19809}
"""How many images the public files hold; one of these names with another number is a damaged download."""


@dataclass(frozen=True)
class Category:
    """A class of objects; frequency is LVIS' "f", "c" or "r", and "" elsewhere."""

    id: int
    name: str
    frequency: str = ""


@dataclass
class Objects:
    """What annotators drew in one photograph, original pixels.

    rles: M masks {"size": [h, w], "counts": str}; boxes: float64 (M, 4) xyxy as annotated; areas: float64 (M,) as
    annotated; crowd: bool (M,); categories, ids: int64 (M,).
    """

    rles: list[Any]
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    categories: np.ndarray
    ids: np.ndarray


class CocoFile:
    """One annotation file in memory.

    images: the JSON's own entries, ascending by id; categories: {id: Category}; lvis: whether LVIS' rules apply;
    digest: SHA-256 hex of the file's bytes.
    Raises UserError when the file is missing, no JSON, or not such a file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        record, self.digest = _read(self.path)
        try:
            self.images: list[dict[str, Any]] = sorted(record["images"], key=lambda image: int(image["id"]))
            self.categories = {
                int(c["id"]): Category(int(c["id"]), str(c.get("name", c["id"])), str(c.get("frequency", "")))
                for c in record["categories"]
            }
            known = {int(image["id"]) for image in self.images}
            if len(known) < len(self.images):
                numbers = [int(image["id"]) for image in self.images]
                twice = next(a for a, b in pairwise(numbers) if a == b)
                raise UserError(f"{path} lists the image {twice} more than once: give every image an id of its own")
            self._notes: dict[int, list[dict[str, Any]]] = defaultdict(list)
            for note in record["annotations"]:
                if note["image_id"] not in known:
                    raise UserError(
                        f"{path}: annotation {note.get('id')} belongs to image {note['image_id']}, which is not in "
                        "`images`: take the whole file as published"
                    )
                self._notes[int(note["image_id"])].append(note)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{path} is not a COCO or LVIS annotation file ({error!r} in it): give the instances JSON"
            ) from error
        self.lvis = any("neg_category_ids" in image for image in self.images)
        if not self.images:
            raise UserError(f"{path} lists no images: give a file with some")
        expected = IMAGES.get(self.path.name, len(self.images))
        if len(self.images) != expected:
            raise UserError(
                f"{path} lists {len(self.images)} images, but the public file of this name has {expected}: "
                "download it again, or rename a subset"
            )

    def __len__(self) -> int:
        return len(self.images)

    def notes(self, index: int) -> list[dict[str, Any]]:
        """The JSON's own annotations of image `index`."""
        return self._notes.get(int(self.images[index]["id"]), [])

    def annotations(self, images: int) -> int:
        """How many annotations the first `images` images have."""
        return sum(len(self.notes(index)) for index in range(images))

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of image `index`. Raises UserError where the file gives none that a photograph can have."""
        image = self.images[index]
        try:
            height, width = int(image["height"]), int(image["width"])
            if height < 1 or width < 1 or height * width > PIXELS:
                raise ValueError("not a photograph's")
            return height, width
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{self.path}: height and width of image {image['id']} are damaged ({error!r:.60})"
            ) from error

    def objects(self, index: int) -> Objects:
        """The annotations of image `index`, in the file's order. Raises UserError for one that is damaged."""
        size = self.size(index)
        notes = self.notes(index)
        try:
            boxes = np.array([note["bbox"] for note in notes], np.float64).reshape(len(notes), 4)
            if not np.isfinite(boxes).all():
                raise ValueError("a bbox that is not finite")
            return Objects(
                [rle_of(note["segmentation"], size) for note in notes],
                np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
                np.array([note["area"] for note in notes], np.float64).reshape(len(notes)),
                np.array([bool(note.get("iscrowd", 0)) for note in notes], bool),
                np.array([note["category_id"] for note in notes], np.int64).reshape(len(notes)),
                np.array([note["id"] for note in notes], np.int64).reshape(len(notes)),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{self.path}: an annotation of image {self.images[index]['id']} is damaged ({error!r}): "
                "download the file again"
            ) from error

    def photographs(self, folder: Path | str) -> list[Path]:
        """The file of every image under `folder`, which may be val2017 itself or the folder that holds it.

        LVIS photographs lie in train2017 and val2017: give the folder above. Raises UserError naming the first that is
        missing.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"images={folder} is not a folder: give the folder of the photographs, such as val2017")
        listed: dict[Path, set[str]] = {}

        def there(path: Path) -> bool:
            if path.parent not in listed:
                listed[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
            return path.name in listed[path.parent]

        paths: list[Path] = []
        missing: list[str] = []
        for image in self.images:
            names = _names(image)
            if not names:
                raise UserError(
                    f"{self.path}: image {image['id']} has neither file_name nor coco_url: it names no file"
                )
            path = next((folder / name for name in names if there(folder / name)), None)
            if path is None:
                missing.append(names[0])
            else:
                paths.append(path)
        if missing:
            raise UserError(
                f"{folder} lacks {missing[0]}, one of {len(missing)} of the {len(self)} photographs in "
                f"{self.path.name} that are not there: complete the folder, or point images= at the right one"
            )
        return paths


def _names(image: Mapping[str, Any]) -> list[str]:
    """Where an image may lie below the images folder, the likeliest first. coco_url knows LVIS' two folders."""
    url = str(image.get("coco_url", "")).split("/")
    by_url = ["/".join(url[-2:]), url[-1]] if len(url) > 2 else []
    by_name = [str(image["file_name"])] if image.get("file_name") else []
    return by_url + by_name if "neg_category_ids" in image else by_name + by_url


def rle_of(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """A COCO segmentation (polygons, runs, or compressed) as {"size", "counts": str} for an image (h, w).

    Raises ValueError, TypeError, KeyError or IndexError for what is none of the three or of another size.
    """
    if isinstance(segmentation, list):
        for polygon in segmentation or [[]]:  # pycocotools would walk along an edge of any length, pixel by pixel
            corners = np.array(polygon, np.float64)
            if corners.ndim != 1 or corners.size < 4 or corners.size % 2 or not (abs(corners) < 4 * max(size)).all():
                raise ValueError("a polygon that is no list of x, y, or lies far outside its image")
        encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    elif list(segmentation["size"]) != list(size):
        raise ValueError(f"an RLE of size {segmentation['size']} in an image of {list(size)}")
    else:
        rle.check(segmentation, size)
        listed = isinstance(segmentation["counts"], list)
        encoded = coco_mask.frPyObjects(segmentation, *size) if listed else segmentation
    counts = encoded["counts"]
    return {"size": list(size), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def _read(path: Path) -> tuple[dict[str, Any], str]:
    if not path.is_file():
        there = "is a folder or a pipe" if path.exists() else "does not exist"
        raise UserError(f"the annotation file {path} {there}: give COCO's or LVIS' instances JSON")
    try:
        data = path.read_bytes()
        return json.loads(data), hashlib.sha256(data).hexdigest()
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is not readable as JSON ({error}): download it again") from error
