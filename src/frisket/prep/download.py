"""Tars from a list of links, as Meta hands out SA-1B: whole or not there, gone on with after any break, never twice.

    for link in links(Path("links.txt"), only="sa_0000{00..09}.tar"):
        tar = fetch(link, Path("/data/sa1b"))

The list   lines "name TAB url" in any order, a header first or not. Its links expire: then a new list goes on.
On disk    .<name>.part, locked while somebody loads it, renamed to <name> when the server's length and the tar's own
           marks agree. A server that ignores Range, or is wrong about it, sends all again.
Source     our choice.
"""

import contextlib
import email.utils
import fcntl
import os
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from fnmatch import fnmatchcase
from http.client import HTTPException
from pathlib import Path
from time import sleep
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from braceexpand import braceexpand

from frisket.data.pairs import read_pairs
from frisket.errors import UserError, warn
from frisket.files import disk_full, full_disk_is_a_sentence, sync

NAME = re.compile(r"\w[\w.-]*")
CHUNK = 1 << 20
SILENCE = 60.0  # seconds without a byte
TRIES = 8  # in a row that bring nothing new
LONGEST = 600.0  # seconds between two tries, whatever the server asks
EXPIRED = (401, 403, 410)
LATER = (408, 425, 429)  # and every 5xx


@dataclass(frozen=True)
class Link:
    """One tar: its name, where it is, and the list that says so."""

    name: str
    url: str
    listed: str


def links(path: Path, only: str = "") -> list[Link]:
    """The tars of a list, by name; `only` those of a glob or brace pattern. Raises UserError for a line that is no
    link, a name with two of them, and where nothing is left."""
    wanted, chosen = list(braceexpand(only)) if only else ["*"], dict[str, Link]()
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        name, _, url = (word.strip() for word in line.partition("\t"))
        if not line.strip() or (number == 1 and "://" not in line):
            continue
        if not NAME.fullmatch(name) or not re.match(r"https?://[^\s/]", url):
            raise UserError(f"{path}, line {number} is no name, tab and http link: get the list again")
        if not name.endswith(".tar") or not any(fnmatchcase(name, pattern) for pattern in wanted):
            continue
        if chosen.setdefault(name, Link(name, url, str(path))).url != url:
            raise UserError(f"{path}, line {number} has another link of {name} than a line before: keep one")
    if not chosen:
        raise UserError(f"{path} names no tar{f' of only={only}' if only else ''}: is it the list of links?")
    return [chosen[name] for name in sorted(chosen)]


def fetch(link: Link, folder: Path) -> Path:
    """The tar in `folder`, downloaded unless it is there. One that stays broken though the server sent all of it is
    kept with a warning: what is whole in it can be used. Raises UserError for a refused link, a server that does not
    answer and a full disk; what came so far is kept."""
    tar, part = folder / link.name, folder / f".{link.name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    if tar.is_file() and fault(tar):  # of another program, say
        with contextlib.suppress(FileNotFoundError):
            os.replace(tar, part)
    if tar.is_file():
        return tar
    with full_disk_is_a_sentence(tar), open(part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # another task has it: then the tar is there. lockf's ends in `fault`
        except OSError as error:
            warn(f"{folder} is on a file system without locks ({error.strerror}): let no two tasks load the same tar")
        if tar.is_file():
            if not os.path.samestat(os.fstat(file.fileno()), tar.stat()):
                part.unlink(missing_ok=True)
            return tar
        for more in (True, False):
            _load(link, file)
            if not (broken := fault(part)):
                break
            warn(f"{tar} {broken}, though all of it came: {'loading it again' if more else 'it is kept as it is'}")
            if more:
                file.truncate(0)
        os.fsync(file.fileno())
        os.replace(part, tar)
        sync(tar)
    return tar


def fault(tar: Path) -> str:
    """Where a tar, gzip-wrapped or not, is cut off or damaged; "" where it is whole. Members are not looked into."""
    said: list[str] = []
    try:
        for _ in read_pairs(tar, lambda _, reason: said.append(reason), keep=lambda key: False):
            pass
    except UserError:
        return "is no tar"
    return said[0] if said else ""


def _load(link: Link, file: BinaryIO) -> None:
    """Bring the open part up to the length that the server tells."""
    tries, most = 0, file.seek(0, os.SEEK_END)
    while True:
        headers = None
        try:
            if _rest(link, file):
                return
            reason = "the connection ended early"
        except HTTPError as error:
            reason, headers = f"HTTP {error.code}", error.headers
            error.close()
            if error.code == 416:
                if re.fullmatch(rf"bytes \*/{file.tell()}", headers.get("Content-Range", "")):
                    return
                file.truncate(0)
            elif error.code in EXPIRED:
                raise UserError(
                    f"the link of {link.name} in {link.listed} is refused ({reason}): links expire, get a new list and "
                    "run the same command with it; what is downloaded stays"
                ) from error
            elif error.code not in LATER and error.code < 500:
                raise UserError(f"{link.name} is not there ({reason}): look into {link.listed}") from error
        except (OSError, HTTPException) as error:
            if disk_full(error):
                raise
            reason = str(error) or type(error).__name__
        file.flush()
        if (size := file.seek(0, os.SEEK_END)) > most:
            tries, most = 0, size
        tries += 1
        if tries == TRIES:
            raise UserError(
                f"{link.name} cannot be downloaded ({reason}, {TRIES} times in a row; {size} bytes are here): "
                "run the same command again to go on"
            )
        wait = max(_asked(headers), min(60.0, 2.0 ** (tries - 1)) * random.uniform(0.5, 1))
        warn(f"{link.name}: {reason} at {size} bytes; again in {wait:.0f} s")
        sleep(min(LONGEST, wait))


def _rest(link: Link, file: BinaryIO) -> bool:
    """Append what the server has beyond the part. Returns whether the part is as long as it says."""
    had = file.seek(0, os.SEEK_END)
    headers = {"Accept-Encoding": "identity", "User-Agent": "frisket"} | ({"Range": f"bytes={had}-"} if had else {})
    with urlopen(Request(link.url, headers=headers), timeout=SILENCE) as answer:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        if answer.status == 206:
            if not span or int(span[1]) != had:  # not what was asked for: from the start, then, and without asking
                file.truncate(0)
                return False
            total = int(span[2])
        else:
            file.truncate(0)
            length = answer.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
        for chunk in _chunks(answer):
            file.write(chunk)
    file.flush()
    return total is None or file.seek(0, os.SEEK_END) == total


def _chunks(answer: BinaryIO) -> Iterator[bytes]:
    while chunk := answer.read(CHUNK):
        yield chunk


def _asked(headers: Message | None) -> float:
    """Seconds of Retry-After, which is a number or a date; 0 where there is none."""
    text = (headers.get("Retry-After") or "").strip() if headers else ""
    if text.isdecimal():
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0
