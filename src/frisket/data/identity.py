"""What a data set is, told by its content, never by a file's name or place: stands in every result.

Use     of_json(file, 100); of_shards(shards, len(shards)); of_bsds(truths, photographs, "val", 3)
Known   COCO val2017: 5,000 images, 36,781 annotations of 80 classes, 446 of them crowds. LVIS v1 val: 19,809 images,
        244,707 annotations of 1,203 classes. BSDS500: 200 / 100 / 200 photographs of train / val / test (its paper).
        Counts alone name a set, so a public set that somebody changed without adding or removing anything keeps its
        name; the digest tells the two apart. Our choice.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from frisket.data.coco import CocoFile
from frisket.data.shards import IndexedShards

JSON = {
    (False, 5000, 36781, 446, 80): ("coco", "val2017"),
    (True, 19809, 244707, 0, 1203): ("lvis", "v1_val"),
}
"""(LVIS' rules, images, annotations, crowds, classes) -> (name, split)."""
BSDS = {"train": 200, "val": 100, "test": 200}


@dataclass(frozen=True)
class Identity:
    """name: coco, lvis or bsds500 for the public set, else coco_json, lvis_json, shards, photographs or noise; split:
    of a public set; images, objects (None: not counted): how many are judged; digest: SHA-256 hex of the whole set."""

    name: str
    split: str | None
    images: int
    objects: int | None
    digest: str


def of_json(file: CocoFile, images: int) -> Identity:
    """The first `images` of an annotation file."""
    crowds = sum(bool(note.get("iscrowd", 0)) for index in range(len(file)) for note in file.notes(index))
    counts = (file.lvis, len(file), file.annotations(len(file)), crowds, len(file.categories))
    name, split = JSON.get(counts, ("lvis_json" if file.lvis else "coco_json", None))
    return Identity(name, split, images, file.annotations(images), file.digest)


def of_shards(shards: IndexedShards, images: int) -> Identity:
    """The first `images` samples of prepared shards."""
    return Identity("shards", None, images, None, shards.digest)


def of_bsds(truths: Sequence[Path], photographs: Iterable[Path], split: str, images: int) -> Identity:
    """The first `images` of a folder of drawings (.mat, in order) and photographs: names, sizes, and the drawings."""
    digest = hashlib.sha256()
    for path in photographs:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    for path in truths:
        digest.update(f"{path.name}\n".encode() + (path.read_bytes() if path.is_file() else b""))
    name, known = ("bsds500", split) if BSDS.get(split) == len(truths) else ("photographs", None)
    return Identity(name, known, images, None, digest.hexdigest())


def of_pixels(name: str, pictures: Sequence[np.ndarray]) -> Identity:
    """Pictures uint8 (H, W, 3) in memory."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(repr(picture.shape).encode() + np.ascontiguousarray(picture).tobytes())
    return Identity(name, None, len(pictures), None, digest.hexdigest())
