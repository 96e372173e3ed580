"""However many photographs a tar holds, preparing, embedding and reading it take the same memory and open files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from frisket.data.sa1b import encode_jpeg
from frisket.data.shards import TarOut
from frisket.prep.records import record_json

FEW, MANY = 2, 26


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
def test_memory_and_open_files_do_not_grow_with_the_tar(tmp_path: Path) -> None:
    mask = np.zeros((1000, 1000), bool)
    mask[100:400, 200:700] = True
    with TarOut(tmp_path / "drawn.tar") as out:
        for i in range(2):
            jpg = encode_jpeg(np.random.default_rng(i).integers(0, 255, (1000, 1000, 3), np.uint8), quality=95)
            out.write({"__key__": f"n_{i}", "jpg": jpg, "json": record_json(i, f"n_{i}.jpg", mask.shape, [mask])})
    words = [
        str(word) for word in (tmp_path / "sized", tmp_path / "drawn.tar", 64, FEW, FEW, MANY)
    ]  # the first loads libraries
    script = Path(__file__).with_name("sized.py")
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    few, many = ({line["stage"]: line for line in lines if line["count"] == count} for count in (FEW, MANY))
    assert list(few) == list(many) == ["prep", "embed", "read"]
    for stage in few:
        assert 0 < many[stage]["files"] <= few[stage]["files"], (few, many)
        more = (MANY - FEW) * len(jpg) / 2**20  # MiB, were their JPEGs kept
        assert many[stage]["grew"] - few[stage]["grew"] < more / 2, (few, many)
