"""Tar shards: find them, read them by position, write them whole or not at all.

Use     tars = expand("data/train/sa1b-{000000..000009}.tar"); dataset = IndexedShards(tars); raw = dataset[17]
        with ShardWriter(folder, "sa1b-train", max_count=1000) as out: out.write({"__key__": key, "jpg": a, "json": b})
Files   plain WebDataset tars; `<tar>.idx.json` beside each (frisket.data.index) makes a sample two `pread`s.
Source  our choice; writing goes through webdataset.TarWriter.
"""

import functools
import glob
import hashlib
import json
import logging
import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import braceexpand
import numpy as np
import torch.utils.data
from webdataset.writer import TarWriter

from frisket.data.index import PAIR, build_index
from frisket.errors import UserError
from frisket.files import atomic

log = logging.getLogger(__name__)

REMOTE = re.compile(r"^(pipe:|[a-z][a-z0-9+.-]*://)")
OPEN_FILES = 64  # per process; 16 workers x 64 stays near the usual limit of 1024 descriptors


@dataclass(frozen=True)
class ShardRecord:
    """What index.json says of one written shard: file name, samples, sha256 of the tar, its size in bytes."""

    name: str
    count: int
    sha256: str
    bytes: int


# ---------------------------------------------------------------- finding


def is_remote(shard: Path | str) -> bool:
    """True for `pipe:` commands and URLs, which can only be streamed."""
    return bool(REMOTE.match(str(shard)))


def expand(pattern: str | Path) -> list[Path | str]:
    """Shards named by a folder (its *.tar, sorted), a glob, a brace pattern `{000..012}` or a comma list of these.

    `pipe:` commands and URLs come back as strings (braces of numbers expanded), local files as Paths.
    Raises UserError when a named file is missing, nothing matches, or a folder's index.json, which prep wrote, knows
    better: lists a shard of the folder that is missing, or another size.
    """
    text = str(pattern)
    if text.startswith("pipe:"):  # a shell command may hold commas and braces of its own
        return list(braceexpand.braceexpand(text)) if re.search(r"\{\d+\.\.\d+\}", text) else [text]
    paths: list[Path | str] = []
    for part in re.split(r",(?![^{]*\})", text):
        named = _expand_one(part.strip())
        _compare(named, whole=Path(part.strip()).is_dir())
        paths += named
    if not paths:
        raise UserError(f"no shard matches '{pattern}': write shards with `frisket prep` or correct the pattern")
    return paths


def prepared(folder: Path) -> dict[str, ShardRecord]:
    """{name: record} of the shards that prep finished in a folder, from its index.json; {} where there is none.

    Raises UserError when index.json is damaged.
    """
    path = folder / "index.json"
    try:
        return {shard["name"]: ShardRecord(**shard) for shard in json.loads(path.read_bytes()).get("shards", [])}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}): run the same `frisket prep` again, it is written anew"
        ) from error


def _compare(tars: Sequence[Path | str], *, whole: bool) -> None:
    """Raise UserError where index.json of the tars' folders says otherwise. whole: the tars are all of one folder."""
    local = [tar for tar in tars if isinstance(tar, Path)]
    for folder in sorted({tar.parent for tar in local}):
        records, here = prepared(folder), {tar.name: tar for tar in local if tar.parent == folder}
        lost = [name for name in records if name not in here] if whole else []
        if lost:
            more = f" ({len(lost)} of {len(records)} shards)" if len(lost) > 1 else ""
            raise UserError(
                f"{folder}/index.json lists {lost[0]}, which is missing{more}: run the same `frisket prep` again, or "
                "name the shards you want by a pattern"
            )
        for name in records.keys() & here.keys():
            size = here[name].stat().st_size if here[name].is_file() else 0
            if size != records[name].bytes:
                raise UserError(
                    f"shard {here[name]} has {size} bytes, but index.json says {records[name].bytes}: it was changed "
                    "or swapped; run the same `frisket prep` again"
                )


