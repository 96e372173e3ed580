"""kill -9 in the middle of an epoch, then the same command: losses, validations, sample ids and weights are equal."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toyrun import command, environment, toy_run, toy_shards

from frisket.cli.main import main
from frisket.engine.rundir import read_csv


def curve(run: Path) -> list[dict[str, str]]:
    """The losses and validation scores of metrics.csv as written, digit for digit; speeds left out."""
    rows = [{k: v for k, v in row.items() if v and not k.startswith("speed/")} for row in read_csv(run / "metrics.csv")]
    return sorted((row for row in rows if len(row) > 2), key=lambda row: (int(row["step"]), "val/box/miou" in row))


KILLED_AFTER_ROW_7 = """
import os, signal, sys
from frisket.cli.main import main
from frisket.engine.rundir import CsvLog
write = CsvLog.log_metrics
def kill(log, metrics, step=None):
    write(log, metrics, step)
    if "train/loss" in metrics and step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
CsvLog.log_metrics = kill
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)  # seconds of work, which took minutes on a machine that did much else
def test_kill_9_mid_epoch_then_the_same_command_is_bit_exact(tmp_path):
    data, val = toy_shards(tmp_path / "data", 12), toy_shards(tmp_path / "val", 3, "val")
    settings = {"max_steps": 16, "val_every": 5, "checkpoint_every": 3}
    more = ["log.gallery_every=5", "log.gallery_images=2"]
    assert main(["train", *toy_run(data, tmp_path / "straight", val, **settings), *more]) == 0
    straight = tmp_path / "straight" / "train_sam"

    words = ["train", *toy_run(data, tmp_path / "killed", val, **settings), *more, "place.workers=1"]
    killed = tmp_path / "killed" / "train_sam"
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_ROW_7, *words], env=environment(), stdout=subprocess.DEVNULL
    )
    assert done.returncode == -signal.SIGKILL
    assert not (killed / "summary.json").exists()
    assert torch.load(killed / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6

    assert main(words) == 0
    assert curve(killed) == curve(straight)
    assert (killed / "samples.jsonl").read_text() == (straight / "samples.jsonl").read_text()
    mine, theirs = (torch.load(run / "model.pt", weights_only=True)["state_dict"] for run in (killed, straight))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    pictures = [sorted((p.name, p.read_bytes()) for p in (run / "gallery").iterdir()) for run in (killed, straight)]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 3


@pytest.mark.slow
@pytest.mark.timeout(1200)  # seconds of work, which took minutes on a machine that did much else
@pytest.mark.parametrize(
    ("ranks", "number", "code"), [(1, signal.SIGINT, 130), (1, signal.SIGTERM, 75), (2, signal.SIGTERM, 75)]
)
def test_local_ranks_leave_on_request_with_a_checkpoint_and_go_on(tmp_path, capsys, ranks, number, code):
    data = toy_shards(tmp_path / "data", 12)
    words = [
        "train",
        *toy_run(data, tmp_path, max_steps=100_000, checkpoint_every=100_000, devices=ranks),  # it never ends alone
        "data.global_batch=2",
    ]
    run = tmp_path / "train_sam"
    with subprocess.Popen(command(*words), env=environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            while len(read_csv(run / "metrics.csv")) < 2:
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(number)
            said = process.communicate()[0]  # how long either may take is pytest-timeout's to say
        finally:
            process.kill()
    assert process.returncode == code, said
    stopped = torch.load(run / "checkpoints" / "preempt.ckpt", weights_only=True)["global_step"]
    assert f"stopped on request at step {stopped};" in said

    # elastic: a two-rank run goes on with one rank
    capsys.readouterr()
    assert main([*words, "place.devices=1", f"trainer.max_steps={stopped + 2}"]) == 0
    assert ranks == 1 or "changed since the last start: place.devices: 2 -> 1" in capsys.readouterr().out
    with open(run / "metrics.csv", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, stopped + 3))
