"""Tiny real shards for the data tests: simplejpeg photographs, pycocotools RLEs, plain tars made on the fly."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from pycocotools import mask as coco

from frisket.data.shards import ShardWriter

Record = dict[str, Any]


@pytest.fixture
def masks_of() -> Callable[..., np.ndarray]:
    """(count, size, seed) -> uint8 (count, H, W) random boxes and discs, none empty."""

    def make(count: int, size: tuple[int, int], seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[: size[0], : size[1]]
        out = []
        for number in range(count):
            cy, cx, r = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(8, max(9, min(size) / 3))
            inside = (abs(y - cy) < r) & (abs(x - cx) < r / 2) if number % 2 else (y - cy) ** 2 + (x - cx) ** 2 < r * r
            out.append(inside)
        return np.stack(out).astype(np.uint8)

    return make


@pytest.fixture
def record(masks_of: Callable[..., np.ndarray]) -> Callable[..., Record]:
    """(number, size=(60, 90), masks=5, jpeg=None) -> {"__key__", "jpg", "json"}; jpeg: another (h, w) of the jpg."""

    def make(
        number: int, size: tuple[int, int] = (60, 90), masks: int = 5, jpeg: tuple[int, int] | None = None
    ) -> Record:
        rng = np.random.default_rng(number)
        pixels = np.kron(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), np.ones((40, 40, 1), np.uint8))
        height, width = jpeg or size
        notes = []
        for mask in masks_of(masks, size, number) if masks else []:
            rle = coco.encode(np.asfortranarray(mask))
            notes.append(
                {
                    "id": len(notes),
                    "segmentation": {"size": list(size), "counts": rle["counts"].decode()},
                    "bbox": coco.toBbox(rle).tolist(),
                    "area": int(coco.area(rle)),
                    "predicted_iou": 0.9,
                    "stability_score": 0.95,
                }
            )
        key = f"sa_{number}"
        image = {"image_id": number, "width": size[1], "height": size[0], "file_name": f"{key}.jpg"}
        jpg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels[:height, :width]), quality=95, colorspace="RGB")
        return {"__key__": key, "jpg": jpg, "json": json.dumps({"image": image, "annotations": notes}).encode()}

    return make


@pytest.fixture
def shards(tmp_path: Path, record: Callable[..., Record]) -> Callable[..., Path]:
    """(count, per_shard=4, name="train", **record settings) -> folder of shards with keys sa_0 … sa_{count-1}."""

    def make(count: int, per_shard: int = 4, name: str = "train", **how: Any) -> Path:
        with ShardWriter(tmp_path / name, "toy", max_count=per_shard) as out:
            for number in range(count):
                out.write(record(number, **how))
        return tmp_path / name

    return make


@pytest.fixture
def raw_tar() -> Callable[..., Path]:
    """(path, [(member name, bytes)], mode="w") -> tar with exactly these members in this order."""

    def make(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
        with tarfile.open(path, mode) as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return make
