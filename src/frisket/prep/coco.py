"""Source coco: a COCO (or LVIS) annotation file and its photographs.

    frisket prep configs/prep_coco.yaml inputs=instances.json images=photos out=data/mine/train

inputs  the instances JSON: polygons, runs or compressed RLE. Classes are not kept: SAM's masks have none.
Masks   one per object, crowds left out; areas and boxes are taken from the masks, not from the file.
Unit    `samples_per_shard` photographs in the order of their ids; its stamp knows their annotations and sizes.
Left    photographs on which no mask is left (of these categories, say) are left out, unless empty=true.
Source  COCO (Lin et al., arXiv 1405.0312); the filters are our choice.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from frisket.data.coco import CocoFile, rle_of
from frisket.data.sa1b import RecordError
from frisket.errors import UserError, nearest
from frisket.kernels import rle
from frisket.prep.records import (
    MaskConfig,
    PhotoConfig,
    Record,
    Reject,
    Unit,
    chunks,
    percent,
    photograph,
    record_json,
    selected,
)


@dataclass(kw_only=True)
class Config(PhotoConfig, MaskConfig):
    """An annotation file; by default every object of it that is no crowd."""

    source: str = "coco"
    images: str = ""
    """The folder of the photographs, or the one above (train2017, val2017)."""
    categories: list[str] = field(default_factory=list)
    """Names of the classes to keep; none: all."""
    crowds: bool = False
    """Keep the objects that are marked as crowds."""
    empty: bool = False
    """Keep photographs on which no mask is left."""
    min_area: int = 1
    """Pixels; smaller masks are dropped."""
    max_fraction: float = 1.0
    """Of the image; larger masks are dropped."""
    dedupe_iou: float = 2.0
    """A mask this much like an earlier one is dropped; above 1 keeps all."""


def units(config: Config) -> list[Unit]:
    """Raises UserError for a file that is none, photographs that are missing, or an unknown category."""
    if not config.images:
        raise UserError("source coco needs images=<folder>: say where the photographs of the file lie")
    file, share = CocoFile(config.inputs), percent(config.subset)
    names = {category.name: number for number, category in file.categories.items()}
    for name in config.categories:
        if name not in names:
            raise UserError(f"{config.inputs} has no category '{name}': {nearest(name, names)}")
    kept = {names[name] for name in config.categories} or set(file.categories)
    rows = []
    for index, path in enumerate(file.photographs(config.images)):
        image = file.images[index]
        notes = [
            note
            for note in file.notes(index)
            if note.get("category_id") in kept and (config.crowds or not note.get("iscrowd"))
        ]
        if selected(int(image["id"]), share) and (notes or config.empty):
            rows.append((int(image["id"]), str(path), image.get("height"), image.get("width"), notes))
    if not rows:
        raise UserError(f"{config.inputs}: no photograph is left: check subset= and categories=, or set empty=true")
    return [
        Unit(f"{number:05d}", f"{config.inputs}, images {part[0][0]}..{part[-1][0]}", _stamp(part), part)
        for number, part in enumerate(chunks(rows, config.samples_per_shard))
    ]


def _stamp(rows: Sequence[Any]) -> str:
    sizes = [Path(row[1]).stat().st_size for row in rows]
    return hashlib.sha256(json.dumps([rows, sizes]).encode()).hexdigest()


def records(config: Config, unit: Unit, reject: Reject) -> Iterator[Record]:
    """One Record per photograph; one with a damaged file or annotation is rejected."""
    for number, path, height, width, notes in unit.payload:
        key = f"coco_{number}"
        try:
            jpg, size = photograph(Path(path), where=key)
            if [height, width] != list(size):
                raise RecordError(key, f"{path} is {size[1]}x{size[0]}, but the file says {width}x{height}")
            masks = config.chosen([_mask(note, size, key) for note in notes])
        except RecordError as error:
            reject(key, error.reason)
            continue
        if masks or config.empty:
            yield Record(key, jpg, record_json(number, Path(path).name, size, masks))


def _mask(note: dict[str, Any], size: tuple[int, int], key: str) -> np.ndarray:
    """bool (H, W) of one annotation. Raises RecordError."""
    try:
        shape = rle_of(note["segmentation"], size)
        return rle.fill_many([shape], np.arange(size[0]), np.arange(size[1]))[0].astype(bool)
    except Exception as error:  # whatever pycocotools raises for polygons that are none
        raise RecordError(key, f"annotation {note.get('id')} is damaged ({error})") from error
