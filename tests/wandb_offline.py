"""Read W&B's offline logs without its private modules: LevelDB log records, each one protobuf `Record`.

    runs = read_runs(folder / "wandb")       # one Offline per process that logged
    runs[0].id, runs[0].history              # history: a list of {key: value}

Format: LevelDB's log format (32 KiB blocks; records of crc, length, type) after a 7-byte header `:W&B…`.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 32768
HEADER = struct.Struct("<IHB")
FULL, FIRST, LAST = 1, 2, 4


@dataclass
class Offline:
    """What one process logged. finished: W&B wrote its exit record."""

    id: str = ""
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False


def read_runs(folder: Path) -> list[Offline]:
    """Return the offline runs below `folder`, oldest first."""
    return [_read(path) for path in sorted(folder.glob("offline-run-*/*.wandb"))]


def _read(path: Path) -> Offline:
    run = Offline()
    for payload in _payloads(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.project = record.run.run_id, record.run.project
            run.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            items = record.history.item
            run.history.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
        elif kind == "exit":
            run.finished = True
    return run


def _payloads(data: bytes) -> Iterator[bytes]:
    if data[:4] != b":W&B":
        raise ValueError(f"not a W&B log: starts with {data[:7]!r}")
    position, parts = 7, b""
    while position + HEADER.size <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER.size:  # no record header crosses a block's end
            position += left
            continue
        _, length, kind = HEADER.unpack_from(data, position)
        if kind == 0 and length == 0:
            return
        body = data[position + HEADER.size : position + HEADER.size + length]
        position += HEADER.size + length
        parts = body if kind in (FULL, FIRST) else parts + body
        if kind in (FULL, LAST):
            yield parts
