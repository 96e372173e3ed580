"""A step whose loss is no number: skipped, or the end with a checkpoint of the step before; one rank or two alike."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import toyfit
from toyfit import Loader, Module, Numbers, fit, ranks
from toyrun import toy_run, toy_shards

from frisket.cli.main import main
from frisket.engine import straggler
from frisket.engine.health import FEWEST, Health
from frisket.engine.rundir import read_csv
from frisket.engine.straggler import Straggler, slow
from frisket.errors import UserError
from frisket.runfiles import RunFiles


class Ill(Loader):
    """NaN in some batches."""

    bad: tuple[int, ...] = (4,)
    value = math.nan

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            values = batch.values * self.value if self.consumed in self.bad else batch.values
            yield Numbers(values, batch.keys)


class Normed(Module):
    """With BatchNorm, whose statistics a NaN would spoil."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2)

    def training_step(self, batch: Numbers, index: int) -> torch.Tensor:
        self.norm(batch.values.repeat(2, 1))
        return super().training_step(batch, index) + 0 * self.norm.weight.sum() + 0 * self.norm.bias.sum()


def health(folder: Path, skips: int = 0) -> Health:
    return Health(RunFiles(folder), skips=skips, every=1, scaled=False)


@pytest.fixture
def ill(monkeypatch: pytest.MonkeyPatch) -> type[Ill]:
    """The fourth batch is ill."""
    monkeypatch.setattr(toyfit, "Loader", Ill)
    monkeypatch.setattr(toyfit, "Module", Normed)
    monkeypatch.setattr(Ill, "bad", (4,))
    return Ill


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_stops_with_the_samples_and_the_last_good_step(ill, tmp_path, monkeypatch, accumulate):
    """And healed, the run goes on as if nothing had been: same samples, same weights."""
    with pytest.raises(UserError, match=r"step \d has a loss .* samples .*4.*last\.ckpt holds step") as error:
        fit(tmp_path / "ill", health(tmp_path / "ill"), every=100, accumulate=accumulate)
    good = 4 // accumulate - 1
    assert f"step {good + 1} has" in str(error.value) and f"holds step {good}" in str(error.value)
    saved = torch.load(RunFiles(tmp_path / "ill").last, weights_only=True)
    assert saved["global_step"] == good
    assert all(value.isfinite().all() for value in saved["state_dict"].values())

    monkeypatch.setattr(ill, "bad", ())
    runs = [fit(tmp_path / name, health(tmp_path / name), accumulate=accumulate) for name in ("ill", "straight")]
    assert runs[0] == runs[1] and runs[0][0] is None
    samples = [RunFiles(tmp_path / name).samples(0).read_text() for name in ("ill", "straight")]
    assert samples[0] == samples[1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_it_skips_a_step_and_a_resume_knows_how_many(ill, tmp_path, monkeypatch, capsys, value):
    monkeypatch.setattr(ill, "value", value)
    monkeypatch.setattr(ill, "bad", (4, 7))
    _, weights = fit(tmp_path / "a", health(tmp_path / "a", 2), every=1, steps=8)
    assert all(math.isfinite(weight) for weight in weights)
    said = capsys.readouterr().err
    assert "step 4 is skipped, 1 of 2 (rank 0: loss" in said and "step 7 is skipped, 2 of 2" in said
    rows = {int(row["step"]): row for row in read_csv(tmp_path / "a" / "metrics.csv") if row["health/skipped"]}
    assert [float(rows[step]["health/skipped"]) for step in (3, 4, 8)] == [0, 1, 2]
    assert not math.isfinite(float(rows[4]["health/grad_norm"])) and float(rows[4]["health/update_ratio"]) == 0
    assert float(rows[5]["health/grad_norm"]) > 0 < float(rows[5]["health/update_ratio"])
    assert all(value.isfinite().all() for value in torch.load(RunFiles(tmp_path / "a").last)["state_dict"].values())

    fit(tmp_path / "b", health(tmp_path / "b", 2), every=1, steps=5)
    assert fit(tmp_path / "b", health(tmp_path / "b", 2), every=1, steps=8) == (None, weights)
    with pytest.raises(UserError, match="step 7 has a loss"):
        fit(tmp_path / "c", health(tmp_path / "c", 1), every=1, steps=5)
        fit(tmp_path / "c", health(tmp_path / "c", 1), every=1, steps=8)


def test_two_ranks_decide_together_when_one_is_ill(ill, tmp_path, monkeypatch):
    def work(rank: int) -> int:
        ill.bad = (3,) if rank == 1 else ()
        skipping, stopping = health(tmp_path / "skip", 1), health(tmp_path / "stop")
        skipping.scaled = stopping.scaled = (
            True  # by the loss alone: the gradient, which DDP shares out, would tell all
        )
        _, weights = fit(tmp_path / "skip", skipping, devices=2, steps=5)
        with pytest.raises(UserError, match=r"step 3 has .*\(rank 1: loss nan, samples 3; gradient nan\)"):
            fit(tmp_path / "stop", stopping, devices=2, steps=5, every=100)
        return 0 if all(math.isfinite(weight) for weight in weights) else 1

    assert ranks(work) == [0, 0]
    assert torch.load(RunFiles(tmp_path / "stop").last, weights_only=True)["global_step"] == 2


def test_a_gradient_alone_that_is_no_number_counts(tmp_path, monkeypatch):
    class Sharp(Module):
        def training_step(self, batch: Numbers, index: int) -> torch.Tensor:
            root = (self.layer.weight.sum() * 0).abs().sqrt()  # its slope at 0 is infinite times 0
            return super().training_step(batch, index) + root

    monkeypatch.setattr(toyfit, "Module", Sharp)
    with pytest.raises(UserError, match=r"step 1 has a loss or gradient .*no step was made since this start"):
        fit(tmp_path, health(tmp_path))


def test_norm_and_update_are_the_real_ones(tmp_path, monkeypatch):
    seen: list[tuple[float, torch.Tensor]] = []

    class Open(Module):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            weights = torch.cat([p.detach().flatten() for p in self.parameters()])
            seen.append((float(torch.cat([p.grad.flatten() for p in self.parameters()]).norm()), weights.clone()))

    monkeypatch.setattr(toyfit, "Module", Open)
    fit(tmp_path, health(tmp_path), steps=4)
    rows = [row for row in read_csv(tmp_path / "metrics.csv") if row["train/loss"]]
    norms = [float(row["health/grad_norm"]) for row in rows]
    ratios = [float(row["health/update_ratio"]) for row in rows]
    moves = [float((b - a).norm() / a.norm()) for (_, a), (_, b) in pairwise(seen)]
    assert [norm for norm, _ in seen] == pytest.approx(norms, rel=1e-5)
    assert moves == pytest.approx(ratios[:3], rel=1e-4)


def test_a_spike_is_counted_against_the_median_before(tmp_path):
    watching = health(tmp_path)
    for loss in [5.0] * (FEWEST - 1) + [100.0] + [1.0] * FEWEST + [4.0, 16.0]:
        watching._watch(loss)
    assert watching.spikes == 1  # 100 came too early, 4 is below three times the median of 5 and 1
    again = health(tmp_path)
    again.load_state_dict(watching.state_dict())
    again._watch(16.0)
    assert again.spikes == 2


def test_a_run_of_a_recipe_logs_its_health(tmp_path, capsys):
    data = toy_shards(tmp_path / "data", 4)
    assert main(["train", *toy_run(data, tmp_path, max_steps=2)]) == 0
    rows = read_csv(tmp_path / "train_sam" / "metrics.csv")
    for name in ("grad_norm", "update_ratio", "spikes", "skipped"):
        assert all(row[f"health/{name}"] for row in rows), name
    words = ["train", *toy_run(data, tmp_path, strategy="deepspeed_stage_1"), "trainer.nan_skips=1"]
    assert main(words) == 2 and "skips a step whole" in capsys.readouterr().err


# ---------------------------------------------------------------- slow ranks


def test_slower_than_the_median_of_the_others():
    assert slow([1.0, 1.29]) == {} and slow([1.0, 1.31]) == {1: pytest.approx(1.31)}
    assert set(slow([1.0, 1.0, 2.0, 1.1])) == {2} and slow([2.0, 2.0, 2.0]) == {}


def test_two_ranks_name_the_slow_one(tmp_path, monkeypatch):
    """By a clock that tells rank 1 twice the time."""

    def work(rank: int) -> int:
        said: list[str] = []
        monkeypatch.setattr(straggler, "warn", said.append)
        ticks = iter(range(10**6))
        monkeypatch.setattr(Straggler, "clock", staticmethod(lambda: next(ticks) * (1.0 + rank)))
        fit(tmp_path, Straggler(every=2), devices=2, steps=6)
        names = ["rank 1 (node 0) takes 100 % longer" in line for line in said]
        return 0 if names == [True] else 1

    assert ranks(work) == [0, 0]
    rows = {row["step"]: row["health/slowest_rank"] for row in read_csv(tmp_path / "metrics.csv") if row["train/loss"]}
    assert all(float(rows[step]) > 1.3 for step in ("2", "4", "6"))
