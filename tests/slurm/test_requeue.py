"""The real thing: two Slurm nodes train, are asked to leave, requeue, go on under the same W&B id, and end."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toyrun import ROOT, environment, toy_run, toy_shards
from wandb_offline import read_runs

from frisket.engine.rundir import read_csv

STEPS = 60
SETTINGS = """
data: {{train: {data}, val: {val}, image_size: 64, masks_per_image: 4, global_batch: 2}}
place: {{accelerator: cpu, precision: 32-true, threads: 1, workers: 1}}
trainer: {{log_every: 1, val_every: 25, checkpoint_every: 20}}
log: {{wandb: offline, gallery_every: 30, gallery_images: 2, samples: true}}
"""


def wait(what: str, ready: Callable[[], bool], log: Path, seconds: float = 600) -> None:
    """Poll until `ready`; on time-out fail with the job's log."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            pytest.fail(f"timed out waiting for {what}:\n{log.read_text() if log.exists() else 'no log'}")
        time.sleep(0.1)


def shown(job: str, env: dict[str, str]) -> str:
    """What Slurm knows of a job."""
    done = subprocess.run(["scontrol", "show", "job", job], env=env, capture_output=True, text=True, timeout=60)
    return done.stdout


def state(job: str, env: dict[str, str]) -> str:
    """One word."""
    match = re.search(r"JobState=(\w+)", shown(job, env))
    return match[1] if match else ""


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.xdist_group("slurm")
def test_distill_is_requeued_resumes_and_feeds_the_decoder(slurm, tiny_teacher, tmp_path):
    data, val = toy_shards(tmp_path / "data", 30), toy_shards(tmp_path / "val", 4, "val")
    overlay = tmp_path / "tiny.yaml"
    overlay.write_text(SETTINGS.format(data=data, val=val))
    run, log = tmp_path / "runs" / "distill_lightening", tmp_path / "job.out"
    env = environment(GLOO_SOCKET_IFNAME="lo", **slurm)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"

    def nodes() -> set[str]:
        done = subprocess.run(["sinfo", "-h", "-N", "-o", "%T"], env=env, capture_output=True, text=True, timeout=30)
        return set(done.stdout.split())

    def steps() -> list[int]:
        return [int(row["step"]) for row in read_csv(run / "metrics.csv") if row["train/loss"]]

    sbatch = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--gres=gpu:1", "--cpus-per-task=1"]
    words = [f"teacher={tiny_teacher}", "student.encoder={depth: 2, width: 32, heads: 2}", f"out={tmp_path / 'runs'}"]
    job = subprocess.run(
        [*sbatch, f"--output={log}", "slurm/distill_lightening.sh", overlay, *words, f"trainer.max_steps={STEPS}"],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=30, check=True,
    ).stdout.strip()  # fmt: skip
    wait("step 3", lambda: len(steps()) >= 3, log)
    subprocess.run(["scancel", "--signal=USR1", job], env=env, check=True, timeout=30)
    wait("the requeue", lambda: "Restarts=1" in shown(job, env), log)
    stopped = torch.load(run / "checkpoints" / "preempt.ckpt", weights_only=True)["global_step"]
    assert 3 <= stopped < STEPS
    assert steps() == list(range(1, stopped + 1))
    assert f"stopped on request at step {stopped};" in log.read_text()
    wait("the job to pend", lambda: state(job, env) == "PENDING", log)
    # Slurm itself waits two minutes. Released earlier, the exit code of the killed first start may arrive during the
    # second and be taken for it (seen: the job was marked FAILED as it started).
    wait("the nodes to be free", lambda: nodes() == {"idle"}, log)
    time.sleep(6)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=env, check=True, timeout=30)
    wait("the end", lambda: state(job, env) in ("COMPLETED", "FAILED"), log)

    text = log.read_text()
    assert state(job, env) == "COMPLETED", text
    assert "left with code 75" in text and "left with code 0" in text
    assert f"continuing from {run / 'checkpoints' / 'preempt.ckpt'}" in text
    assert steps() == list(range(1, STEPS + 1))  # one curve, no gap and no repeat
    assert json.loads((run / "summary.json").read_text())["step"] == STEPS

    first, second = read_runs(run / "wandb")
    assert first.id == second.id == (run / "wandb_id").read_text().strip()
    assert first.finished and second.finished
    logged = [{row["trainer/global_step"] for row in part.history if "train/loss" in row} for part in (first, second)]
    assert logged == [set(range(1, stopped + 1)), set(range(stopped + 1, STEPS + 1))]
    assert any(key.startswith("gallery") for row in first.history + second.history for key in row)

    keys = []
    for name in ("samples.jsonl", "samples-rank1.jsonl"):
        rows = [json.loads(line) for line in (run / name).read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        keys.append([key for row in rows for key in row["keys"]])
    epoch = 15  # 30 photographs over 2 ranks
    assert len(set(keys[0][:epoch] + keys[1][:epoch])) == 30  # each photograph once, on one of the ranks

    local = subprocess.run(
        ["bash", "slurm/finetune_decoder.sh", overlay, f"init_from={run}", f"out={tmp_path / 'runs'}",
         "trainer.max_steps=2", "log.wandb=off"],
        cwd=ROOT, env=env | {"LOCAL": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert local.returncode == 0, local.stdout + local.stderr
    student = torch.load(run / "model.pt", weights_only=True)["state_dict"]
    aligned = torch.load(tmp_path / "runs" / "finetune_decoder" / "model.pt", weights_only=True)["state_dict"]
    same = {key for key in student if torch.equal(student[key], aligned[key])}
    assert all(key in same for key in student if not key.startswith("mask_decoder."))
    assert any(key not in same for key in student if key.startswith("mask_decoder."))


SLOW_START = """#!/bin/bash
touch {born}
until (( 16#$(sed -n 's/^ShdPnd:\\t//p' /proc/$$/status) & 0x200 )); do sleep 0.1; done  # until SIGUSR1 is pending
exec {python} -m frisket "$@"
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.xdist_group("slurm")
def test_a_signal_before_anything_can_hold_it_requeues_the_job(slurm, tmp_path):
    """In the first second: the process that becomes `frisket` has not even started Python."""
    data, born, log = toy_shards(tmp_path / "data", 6), tmp_path / "born", tmp_path / "job.out"
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")  # without the checkout's .venv, which would go first in PATH
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "frisket").write_text(SLOW_START.format(born=born, python=sys.executable))
    (tmp_path / "frisket").chmod(0o755)
    env = environment(GLOO_SOCKET_IFNAME="lo", **slurm)
    env["PATH"] = f"{tmp_path}{os.pathsep}{env['PATH']}"
    sbatch = ["sbatch", "--parsable", "--ntasks-per-node=1", "--gres=gpu:1", "--cpus-per-task=1", f"--output={log}"]
    words = [
        *toy_run(data, tmp_path / "runs"),
        "data.val=null",
        "data.global_batch=1",
        "model.encoder.global_blocks=[1]",
    ]
    job = subprocess.run(
        [*sbatch, "slurm/train_sam.sh", *words],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=True,
    ).stdout.strip()  # fmt: skip
    try:
        wait("the start", born.exists, log)
        subprocess.run(["scancel", "--signal=USR1", job], env=env, check=True, timeout=60)
        wait("the end", lambda: "Restarts=1" in shown(job, env) or state(job, env) in ("COMPLETED", "FAILED"), log)
        text = log.read_text()
        assert "left with code 75" in text and "Restarts=1" in shown(job, env), text
        assert "stopped on request at step 0;" in text
    finally:
        subprocess.run(["scancel", job], env=env, timeout=60)
