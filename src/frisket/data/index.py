"""Where samples lie in a plain tar: one pass over the headers, kept as the sidecar `<tar>.idx.json`.

Use     index = build_index("sa1b-train-000000.tar"); index.keys, index.offsets, index.sizes
Source  our choice: member offsets make a WebDataset tar addressable, which exact resume needs.
"""

import json
import logging
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from frisket.errors import UserError
from frisket.files import write_text

log = logging.getLogger(__name__)

PAIR = ("jpg", "json")
INDEX_VERSION = 1
BLOCK = 512
GZIP = b"\x1f\x8b"  # how such a file begins
MEMBER_LIMIT = 1 << 28  # bytes; a photograph or its json is far smaller, and a sparse member can claim anything


class BrokenTar(Exception):
    """The tar ends or turns to garbage before its end mark; the message says where."""


DAMAGE = (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError)
"""What tarfile raises, with or without meaning to, for headers that make no sense."""


def split_name(name: str) -> tuple[str, str]:
    """Member name -> (key, extension): the basename up to its first dot, folders dropped."""
    key, _, ext = os.path.basename(name).partition(".")
    ext = ext.lower()
    return key, "jpg" if ext == "jpeg" else ext


def regular(tar: Path | str) -> os.stat_result:
    """The file's stat. Raises UserError for a fifo, a folder or a device, which opening would wait on or read for ever,
    and OSError when it is not there."""
    facts = os.stat(tar)
    if not stat.S_ISREG(facts.st_mode):
        raise UserError(f"shard {tar} is a folder, fifo or device, not a file: put a tar there")
    return facts


def usable(member: tarfile.TarInfo) -> bool:
    """Whether a member's bytes may be read: else it counts as empty, and its record as bad."""
    return not member.issparse() and member.size <= MEMBER_LIMIT


def is_gzip(tar: Path | str) -> bool:
    """True when the file is gzip-wrapped, whatever its name says (some SA-1B downloads are)."""
    with open(tar, "rb") as f:
        return f.read(2) == GZIP


def scan(tar: Path, exts: Sequence[str]) -> Iterator[tuple[str, str, int, int]]:
    """(key, ext, data offset, size) of each wanted member of a plain tar; reads headers only.

    Raises UserError when it is not a tar and BrokenTar when it ends before its end mark.
    """
    size = tar.stat().st_size
    last = "the beginning"
    try:
        archive = tarfile.open(tar, "r:")  # noqa: SIM115  # closed below; only opening may say "not a tar"
    except DAMAGE as error:
        raise UserError(f"shard {tar} is not a tar file ({error}): download or write it again") from error
    with archive:
        try:
            for member in archive:
                if member.size < 0:  # the next header would lie before this one: some Pythons go round for ever
                    raise BrokenTar(f"is damaged after {last}")
                key, ext = split_name(member.name)
                wanted = member.isfile() and key and ext in exts
                if member.offset_data + member.size > size and not member.issparse() and member.isfile():
                    raise BrokenTar(f"is cut off inside member {member.name}")
                if wanted:
                    last = f"member {member.name}"
                    yield key, ext, member.offset_data, member.size if usable(member) else 0
        except DAMAGE as error:
            raise BrokenTar(f"is cut off after {last} ({error})") from error
        # tarfile takes a damaged header for the end of the archive; only a block of zeros is the end.
        with open(tar, "rb") as f:
            f.seek(archive.offset)  # type: ignore[attr-defined]
            check_end(f.read(BLOCK), last)


def check_end(tail: bytes, last: str) -> None:
    """Raise BrokenTar unless `tail`, what follows the last member, begins with the block of zeros that ends a tar.

    A download cut exactly between two members has no other sign: each program that writes tars writes that mark.
    """
    if len(tail) < BLOCK:
        raise BrokenTar(f"is cut off after {last}: the mark that ends a tar is missing")
    if tail[:BLOCK] != bytes(BLOCK):
        raise BrokenTar(f"is damaged after {last}")


@dataclass
class Index:
    """Where each sample of one tar lies. keys (n,) bytes; offsets, sizes (n, len(exts)) int64, in tar order; crcs
    uint32 of that shape: CRC-32 of each member as its writer had it, None where only the headers were read."""

    tar: Path
    exts: tuple[str, ...]
    keys: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    crcs: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.keys)


def index_path(tar: Path | str) -> Path:
    """The sidecar's name: `<tar>.idx.json`."""
    return Path(f"{tar}.idx.json")


