"""A run's end and its refusals: final validation, damaged files, other strategies, starts without a step."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toyfit import killed_after_rename
from toyrun import command, environment, toy_run, toy_shards

from frisket.checkpoint import save
from frisket.cli.main import main
from frisket.engine.rundir import read_csv
from frisket.optim import OptimConfig, ratio
from frisket.prep import embed
from frisket.prep.run import prep
from frisket.runfiles import RunFiles
from frisket.weights.deepspeed import MODEL_STATES


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training and validation shards."""
    root = tmp_path_factory.mktemp("data")
    return toy_shards(root / "train", 8), toy_shards(root / "val", 3, "val")


def validated(run: RunFiles) -> list[int]:
    """The steps at which metrics.csv has a validation."""
    return [int(row["step"]) for row in read_csv(run.metrics) if row.get("val/box/miou")]


def test_a_run_killed_near_its_end_has_its_final_validation(data, tmp_path, monkeypatch):
    """The last step is no multiple of val_every. Killed around the last checkpoint, and before the summary."""
    words = ["train", *toy_run(data[0], tmp_path, data[1], max_steps=3, val_every=2, checkpoint_every=2)]
    assert main([*words, "name=first"]) == 0  # writes the shards' sidecars, too
    renames, rename = [], os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: renames.append(Path(paths[1]).name) or rename(*paths))
    assert main([*words, "name=straight"]) == 0
    monkeypatch.undo()
    assert renames[-4:] == ["previous.ckpt", "last.ckpt", "model.pt", "summary.json"]
    straight = RunFiles(tmp_path / "straight")
    assert validated(straight) == [2, 3]
    expected = json.loads(straight.summary.read_text())
    assert expected["step"] == 3

    for number in range(len(renames) - 3, len(renames)):
        run = RunFiles(tmp_path / f"killed{number}")
        assert killed_after_rename(lambda name=run.path.name: main([*words, f"name={name}"]), number)
        assert not run.summary.exists()
        assert main([*words, f"name={run.path.name}"]) == 0
        made = json.loads(run.summary.read_text())
        for key in ("val/box/miou", "val/click1/miou"):
            assert made["metrics"][key] == expected["metrics"][key] is not None
        assert validated(run) == [2, 3]


def test_damaged_files_of_a_run_are_no_tracebacks_and_nothing_is_lost(data, tmp_path, capsys):
    words = ["train", *toy_run(data[0], tmp_path, data[1], checkpoint_every=2), "name=run"]
    run = RunFiles(tmp_path / "run")
    assert main([*words, "trainer.max_steps=4"]) == 0

    # of the last checkpoint one bit: the one before it counts, said in a line
    content = bytearray(run.last.read_bytes())
    content[len(content) // 2] ^= 1
    run.last.write_bytes(content)
    run.summary.write_text("{")
    run.wandb.write_bytes(b"\xff\x00")
    run.config.write_bytes(b"\xff: [")
    with open(run.metrics, "ab") as file:
        file.write(b"\xff\x00,,,,,,,\n")
    with open(run.samples(0), "ab") as file:
        file.write(b"\xff{\n")
    capsys.readouterr()
    assert main([*words, "trainer.max_steps=4", "log.wandb=offline"]) == 0
    said = capsys.readouterr()
    for damaged in (run.last, run.summary, run.wandb, run.config, run.metrics, run.samples(0)):
        assert f"frisket: {damaged} " in said.err or f"; {damaged} " in said.err, damaged
    assert f"continuing from {run.previous}" in said.out and "finished at step 4" in said.out
    assert [int(row["step"]) for row in read_csv(run.metrics) if row["train/loss"]] == [1, 2, 3, 4]
    assert run.last.with_name("last.ckpt.damaged").read_bytes() == content

    # nothing readable is left: one sentence, and nothing is touched
    run.summary.unlink()
    for path in (run.last, run.previous):
        path.write_bytes(path.read_bytes()[:-100])
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and "wandb" not in path.parts}
    capsys.readouterr()
    assert main([*words, "trainer.max_steps=4"]) == 2
    assert "no checkpoint of" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in before}


