"""Rows: masks and whole training samples of SA-1B, from the bytes in a shard to tensors.

    FRISKET_DATA_ROOT=…  frisket bench rows=[rle_fill,sa1b_raw,sa1b_prepared]

On the CPU always, as in a loader's worker. The photograph is the first of $FRISKET_DATA_ROOT/sa1b_images when that
folder is there, else a made one of 1500 x 2250; its 100 masks are wavy blobs of 12 to 550 pixels radius. The baseline
ends in what ours gives, and does no more: PIL decodes and resizes (antialiased bilinear, as SAM does), pycocotools
decodes each mask, and the grid is read from it by indexing, the cheapest resize there is.
"""

import io
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from frisket.bench.harness import Case, Row, Setting, at_least, at_most
from frisket.data.sa1b import decode, encode_jpeg, grid_samples
from frisket.geometry import Frame
from frisket.kernels.rle import fill_many
from frisket.sample import Sample

MASKS = 100


def blobs(rng: np.random.Generator, size: tuple[int, int], count: int) -> list[dict[str, Any]]:
    """`count` wavy blobs in a picture of (h, w), as COCO RLE with text counts."""
    height, width = size
    rles = []
    for _ in range(count):
        radius = np.exp(rng.uniform(np.log(max(4, min(size) / 125)), np.log(min(size) / 2.7)))
        angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
        waves = sum(rng.normal(0, 0.3 / n) * np.sin(n * angle + rng.uniform(0, 7)) for n in range(1, 25))
        reach = radius * np.clip(1 + waves, 0.3, 1.7)
        x, y = rng.uniform(radius / 2, width - radius / 2), rng.uniform(radius / 2, height - radius / 2)
        sheet = Image.new("L", (width, height))
        outline = np.stack([x + reach * np.cos(angle), y + reach * np.sin(angle)], axis=1)
        ImageDraw.Draw(sheet).polygon([tuple(point) for point in outline], fill=1)
        rle: Any = coco_mask.encode(np.asfortranarray(np.asarray(sheet)))
        rles.append({"size": [height, width], "counts": rle["counts"].decode("ascii")})
    return rles


def genuine(quick: bool) -> list[Path]:
    """SA-1B's photographs, where they are; none for small sizes."""
    folder = Path(os.environ.get("FRISKET_DATA_ROOT", "")) / "sa1b_images"
    return sorted(folder.glob("*.jpg")) if "FRISKET_DATA_ROOT" in os.environ and not quick else []


def photographs(setting: Setting) -> tuple[list[np.ndarray], str]:
    """All of them, uint8 (H, W, 3), or a made one; and where they are from."""
    if files := genuine(setting.quick):
        return [simplejpeg.decode_jpeg(file.read_bytes()) for file in files], "SA-1B's photographs"
    jpg, _, source = photograph(np.random.default_rng(setting.seed), setting.quick)
    return [simplejpeg.decode_jpeg(jpg)], source


