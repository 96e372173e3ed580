"""Teacher embeddings kept beside the shards: `<shard stem>.emb.tar` in a sibling folder, aligned with it by key; and
features of chosen blocks, a tar each of the same kind: `<shard stem>.block11.emb.tar` (blocks are counted from 1).

Use     with TarOut(path_for(shard)) as out: out.write({"__key__": key, "emb": pack(x, frame, stamp=stamp)})
        stored = StoredEmbeddings(IndexedShards(tars), folder=None, expect=stamp, taps={11: Tap(1280)})
        stored.fetch(17, frame), stored.features(17, frame)
Format  one record: b"FEMB", uint32 length, JSON header {version, dtype, shape, teacher, preprocessing, image_size,
        crc}, of a block also {block, stride}, payload. Only tokens that hold photograph are kept (a 3:2 image: 43 of 64
        rows); fp16, or int8 with one float32 scale per channel in front. ViT-H at 1024: 1.4 MB or 0.7 MB per image, and
        7.0 MB or 3.5 MB each block. Our choice; EdgeSAM's store, which keeps the padding, is 2 MiB.
"""

import json
import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from frisket.data.shards import IndexedShards
from frisket.errors import UserError
from frisket.geometry import Frame
from frisket.models.encoder import Tap

MAGIC = b"FEMB"
VERSION = 1
PATCH = 16
NECK = Tap(256)
# Names what happens between the JPEG and the teacher; change it whenever that changes.
PREPROCESSING = "longest side, antialiased bilinear, SAM mean and std, zero padding; v1"


@dataclass(frozen=True)
class Stamp:
    """Who made an embedding: `teacher` is the fingerprint of its weights (hex), `image_size` the input side S."""

    teacher: str
    image_size: int
    preprocessing: str = PREPROCESSING

    def __str__(self) -> str:
        return f"teacher {self.teacher[:12]} at {self.image_size} px ({self.preprocessing})"


def folder_for(shard: Path) -> Path:
    """Where a shard's embeddings are by default: `data/train/x.tar` -> `data/train-embeddings`."""
    parent = Path(shard).absolute().parent
    return parent.with_name(f"{parent.name}-embeddings")


def path_for(shard: Path, folder: Path | None = None, block: int = 0) -> Path:
    """The embedding tar of a shard, `<folder>/<shard stem>.emb.tar`, or that of a block's features."""
    layer = f".block{block}" if block else ""
    return (folder or folder_for(shard)) / f"{Path(shard).stem}{layer}.emb.tar"


def numbers(frame: Frame, taps: Iterable[Tap]) -> int:
    """How many numbers are stored of one photograph: its embedding and these taps' features."""
    return sum(tap.width * math.prod(frame.valid_tokens(tap.stride)) for tap in (NECK, *taps))


def pack(
    embedding: Tensor,
    frame: Frame,
    *,
    stamp: Stamp,
    dtype: Literal["fp16", "int8"] = "fp16",
    block: int = 0,
    stride: int = PATCH,
) -> bytes:
    """Bytes of one image's embedding (C, S/16, S/16), or features (C, S/stride, S/stride) of a block: valid tokens of
    `frame` only, in `dtype`.

    Raises ValueError when the grid is not that of `stamp.image_size`, or holds a value fp16 cannot (an embedding in
    int8 may; features come back as fp16).
    """
    side = stamp.image_size // stride
    if tuple(embedding.shape[1:]) != (side, side) or frame.side != stamp.image_size:
        raise ValueError(f"embedding {tuple(embedding.shape)} and frame {frame} do not fit {stamp}")
    rows, cols = frame.valid_tokens(stride)
    valid = embedding[:, :rows, :cols].detach().float().cpu().numpy()
    if not np.isfinite(valid).all():
        raise ValueError(
            "the embedding holds values that are not finite; use another teacher, or place.precision=32-true"
        )
    with np.errstate(over="ignore"):  # reported below, as an error
        half = valid.astype(np.float16)
    if (dtype == "fp16" or block) and not np.isfinite(half).all():
        mend = f"leave block {block} out of blocks" if block else "try dtype=int8"
        raise ValueError(f"the embedding holds values that fp16 cannot; {mend}")
    if dtype == "fp16":
        payload = half.tobytes()
    else:
        scale = np.maximum(np.abs(valid).max(axis=(1, 2)), 1e-12).astype(np.float32) / 127
        payload = scale.tobytes() + np.rint(valid / scale[:, None, None]).astype(np.int8).tobytes()
    header = {"version": VERSION, "dtype": dtype, "shape": valid.shape, **asdict(stamp), "crc": zlib.crc32(payload)}
    header |= {"block": block, "stride": stride} if block else {}
    text = json.dumps(header).encode()
    return MAGIC + struct.pack("<I", len(text)) + text + payload


def _header(data: bytes, where: str) -> tuple[dict, bytes]:
    try:
        if data[:4] != MAGIC:
            raise ValueError("no FEMB mark")
        (length,) = struct.unpack_from("<I", data, 4)
        header = json.loads(data[8 : 8 + length])
        payload = data[8 + length :]
        if header["version"] != VERSION or zlib.crc32(payload) != header["crc"]:
            raise ValueError("wrong version or checksum")
        if not {"teacher", "preprocessing", "dtype"} <= header.keys() or header["image_size"] < PATCH:
            raise ValueError("no teacher or input side")
        if len(header["shape"]) != 3 or min(header["shape"]) < 1:
            raise ValueError("no shape")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise UserError(
            f"{where}: the stored embedding is damaged ({error}); run `frisket prep` embed again"
        ) from error
    return header, payload


