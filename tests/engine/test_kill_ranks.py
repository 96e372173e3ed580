"""kill -9 of one rank, of all ranks, of the whole job with its loader workers, at any moment of any step; then the same
command: sample ids and metrics are equal, weights and optimizer bit for bit. Two gloo ranks under DDP.

FRISKET_KILLS=10 pytest tests/engine/test_kill_ranks.py draws ten seeds instead of one for each of the three.
"""

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from toyfit import in_a_child, ranks
from toyrun import toy_run, toy_shards

from frisket.checkpoint import newest
from frisket.cli.main import main
from frisket.engine import fit as engine
from frisket.engine.rundir import read_csv
from frisket.runfiles import RunFiles

STEPS = 8
SEEDS = range(int(os.environ.get("FRISKET_KILLS", 3)))
VICTIMS = ("one rank", "all ranks", "the whole job")


class Death(L.Callback):
    """Call `die` at the first `moment` with `step` steps done or more."""

    def __init__(self, step: int, moment: str, die: Callable[[], None]) -> None:
        self.step, self.moment, self.die = step, moment, die

    def _pass(self, moment: str, trainer: L.Trainer) -> None:
        if moment == self.moment and trainer.global_step >= self.step:
            self.die()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._pass("batch", trainer)

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        self._pass("gradient", trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._pass("step", trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._pass("validation", trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, *_: Any) -> None:
        self._pass("save", trainer)


MOMENTS = ("batch", "gradient", "step", "validation", "save")


def start(words: list[str], *deaths: Death | None) -> list[int]:
    """Exit codes of two ranks; each has its own death, or none."""

    def work(rank: int) -> int:
        made = engine._callbacks
        engine._callbacks = lambda *given: [*filter(None, deaths[rank : rank + 1]), *made(*given)]  # of this fork alone
        return main(words)

    return ranks(work)


def left(run: RunFiles) -> tuple[Any, ...]:
    """What a run leaves behind and may not differ."""
    rows = [{k: v for k, v in row.items() if v and k != "epoch"} for row in read_csv(run.metrics)]
    kept = [{k: v for k, v in row.items() if not k.startswith(("speed/", "health/slowest"))} for row in rows]
    assert [row["step"] for row in kept if "train/loss" in row] == [str(step + 1) for step in range(STEPS)]  # once each
    samples = [run.samples(rank).read_text() for rank in range(2)]
    metrics = json.loads(run.summary.read_text())["metrics"]
    return kept, samples, {name: value for name, value in metrics.items() if name.startswith("val/")}


def equal(mine: Any, theirs: Any) -> bool:
    """To the last bit."""
    if isinstance(mine, torch.Tensor):
        return torch.equal(mine, theirs)
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(equal(mine[key], theirs[key]) for key in mine)
    if isinstance(mine, list):
        return len(mine) == len(theirs) and all(map(equal, mine, theirs))
    return mine == theirs


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Epochs of six steps; saved at 3, 6 and 8, validated at 4 and 8."""
    root = tmp_path_factory.mktemp("kill")
    data, val = toy_shards(root / "data", 12), toy_shards(root / "val", 3, "val")
    settings = {"max_steps": STEPS, "val_every": 4, "checkpoint_every": 3, "devices": 2, "workers": 1}
    more = ["data.global_batch=2", "regularize.ema=0.4", "log.gallery_every=0"]
    return ["train", *toy_run(data, root, val, **settings), *more]


@pytest.fixture(scope="module")
def straight(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    """The run that nobody kills."""
    out = tmp_path_factory.mktemp("straight")
    assert start([*words, f"out={out}"]) == [0, 0]
    return RunFiles(out / "train_sam")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", SEEDS)
def test_killed_and_started_again(words: list[str], straight: RunFiles, tmp_path: Path, seed: int) -> None:
    draw, victims = random.Random(seed), VICTIMS[seed % len(VICTIMS)]
    run, here = RunFiles(tmp_path / "train_sam"), [*words, f"out={tmp_path}"]

    def alone() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(draw.choice((1, 2))):
        if (before := newest(run.path)) and before.step == STEPS:
            break  # all that is left is a validation
        deaths: list[Death | None] = [Death(draw.randrange(STEPS - 1), draw.choice(MOMENTS), alone) for _ in range(2)]
        if victims == "the whole job":
            job = Death(draw.randrange(STEPS - 1), draw.choice(MOMENTS), lambda: os.killpg(0, signal.SIGKILL))
            assert in_a_child(lambda job=job: (os.setsid(), start(here, job))) == -signal.SIGKILL
            continue
        if victims == "one rank":
            deaths[survivor := draw.randrange(2)] = None
            codes = start(here, *deaths)
            assert (codes[survivor], codes[1 - survivor]) == (2, -signal.SIGKILL)
        else:
            for death in deaths:  # at one moment, or one of them would find the other gone
                death.step, death.moment = deaths[0].step, deaths[0].moment
            assert start(here, *deaths) == [-signal.SIGKILL] * 2
        assert not run.summary.exists()
    assert start(here) == [0, 0]
    assert left(run) == left(straight)
    for path, theirs in ((run.model, straight.model), (run.last, straight.last)):
        mine, other = (torch.load(file, weights_only=True) for file in (path, theirs))
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "average", "global_step"):
            assert equal(mine.get(key), other.get(key)), f"{path.name}: {key}"