def photograph(rng: np.random.Generator, quick: bool) -> tuple[bytes, tuple[int, int], str]:
    """A JPEG, its (h, w) and where it is from."""
    if files := genuine(quick):
        jpg = files[0].read_bytes()
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpg)
        return jpg, (int(height), int(width)), f"SA-1B's {files[0].name}"
    height, width = (120, 180) if quick else (1500, 2250)
    pixels = np.full((height, width, 3), 128.0)
    for cells, strength in ((3, 60.0), (height // 25, 20.0), (height // 5, 5.0)):  # shading, objects, texture
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
        pixels += strength * (fine - 128) / 64
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    return encode_jpeg(pixels, quality=95, chroma="420"), (height, width), "a made photograph"


def annotations(rles: list[Any], size: tuple[int, int]) -> bytes:
    """An SA-1B json of these masks."""
    items = [
        {
            "id": number,
            "segmentation": rle,
            "bbox": [float(v) for v in coco_mask.toBbox(rle)],
            "area": int(coco_mask.area(rle)),
            "predicted_iou": 0.95,
            "stability_score": 0.97,
            "point_coords": [[1.0, 1.0]],
            "crop_box": [0.0, 0.0, float(size[1]), float(size[0])],
        }
        for number, rle in enumerate(rles)
    ]
    image = {"image_id": 1, "width": size[1], "height": size[0], "file_name": "sa_1.jpg"}
    return json.dumps({"image": image, "annotations": items}).encode()


def decode_and_index(rles: list[Any], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Every mask in full by pycocotools, then the grid's pixels of it: uint8 (M, h, w); -1 as an index gives 0."""
    grids = np.zeros((len(rles), len(rows), len(columns)), np.uint8)
    h, w = int((rows >= 0).sum()), int((columns >= 0).sum())
    for number, rle in enumerate(rles):
        grids[number, :h, :w] = coco_mask.decode(rle)[rows[:h, None], columns[None, :w]]
    return grids


def reference_sample(jpg: bytes, data: bytes, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """PIL + pycocotools: the resized photograph uint8 (h, w, 3) and the masks uint8 (M, G, G)."""
    photo = Image.open(io.BytesIO(jpg)).convert("RGB")
    record = json.loads(data)
    size = (record["image"]["height"], record["image"]["width"])
    frame = Frame.fit(size, image_size)
    resized = photo.resize((frame.size[1], frame.size[0]), Image.Resampling.BILINEAR)
    rles = [item["segmentation"] for item in record["annotations"]]
    return np.array(resized), decode_and_index(rles, *grid_samples(frame))


def rle_row(setting: Setting) -> Case:
    """Runs filled into the grid against full decoding."""
    rng = np.random.default_rng(setting.seed)
    size, side, count = ((90, 150), 64, 5) if setting.quick else ((1500, 2250), 1024, MASKS)
    rles = blobs(rng, size, count)
    rows, columns = grid_samples(Frame.fit(size, side))

    def differing() -> float:
        return float((fill_many(rles, rows, columns) != decode_and_index(rles, rows, columns)).sum())

    text = sum(len(rle["counts"]) for rle in rles) // count
    note = f"{count} masks of {size[0]} x {size[1]}, {text} characters each, to a grid of side {side // 4}"
    guards = [at_most("differing cells", differing, 0)]
    return Case(
        lambda: decode_and_index(rles, rows, columns), lambda: fill_many(rles, rows, columns), guards, note, "uint8"
    )


def sample_row(setting: Setting, prepared: bool) -> Case:
    """A whole Sample, from the raw JPEG or from one resized to the input side beforehand, against the raw reference."""
    rng = np.random.default_rng(setting.seed)
    side, count = (64, 5) if setting.quick else (1024, MASKS)
    jpg, size, source = photograph(rng, setting.quick)
    data = annotations(blobs(rng, size, count), size)
    mine = jpg
    if prepared:
        small, _ = reference_sample(jpg, data, side)
        mine = encode_jpeg(small)
    raw = {"__key__": "sa_1", "jpg": mine, "json": data}

    def ours() -> Sample:
        return decode(raw, image_size=side, masks_per_image=0, rng=rng, max_area_fraction=1.0)

    def off(theirs: np.ndarray) -> np.ndarray:
        return ours().image.permute(1, 2, 0).numpy().astype(np.float64) - theirs

    def level() -> float:  # of the same bytes: one decoder and resize against another
        return float(np.abs(off(reference_sample(mine, data, side)[0])).mean())

    def psnr() -> float:  # a prepared sample has been compressed once more: against what the raw one would give
        return float(10 * np.log10(255**2 / max((off(reference_sample(jpg, data, side)[0]) ** 2).mean(), 1e-9)))

    def differing() -> float:
        masks = torch.from_numpy(reference_sample(jpg, data, side)[1]).bool()
        masks = masks[masks.flatten(1).any(dim=1)]  # a sample leaves out what is empty on the grid
        filled = ours().masks
        return float((filled != masks).sum()) if filled.shape == masks.shape else float("nan")

    guards = [at_most("differing mask cells", differing, 0), at_most("mean level diff", level, 2)]
    if prepared:
        guards.append(at_least("PSNR dB", psnr, 38))
    note = f"{source}, {size[0]} x {size[1]}, {len(mine)} byte JPEG, {count} masks, {len(data)} byte json"
    return Case(lambda: reference_sample(jpg, data, side), ours, guards, note, "uint8")


ROWS = [
    Row("rle_fill", "100 masks to the 256 grid vs pycocotools decode + indexing", rle_row, cpu=True),
    Row("sa1b_raw", "SA-1B sample vs PIL + pycocotools", partial(sample_row, prepared=False), cpu=True),
    Row("sa1b_prepared", "prepared 1024 px sample vs PIL + pycocotools", partial(sample_row, prepared=True), cpu=True),
]