def _expand_one(part: str) -> list[Path | str]:
    if is_remote(part):
        return list(braceexpand.braceexpand(part))
    if Path(part).is_dir():
        tars = sorted(p for p in Path(part).glob("*.tar") if not p.name.startswith("."))
        if not tars:
            if next((p for p in Path(part).iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png")), None):
                raise UserError(
                    f"folder '{part}' holds pictures, not shards: make shards with `frisket prep prep_masks "
                    f"inputs={part} out=DATA` (or prep_coco, when a COCO json has their masks), then name DATA"
                )
            raise UserError(f"folder '{part}' holds no *.tar shard: fill it with `frisket prep` or name another folder")
        return list(tars)
    if part.endswith(".json"):
        raise UserError(
            f"'{part}' is an annotation file, not shards: make shards with `frisket prep prep_coco inputs={part} "
            "images=FOLDER out=DATA`, then name DATA"
        )
    out: list[Path | str] = []
    missing = []
    for name in braceexpand.braceexpand(part) if part else []:
        hits = sorted(glob.glob(name)) if glob.has_magic(name) else [name] if Path(name).is_file() else []
        out += [Path(hit) for hit in hits]
        missing += [] if hits else [name]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"there is no shard or folder '{missing[0]}'{more}: correct the name, or write shards with `frisket prep`"
        )
    return out


# ---------------------------------------------------------------- reading by position


class IndexedShards(torch.utils.data.Dataset):
    """Map-style view of many tars: `dataset[i]` -> {"__key__", "__shard__", ext: bytes}, i in tar order.

    `counts` (shards,) and `starts` (shards + 1,) tell the sampler which indices share a tar.
    Raises UserError as `build_index` does, and for a sample that cannot be read.
    """

    def __init__(self, tars: Sequence[Path | str], exts: Sequence[str] = PAIR) -> None:
        self._files: OrderedDict[tuple[int, int], int] = OrderedDict()
        self.indexes = [build_index(tar, exts) for tar in tars]
        self.counts = np.array([len(index) for index in self.indexes], np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 hex of what the shards are: names, keys, sizes, and the digests that prep wrote beside them."""
        digest = hashlib.sha256()
        known = {folder: prepared(folder) for folder in {index.tar.parent for index in self.indexes}}
        for index in self.indexes:
            record = known[index.tar.parent].get(index.tar.name)
            digest.update(f"{index.tar.name} {len(index)} {record.sha256 if record else ''}\n".encode())
            digest.update(b"\n".join(index.keys) + np.ascontiguousarray(index.sizes, np.int64).tobytes())
        return digest.hexdigest()

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        shard = int(np.searchsorted(self.starts, i, side="right")) - 1
        index, row = self.indexes[shard], i - int(self.starts[shard])
        raw: dict[str, Any] = {
            "__key__": index.keys[row].decode(errors="backslashreplace"),
            "__shard__": str(index.tar),
        }
        for e, ext in enumerate(index.exts):
            size = int(index.sizes[row, e])
            try:
                raw[ext] = os.pread(self._file(shard), size, int(index.offsets[row, e]))
            except OSError as error:
                raise UserError(f"shard {index.tar}, sample {raw['__key__']}: {error.strerror}") from error
            if len(raw[ext]) != size:
                raise UserError(f"shard {index.tar}, sample {raw['__key__']}: the tar was cut off since it was indexed")
            if index.crcs is not None and zlib.crc32(raw[ext]) != index.crcs[row, e]:
                raise UserError(
                    f"shard {index.tar}, sample {raw['__key__']}: the .{ext} is not what was written: run the same "
                    "`frisket prep` again with verify=true"
                )
        return raw

    def _file(self, shard: int) -> int:
        key = (os.getpid(), shard)  # a forked worker opens its own files and never closes its parent's
        if key in self._files:
            self._files.move_to_end(key)
            return self._files[key]
        mine = [k for k in self._files if k[0] == key[0]]
        if len(mine) >= OPEN_FILES:
            os.close(self._files.pop(mine[0]))
        self._files[key] = os.open(self.indexes[shard].tar, os.O_RDONLY)
        return self._files[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def __del__(self) -> None:
        for (pid, _), file in self._files.items():
            if pid == os.getpid():
                os.close(file)


# ---------------------------------------------------------------- writing


class _Sink:
    """The file under a TarWriter: hashes and counts on the way, and swallows writes once the shard is given up."""

    def __init__(self, file: BinaryIO) -> None:
        self.file: BinaryIO | None = file
        self.sha = hashlib.sha256()
        self.offset = 0

    def write(self, data: bytes) -> int:
        if self.file is not None:
            self.file.write(data)
            self.sha.update(data)
            self.offset += len(data)
        return len(data)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class TarOut:
    """One tar under a temporary name; `close()` renames it and writes its index, an error leaves nothing behind.

    Used as a context manager. Members have time 0 and a fixed owner, so that equal samples give equal bytes.
    Raises UserError when the disk is full or the folder cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.count = 0
        self.size = 0
        self.record: ShardRecord | None = None
        self._keys: set[str] = set()
        self._crcs: list[dict[str, int]] = []
        self._exts: tuple[str, ...] | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._atomic: AbstractContextManager[Path] = atomic(self.path)
            self._sink = _Sink(open(self._atomic.__enter__(), "wb"))  # noqa: SIM115  # open until close()
        except OSError as error:
            raise self._sentence(error) from error
        self._tar = TarWriter(cast(Any, self._sink), encoder=False, mtime=0, user="frisket")

    def write(self, sample: dict[str, Any]) -> None:
        """Append {"__key__": key, ext: bytes, …}; all samples of a shard must have the same extensions."""
        key, exts = sample["__key__"], tuple(sorted(k for k in sample if not k.startswith("_")))
        if self._exts is None:
            self._exts = exts
        if exts != self._exts or key in self._keys or "." in key or "/" in key:
            raise ValueError(
                f"{self.path}: cannot add {key} with {exts} (needs {self._exts}, keys once, no dot or slash)"
            )
        try:
            self.size += self._tar.write({"__key__": key, **{e: sample[e] for e in exts}})
        except OSError as error:
            self.discard(error)
            raise self._sentence(error) from error
        self._keys.add(key)
        self._crcs.append({e: zlib.crc32(sample[e]) for e in exts})
        self.count += 1

    def close(self) -> ShardRecord:
        """Finish, rename, index; returns the record. Raises UserError when the disk is full."""
        try:
            self._tar.close()
            self._sink.close()
            self._atomic.__exit__(None, None, None)
        except OSError as error:
            self.discard(error)
            raise self._sentence(error) from error
        self.record = ShardRecord(self.path.name, self.count, self._sink.sha.hexdigest(), self._sink.offset)
        build_index(self.path, _order(self._exts or PAIR), self._crcs)
        return self.record

    def discard(self, error: BaseException) -> None:
        """Give the shard up: the temporary file is removed."""
        file, self._sink.file = self._sink.file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                log.debug("closing the discarded %s failed too", self.path)
        self._tar.close()
        try:
            self._atomic.__exit__(type(error), error, error.__traceback__)
        except BaseException as raised:
            if raised is not error:
                raise

    def _sentence(self, error: OSError) -> UserError:
        reason = error.strerror or str(error)
        return UserError(f"shard {self.path} cannot be written: {reason}; free the disk or name another folder")

    def __enter__(self) -> "TarOut":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self._sink.file is None:
            return
        if error is not None:
            self.discard(error)
        else:
            self.close()


def _order(exts: Sequence[str]) -> tuple[str, ...]:
    """Canonical order of extensions, so that a writer's index equals a reader's request."""
    return PAIR if set(exts) == set(PAIR) else tuple(exts)


class ShardWriter:
    """Samples into `<folder>/<stem>-000000.tar`, …: a new shard after `max_count` samples or `max_size` bytes.

    Context manager. Each shard exists only when it is whole; `records` lists those finished. On an error the
    unfinished shard is removed, finished ones stay.
    """

    def __init__(
        self,
        folder: Path | str,
        stem: str,
        *,
        max_count: int = 1000,
        max_size: int = 1_000_000_000,
    ) -> None:
        self.folder, self.stem = Path(folder), stem
        self.max_count, self.max_size, self.number = max_count, max_size, 0
        self.records: list[ShardRecord] = []
        self._out: TarOut | None = None

    def write(self, sample: dict[str, Any]) -> None:
        """Append {"__key__": key, "jpg": bytes, "json": bytes}. Raises UserError when the disk is full."""
        if self._out is None:
            self._out = TarOut(self.folder / f"{self.stem}-{self.number:06d}.tar")
        try:
            self._out.write(sample)
        except UserError:
            self._out = None
            raise
        if self._out.count >= self.max_count or self._out.size >= self.max_size:
            self._finish()

    def close(self) -> list[ShardRecord]:
        """Finish the open shard; returns all records."""
        if self._out is not None:
            self._finish()
        return self.records

    def _finish(self) -> None:
        assert self._out is not None
        out, self._out = self._out, None
        self.records.append(out.close())
        self.number += 1

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.close()
        elif self._out is not None:
            self._out.discard(error)
            self._out = None
