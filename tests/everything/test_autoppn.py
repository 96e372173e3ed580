"""Strategy autoppn on hostile pictures, from the command line to the files: it asks, keeps what there is, and ends."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from frisket import checkpoint
from frisket.cli.main import main
from frisket.everything import autoppn
from frisket.models.auto_ppn import pick
from frisket.models.zoo import build
from frisket.predict.predictor import Predictor
from frisket.sample import FOREGROUND, Prompts

WORDS = ["mode=everything", "everything.strategy=autoppn", "place.accelerator=cpu"]
OPEN = ["everything.pred_iou_thresh=-9", "everything.stability_score_thresh=0", "everything.box_nms_thresh=1"]


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Lite-SAM of 64 px with its AutoPPN."""
    torch.manual_seed(0)
    shape = {"widths": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "neck_width": 8, "decoder_hidden": 16}
    path = tmp_path_factory.mktemp("lite") / "model.pt"
    checkpoint.save(build("lite_sam_640", image_size=64, auto_ppn={"width": 8}, **shape), path)
    return path


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1), (2, 2), (40, 60)])
@pytest.mark.parametrize("ask", ["point", "box", "point+box"])
def test_a_picture_of_any_size_ends(lite: Path, tmp_path: Path, size: tuple[int, int], ask: str) -> None:
    photo, out = tmp_path / "photo.png", tmp_path / "out.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(photo)
    words = ["predict", str(photo), *WORDS, f"checkpoint={lite}", f"out={out}"]
    assert main([*words, f"everything.ask={ask}", *OPEN]) == 0
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["size"] == list(size)
    for mask in record["masks"]:
        (x, y), (left, top, wide, high) = mask["point_coords"][0], mask["bbox"]
        assert 0 <= x < size[1] and 0 <= y < size[0] and mask["area"] > 0
        assert left >= 0 and top >= 0 and left + wide <= size[1] and top + high <= size[0]


def test_nothing_above_the_threshold_is_a_sentence(
    lite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, out = tmp_path / "photo.png", tmp_path / "out.png"
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(photo)
    words = ["predict", str(photo), *WORDS, f"checkpoint={lite}", f"out={out}"]
    assert main([*words, "everything.pred_iou_thresh=9"]) == 0
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["masks"] == [] and "lower" in capsys.readouterr().out
    assert record["note"] == "" and "points of AutoPPN, 256 at most" in record["everything"]["sentence"]


@pytest.mark.parametrize("fill", [True, False])
@pytest.mark.parametrize("ask", ["point", "box", "point+box"])
@torch.no_grad()
def test_it_asks_with_what_the_settings_say(lite: Path, ask: Any, fill: bool) -> None:
    predictor = Predictor(checkpoint.load(lite))
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    proposals = predictor.sam.auto_ppn(predictor.embedding)
    points, boxes, scores, _ = (part[0] for part in pick(proposals, torch.tensor([[48, 64]]), 150, fill=fill))
    count = int((scores > 0).sum())
    assert count == 150 if fill else 0 < count < 150
    if ask == "point":  # what is a peak of two groups is clicked at once
        seen = dict.fromkeys(map(tuple, points[:count].tolist()))
        assert len(seen) < count
        points, count = torch.tensor(list(seen)), len(seen)
    prompts = Prompts(points[:count, None], torch.full((count, 1), FOREGROUND), boxes[:count])
    if ask == "box":
        prompts.points = prompts.labels = None
    if ask == "point":
        prompts.boxes = None
    expected = predictor.ask(prompts, multimask=ask == "point").iou
    config = autoppn.Config(points=150, fill=fill, ask=ask, pred_iou_thresh=-9, stability_score_thresh=0)
    parts = list(autoppn.Strategy(config).ask(predictor, 0))
    assert sum(part.asked for part in parts) == expected.numel()
    assert max(part.highest for part in parts) == pytest.approx(float(expected.max()), abs=1e-6)
