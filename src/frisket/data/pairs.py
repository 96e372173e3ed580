"""Tars as Meta ships them, read in one pass: pairs of jpg and json, flat or in a folder, in any order, maybe gzip.

Use     for key, pair in read_pairs(tar, reject, keep=lambda key: key.endswith("7")): pair["jpg"], pair["json"]
        for key, pair in read_stream(pipe, "pipe:curl …", reject): the same of what can only be read forwards
Source  our choice; SA-1B's downloads differ in all these ways, and some break off.
"""

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from frisket.data.index import DAMAGE, GZIP, PAIR, BrokenTar, check_end, is_gzip, regular, scan, split_name, usable
from frisket.errors import UserError

Keep = Callable[[str], bool]


def read_pairs(
    tar: Path | str, on_reject: Callable[[str, str], None] | None = None, *, keep: Keep = lambda key: True
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, {"jpg": bytes, "json": bytes}) of any SA-1B style tar: flat or in a folder, in any order, maybe gzip.

    Plain tars: one pass over the headers, then two preads per sample; memory is one sample. Gzip-wrapped tars: one
    streaming pass that holds only halves still without a partner (all of one kind in the worst order). Samples whose
    key `keep` refuses are stepped over: their bytes are not read (gzip must unpack them) and their faults not told.
    `on_reject(key, reason)` receives lone halves, doubles, and ("*", reason) for a tar that breaks off, whose whole
    samples are still yielded; without it each of these raises UserError. No tar at all always raises UserError.
    """
    tar = Path(tar)

    def reject(key: str, reason: str) -> None:
        if on_reject is None:
            what = f"shard {tar}" if key == "*" else f"shard {tar}, sample {key}:"
            raise UserError(f"{what} {reason}; download it again or let prep skip it with strict=false")
        on_reject(key, reason)

    try:
        regular(tar)
        if is_gzip(tar):
            with open(tar, "rb") as file:
                yield from read_stream(file, tar, reject, keep)
        else:
            yield from _read_plain(tar, reject, keep)
    except OSError as error:
        raise UserError(f"shard {tar} cannot be read: {error.strerror or error}") from error


def _read_plain(tar: Path, reject: Callable[[str, str], None], keep: Keep) -> Iterator[tuple[str, dict[str, bytes]]]:
    parts: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        for key, ext, offset, size in scan(tar, PAIR):
            if not keep(key):
                continue
            if ext in parts.setdefault(key, {}):
                reject(key, f"member .{ext} is there twice, the first one counts")
            else:
                parts[key][ext] = (offset, size)
    except BrokenTar as error:
        reject("*", str(error))
    fd = os.open(tar, os.O_RDONLY)
    try:
        for key, have in parts.items():
            lacking = [ext for ext in PAIR if ext not in have]
            if lacking:
                reject(key, f"has no .{lacking[0]} member")
            else:
                yield key, {ext: os.pread(fd, size, offset) for ext, (offset, size) in have.items()}
    finally:
        os.close(fd)


class _Forwards(io.RawIOBase):
    """What can only be read, as io.BufferedReader wants it."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.source.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Watched:
    """A stream for tarfile, which reads ahead: remembers the last piece, to see what tarfile took for the end."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.start, self.piece = stream, 0, b""

    def read(self, size: int) -> bytes:
        piece = self.stream.read(size)
        if piece:
            self.start, self.piece = self.start + len(self.piece), piece
        return piece

    def after(self, offset: int) -> bytes:
        """What of the last piece lies at `offset` and beyond."""
        return self.piece[offset - self.start :]


def _open(stream: Any) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream, mode="r|")  # tarfile asks for a whole file object and only ever reads


def read_stream(
    stream: Any, tar: Path | str, reject: Callable[[str, str], None], keep: Keep = lambda key: True
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """`read_pairs` of a `stream` that can only be read forwards, gzip-wrapped or not; `tar` is its name."""
    buffered = io.BufferedReader(_Forwards(stream))
    plain = gzip.GzipFile(fileobj=buffered) if buffered.peek(2)[:2] == GZIP else buffered
    waiting: dict[str, dict[str, bytes]] = {}
    done: set[str] = set()
    last = "the beginning"
    try:
        with _open(watched := _Watched(plain)) as archive:
            for member in archive:
                if member.size < 0:
                    raise BrokenTar(f"is damaged after {last}")
                key, ext = split_name(member.name)
                if not member.isfile() or not key or ext not in PAIR or not keep(key):
                    last = f"member {member.name}"
                    continue
                file = archive.extractfile(member) if usable(member) else None
                data = file.read() if file is not None else b""
                if file is not None and len(data) != member.size:
                    raise BrokenTar(f"is cut off inside member {member.name}")
                last = f"member {member.name}"
                if key in done or ext in waiting.get(key, {}):
                    reject(key, f"member .{ext} is there twice, the first one counts")
                    continue
                waiting.setdefault(key, {})[ext] = data
                if len(waiting[key]) == len(PAIR):
                    done.add(key)
                    yield key, waiting.pop(key)
            rest = watched.after(archive.offset)  # type: ignore[attr-defined]
            check_end(rest, last)
            # To the end of the stream: proves the checksum, and that nothing but zeros follows the end mark.
            while rest:
                if rest.count(0) != len(rest):
                    raise BrokenTar(f"is damaged after {last}")
                rest = plain.read(1 << 20)
    except (*DAMAGE, EOFError, zlib.error, gzip.BadGzipFile) as error:
        if last == "the beginning" and not isinstance(error, EOFError):
            raise UserError(f"shard {tar} is not a tar file ({error}): download it again") from error
        reject("*", f"is cut off after {last} ({error})")
    except BrokenTar as error:
        reject("*", str(error))
    for key, have in waiting.items():
        lacking = [ext for ext in PAIR if ext not in have]
        reject(key, f"has no .{lacking[0]} member")