def stamp_of(data: bytes, *, where: str) -> Stamp:
    """Who made this record. Raises UserError when it is damaged."""
    header, _ = _header(data, where)
    return Stamp(header["teacher"], header["image_size"], header["preprocessing"])


def unpack(
    data: bytes,
    *,
    frame: Frame | None = None,
    expect: Stamp | None = None,
    where: str = "embedding",
    block: int = 0,
    stride: int = PATCH,
) -> Tensor:
    """float32 (C, S/16, S/16), of a block float16 (C, S/stride, S/stride); zeros in the padding.

    Raises UserError when the record is damaged, was made for another `frame` or block, or its stamp is not `expect`.
    """
    header, payload = _header(data, where)
    check(Stamp(header["teacher"], header["image_size"], header["preprocessing"]), expect, where)
    kept = header.get("block", 0), header.get("stride", PATCH)
    if kept != (block, stride):
        raise UserError(
            f"{where}: (block, stride) {kept} is stored and {(block, stride)} is wanted; run `frisket prep` embed again"
        )
    channels, rows, cols = header["shape"]
    side = header["image_size"] // stride
    if frame is not None and (frame.valid_tokens(stride) != (rows, cols) or frame.side != header["image_size"]):
        wanted = f"{frame.valid_tokens(stride)} tokens at {frame.side} px"
        made = f"({rows}, {cols}) tokens at {header['image_size']} px"
        raise UserError(f"{where}: the stored embedding has {made}, the image {wanted}; run `frisket prep` embed again")
    try:
        if header["dtype"] == "fp16":
            valid = np.frombuffer(payload, np.float16).reshape(channels, rows, cols).copy()
        else:
            scale = np.frombuffer(payload, np.float32, channels)
            whole = np.frombuffer(payload, np.int8, offset=4 * channels).reshape(channels, rows, cols)
            valid = whole * scale[:, None, None]
        if not np.isfinite(valid).all() or rows > side or cols > side:
            raise ValueError("values that are not finite, or more tokens than the input has")
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{where}: the stored embedding is damaged ({error}); run `frisket prep` embed again"
        ) from error
    out = torch.zeros(channels, side, side, dtype=torch.float16 if block else torch.float32)
    out[:, :rows, :cols] = torch.from_numpy(np.ascontiguousarray(valid))
    return out


def check(stamp: Stamp, expect: Stamp | None, where: str) -> None:
    """Raises UserError naming both stamps when they differ (`expect` None accepts all)."""
    if expect is not None and stamp != expect:
        raise UserError(
            f"{where}: stored embeddings come from {stamp}, but this run wants {expect}; "
            "run `frisket prep` embed with this teacher, or set data.embeddings=null to compute them live"
        )


class StoredEmbeddings:
    """The embeddings of an IndexedShards, by the same index. All shards must have theirs, with equal keys.

    `folder` None looks in each shard's default folder; taps {block: Tap}: blocks whose features are wanted, too. Raises
    UserError at once for a missing or misaligned shard and for the first record's stamp; later records are checked as
    they are read.
    """

    def __init__(
        self, images: IndexedShards, folder: Path | None, expect: Stamp | None, taps: Mapping[int, Tap] | None = None
    ) -> None:
        self.expect, self.taps = expect, taps or {}
        self.records = {block: self._opened(images, folder, block) for block in (0, *self.taps)}

    def _opened(self, images: IndexedShards, folder: Path | None, block: int) -> IndexedShards:
        tars = [path_for(index.tar, folder, block) for index in images.indexes]
        missing = [tar for tar in tars if not tar.is_file()]
        if missing:
            some = f"{missing[0]} ({len(missing)} of {len(tars)} shards)"
            if block:
                raise UserError(
                    f"block {block} of the teacher, which this run compares, is not stored: {some}; run `frisket prep` "
                    f"embed with blocks={list(self.taps)} into another out=, or set data.embeddings=null to run the "
                    "teacher"
                )
            raise UserError(
                f"embeddings {some} are missing; "
                "finish `frisket prep` embed, or set data.embeddings=null to compute them live"
            )
        records = IndexedShards(tars, exts=("emb",))
        for pictures, made in zip(images.indexes, records.indexes, strict=True):
            if not np.array_equal(pictures.keys, made.keys):
                raise UserError(
                    f"embeddings {made.tar} hold other samples than {pictures.tar}; run `frisket prep` embed"
                )
        if len(records):
            first = records[0]
            stamp = stamp_of(first["emb"], where=first["__shard__"])
            check(stamp, self.expect, first["__shard__"])
            self.expect = self.expect or stamp  # without an expectation, one run must at least not mix two teachers
        return records

    def fetch(self, i: int, frame: Frame) -> Tensor:
        """float32 (C, S/16, S/16) of sample i. Raises UserError as `unpack` does."""
        return self._read(i, frame, 0, PATCH)

    def features(self, i: int, frame: Frame) -> tuple[Tensor, ...]:
        """float16 (width, S/stride, S/stride) of sample i at each of `taps`, in order. Raises UserError likewise."""
        return tuple(self._read(i, frame, block, tap.stride) for block, tap in self.taps.items())

    def _read(self, i: int, frame: Frame, block: int, stride: int) -> Tensor:
        raw = self.records[block][i]
        where = f"shard {raw['__shard__']}, sample {raw['__key__']}"
        return unpack(raw["emb"], frame=frame, expect=self.expect, where=where, block=block, stride=stride)


def available(shards: Sequence[Path | str], folder: Path | None = None) -> bool:
    """True when at least one of the shards has stored embeddings (a half-made store is then an error)."""
    return any(path_for(Path(shard), folder).is_file() for shard in shards)
