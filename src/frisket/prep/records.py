"""What every prep source shares: settings, units of work, SA-1B records made from masks, and the one subset rule.

    class Config(PrepConfig): …           its settings: dataclass <- configs/prep_<source>.yaml <- key=value
    def units(config): …                  -> list[Unit], in a fixed order
    def records(config, unit, reject): …  -> Iterator[Record]; frisket.prep.run checks them and writes the shards
    def write(config, unit, reject): …    or this instead: writes by itself, see embed; runs in one process
    def default_out(config): …            optional: the folder when out= is not given

A source is a file beside this one with these names, or a plug-in of the same form.
Use     Record("bsds_101085", jpg, record_json(101085, "bsds_101085.jpg", (481, 321), masks))
Format  SA-1B's json (SAM repository, README): image {image_id, width, height, file_name}, annotations [{id,
        segmentation {size, counts}, bbox xywh, area, predicted_iou, stability_score, crop_box xywh, point_coords}].
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import simplejpeg
import torch
from PIL import Image

from frisket.data.regions import DEDUPE_IOU, MAX_FRACTION, MIN_AREA, distinct, suitable
from frisket.data.sa1b import PIXELS, QUALITY, RecordError, decode_jpeg, encode_jpeg, jpeg_size
from frisket.errors import UserError
from frisket.geometry import Frame, resize_image
from frisket.kernels import rle
from frisket.place import Place
from frisket.plugins import Extensible, Room
from frisket.prompts import central_pixels, tight

SOURCES = Room("frisket.prep", "source", "units")
"""Every source, as in `source: sa1b` and configs/prep_sa1b.yaml."""


@dataclass(kw_only=True)
class PrepConfig(Extensible):
    """Shared by all sources."""

    renamed: ClassVar[dict[str, str]] = {"workers": "place.workers", "image_side": "image_size"}

    source: str = ""
    """Where photographs and masks come from: a file of frisket.prep, or a plug-in."""
    out: str = ""
    """Folder of the shards: one source, split and set of settings each."""
    split: str = "train"
    """Goes into the shards' names; some sources also choose by it."""
    task: str = "0/1"
    """"k/n": task k of a Slurm array 0..n-1 does the units k, k+n, ..."""
    strict: bool = False
    """A bad record stops the run with its sentence; else it goes to rejected.jsonl."""
    verify: bool = False
    """Read finished shards again and compare their sha256: one that differs is written anew."""
    place: Place = field(default_factory=Place)
    """Where it runs: place.workers processes; embed also takes accelerator and precision."""


@dataclass(kw_only=True)
class ShardConfig(PrepConfig):
    """Of sources that make records."""

    subset: str = "all"
    """"1pct": the images whose id's hash falls there, see records.selected."""
    samples_per_shard: int = field(default=1000, metadata={"least": 1})
    """At most so many records in a tar; of most sources also the size of a unit."""
    shard_bytes: int = field(default=1_000_000_000, metadata={"least": 1})
    """A tar is closed when it reaches this size."""


@dataclass(kw_only=True)
class PhotoConfig(ShardConfig):
    """Of sources that start from photographs."""

    inputs: str = ""
    """What the source reads: a folder, a file or a pattern; each says what."""
    image_size: int | None = field(default=None, metadata={"least": 1})
    """Longest side of the stored JPEG; null keeps the bytes. The json never changes."""
    jpeg_quality: int = field(default=QUALITY, metadata={"least": 1, "most": 100})
    """Of a JPEG that image_size makes smaller; its chroma is not subsampled."""


@dataclass(kw_only=True)
class MaskConfig(ShardConfig):
    """Of sources that choose among masks."""

    min_area: int = MIN_AREA
    """Pixels; smaller masks are dropped."""
    max_fraction: float = MAX_FRACTION
    """Of the image; larger masks are dropped."""
    dedupe_iou: float = DEDUPE_IOU
    """A mask this much like an earlier one is dropped; above 1 keeps all."""

    def chosen(self, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The bool masks (H, W) that these settings keep, in order."""
        kept = suitable(masks, min_area=max(1, self.min_area), max_fraction=self.max_fraction)
        return distinct(kept, iou=self.dedupe_iou)


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


def chunks(items: Sequence[Any], step: int) -> list[Sequence[Any]]:
    """Runs of `step` items, the last one maybe shorter."""
    return [items[start : start + step] for start in range(0, len(items), step)]


# ---------------------------------------------------------------- subset


def percent(subset: str) -> float:
    """'all' -> 100, '1pct' -> 1, '0.5pct' -> 0.5. Raises UserError for anything else."""
    share = re.fullmatch(r"(\d+(?:\.\d+)?)pct", subset)
    value = 100.0 if subset == "all" else float(share[1]) if share else -1.0
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


def record_json(image_id: int, file_name: str, size: tuple[int, int], masks: Sequence[np.ndarray]) -> bytes:
    """SA-1B json for bool masks (H, W), each non-empty, of an image of `size` (h, w); coordinates in its pixels.

    bbox is COCO's xywh (w counts pixels). Scores are 1 (the masks are true), point_coords is the innermost pixel.
    """
    height, width = size
    annotations = []
    for number, mask in enumerate(masks):
        rows, cols = tight(mask)
        annotations.append(
            {
                "id": number,
                "segmentation": rle.encode(mask),
                "bbox": [cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start],
                "area": int(np.count_nonzero(mask)),
                "predicted_iou": 1.0,
                "stability_score": 1.0,
                "crop_box": [0, 0, width, height],
                "point_coords": central_pixels(mask[None]).tolist(),
            }
        )
    image = {"image_id": image_id, "width": width, "height": height, "file_name": file_name}
    return json.dumps({"image": image, "annotations": annotations}, separators=(",", ":")).encode()


# ---------------------------------------------------------------- JPEG


def photograph(path: Path, *, where: str) -> tuple[bytes, tuple[int, int]]:
    """A picture's file as (JPEG, (h, w)): its own bytes when it is a JPEG of one or three colours, else a new JPEG of
    quality 95. Nothing is turned: masks mean the stored pixels. Raises RecordError."""
    try:
        if not path.is_file():
            raise RecordError(where, f"{path} is not a file")
        data = path.read_bytes()
        if data[:2] == b"\xff\xd8" and simplejpeg.decode_jpeg_header(data)[2] not in ("CMYK", "YCCK"):
            return data, jpeg_size(data, where=where)
        with Image.open(io.BytesIO(data)) as opened:
            if opened.height * opened.width > PIXELS:
                raise RecordError(where, f"{path} claims to be {opened.width}x{opened.height} pixels")
            pixels = np.array(opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RecordError(where, f"{path} is damaged or no picture ({error})") from error
    return encode_jpeg(pixels, quality=95), (pixels.shape[0], pixels.shape[1])


def shrink_jpeg(jpg: bytes, size: tuple[int, int], side: int | None, quality: int, *, where: str) -> bytes:
    """The JPEG with its longest side reduced to `side` by SAM's rule; its own bytes when it is no larger (or None).

    size: (h, w) of the original photograph, which its json keeps. Raises RecordError for a damaged JPEG.
    """
    if side is None or max(size) <= side:
        return jpg
    small = Frame.fit(size, side).size
    image = resize_image(decode_jpeg(jpg, where=where, at_least=small), small)
    return encode_jpeg(image.permute(1, 2, 0).contiguous().to(torch.uint8).numpy(), quality=quality)