def test_a_run_does_not_go_on_from_a_folder_that_an_earlier_frisket_left(data, tmp_path, capsys):
    """What DeepSpeed wrote by itself; what it trains now is a file like any other's (test_zero.py)."""
    words = ["train", *toy_run(data[0], tmp_path)]
    assert main([*words, "trainer.max_steps=1"]) == 0
    run = RunFiles(tmp_path / "train_sam")
    content = torch.load(run.last, weights_only=True)
    run.last.unlink()
    (run.last / "checkpoint").mkdir(parents=True)
    (run.last / "latest").write_text("checkpoint")
    content["module"] = content.pop("state_dict")
    torch.save(content | {"dp_world_size": 1}, run.last / "checkpoint" / MODEL_STATES)
    torch.save({}, run.last / "checkpoint" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file() and path != run.lock}
    capsys.readouterr()
    assert main([*words, "trainer.max_steps=2"]) == 2
    said = capsys.readouterr().err
    assert f"frisket: {run.last} is DeepSpeed's own folder, as an earlier frisket kept it, and cannot be con" in said
    assert said.count("\n") == 1
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_what_is_refused_is_not_announced_before(data, tmp_path, capsys, tiny_teacher, tiny_sam):
    """No banner, no folder, no W&B run."""
    out = tmp_path / "runs"
    words = ["train", *toy_run(data[0], out, data[1]), "log.wandb=offline"]
    save(tiny_sam, tmp_path / "other.pt")
    copied = shutil.copytree(data[0], tmp_path / "data")
    prep(embed.Config(inputs=str(copied), teacher=str(tmp_path / "other.pt"), image_size=64))
    taught = [*words, "recipe=distill_lightening", f"data.train={copied}", f"teacher={tiny_teacher}"]
    taught = [word for word in taught if not word.startswith(("model.", "prompts."))]
    taught += ["student.encoder={depth: 2, width: 32, heads: 2}", "data.embeddings=auto"]
    for refused, sentence in (
        ([*words, "data.image_size=128", f"init_from={tiny_teacher}"], "set data.image_size=64"),
        ([*words, "trainer.keep_best=box/moiu"], "is no measure of a validation"),
        (taught, "stored embeddings come from teacher"),
    ):
        capsys.readouterr()
        assert main(refused) == 2
        said = capsys.readouterr()
        assert sentence in said.err and said.out == "" and not out.exists(), said


def test_a_resumed_optimizer_has_the_settings_of_this_start(data, tmp_path, capsys):
    """And its moments; groups of other weights, which they do not fit, are refused in a sentence."""
    words = ["train", *toy_run(data[0], tmp_path, checkpoint_every=1), "optim.warmup_steps=0", "optim.min_ratio=0.5"]
    run = RunFiles(tmp_path / "train_sam")

    def go_on(steps: int, *more: str) -> dict:
        assert main([*words, f"trainer.max_steps={steps}", *more]) == 0
        return torch.load(run.last, weights_only=True)

    first, still = go_on(1), go_on(2, "optim.lr=0")
    assert all(torch.equal(value, still["state_dict"][key]) for key, value in first["state_dict"].items())
    config = OptimConfig(lr=0.01, weight_decay=0.3, betas=(0.5, 0.6), min_ratio=0.5)
    moved = go_on(4, "optim.lr=0.01", "optim.weight_decay=0.3", "optim.betas=[0.5,0.6]")
    groups = moved["optimizer_states"][0]["param_groups"]
    assert [(g["weight_decay"], g["betas"]) for g in groups] == [(0.3, (0.5, 0.6)), (0.0, (0.5, 0.6))]
    assert [g["lr"] for g in groups] == moved["lr_schedulers"][0]["_last_lr"] == [0.01 * ratio(4, config, steps=4)] * 2
    before, after = (state["optimizer_states"][0]["state"][0] for state in (still, moved))
    assert (before["step"], after["step"]) == (2, 4)

    capsys.readouterr()
    assert main([*words, "trainer.max_steps=5", "optim.layer_decay=0.5"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"frisket: {run.path} keeps its optimizer's state in other groups") and said.count("\n") == 1
    assert "layer_decay=0.5 of optim" in said

    decayed = ["name=decayed", "optim.schedule=constant"]
    assert main([*words, *decayed, "trainer.max_steps=1", "optim.layer_decay=0.5"]) == 0
    assert main([*words, *decayed, "trainer.max_steps=2", "optim.layer_decay=0.8"]) == 0
    groups = torch.load(RunFiles(tmp_path / "decayed").last, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert sorted({round(group["lr"] / 1e-4, 6) for group in groups}) == [0.512, 0.64, 0.8, 1.0]


def test_two_starts_without_a_step_are_enough(data, tmp_path):
    """As where the time limit is shorter than the warning before it: the signal is there when Python starts."""
    words = command("train", *toy_run(data[0], tmp_path, max_steps=2))
    block = [sys.executable, "-c", BLOCKED, *words]
    codes = []
    for _ in range(2):
        done = subprocess.run(block, env=environment(), capture_output=True, text=True, timeout=240)
        codes.append(done.returncode)
        if done.returncode == 2:
            assert "two starts in a row were asked to stop before they had made a step" in done.stderr
        else:
            assert "stopped on request at step 0" in done.stdout, done.stdout + done.stderr
    assert codes == [75, 2]
    assert not RunFiles(tmp_path / "train_sam").stalls.exists()  # sent again, it may try twice again


BLOCKED = f"""
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [{int(signal.SIGUSR1)}])
os.kill(os.getpid(), {int(signal.SIGUSR1)})
os.execv(sys.argv[1], sys.argv[1:])
"""
