"""A tar of COUNT photographs as Meta ships it goes through prep, embed and an epoch of reading, all in this process:

    python tests/prep/sized.py FOLDER DRAWN.tar SIDE COUNT…      a line of JSON for each stage of each COUNT

Seconds, peak resident memory in MiB, how much that is above the stage's start, and the most files open at once. The
photographs are those of the shard DRAWN, over and over under SA-1B's names. FOLDER is filled anew; SIDE is that of a
small teacher and of what is read. Linux only.
"""

import ctypes
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from frisket import checkpoint
from frisket.data.module import DataConfig, ShardData
from frisket.data.shards import IndexedShards, TarOut
from frisket.eval.cost import CpuGauge
from frisket.models import zoo
from frisket.place import Place
from frisket.prep import embed, sa1b
from frisket.prep.run import prep

MOST = {"files": 0}


def watch(event: str, _: tuple[Any, ...]) -> None:
    """An audit hook: counts what is open whenever something is opened."""
    if event == "open":
        MOST["files"] = max(MOST["files"], len(os.listdir("/proc/self/fd")))


def measured(stage: str, count: int, call: Callable[[], object]) -> None:
    ctypes.CDLL(None).malloc_trim(0)  # else what an earlier stage has freed hides what this one keeps
    gauge, MOST["files"], began = CpuGauge(), 0, time.monotonic()
    gauge.reset()
    call()
    seconds, peak = round(time.monotonic() - began, 1), round(gauge.peak(), 1)
    grew = round(peak - gauge.before, 1)
    print(
        json.dumps({"stage": stage, "count": count, "seconds": seconds, "peak": peak, "grew": grew, **MOST}), flush=True
    )


def read(shards: Path, side: int) -> None:
    """An epoch of the training loader, with what is stored."""
    config = DataConfig(train=str(shards), image_size=side, embeddings="auto")
    data = ShardData(config, per_device=1)
    data.taps = {1: zoo.build("sam_vit_t", image_size=side).image_encoder.taps[0]}
    images = {key for batch in itertools.islice(data.train_dataloader(), data.train_images) for key in batch.keys}
    assert len(images) == data.train_images


def main(folder: Path, drawn: Path, side: int, counts: list[int]) -> None:
    sys.addaudithook(watch)
    torch.set_num_threads(1)
    records, cpu = IndexedShards([drawn]), Place(accelerator="cpu", workers=1)
    for count in counts:
        shutil.rmtree(folder, ignore_errors=True)
        with TarOut(folder / "meta" / "sa_000000.tar") as out:
            for i in range(count):
                out.write(records[i % len(records)] | {"__key__": f"sa_{i}"})
        checkpoint.save(zoo.build("sam_vit_t", image_size=side), folder / "teacher.pt")
        made = {"place": cpu, "out": str(folder / "shards")}
        stored = {"place": cpu, "inputs": made["out"], "teacher": str(folder / "teacher.pt"), "image_size": side}
        measured("prep", count, lambda made=made: prep(sa1b.Config(inputs=str(folder / "meta"), **made)))
        measured("embed", count, lambda stored=stored: prep(embed.Config(**stored, blocks=[1], dtype="int8")))
        measured("read", count, lambda: read(folder / "shards", side))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), [int(count) for count in sys.argv[4:]])
