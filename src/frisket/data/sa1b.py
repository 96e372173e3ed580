"""One SA-1B record: check its bytes, and decode them to a `Sample` on the training grid.

Use     annotations = parse(raw["json"], where="shard x.tar, sample sa_1"); check_record(key, jpg, json)
        sample = decode(raw, image_size=1024, masks_per_image=16, rng=np.random.default_rng([seed, epoch, index]))
Format  jpg + json {image: {image_id, width, height, file_name}, annotations: [{segmentation: {size [h, w], counts},
        bbox xywh, area, predicted_iou, stability_score, …}]}; RLE is COCO's, column-major (SAM repository, README).
        Prepared shards may hold a smaller JPEG; the json keeps the original size and coordinates.
Masks   are read by filling RLE runs into the S/4 grid, never as full bitmaps; equal to nearest sampling. Our choice.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
import torch

from frisket.data.augment import drawn
from frisket.errors import UserError
from frisket.geometry import Frame, resize_image
from frisket.kernels import rle
from frisket.sample import Sample

PIXELS = 1 << 27
"""More than any photograph has: a JPEG's header, or a json, that claims more is refused before memory is asked for."""
QUALITY, CHROMA = 90, "444"
"""Of a photograph made smaller for a shard. Measured on eight of SA-1B's at 1024 px: smaller and closer to the original
than quality 95 with 4:2:0; `frisket bench rows=[sa1b_prepared]` guards it."""


class RecordError(UserError):
    """One record is bad. `where` names shard and sample, `reason` says what is wrong; str() is the sentence."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:  # Exception's default would call __init__ with the sentence alone
        return type(self), (self.where, self.reason)


@dataclass
class Annotations:
    """What the json says, original pixels. boxes (M, 4) float64 xywh; areas, predicted_iou, stability (M,) float64."""

    image_id: int
    width: int
    height: int
    rles: list[dict[str, Any]]
    boxes: np.ndarray
    areas: np.ndarray
    predicted_iou: np.ndarray
    stability: np.ndarray

    def __len__(self) -> int:
        return len(self.rles)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the original photograph."""
        return self.height, self.width


def parse(data: bytes | str, *, where: str, deep: bool = True) -> Annotations:
    """Read and check a record's json. `deep` decodes every RLE's runs; without it only the sizes are compared.

    Raises RecordError when it is no JSON, lacks `image` or `annotations`, or an RLE's size or counts are wrong.
    """
    if not data:
        raise RecordError(where, "the .json is empty, sparse or far too large")
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError(where, f"the .json is not readable ({error})") from error
    image = _field(record, "image", where, dict)
    height, width = (_whole(_field(image, name, where, (int, float)), name, where) for name in ("height", "width"))
    if height <= 0 or width <= 0 or height * width > PIXELS:
        raise RecordError(where, f"the .json says the image is {str(width)[:20]}x{str(height)[:20]} pixels")
    items = _field(record, "annotations", where, list)
    rles = [_rle(item, number, (height, width), where, deep) for number, item in enumerate(items)]
    try:
        boxes = np.array([item["bbox"] for item in items], np.float64).reshape(len(items), 4)
        areas = np.array([item["area"] for item in items], np.float64)
        predicted = np.array([item.get("predicted_iou", 1.0) for item in items], np.float64)
        stability = np.array([item.get("stability_score", 1.0) for item in items], np.float64)
    except KeyError as error:
        raise RecordError(where, f"an annotation has no {error.args[0]!r}") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise RecordError(where, f"an annotation's bbox, area or score is not a number ({error})") from error
    if not (np.isfinite(boxes).all() and np.isfinite(areas).all()):
        raise RecordError(where, "an annotation's bbox or area is not finite")
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    outside = (corners < -1).any(axis=1) | (corners > [width + 1, height + 1] * 2).any(axis=1)
    if (outside | (boxes[:, 2:] < 0).any(axis=1)).any():
        raise RecordError(where, f"mask {int(np.argmax(outside))}: its bbox does not lie in the image")
    image_id = _whole(image.get("image_id", -1), "image_id", where)
    return Annotations(image_id, width, height, rles, boxes, areas, predicted, stability)


