"""Words shared by the sources: units of work, SA-1B records made from masks, and the one subset rule.

Use     Record("bsds_101085", jpg, record_json(101085, "bsds_101085.jpg", (481, 321), masks))
Format  SA-1B's json (SAM repository, README): image {image_id, width, height, file_name}, annotations [{id,
        segmentation {size, counts}, bbox xywh, area, predicted_iou, stability_score, crop_box xywh, point_coords}].
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from scipy import ndimage

from frisket.data.regions import DEDUPE_IOU, MAX_FRACTION, MIN_AREA
from frisket.data.sa1b import QUALITY, decode_jpeg, encode_jpeg
from frisket.errors import UserError
from frisket.geometry import Frame, resize_image
from frisket.kernels import rle
from frisket.plugins import Extensible


@dataclass
class PrepConfig(Extensible):
    """Settings of `frisket prep`. One flat list: a source ignores what is not its own (named in brackets)."""

    source: Literal["sa1b", "bsds500", "synthetic", "embed"]
    out: str = ""  # folder of the shards: one source, split and set of settings each. [embed] default: see embed.py
    inputs: str = ""  # [sa1b, bsds500, embed] a folder (sa1b, embed: also a glob or a brace pattern of tars)
    split: str = "train"  # goes into the shards' names; [bsds500] also which photographs, [synthetic] which seeds
    subset: str = "all"  # "1pct": the images whose id's hash falls there, see records.selected
    workers: int = 2  # processes; 1 works in this one
    task: str = "0/1"  # "k/n": task k of a Slurm array 0..n-1 does the units k, k+n, ...
    strict: bool = False  # a bad record stops the run with its sentence; else it goes to rejected.jsonl
    seed: int = 0  # [synthetic]
    samples_per_shard: int = 1000  # [bsds500, synthetic] also the size of a unit
    shard_bytes: int = 1_000_000_000
    image_side: int | None = None  # longest side of the stored JPEG; None keeps the bytes. The json never changes
    jpeg_quality: int = QUALITY  # of a JPEG that image_side makes smaller; its chroma is not subsampled
    input_sha256: bool = False  # [sa1b] note the sha256 of every input tar in index.json (reads it once more)
    min_area: int = MIN_AREA  # [bsds500, synthetic] pixels
    max_fraction: float = MAX_FRACTION  # [bsds500, synthetic] of the image
    dedupe_iou: float = DEDUPE_IOU  # [bsds500, synthetic]
    count: int = 1000  # [synthetic] images
    side: int = 384  # [synthetic] longest side in pixels
    teacher: str = "sam_vit_h"  # [embed] zoo name or weights, as frisket.checkpoint.load takes it
    dtype: Literal["fp16", "int8"] = "fp16"  # [embed] as stored
    precision: Literal["fp32", "bf16"] = "fp32"  # [embed] in which the teacher runs
    batch: int = 4  # [embed] images per forward pass
    image_size: int = 1024  # [embed] the teacher's input side
    device: str = "auto"  # [embed]


Reject = Callable[[str, str], None]  # (key, reason); raises under strict=true


@dataclass(frozen=True)
class Unit:
    """One piece of work that a single process does from start to end: a source tar, a run of photographs, a shard.

    name: letters, digits and underscores, unique in its source; part of its shards' names. where: the file or range a
    person knows it by. stamp: what must not change for finished work to count (say, the tar's size), as JSON keeps it.
    payload: the source's own; picklable. output: what its shards' names start with; empty: <source>-<split>-<name>.
    """

    name: str
    where: str
    stamp: Any
    payload: Any = field(compare=False)
    output: str = ""


@dataclass(frozen=True)
class Record:
    """One photograph and its masks as bytes, ready for a shard. key has no dot and no slash."""

    key: str
    jpg: bytes
    json: bytes


def unit_name(text: str) -> str:
    """`text` reduced to letters, digits and underscores."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")


# ---------------------------------------------------------------- subset


def percent(subset: str) -> float:
    """'all' -> 100, '1pct' -> 1, '0.5pct' -> 0.5. Raises UserError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)pct", subset)
    value = 100.0 if subset == "all" else float(found[1]) if found else -1.0
    if not 0 < value <= 100:
        raise UserError(f"subset='{subset}' is not a subset: write all, or a share such as 1pct")
    return value


def selected(image_id: int, share: float) -> bool:
    """Whether an image is in the `share` (percent) subset; the same everywhere, and 1pct lies inside 10pct.

    The rule: the first four bytes of sha256(decimal image id), as a big-endian integer, are below share/100 of 2^32.
    """
    draw = int.from_bytes(hashlib.sha256(str(image_id).encode()).digest()[:4], "big")
    return draw < share / 100 * 2**32


# ---------------------------------------------------------------- masks -> json


def interior_point(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of a pixel deep inside a non-empty bool mask (H, W): greatest chessboard distance, first maximum.

    Large masks are searched on every k-th pixel. The image border counts as outside: the point keeps away from it.
    """
    (rows, cols), full = _crop(mask)
    step = max(1, min(full.shape) // 48)
    inside = full[::step, ::step]
    if not inside.any():  # thinner than the step and between its pixels
        step, inside = 1, full
    depth = np.asarray(ndimage.distance_transform_cdt(np.pad(inside, 1), metric="chessboard"))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(cols.start + step * x), int(rows.start + step * y)


def _crop(mask: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """The tight (rows, columns) slices of a non-empty mask, and the mask inside them."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = slice(int(ys[0]), int(ys[-1]) + 1), slice(int(xs[0]), int(xs[-1]) + 1)
    return box, mask[box]


def record_json(image_id: int, file_name: str, size: tuple[int, int], masks: Sequence[np.ndarray]) -> bytes:
    """SA-1B json for bool masks (H, W), each non-empty, of an image of `size` (h, w); coordinates in its pixels.

    bbox is COCO's xywh (w counts pixels). Scores are 1 (the masks are true), point_coords is one point deep inside.
    """
    height, width = size
    annotations = []
    for number, mask in enumerate(masks):
        (rows, cols), _ = _crop(mask)
        annotations.append(
            {
                "id": number,
                "segmentation": rle.encode(mask),
                "bbox": [cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start],
                "area": int(np.count_nonzero(mask)),
                "predicted_iou": 1.0,
                "stability_score": 1.0,
                "crop_box": [0, 0, width, height],
                "point_coords": [list(interior_point(mask))],
            }
        )
    image = {"image_id": image_id, "width": width, "height": height, "file_name": file_name}
    return json.dumps({"image": image, "annotations": annotations}, separators=(",", ":")).encode()


# ---------------------------------------------------------------- JPEG


def shrink_jpeg(jpg: bytes, size: tuple[int, int], side: int | None, quality: int, *, where: str) -> bytes:
    """The JPEG with its longest side reduced to `side` by SAM's rule; its own bytes when it is no larger (or None).

    size: (h, w) of the original photograph, which its json keeps. Raises RecordError for a damaged JPEG.
    """
    if side is None or max(size) <= side:
        return jpg
    small = Frame.fit(size, side).size
    image = resize_image(decode_jpeg(jpg, where=where, at_least=small), small)
    return encode_jpeg(image.permute(1, 2, 0).contiguous().to(torch.uint8).numpy(), quality=quality)
