"""Which models and checkpoints stay: the best by a validation, the newest k; across resumes, and bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toyfit import fit
from toyrun import toy_run, toy_shards

from frisket import checkpoint
from frisket.cli.main import main
from frisket.engine import save
from frisket.engine.best import KeepBest
from frisket.engine.rundir import read_csv
from frisket.engine.save import KeepLast, also
from frisket.runfiles import RunFiles


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training and validation shards."""
    root = tmp_path_factory.mktemp("data")
    return toy_shards(root / "train", 8), toy_shards(root / "val", 3, "val")


def test_the_newest_k_stay_across_a_resume(tmp_path, monkeypatch):
    kept = save.KeepLast.__init__
    monkeypatch.setattr(KeepLast, "__init__", lambda self, run, every, newest=2: kept(self, run, every, newest))
    run = RunFiles(tmp_path)

    def steps() -> list[int]:
        return sorted(save.step_of(path) for path in run.checkpoints.glob("step-*.ckpt"))

    fit(tmp_path, steps=3, every=1)
    assert steps() == [2, 3]
    assert run.kept(3).samefile(run.last)  # no second copy
    fit(tmp_path, steps=6, every=1)
    assert steps() == [5, 6]
    assert torch.load(run.kept(5), weights_only=True)["global_step"] == 5


def test_a_folder_gets_a_second_name_and_without_links_a_copy(tmp_path, monkeypatch):
    folder = tmp_path / "last.ckpt"
    folder.mkdir()
    (folder / "latest").write_text("checkpoint")
    also(folder, tmp_path / "step-000001.ckpt")
    assert (tmp_path / "step-000001.ckpt" / "latest").samefile(folder / "latest")

    def refuse(*paths: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(save.os, "link", refuse)
    also(folder, tmp_path / "step-000002.ckpt")
    assert (tmp_path / "step-000002.ckpt" / "latest").read_text() == "checkpoint"
    assert not (tmp_path / "step-000002.ckpt" / "latest").samefile(folder / "latest")
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_the_best_model_is_the_one_that_was_judged_best(data, tmp_path):
    words = ["train", *toy_run(data[0], tmp_path, data[1], val_every=1, checkpoint_every=1), "log.gallery_every=0"]
    words += ["trainer.keep_best=box/miou", "trainer.keep_last=9", "regularize.ema=0.4", "optim.schedule=constant"]
    for steps in (2, 4):
        assert main([*words, f"trainer.max_steps={steps}"]) == 0
    run = RunFiles(tmp_path / "train_sam")
    rows = {int(row["step"]): float(row["val/box/miou"]) for row in read_csv(run.metrics) if row["val/box/miou"]}
    first_best = max(rows, key=lambda step: (rows[step], -step))
    said = json.loads(run.best_value.read_text())
    assert said == {"measure": "box/miou", "value": pytest.approx(rows[first_best]), "step": first_best}
    expected = checkpoint.load(run.kept(first_best)).state_dict()  # the average, too
    mine = checkpoint.load(run.best).state_dict()
    assert all(torch.equal(mine[key], expected[key]) for key in mine)


@pytest.mark.parametrize(
    ("measure", "values", "kept"),
    [("box/miou", [0.2, 0.5, 0.5, 0.4, float("nan")], [0, 1]), ("neck_error", [0.2, 0.5, 0.1], [0, 2])],
)
def test_higher_is_better_but_for_errors(tmp_path, measure, values, kept):
    keep = KeepBest(RunFiles(tmp_path), measure)
    taken = []
    for number, value in enumerate(values):
        if keep.better(value):
            taken.append(number)
            keep.run.best_value.write_text(json.dumps({"measure": measure, "value": value, "step": number}))
    assert taken == kept
    assert KeepBest(keep.run, "click1/miou").better(0.0)  # another measure begins anew


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.keep_best=box/moiu"], "did you mean 'box/miou'"),
        (["trainer.keep_best=box/miou", "data.val=null"], "needs validations"),
        (["trainer.keep_last=-1"], "0 or more"),
    ],
)
def test_what_cannot_be_kept_is_refused(data, tmp_path, capsys, words, said):
    assert main(["train", *toy_run(data[0], tmp_path, data[1], max_steps=1), *words]) == 2
    assert said in capsys.readouterr().err