def _whole(value: Any, name: str, where: str) -> int:
    try:
        return int(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise RecordError(where, f"the .json's {name} is {value!r:.40}, not a whole number") from error


def _field(record: Any, name: str, where: str, kind: Any) -> Any:
    if not isinstance(record, dict) or not isinstance(record.get(name), kind):
        raise RecordError(where, f"the .json has no `{name}`")
    return record[name]


def _rle(item: Any, number: int, size: tuple[int, int], where: str, deep: bool) -> dict[str, Any]:
    mask = _field(item, "segmentation", where, dict)
    if mask.get("size") != list(size):
        raise RecordError(
            where, f"mask {number} is an RLE of size {mask.get('size')!r:.40}, but the image is {list(size)}"
        )
    if deep:
        _check_runs(mask, number, size, where)
    return mask


def _check_runs(mask: dict[str, Any], number: int, size: tuple[int, int], where: str) -> None:
    try:
        rle.check(mask, size)
    except ValueError as error:
        raise RecordError(where, f"mask {number}: {error}") from error


# ---------------------------------------------------------------- JPEG


def jpeg_size(data: bytes, *, where: str = "image") -> tuple[int, int]:
    """(height, width) from the header. Raises RecordError when it is no JPEG, or claims more than PIXELS."""
    try:
        height, width = (int(n) for n in simplejpeg.decode_jpeg_header(data)[:2])
    except ValueError as error:
        raise RecordError(where, f"the .jpg is damaged or no JPEG ({error})") from error
    if height * width > PIXELS:
        raise RecordError(where, f"the .jpg claims to be {width}x{height} pixels")
    return height, width


def decode_jpeg(data: bytes, *, where: str, at_least: tuple[int, int] = (0, 0)) -> torch.Tensor:
    """JPEG -> uint8 (3, h, w) RGB at its own size, or at the smallest DCT scale that still covers `at_least` (h, w).

    Raises RecordError when the JPEG is truncated or damaged (libjpeg's warnings count as errors).
    """
    jpeg_size(data, where=where)
    height, width = at_least
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=height, min_width=width, strict=True)
    except ValueError as error:
        raise RecordError(where, f"the .jpg is truncated or damaged ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def encode_jpeg(pixels: np.ndarray, *, quality: int = QUALITY, chroma: str = CHROMA) -> bytes:
    """uint8 (h, w, 3) RGB -> JPEG; the defaults are those of a prepared photograph."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorsubsampling=chroma)


def check_sizes(stored: tuple[int, int], original: tuple[int, int], where: str) -> None:
    """The JPEG is the original, or the original resized by SAM's rule to the JPEG's own longest side."""
    if stored != original and Frame.fit(original, max(stored)).size != stored:
        raise RecordError(where, f"the .jpg is {stored[1]}x{stored[0]}, but the .json says {original[1]}x{original[0]}")


def check_record(key: str, jpg: bytes, data: bytes | str, *, shard: str | None = None) -> Annotations:
    """Everything that can be wrong with a record, tried: json, every RLE, sizes, the whole JPEG stream.

    Returns the annotations. Raises RecordError whose `reason` goes into rejected.jsonl.
    """
    where = f"shard {shard}, sample {key}" if shard else f"sample {key}"
    annotations = parse(data, where=where)
    check_sizes(jpeg_size(jpg, where=where), annotations.size, where)
    decode_jpeg(jpg, where=where, at_least=(1, 1))  # 1/8 scale: reads the whole stream, skips most arithmetic
    return annotations


# ---------------------------------------------------------------- decoding


def grid_samples(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """(rows, cols) int64, each (S/4,): the ORIGINAL row / column under each grid cell's centre, -1 in the padding.

    Cell g is centred at input coordinate 4g + 2 (pixel edges at integers), that is original (4g + 2) * H / h; the
    pixel there is its floor. Integer arithmetic, so that no rounding differs between machines.
    """
    centre = 4 * np.arange(frame.grid, dtype=np.int64) + 2
    (height, width), (h, w) = frame.original, frame.size
    return np.where(centre < h, centre * height // h, -1), np.where(centre < w, centre * width // w, -1)


def decode(
    raw: dict[str, Any],
    *,
    image_size: int,
    masks_per_image: int,
    rng: np.random.Generator,
    min_area: float = 0.0,
    max_area_fraction: float = 0.9,
    targets: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None,
    flip: float = 0.0,
    jitter: tuple[float, float] = (1.0, 1.0),
) -> Sample:
    """{"__key__", "__shard__", "jpg", "json"} -> Sample: image resized to `image_size`, at most `masks_per_image`
    masks (0 = all) drawn by `rng` on the (S/4, S/4) grid, boxes xyxy in input pixels, areas in original pixels.

    Masks under `min_area` original pixels, over `max_area_fraction` of the image (SAM, appendix A, drops > 90 %) or
    empty on the grid are not drawn. targets: frisket.proposals.targets, asked about all masks that might be, drawn or
    not, and those that are empty on the grid. flip, jitter: another view of the photograph, see frisket.data.augment;
    what it does not show is neither drawn nor a target. Raises RecordError naming shard and sample.
    """
    where = f"shard {raw.get('__shard__', '?')}, sample {raw['__key__']}"
    for ext in ("jpg", "json"):
        if ext not in raw:
            raise RecordError(where, f"has no .{ext} member")
    notes = parse(raw["json"], where=where, deep=False)
    stored = jpeg_size(raw["jpg"], where=where)
    check_sizes(stored, notes.size, where)
    frame = Frame.fit(notes.size, image_size)
    view = drawn(notes.size, image_size, flip=flip, jitter=jitter, rng=rng) if (flip, *jitter) != (0, 1, 1) else None
    target = view.scaled if view else frame.size
    # DCT scaling is quick but sharper than our resize, so it may only do the part beyond twice the target size.
    image = decode_jpeg(raw["jpg"], where=where, at_least=(2 * target[0], 2 * target[1]))
    image = view.image(image) if view else resize_image(image, frame.size)

    allowed = (notes.areas >= max(min_area, 1.0)) & (notes.areas <= max_area_fraction * notes.height * notes.width)
    order = every = np.flatnonzero(allowed)
    if masks_per_image:
        order = rng.permutation(order)
    on_grid = view.samples() if view else grid_samples(frame)
    chosen, grids = _drawn(notes, order, masks_per_image or len(order), on_grid, where)
    # SA-1B's w and h are last minus first pixel (SAM's generator), one less than COCO's; left as stored.
    corners = np.concatenate([notes.boxes[:, :2], notes.boxes[:, :2] + notes.boxes[:, 2:]], 1).astype(np.float32)
    frame = view or frame
    boxes, areas = frame.boxes_to_input(torch.from_numpy(corners)), torch.from_numpy(notes.areas.astype(np.float32))

    def shown(numbers: np.ndarray, grids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Masks, boxes and areas of these annotations."""
        if view is None:
            return torch.from_numpy(grids.view(np.bool_)), boxes[numbers], areas[numbers]
        masks = torch.from_numpy(view.turned(grids).astype(np.bool_))
        return masks, *view.cut(boxes[numbers], areas[numbers], masks)

    heat, ways = None, None
    if targets is not None:
        whole = grids if np.array_equal(chosen, every) else _filled(notes, every, on_grid, where)
        masks, around, sizes = shown(every, whole)
        seen = (around[:, 2:] > around[:, :2]).all(1) if view else slice(None)
        heat, ways = targets(masks[seen], around[seen], sizes[seen] / (notes.height * notes.width))
    masks, mine, sizes = shown(chosen, grids)
    return Sample(raw["__key__"], image, masks, mine, sizes, frame, heat=heat, ways=ways)


def _drawn(
    notes: Annotations, order: np.ndarray, wanted: int, on_grid: tuple[np.ndarray, np.ndarray], where: str
) -> tuple[np.ndarray, np.ndarray]:
    """The first `wanted` masks in `order` that are not empty on the grid: their numbers (M,) and uint8 (M, G, G)."""
    chosen: list[int] = []
    grids = [np.zeros((0, *(len(axis) for axis in on_grid)), np.uint8)]
    while len(order) and len(chosen) < wanted:
        part, order = order[: wanted - len(chosen)], order[wanted - len(chosen) :]
        filled = _filled(notes, part, on_grid, where)
        keep = filled.any(axis=(1, 2))
        chosen += part[keep].tolist()
        grids.append(filled[keep])
    return np.array(chosen, np.int64), np.concatenate(grids)


def _filled(notes: Annotations, part: np.ndarray, on_grid: tuple[np.ndarray, np.ndarray], where: str) -> np.ndarray:
    """The masks of these numbers, uint8 (M, G, G). Raises RecordError."""
    try:
        return rle.fill_many([notes.rles[number] for number in part], *on_grid)
    except ValueError:
        for number in part:
            _check_runs(notes.rles[number], int(number), notes.size, where)
        raise
