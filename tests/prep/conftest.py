"""Small real records and tars as Meta ships them: flat or in a folder, gzip-wrapped, halves apart."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from frisket.data.sa1b import encode_jpeg
from frisket.prep.records import record_json

MakeTar = Callable[..., Path]


@pytest.fixture
def photo() -> Callable[..., tuple[bytes, bytes]]:
    """photo(image_id, size=(h, w)) -> (jpg, json) with two masks."""

    def make(image_id: int, size: tuple[int, int] = (60, 80)) -> tuple[bytes, bytes]:
        pixels = np.random.default_rng(image_id).integers(0, 255, (*size, 3), np.uint8)
        masks = [np.zeros(size, bool), np.zeros(size, bool)]
        masks[0][5:30, 10:40] = True
        masks[1][20:50, 30:75] = True
        return encode_jpeg(pixels), record_json(image_id, f"sa_{image_id}.jpg", size, masks)

    return make


@pytest.fixture
def make_tar() -> MakeTar:
    """make_tar(path, [(name, bytes)], gz=False): a tar with these members in this order."""

    def make(path: Path, members: Iterable[tuple[str, bytes]], gz: bool = False) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        path.write_bytes(gzip.compress(buffer.getvalue()) if gz else buffer.getvalue())
        return path

    return make


@pytest.fixture
def meta(tmp_path: Path, photo: Callable[..., tuple[bytes, bytes]], make_tar: MakeTar) -> Path:
    """Three tars of four photographs: flat; in a folder with all jpgs first; gzip-wrapped though named .tar."""
    for tar in range(3):
        pairs = [(f"sa_{tar * 4 + k + 1}", *photo(tar * 4 + k + 1)) for k in range(4)]
        prefix = "images/" if tar == 1 else ""
        members = [(f"{prefix}{key}.{ext}", data) for key, *both in pairs for ext, data in zip(("jpg", "json"), both)]
        if tar == 1:
            members.sort(key=lambda member: member[0].endswith("json"))
        make_tar(tmp_path / "meta" / f"sa_{tar:06d}.tar", members, gz=tar == 2)
    return tmp_path / "meta"


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """snapshot(folder) -> {relative path: bytes} of every file, temporary ones included."""
    return lambda folder: {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def rejections() -> Callable[[Path], list[dict[str, str]]]:
    """rejections(out) -> rows of rejected.jsonl."""
    return lambda out: [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
