"""Resume inside real Lightning runs: a stopped and resumed job sees samples, masks and losses of the straight one."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

JOB = Path(__file__).with_name("elastic_job.py")


def run(out, **job):
    """Run elastic_job.py: one rank here, two ranks in a process of their own (Lightning starts the second)."""
    if job.get("devices", 1) == 1:
        runpy.run_path(str(JOB))["main"]({"out": str(out), **job})
        return
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(JOB), json.dumps({"out": str(out), **job})]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]


def lines(out, split="train", rank=0):
    return [json.loads(line) for line in (Path(out) / f"{split}-{rank}.jsonl").read_text().splitlines()]


def steps(out, *names, rank=0):
    return [tuple(line[n] for n in ("step", *names)) for line in lines(out, rank=rank)]


def stream(out, ranks):
    """The job's sample keys step by step, ranks in order."""
    parts = [lines(out, rank=r) for r in range(ranks)]
    return [key for step in zip(*parts, strict=True) for rank in step for key in rank["keys"]]


@pytest.fixture
def train(shards):
    return str(shards(19, per_shard=4))  # 9 batches of 2 an epoch, one sample left over


@pytest.mark.slow
def test_stop_and_resume_equals_straight_across_epochs(train, tmp_path):
    run(tmp_path / "straight", train=train, max_steps=22, save_at=[5, 9, 13])
    straight = steps(tmp_path / "straight", "keys", "areas", "loss", "epoch")
    assert len(straight) == 22 and [s[4] for s in straight] == [0] * 9 + [1] * 9 + [2] * 4
    first = [key for s in straight[:9] for key in s[1]]
    second = [key for s in straight[9:18] for key in s[1]]
    assert len(set(first)) == len(set(second)) == 18 and first != second
    for saved, workers in ((5, 2), (9, 0), (13, 0)):
        out = tmp_path / f"resumed{saved}"
        checkpoint = str(tmp_path / "straight" / f"step{saved}.ckpt")
        run(out, train=train, max_steps=22, resume=checkpoint, workers=workers)
        assert steps(out, "keys", "areas", "loss", "epoch") == straight[saved:], saved


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_and_a_changed_number_of_ranks(train, tmp_path):
    val = train  # 19 samples on two ranks: ten each, one of them a repeat without masks
    run(tmp_path / "two", train=train, val=val, max_steps=11, devices=2, images=2, workers=2, save_at=[2, 6])
    whole = stream(tmp_path / "two", 2)
    run(tmp_path / "one", train=train, max_steps=11, images=4)
    assert stream(tmp_path / "one", 1) == whole, "the order does not depend on the number of ranks"
    checkpoint = str(tmp_path / "two" / "step2.ckpt")
    run(tmp_path / "two-again", train=train, max_steps=11, devices=2, images=2, resume=checkpoint)
    assert stream(tmp_path / "two-again", 2) == whole[8:]
    for saved in (2, 6):
        checkpoint = str(tmp_path / "two" / f"step{saved}.ckpt")
        run(tmp_path / f"one{saved}", train=train, max_steps=11, images=4, resume=checkpoint)
        assert stream(tmp_path / f"one{saved}", 1) == whole[4 * saved :]
    # Half the global batch: the same samples follow, in the same order, up to the end of the epoch (19 = 9 * 2 + 1).
    run(tmp_path / "half", train=train, max_steps=9, images=2, resume=str(tmp_path / "two" / "step2.ckpt"))
    half = steps(tmp_path / "half", "epoch")
    assert stream(tmp_path / "half", 1)[:8] == whole[8:16] and [e for _, e in half] == [0] * 5 + [1] * 2

    seen = [lines(tmp_path / "two", "val", rank) for rank in range(2)]
    assert len(seen[0]) == len(seen[1]) > 0
    per_pass = len(seen[0]) // 2  # two validations, one per epoch of four steps
    objects = [len(line["areas"]) for rank in seen for line in rank[:per_pass]]
    keys = [key for rank in seen for line in rank[:per_pass] for key in line["keys"]]
    assert len(keys) == 20 and set(keys) == {f"sa_{n}" for n in range(19)}
    assert sum(objects) == 19 * 2, "the repeated sample brings no masks"


@pytest.mark.slow
def test_streaming_runs_and_resumes(train, tmp_path):
    run(tmp_path / "a", train=train, max_steps=7, streaming=8, save_at=[5], workers=1)
    assert [e for _, e in steps(tmp_path / "a", "epoch")] == [0] * 4 + [1] * 3
    run(tmp_path / "b", train=train, max_steps=7, streaming=8, workers=1)
    assert stream(tmp_path / "a", 1) == stream(tmp_path / "b", 1), "seeded"
    run(tmp_path / "c", train=train, max_steps=9, streaming=8, resume=str(tmp_path / "a" / "step5.ckpt"))
    assert steps(tmp_path / "c", "epoch") == [(5, 1), (6, 1), (7, 1), (8, 2)]
