"""The real thing: two Slurm nodes train, are preempted, cancelled, at their time limit, one of them dies; the run goes
on under the same W&B id, and ends."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toyrun import ROOT, command, environment, toy_run, toy_shards
from wandb_offline import read_runs

from frisket.checkpoint import newest
from frisket.engine.rundir import read_csv
from frisket.runfiles import RunFiles

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
def test_distill_is_preempted_resumes_and_feeds_the_decoder(slurm, tiny_teacher, tmp_path):
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
    urgent = ["sbatch", "--partition=urgent", "--nodes=2", "--ntasks-per-node=1", "--gres=gpu:4", "--output=/dev/null"]
    subprocess.run([*urgent, "--wrap=true"], cwd=ROOT, env=env, check=True, timeout=30, capture_output=True)
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
    """The process that becomes `frisket` has not even started Python: here Slurm itself warns, of a time limit that is
    nearer than the script's --signal."""
    data, born, log = toy_shards(tmp_path / "data", 6), tmp_path / "born", tmp_path / "job.out"
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")  # without the checkout's .venv, which would go first in PATH
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "frisket").write_text(SLOW_START.format(born=born, python=sys.executable))
    (tmp_path / "frisket").chmod(0o755)
    env = environment(GLOO_SOCKET_IFNAME="lo", **slurm)
    env["PATH"] = f"{tmp_path}{os.pathsep}{env['PATH']}"
    sbatch = ["sbatch", "--parsable", "--ntasks-per-node=1", "--gres=gpu:1", "--cpus-per-task=1", f"--output={log}"]
    sbatch.append("--time=2")
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
        wait("the end", lambda: "Restarts=1" in shown(job, env) or state(job, env) in ("COMPLETED", "FAILED"), log)
        text = log.read_text()
        assert "left with code 75" in text and "Restarts=1" in shown(job, env), text
        assert "stopped on request at step 0;" in text
    finally:
        subprocess.run(["scancel", job], env=env, timeout=60)


def of_node(job: str, node: str) -> set[int]:
    """A job's processes on a node, Slurm's own among them."""
    numbers = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            about = (process / "environ").read_bytes().split(b"\0")
            if {f"SLURM_JOB_ID={job}".encode(), f"SLURMD_NODENAME={node}".encode()} <= set(about):
                numbers |= {int(process.name), int((process / "stat").read_text().rpartition(")")[2].split()[1])}
        except OSError:  # it has just ended
            continue
    return numbers


@pytest.mark.slow
@pytest.mark.skipif("FRISKET_LONG" not in os.environ, reason="a minute or two: make test-long runs it")
@pytest.mark.timeout(1500)
@pytest.mark.xdist_group("slurm")
def test_a_cancelled_job_and_a_dead_node_lose_nothing(slurm, tmp_path):
    """scancel: the step is kept, CANCELLED. A node without power: the others leave with a sentence, env.sh's minute
    (here two seconds) later the job ends, FAILED once the node answers again, and the last checkpoint counts. The same
    command goes on both times."""
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    script = tmp_path / "slurm" / "env.sh"
    script.write_text(script.read_text().replace("--wait=60", "--wait=2"))
    data, log, run = toy_shards(tmp_path / "data", 6), tmp_path / "job.out", RunFiles(tmp_path / "runs" / "train_sam")
    env = environment(GLOO_SOCKET_IFNAME="lo", **slurm)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    words = [*toy_run(data, tmp_path / "runs", checkpoint_every=2), "log.wandb=offline", "data.val=null"]
    words += ["data.global_batch=2", "model.encoder.global_blocks=[1]"]
    sbatch = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--gres=gpu:1", "--cpus-per-task=1"]

    def steps() -> list[int]:
        return [int(row["step"]) for row in read_csv(run.metrics)]

    def submit(after: int) -> str:
        """The number of a job, once it has made some steps more than `after`."""
        sent = [*sbatch, f"--output={log}", "slurm/train_sam.sh", *words, "trainer.max_steps=100000"]
        done = subprocess.run(sent, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=True)
        wait("steps", lambda: len(steps()) > after + 2, log)
        return done.stdout.strip()

    job = submit(0)
    subprocess.run(["scancel", job], env=env, check=True, timeout=60)
    wait("the end", lambda: state(job, env) == "CANCELLED" and run.preempt.exists(), log)
    stopped = torch.load(run.preempt, weights_only=True)["global_step"]
    assert steps() == list(range(1, stopped + 1)) and "Restarts=0" in shown(job, env)
    assert f"stopped on request at step {stopped};" in log.read_text()

    job = submit(stopped)
    pid = Path(slurm["SLURM_CONF"]).parent / "run" / "slurmd-node2.pid"
    try:
        for number in {int(pid.read_text()), *of_node(job, "node2")}:
            os.kill(number, signal.SIGKILL)
        wait("the end", lambda: "left with code 2" in log.read_text(), log)
    finally:
        subprocess.run(["slurmd", "-N", "node2", "-f", slurm["SLURM_CONF"]], env=env, check=True, timeout=60)
    wait("the state", lambda: state(job, env) == "FAILED", log)
    assert "rank 0 never met the others, or lost them" in log.read_text()
    reached, saved = steps()[-1], newest(run.path)
    assert saved is not None and reached - 2 <= saved.step <= reached

    here = [*words, "place.devices=1", "log.wandb=offline", f"trainer.max_steps={reached + 2}"]
    done = subprocess.run(command("train", "train_sam", *here), env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps() == list(range(1, reached + 3))
    assert {part.id for part in read_runs(run.path / "wandb")} == {run.wandb.read_text().strip()}
