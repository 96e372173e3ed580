"""DeepSpeed's real engine on one and two processes: it computes what DDP computes, and each goes on from another.

FRISKET_SEEDS=10 kills at ten places instead of one.
"""

import importlib.util
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from toyfit import fit, in_a_child, ranks
from toyrun import toy_run, toy_shards

from frisket import checkpoint
from frisket.cli.main import main
from frisket.engine.rundir import read_csv
from frisket.models.zoo import build
from frisket.runfiles import RunFiles

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="needs DeepSpeed: pip install -c constraints.txt -e '.[dev]'",
)


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Once, and not in each of the processes that the tests fork."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # which its own optimizer looks at


def started(world: int, work: Any) -> None:
    """Do work(rank) on so many ranks, and without a failure."""
    codes = ranks(work) if world == 2 else [in_a_child(lambda: work(0))]
    assert not any(codes)


def toy(folder: Path, strategy: str, world: int, steps: int, precision: str = "32-true", *more: L.Callback) -> None:
    """Start the toy run, or go on with it, to `steps`: two batches each, gradients clipped to 3."""
    engine = {"devices": world, "strategy": strategy, "precision": precision}

    def work(rank: int) -> int:
        left, _ = fit(folder, *more, steps=steps, every=2, accumulate=2, clip=3.0, **engine)  # type: ignore
        return 0 if left is None else 1

    started(world, work)


def last(folder: Path) -> dict[str, Any]:
    return torch.load(RunFiles(folder).last, weights_only=True)


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([value.flatten() for value in last(folder)["state_dict"].values()])


def losses(folder: Path) -> dict[int, float]:
    return {
        int(row["step"]): float(row["train/loss"]) for row in read_csv(RunFiles(folder).metrics) if row["train/loss"]
    }


def samples(folder: Path) -> set[tuple[int, str]]:
    """{(step, key)} over all ranks."""
    lines = [json.loads(line) for path in folder.glob("samples*.jsonl") for line in path.read_text().splitlines()]
    return {(line["step"], key) for line in lines for key in line["keys"]}


STARTS = [
    ("ddp", 2), ("deepspeed_stage_1", 2), ("auto", 1), ("deepspeed_stage_2", 2), ("deepspeed_stage_1", 1),
    ("deepspeed_stage_2_offload", 2), ("ddp", 2), ("deepspeed_stage_2", 1), ("deepspeed_stage_2", 2), ("auto", 1),
]  # fmt: skip


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_each_strategy_and_number_of_ranks_goes_on_from_another(tmp_path: Path, precision: str) -> None:
    """Every two steps of one run by somebody else: the curve and the weights of a run that was never stopped."""
    toy(tmp_path / "straight", "auto", 1, 2 * len(STARTS), precision)
    for number, (strategy, world) in enumerate(STARTS, 1):
        toy(tmp_path / "parted", strategy, world, 2 * number, precision)
        assert RunFiles(tmp_path / "parted").last.is_file()
    assert losses(tmp_path / "parted") == pytest.approx(losses(tmp_path / "straight"), abs=1e-5)
    assert weights(tmp_path / "parted") == pytest.approx(weights(tmp_path / "straight"), abs=1e-6)
    whole, parted = (last(tmp_path / name)["optimizer_states"][0] for name in ("straight", "parted"))
    assert whole["param_groups"] == parted["param_groups"]
    for number, state in whole["state"].items():
        for key, value in state.items():
            assert torch.allclose(value, parted["state"][number][key], atol=1e-6), (number, key)


def test_fp16_scales_its_loss_and_all_ranks_skip_a_step_together(tmp_path: Path) -> None:
    """Lightning knows no fp16 on a CPU but DeepSpeed's: the first steps are too large for the scale to begin with."""
    toy(tmp_path / "straight", "deepspeed_stage_1", 1, 8, "16-mixed")
    for steps, strategy in ((1, "deepspeed_stage_2"), (3, "deepspeed_stage_1"), (8, "deepspeed_stage_2_offload")):
        toy(tmp_path / "parted", strategy, 2, steps, "16-mixed")
    scales = [last(tmp_path / name)["MixedPrecision"] for name in ("straight", "parted")]
    assert scales[0] == scales[1] and 0 < scales[0]["scale"] < 2**16
    taken = 8 - (16 - torch.tensor(scales[0]["scale"]).log2())  # each skipped step halves the scale
    assert last(tmp_path / "parted")["optimizer_states"][0]["state"][0]["step"] == taken
    torch.amp.GradScaler("cpu").load_state_dict(scales[0])  # torch's own reads it
    assert weights(tmp_path / "parted") == pytest.approx(weights(tmp_path / "straight"), abs=1e-6)


def test_a_weight_that_joined_late_is_corrected_for_it(tmp_path: Path) -> None:
    """A part of ZeRO's counts one step for all its weights."""
    for name in ("auto", "deepspeed_stage_1"):
        toy(tmp_path / name, "auto", 1, 4)
        content = last(tmp_path / name)
        content["optimizer_states"][0]["state"][1]["step"] += 4000  # the bias; the weight's are still 4
        torch.save(content, RunFiles(tmp_path / name).last)
    before = weights(tmp_path / "auto")
    for name in ("auto", "deepspeed_stage_1"):
        toy(tmp_path / name, name, 1, 5)
    alone, zero = (weights(tmp_path / name) - before for name in ("auto", "deepspeed_stage_1"))
    assert zero == pytest.approx(alone, rel=0.3)


