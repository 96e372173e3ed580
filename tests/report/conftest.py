"""Result folders as `frisket eval` and `frisket train` leave them, made by hand: no model runs in these tests."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """put("name", report, pictures=("masks",)) -> the folder."""

    def make(name: str, report: dict[str, Any], pictures: tuple[str, ...] = ()) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "eval.json").write_text(json.dumps(report))
        for number, picture in enumerate(pictures):
            image = Image.effect_mandelbrot((640, 200), (-2, -1, 1, 1), 40).convert("RGB")
            image.paste((200, 40 * number, 90), (20, 20, 120, 120))
            image.save(folder / f"{picture}.png")
        return folder

    return make


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A finished training run of 40 steps."""
    folder = tmp_path / "train_sam"
    (folder / "gallery").mkdir(parents=True)
    Image.new("RGB", (60, 40), (10, 90, 60)).save(folder / "gallery" / "step40.png")
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "train/loss", "val/box/miou", "val/box/miou_s"])
        writer.writeheader()
        for step in range(10, 50, 10):
            writer.writerow({"step": step, "train/loss": 3 - step / 20})
        writer.writerow({"step": 20, "val/box/miou": 0.25, "val/box/miou_s": 0.1})
        writer.writerow({"step": 40, "val/box/miou": 0.375, "val/box/miou_s": 0.2})
    (folder / "summary.json").write_text(json.dumps({"step": 40, "metrics": {"val/box/miou": 0.375}}))
    (folder / "config.yaml").write_text("recipe: train_sam\noptim:\n  lr: 0.001\n")
    return folder
