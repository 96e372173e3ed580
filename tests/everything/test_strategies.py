"""A strategy from outside, one file: through the generator, `frisket predict` and the evaluation; how all are told."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frisket import plugins
from frisket.checkpoint import load
from frisket.cli.main import main
from frisket.errors import UserError
from frisket.everything import grid
from frisket.everything.generator import everything
from frisket.everything.strategy import STRATEGIES, chosen, describe
from frisket.predict.predictor import Predictor

BOXES = '''"""Strategy `toy_strips`: one box about each of n upright strips of the picture."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from frisket.everything.candidates import Candidates, Filters, sift
from frisket.everything.strategy import BaseStrategy
from frisket.predict.predictor import Predictor


@dataclass
class Config(Filters):
    strategy: str = "toy_strips"
    strips: int = 2


class Strategy(BaseStrategy):
    def ask(self, predictor: Predictor, layer: int) -> Iterator[Candidates]:
        height, width = predictor.frame.original
        edges = torch.linspace(0, width, self.config.strips + 1)
        boxes = torch.stack([edges[:-1], 0 * edges[1:], edges[1:], 0 * edges[1:] + height], dim=1)
        answer = predictor.ask(predictor.prompts(boxes=boxes), multimask=False)
        yield sift((boxes[:, :2] + boxes[:, 2:]) / 2, answer, predictor.frame, self.config)

    def words(self) -> str:
        return f"boxes about {self.config.strips} strips"
'''
BLOCK = {"strategy": "toy_strips", "strips": 3, "pred_iou_thresh": 0, "stability_score_thresh": 0, "box_nms_thresh": 1}


@pytest.fixture
def strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plug-in toy_strips, loaded."""
    (tmp_path / "plug").mkdir()
    (tmp_path / "plug" / "toy_strips.py").write_text(BOXES)
    monkeypatch.syspath_prepend(tmp_path / "plug")
    monkeypatch.setattr(plugins, "_outside", {})
    plugins.load(["toy_strips"])
    yield
    sys.modules.pop("toy_strips")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(path)
    return path


def words(tmp_path: Path) -> list[str]:
    return [f"everything.{key}={value}" for key, value in BLOCK.items()] + [f"out={tmp_path / 'out' / 'all.png'}"]


def test_a_plug_in_goes_through_the_generator_and_predict(
    strips: None, photo: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    predictor = Predictor(load(tiny_teacher))
    predictor.set_image(photo)
    masks = everything(predictor, chosen(BLOCK))
    assert masks.asked == 3 and len(masks) == 3
    assert sorted(masks.points[:, 0].tolist()) == [15, 45, 75]
    boxes = [[0, 0, 30, 60], [30, 0, 60, 60], [60, 0, 90, 60]]
    areas = predictor.predict(boxes=boxes, multimask=False).masks.flatten(1).sum(1)
    assert sorted(masks.areas.tolist()) == sorted(areas.tolist())
    assert main(["predict", str(photo), "mode=everything", f"checkpoint={tiny_teacher}", *words(tmp_path)]) == 0
    record = json.loads((tmp_path / "out" / "all.json").read_text())
    assert record["masks"] == masks.records()
    assert record["everything"]["name"] == "toy_strips" and record["everything"]["arguments"]["strips"] == 3


def test_a_plug_in_is_evaluated(strips: None, tiny_shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    yaml = tmp_path / "eval.yaml"
    yaml.write_text(
        json.dumps(
            {
                "task": "everything", "data": str(tiny_shards / "val"), "checkpoint": [str(tiny_teacher)], "limit": 1,
                "pictures": 0, "out": str(tmp_path / "eval"), "everything": BLOCK,
            }
        )
    )  # fmt: skip
    assert main(["eval", str(yaml)]) == 0
    record = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert "everything: toy_strips, boxes about 3 strips, no filters, box NMS 1;" in record["protocol"]["sentence"]
    assert record["strategy"]["name"] == "toy_strips" and record["strategy"]["arguments"]["strips"] == 3
    assert record["masks"] == 3


def test_its_settings_are_its_own(strips: None) -> None:
    assert STRATEGIES.names() == ["autoppn", "grid", "hierarchical", "toy_strips"]
    with pytest.raises(UserError, match="everything: unknown key 'strip', did you mean 'strips'"):
        chosen({"strategy": "toy_strips", "strip": 3})
    with pytest.raises(UserError, match="unknown key 'points_per_side'"):
        chosen({"strategy": "toy_strips", "points_per_side": 3})
    with pytest.raises(UserError, match="strategy 'toy_strip' does not exist: did you mean 'toy_strips'"):
        chosen({"strategy": "toy_strip"})


def test_a_strategy_describes_itself() -> None:
    told = describe(chosen({"points_per_side": 8, "crop_n_layers": 1}))
    assert told["name"] == "grid" and told["arguments"]["points_per_side"] == 8
    assert told["sentence"] == (
        "grid, 8 x 8 points, predicted IoU > 0.88, stability >= 0.95, box NMS 0.7, 1 layers of crops"
    )
    # the size of a batch changes no mask
    assert "points_per_batch" not in told["arguments"] and "strategy" not in told["arguments"]
    assert chosen({}) == grid.Config()
