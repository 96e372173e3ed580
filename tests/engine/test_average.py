"""The average of the weights: its values, who sees it, and that a resume repeats it bit for bit, on two ranks, too."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from toyfit import ranks
from toyrun import toy_run, toy_shards

from frisket import checkpoint
from frisket.cli.main import main
from frisket.engine import fit as engine
from frisket.engine.rundir import read_csv
from frisket.recipes.train_sam import Module
from frisket.runfiles import RunFiles

RATE = ["optim.lr=0.01", "optim.schedule=constant"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training and validation shards."""
    root = tmp_path_factory.mktemp("data")
    return toy_shards(root / "train", 8), toy_shards(root / "val", 3, "val")


class Watch(L.Callback):
    """What the Sam holds after each step, and in validation; may ask the run to stop there."""

    def __init__(self, stop_in_validation: bool = False) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []
        self.judged: list[dict[str, torch.Tensor]] = []
        self.stop = stop_in_validation

    def weights(self, module: Any) -> dict[str, torch.Tensor]:
        return {key: value.clone() for key, value in module.sam.state_dict().items()}

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.steps.append(self.weights(pl_module))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.steps.append(self.weights(pl_module))

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.judged.append(self.weights(pl_module))
        if self.stop:
            os.kill(os.getpid(), signal.SIGTERM)


def watched(monkeypatch: pytest.MonkeyPatch, watch: Watch, words: list[str]) -> int:
    callbacks = engine._callbacks
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_callbacks", lambda *given: [watch, *callbacks(*given)])
        return main(words)


def same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def result(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "model.pt", weights_only=True)["state_dict"]


def test_the_average_is_judged_and_given_out_and_a_resume_repeats_it(data, tmp_path, monkeypatch):
    words = ["train", *toy_run(data[0], tmp_path, data[1], val_every=2, checkpoint_every=1), "regularize.ema=0.4"]
    words += ["log.gallery_every=2", *RATE]
    watch, drawn = Watch(), []
    with monkeypatch.context() as patch:
        columns = Module.gallery_columns
        keep = lambda module, batch: drawn.append(watch.weights(module)) or columns(module, batch)  # noqa: E731
        patch.setattr(Module, "gallery_columns", keep)
        assert watched(monkeypatch, watch, [*words, "name=straight", "trainer.max_steps=4"]) == 0

    mean, means = watch.steps[0], []
    for step, weights in enumerate(watch.steps[1:], start=1):
        share = 1 - min(0.4, (1 + step) / (10 + step))
        mean = {key: torch.lerp(mean[key], value, share) for key, value in weights.items()}
        means.append(mean)
    straight = result(tmp_path / "straight")
    assert same(straight, means[3]) and not same(straight, watch.steps[-1])
    assert same(watch.judged[0], means[1]) and same(watch.judged[-1], means[3])
    assert same(drawn[0], means[1]) and same(drawn[-1], means[3])  # pictures are of what is judged
    loaded = checkpoint.load(RunFiles(tmp_path / "straight").last).state_dict()
    assert same(loaded, means[3])  # of a run that is not finished, say

    # stopped amid a validation, while the average stands in the weights' place
    assert watched(monkeypatch, Watch(True), [*words, "name=stopped", "trainer.max_steps=4"]) == 75
    saved = torch.load(RunFiles(tmp_path / "stopped").preempt, weights_only=True)["state_dict"]
    assert all(torch.equal(saved[f"sam.{key}"], value) for key, value in watch.steps[2].items())
    assert main([*words, "name=stopped", "trainer.max_steps=4"]) == 0
    assert same(result(tmp_path / "stopped"), straight)
    scores = [
        [(row["step"], row["val/box/miou"]) for row in read_csv(tmp_path / name / "metrics.csv") if row["val/box/miou"]]
        for name in ("straight", "stopped")
    ]
    assert scores[0] == scores[1] and len(scores[0]) == 2


def test_two_ranks_resume_the_average(data, tmp_path):
    words = ["train", *toy_run(data[0], tmp_path, data[1], devices=2, checkpoint_every=1), "regularize.ema=0.4"]
    words += ["data.global_batch=2", "log.gallery_every=0", *RATE]

    def runs(rank: int) -> int:
        return main([*words, "name=straight", "trainer.max_steps=3"])

    def starts(steps: int):
        return lambda rank: main([*words, "name=twice", f"trainer.max_steps={steps}"])

    assert ranks(runs) == [0, 0]
    assert ranks(starts(2)) == ranks(starts(3)) == [0, 0]
    straight = result(tmp_path / "straight")
    assert same(result(tmp_path / "twice"), straight)
    live = torch.load(RunFiles(tmp_path / "straight").last, weights_only=True)["state_dict"]
    assert not same({key.removeprefix("sam."): value for key, value in live.items()}, straight)


@pytest.mark.parametrize("ema", ["0", "0.4"])
def test_two_ranks_judge_the_statistics_that_are_saved(data, tmp_path, monkeypatch, ema):
    """BatchNorm's, which each rank gathers of its own photographs; in a fit and in the validation that ends a run."""
    small = "{widths: [8, 8, 16, 16], depths: [1, 1, 1, 1], heads: [1, 2, 2], windows: [4, 4, 2], classes: 4}"
    words = ["train", *toy_run(data[0], tmp_path, data[1], devices=2, val_every=2, max_steps=3, checkpoint_every=1)]
    words = [*(word for word in words if not word.startswith("model.")), "model.name=tiny_sam"]
    words += [f"model.encoder={small}", "data.global_batch=2", "log.gallery_every=0", "trainer.keep_last=3"]
    words += [f"regularize.ema={ema}", *RATE]

    def judged(rank: int) -> int:
        watch = Watch()
        assert watched(monkeypatch, watch, words) == 0
        torch.save({"judged": watch.judged, "steps": watch.steps}, tmp_path / f"{rank}.pt")
        return 0

    assert ranks(judged) == [0, 0]
    run = RunFiles(tmp_path / "train_sam")
    mine, theirs = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert not same(mine["steps"][-1], theirs["steps"][-1])  # or there would be nothing to show
    assert len(mine["judged"]) == len(theirs["judged"]) == 4  # of steps 2 and 3 two batches each
    for step, seen in ((2, 0), (3, 2)):
        saved = checkpoint.load(run.kept(step)).state_dict()
        assert same(mine["judged"][seen], saved) and same(theirs["judged"][seen], saved), f"step {step}"


@pytest.mark.parametrize("decay", ["1", "-0.1", "nan", "yes"])
def test_what_is_no_decay_is_refused(data, tmp_path, capsys, decay):
    assert main(["train", *toy_run(data[0], tmp_path), f"regularize.ema={decay}"]) == 2
    assert "regularize.ema" in capsys.readouterr().err and not any(tmp_path.iterdir())
