"""Embeddings made by an array of jobs on two real nodes are, byte for byte, those of one process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toyrun import ROOT, environment

from frisket.cli.main import main


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("slurm")
def test_an_array_stores_what_one_process_stores(
    slurm: dict[str, str], tiny_teacher: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    env = environment(GLOO_SOCKET_IFNAME="lo", **slurm)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    shards, logs = tiny_shards / "train", tmp_path / "logs"
    words = [f"inputs={shards}", f"teacher={tiny_teacher}", "image_size=64", "blocks=[2,4]", "place.accelerator=cpu"]
    logs.mkdir()
    sent = subprocess.run(
        ["sbatch", "--parsable", "--array=0-1", "--gres=none", "--cpus-per-task=1", f"--output={logs}/%A_%a.out",
         "slurm/prep_embed.sh", *words, f"out={tmp_path / 'jobs'}"],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    end = time.monotonic() + 300
    while subprocess.run(["squeue", "-h"], env=env, capture_output=True, text=True, timeout=30).stdout.strip():
        assert time.monotonic() < end, "\n".join(log.read_text() for log in logs.iterdir())
        time.sleep(0.2)
    said = [log.read_text() for log in sorted(logs.iterdir())]
    assert len(said) == 2 and all("[1/1] embed-train-" in text and "left with code 0" in text for text in said), said
    assert main(["prep", str(ROOT / "configs/prep_embed.yaml"), *words, f"out={tmp_path / 'here'}"]) == 0
    made = [
        {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        for folder in (tmp_path / "jobs", tmp_path / "here")
    ]
    assert made[0] == made[1] and len([name for name in made[0] if name.endswith(".emb.tar")]) == 6
