"""Evaluations as a job on two real nodes give the numbers of one process here, to the last bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toyrun import ROOT, environment

TASKS = """
tasks:
  miou: {protocol: [all], clicks: [1, 2]}
  instance: {refine: true}
  everything: {everything: {points_per_side: 2}}
"""


@pytest.mark.slow
@pytest.mark.xdist_group("slurm")
def test_two_nodes_judge_as_one_process_does(slurm, tiny_teacher, tiny_shards, tmp_path):
    env = environment(GLOO_SOCKET_IFNAME="lo", **slurm)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    suite = tmp_path / "suite.yaml"
    suite.write_text(TASKS)
    words = [
        str(suite), f"checkpoint=tiny:{tiny_teacher}", f"data={tiny_shards / 'val'}",
        "place.accelerator=cpu", "pictures=1", "limit=3",
    ]  # fmt: skip
    log = tmp_path / "job.out"
    sbatch = ["sbatch", "--wait", "--nodes=2", "--ntasks-per-node=1", "--gres=gpu:1", "--cpus-per-task=1"]
    job = subprocess.run(
        [*sbatch, f"--output={log}", "slurm/evaluate.sh", *words, f"out={tmp_path / 'two'}"],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    text = log.read_text() if log.exists() else "no log"
    assert job.returncode == 0, job.stdout + job.stderr + text
    assert "left with code 0" in text and text.count("report: ") == 1  # rank 0 alone speaks
    here = subprocess.run(
        ["bash", "slurm/evaluate.sh", *words, f"out={tmp_path / 'one'}"],
        cwd=ROOT, env=env | {"LOCAL": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert here.returncode == 0, here.stdout + here.stderr
    for task in ("miou", "instance", "everything"):
        two, one = (json.loads((tmp_path / name / task / "eval.json").read_text()) for name in ("two", "one"))
        assert two["models"] == one["models"] and two["weights"] == one["weights"]
        rows = [(tmp_path / name / task / "per_image.csv").read_text() for name in ("two", "one")]
        assert rows[0] == rows[1]
