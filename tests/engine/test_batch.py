"""The global batch: how it is divided, what cannot be, and a run that goes on with another division."""

import json
from pathlib import Path

import pytest
from toyrun import toy_run, toy_shards

from frisket.cli.main import main
from frisket.engine.batch import divide
from frisket.engine.rundir import read_csv
from frisket.errors import UserError


@pytest.mark.parametrize(
    ("total", "devices", "at_once", "said"),
    [
        (256, 4, 8, "batch 256 = 8 per device x 4 devices x 8 accumulated"),
        (256, 4, None, "batch 256 = 64 per device x 4 devices x 1 accumulated"),
        (256, 256, 8, "batch 256 = 1 per device x 256 devices x 1 accumulated"),  # a device takes less than it could
        (6, 1, 4, None),
    ],
)
def test_divided(total: int, devices: int, at_once: int | None, said: str | None) -> None:
    if said is None:
        with pytest.raises(UserError, match=r"images_per_device=4 does not divide the 6 .*: 3 or 6 does$"):
            divide(total, devices=devices, at_once=at_once)
    else:
        assert str(divide(total, devices=devices, at_once=at_once)) == said


@pytest.mark.parametrize(
    ("total", "devices", "said"),
    [
        (256, 6, "cannot be divided among 6 devices: 252 or 258 can, or take 4 of them"),
        (1, 2, "cannot be divided among 2 devices: 2 can, or take 1 of them"),
    ],
)
def test_indivisible_names_the_nearest(total: int, devices: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        divide(total, devices=devices, at_once=None)


def test_a_run_goes_on_with_another_division(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two batches of two a step, then one of four: the samples and losses of a run that was never stopped.

    Epochs of 11 photographs hold two whole steps, so the change falls into an epoch and validations around it. One
    mask a photograph and boxes without noise: what is drawn does not depend on who shares a batch.
    """
    data, val = toy_shards(tmp_path / "data", 11), toy_shards(tmp_path / "val", 3, "val")
    settings = ["data.global_batch=4", "data.masks_per_image=1", "prompts.clicks=0", "prompts.refines=0"]
    settings += ["prompts.box_probability=1", "prompts.box_noise=0", "trainer.val_every=2"]

    def run(name: str, steps: int, at_once: int) -> Path:
        words = [*toy_run(data, tmp_path, val, max_steps=9), *settings, f"name={name}", "optim.schedule=constant"]
        assert main(["train", *words, f"trainer.max_steps={steps}", f"place.images_per_device={at_once}"]) == 0
        return tmp_path / name

    straight, parted = run("straight", 9, 4), run("parted", 3, 2)
    assert "batch 4 = 2 per device x 1 devices x 2 accumulated, 1.09 epochs" in capsys.readouterr().out
    assert run("parted", 6, 4) == run("parted", 9, 2)

    def samples(folder: Path) -> list[tuple[int, str]]:
        lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        return [(line["step"], key) for line in lines for key in line["keys"]]

    def column(folder: Path, name: str) -> dict[int, float]:
        return {int(row["step"]): float(row[name]) for row in read_csv(folder / "metrics.csv") if row[name]}

    assert samples(parted) == samples(straight)
    assert column(straight, "train/loss").keys() == set(range(1, 10))
    assert column(parted, "train/loss") == pytest.approx(column(straight, "train/loss"), abs=1e-5)
    scores = column(parted, "val/box/miou")
    assert set(column(straight, "val/box/miou")) >= {2, 4, 6, 8} and scores.keys() >= {2, 4, 6, 8}
    assert all(
        scores[step] == pytest.approx(score, abs=1e-5) for step, score in column(straight, "val/box/miou").items()
    )
