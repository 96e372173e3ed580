"""A study as Slurm jobs on two real nodes says, to the last digit, what it says when it runs here."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tinystudy import write
from toyrun import ROOT, environment


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("slurm")
def test_an_array_of_cells_gives_the_table_of_one_process(
    slurm: dict[str, str], tiny_teacher: Path, tmp_path: Path
) -> None:
    env = environment(GLOO_SOCKET_IFNAME="lo", **slurm)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    words = [sys.executable, "-m", "frisket", "study", str(write(tmp_path / "tiny.yaml", tiny_teacher, seeds="[0]"))]
    logs = tmp_path / "logs"
    logs.mkdir()
    options = f"--cpus-per-task=1 --output={logs}/%A_%a.out"
    sent = subprocess.run(
        [*words, f"out={tmp_path / 'jobs'}", f"slurm={options}"], cwd=ROOT, env=env, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert sent.returncode == 0 and "runs 2 cells" in sent.stdout, sent.stdout + sent.stderr
    end = time.monotonic() + 300
    while subprocess.run(["squeue", "-h"], env=env, capture_output=True, text=True, timeout=30).stdout.strip():
        assert time.monotonic() < end, "\n".join(log.read_text() for log in logs.iterdir())
        time.sleep(0.2)
    said = "\n".join(log.read_text() for log in sorted(logs.iterdir()))
    assert (tmp_path / "jobs" / "study.json").is_file(), said
    assert said.count("left with code 0") == 4 and "| cascade |" in said  # to prepare, two cells, the table
    here = subprocess.run(
        [*words, f"out={tmp_path / 'here'}"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert here.returncode == 0, here.stdout + here.stderr
    jobs, one = (json.loads((tmp_path / name / "study.json").read_text()) for name in ("jobs", "here"))
    assert jobs == one and set(one["arms"]) == {"cascade", "neck"}
