"""DRY_RUN=1 sbatch: all ranks of two real nodes look, nothing is trained, and the job fails where a check does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from toyrun import ROOT, environment, toy_run, toy_shards


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("slurm")
def test_a_dry_run_is_a_doctor_on_every_rank(slurm: dict[str, str], tmp_path: Path) -> None:
    data, log = toy_shards(tmp_path / "data", 6), tmp_path / "job.out"
    env = environment(GLOO_SOCKET_IFNAME="lo", DRY_RUN="1", **slurm)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    sbatch = ["sbatch", "--wait", "--nodes=2", "--ntasks-per-node=1", "--gres=gpu:1", "--cpus-per-task=1"]

    def job(script: str, *words: str) -> tuple[int, str]:
        log.unlink(missing_ok=True)
        done = subprocess.run(
            [*sbatch, f"--output={log}", f"slurm/{script}.sh", *words],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        return done.returncode, log.read_text()

    words = [*toy_run(data, tmp_path / "runs"), "data.val=null", "data.global_batch=2"]
    words.append("model.encoder.global_blocks=[1]")
    code, said = job("train_sam", *words)
    assert code == 0, said
    assert "ok   place         cpu, 2 nodes x 1 devices" in said and "2 met over gloo at 127.0.0.1:" in said
    assert said.count("ok   shards ") == 1  # rank 0 alone says what is well
    assert "left with code 0" in said and not (tmp_path / "runs").exists()
    line = next(line for line in said.splitlines() if "; start: " in line)
    assert "start: srun --wait=60 env --block-signal=USR1,TERM frisket train configs/train_sam.yaml" in line
    assert line.endswith("model.encoder.global_blocks=[1]")

    code, said = job("train_sam", *words, "init_from=nobody.pt")
    assert code == 1, said
    assert "FAIL model         there is no checkpoint at nobody.pt" in said and "FAIL model         rank 1 on " in said
    assert "1 of 12 checks failed" in said and "left with code 1" in said

    code, said = job("evaluate", "data=x")
    assert code == 2 and "DRY_RUN: only a training has a doctor, not frisket eval" in said
