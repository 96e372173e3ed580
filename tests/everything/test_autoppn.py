"""Strategy autoppn on hostile pictures, from the command line to the files: it asks, keeps what there is, and ends."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from frisket import checkpoint
from frisket.cli.main import main
from frisket.models.zoo import build

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
    assert json.loads(out.with_suffix(".json").read_text())["masks"] == [] and "lower" in capsys.readouterr().out
