"""The evaluation module: rows in item order, each item once on one rank or two, one sentence for a bad item."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from torch.utils.data import DataLoader

from frisket.engine.judge import Judged

CODE = """
import json, sys
from frisket.engine.judge import judge
from frisket.engine.strategy import place, quiet
from frisket.data.identity import of_pixels
from frisket.place import Place
from frisket.errors import UserError
from frisket.eval.task import BaseTask, TaskConfig
from frisket.place import Place

class Count(BaseTask):
    baseline = "plain"
    sentence = "counts"
    def dataset(self, images): return of_pixels("noise", [])
    def __len__(self): return 7
    def fail(self, index): raise UserError(f"item {index} is broken")
    def load(self, index):
        return None if index == 3 else index
    def answer(self, sam, item): return {"key": str(item), "value": item ** 0.5, "_big": "x"}
    def summarise(self, rows): return {"sum": sum(r["value"] for r in rows), "keys": [r["key"] for r in rows],
                                       "kept": [n for n in rows[0]]}
    def table(self, numbers): return ""

if __name__ == "__main__":
    quiet()
    devices, workers, broken = map(int, sys.argv[1:4])
    where = place(
        Place(accelerator="cpu", devices=devices)
    )
    task = Count(TaskConfig(task="count", place=Place(workers=workers)), 64)
    if broken >= 0:
        Count.load = lambda self, index: self.fail(index)
    try:
        verdict = judge(task, {}, where)
    except UserError as error:
        print("ERROR", error); sys.exit(2)
    if verdict: print("VERDICT", json.dumps(verdict.numbers))
"""


def run(folder: Path, devices: int, workers: int, broken: int = -1) -> subprocess.CompletedProcess[str]:
    script = folder / "count.py"
    script.write_text(CODE)
    return subprocess.run(
        [sys.executable, str(script), str(devices), str(workers), str(broken)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize(("devices", "workers"), [(1, 0), (1, 2), (2, 0)])
def test_every_item_counts_once_in_order(tmp_path: Path, devices: int, workers: int) -> None:
    done = run(tmp_path, devices, workers)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("VERDICT")] or [done.stdout + done.stderr]
    found = json.loads(line.removeprefix("VERDICT "))["plain"]
    assert found["keys"] == ["0", "1", "2", "4", "5", "6"]
    assert found["kept"] == ["key", "value"]
    # to the last bit: the same rows are summed in the same order
    assert found["sum"] == sum(i**0.5 for i in (0, 1, 2, 4, 5, 6))


def test_a_bad_item_is_one_sentence(tmp_path: Path) -> None:
    done = run(tmp_path, 1, 0, broken=0)
    assert done.returncode == 2
    assert "ERROR item 0 is broken" in done.stdout


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Counted(L.LightningModule):
    """Four things to judge."""

    left = 4

    def test_step(self, batch: Any, batch_idx: int) -> None:
        return None


@pytest.mark.parametrize(
    ("stream", "seconds", "shown"),
    [(Terminal(), 99.0, [1, 2, 3, 4]), (io.StringIO(), 0.0, [1, 2, 3, 4]), (io.StringIO(), 99.0, [])],
)
def test_an_evaluation_says_how_far_it_is(stream: io.StringIO, seconds: float, shown: list[int]) -> None:
    L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Judged(seconds=seconds, stream=stream)],
    ).test(Counted(), DataLoader(range(4), batch_size=None), verbose=False)  # fmt: skip
    lines = [line.strip() for line in stream.getvalue().replace("\r", "\n").splitlines() if line.strip()]
    assert [int(line.split()[1].split("/")[0]) for line in lines] == shown
    assert all(line.startswith("judged ") and "/4  " in line and "eta 0:00:0" in line for line in lines)