def build_index(tar: Path | str, exts: Sequence[str] = PAIR, crcs: Sequence[Mapping[str, int]] | None = None) -> Index:
    """Index of a plain tar, from its sidecar if that is fresh, else from one pass over the headers (sidecar written).

    A sidecar is stale when it is older than the tar, or the tar's size or the wanted extensions differ.
    crcs: {extension: CRC-32} of each sample, from who has just written the tar.
    Every sample must have all of `exts`; other members are ignored. Raises UserError naming shard and sample for
    a lone half, a doubled member, a truncated tar, a gzip-wrapped tar, a file that is no tar or is not there.
    """
    tar = Path(tar)
    exts = tuple(exts)
    try:
        facts = regular(tar)
        fresh = None if crcs else _fresh_index(tar, exts, facts)
        if fresh is not None:
            return fresh
        if is_gzip(tar):
            raise UserError(f"shard {tar} is gzip-compressed and cannot be read by position: repack it, `frisket prep`")
        parts: dict[str, dict[str, tuple[int, int]]] = {}
        for key, ext, offset, size in scan(tar, exts):
            if ext in parts.setdefault(key, {}):
                raise UserError(f"shard {tar} holds {key}.{ext} twice: write the shard again")
            parts[key][ext] = (offset, size)
    except BrokenTar as error:
        raise UserError(f"shard {tar} {error}: download or write it again") from error
    except OSError as error:
        raise UserError(f"shard {tar} cannot be read: {error.strerror or error}") from error
    for key, have in parts.items():
        lacking = [ext for ext in exts if ext not in have]
        if lacking:
            raise UserError(
                f"shard {tar}, sample {key}: no .{lacking[0]} member; write the shard again, `frisket prep`"
            )
    index = _index_from_parts(tar, exts, parts)
    index.crcs = np.array([[crc[ext] for ext in exts] for crc in crcs], np.uint32) if crcs else None
    _write_index(index, facts.st_size)
    return index


def _index_from_parts(tar: Path, exts: tuple[str, ...], parts: dict[str, dict[str, tuple[int, int]]]) -> Index:
    spans = np.array([[have[e] for e in exts] for have in parts.values()], np.int64).reshape(-1, len(exts), 2)
    # Fixed-width bytes, not a list of str: 11 M keys are 100 MB and no fork copies them by touching refcounts.
    keys = np.array([_bytes(key) for key in parts], dtype=bytes)
    return Index(tar, exts, keys, np.ascontiguousarray(spans[..., 0]), np.ascontiguousarray(spans[..., 1]))


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")  # as tarfile decodes names that are no UTF-8


def _fresh_index(tar: Path, exts: tuple[str, ...], facts: os.stat_result) -> Index | None:
    side = index_path(tar)
    try:
        if side.stat().st_mtime_ns < facts.st_mtime_ns:
            return None
        data = json.loads(side.read_bytes())
        if (data["version"], data["bytes"], data["exts"]) != (INDEX_VERSION, facts.st_size, list(exts)):
            return None
        shape = (len(data["keys"]), len(exts))
        offsets = np.array(data["offsets"], np.int64).reshape(shape)
        sizes = np.array(data["sizes"], np.int64).reshape(shape)
        if shape[0] and (min(offsets.min(), sizes.min()) < 0 or sizes.max() > MEMBER_LIMIT):
            raise ValueError("members outside the tar")
        if shape[0] and not _leads_to(tar, int(offsets[0, 0]), _bytes(data["keys"][0])):
            raise ValueError("members of another tar")
        crcs = np.array(data["crcs"], np.uint32).reshape(shape) if data.get("crcs") else None
        return Index(tar, exts, np.array([_bytes(k) for k in data["keys"]], dtype=bytes), offsets, sizes, crcs)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        log.warning("index %s is not readable and is rebuilt", side)
        return None


def _leads_to(tar: Path, offset: int, key: bytes) -> bool:
    """Whether a member of this key begins at the offset: a sidecar may have stayed behind when its tar was replaced by
    another of the same size. Names that a header cannot hold are believed."""
    with open(tar, "rb") as file:
        file.seek(max(0, offset - BLOCK))
        name = file.read(100).partition(b"\0")[0]
    return len(name) == 100 or not key.isascii() or split_name(name.decode("latin-1"))[0].encode() == key


def _write_index(index: Index, size: int) -> None:
    try:
        content = {
            "version": INDEX_VERSION,
            "bytes": size,
            "exts": list(index.exts),
            "keys": [key.decode("utf-8", "surrogateescape") for key in index.keys.tolist()],
            "offsets": index.offsets.tolist(),
            "sizes": index.sizes.tolist(),
            **({} if index.crcs is None else {"crcs": index.crcs.tolist()}),
        }
        write_text(index_path(index.tar), json.dumps(content))
    except OSError as error:  # a read-only mount: the index in memory serves, only the next start is slower
        log.warning("index %s could not be written: %s", index_path(index.tar), error)