class KillAt(L.Callback):
    """kill -9 of this rank in step `step`: before the gradient is made, or right before a checkpoint of it would be."""

    def __init__(self, step: int, before: bool) -> None:
        self.step, self.before = step, before

    def on_before_zero_grad(self, trainer: L.Trainer, *_: Any) -> None:
        if self.before and trainer.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not self.before and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_1", "deepspeed_stage_2"])
@pytest.mark.parametrize("seed", range(int(os.environ.get("FRISKET_SEEDS", "1"))))
def test_kill_9_of_one_rank_or_all_then_the_same_command(tmp_path: Path, strategy: str, seed: int) -> None:
    draw = random.Random(f"{strategy} {seed}")
    victims, callback = draw.choice([(0,), (1,), (0, 1)]), KillAt(draw.randint(1, 9), draw.random() < 0.5)

    def killed(rank: int) -> int:
        more = [callback] if rank in victims else []
        fit(tmp_path / "killed", *more, steps=10, every=3, devices=2, strategy=strategy, accumulate=2, clip=3.0)
        return 0

    codes = ranks(killed)
    assert all(codes) and all(codes[rank] == -signal.SIGKILL for rank in victims), codes
    toy(tmp_path / "killed", strategy, 2, 10)
    toy(tmp_path / "straight", strategy, 2, 10)
    assert samples(tmp_path / "killed") == samples(tmp_path / "straight")
    assert losses(tmp_path / "killed") == pytest.approx(losses(tmp_path / "straight"), abs=1e-6)
    assert weights(tmp_path / "killed") == pytest.approx(weights(tmp_path / "straight"), abs=1e-6)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("data")
    return toy_shards(root / "train", 11), toy_shards(root / "val", 3, "val")


def train(out: Path, data: tuple[Path, Path], world: int, *more: str, **settings: Any) -> None:
    words = [*toy_run(data[0], out, data[1], devices=world, images_per_device=1, **settings), "data.global_batch=2"]
    if "recipe=finetune_decoder" in more:
        words = [word for word in words if not word.startswith("model.")]
    started(world, lambda rank: main(["train", *words, "optim.schedule=constant", *more]))


@pytest.mark.slow
def test_a_recipe_goes_on_with_two_ranks_one_and_without_deepspeed(data: tuple[Path, Path], tmp_path: Path) -> None:
    """The same photographs in the same steps, accumulated or shared among ranks; the moving average of the weights.

    The one rank's losses are the two photographs' mean; of two ranks, rank 0 writes its own.
    """
    more = ["regularize.ema=0.5", "log.gallery_every=2", "optim.lr=1e-4"]
    starts = [("deepspeed_stage_2", 2, 2), ("auto", 1, 4), ("deepspeed_stage_1", 2, 5), ("deepspeed_stage_2", 1, 7)]
    for strategy, world, steps in starts:  # validates at 2, 4, 6 and at the end, 5 and 7
        train(tmp_path, data, world, *more, "name=parted", strategy=strategy, max_steps=steps, val_every=2)
    train(tmp_path, data, 1, *more, "name=straight", max_steps=7, val_every=2)
    straight, parted = tmp_path / "straight", tmp_path / "parted"
    alone = (3, 4, 6, 7)  # steps that one rank made
    curves = [{step: loss for step, loss in losses(folder).items() if step in alone} for folder in (parted, straight)]
    assert len(curves[0]) == len(alone) and curves[0] == pytest.approx(curves[1], abs=1e-5)
    assert samples(parted) == samples(straight)
    averages = [checkpoint.load(folder / "model.pt").state_dict() for folder in (parted, straight)]
    apart = sum(float((averages[0][key] - averages[1][key]).square().sum()) for key in averages[0])
    whole = sum(float(value.square().sum()) for value in averages[1].values())
    assert apart < 1e-9 * whole
    live = last(parted)["state_dict"]
    assert any(not torch.equal(live[f"sam.{key}"], value) for key, value in averages[0].items())
    assert abs((parted / "model.pt").stat().st_size - (straight / "model.pt").stat().st_size) < 1000


@pytest.mark.slow
def test_what_is_frozen_stays_in_its_own_precision(data: tuple[Path, Path], tmp_path: Path) -> None:
    """finetune_decoder's encoder is in the checkpoint and in model.pt, bit for bit, though all computes in bf16."""
    start = tmp_path / "start.pt"
    sam = build("lightening", image_size=64, width=32, depth=2, heads=2)
    checkpoint.save(sam, start)
    words = ["recipe=finetune_decoder", f"init_from={start}"]
    train(tmp_path, data, 2, *words, strategy="deepspeed_stage_2", precision="bf16-mixed", max_steps=2)
    made = checkpoint.load(tmp_path / "finetune_decoder" / "model.pt")
    frozen, trained = (
        [torch.equal(a, b) for a, b in zip(getattr(sam, part).parameters(), getattr(made, part).parameters())]
        for part in ("image_encoder", "mask_decoder")
    )
    assert all(frozen) and not all(trained)
    assert any(not torch.equal(p, p.bfloat16().float()) for p in made.mask_decoder.parameters())
