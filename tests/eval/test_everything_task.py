"""The task `everything`: perfect and empty answers, numbers against pycocotools' counting, LVIS' classes, mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from frisket import config as settings
from frisket.cli.main import main
from frisket.errors import UserError
from frisket.eval import everything as module
from frisket.eval.everything import Config, Task, overlaps, ranked
from frisket.eval.recall import THRESHOLDS
from frisket.everything import grid
from frisket.everything.generator import everything
from frisket.everything.result import Everything
from frisket.models.sam import Sam
from frisket.predict.predictor import Predictor


def answer(rles: list[dict], iou: list[float] | None = None) -> Everything:
    """What a generator that found these masks returns."""
    count = len(rles)
    size = tuple(rles[0]["size"]) if rles else (1, 1)
    scores = torch.tensor(iou) if iou else torch.ones(count)
    zeros = torch.zeros(count, 4)
    return Everything(rles, zeros, torch.zeros(count), scores, torch.ones(count), zeros[:, :2], zeros, size, count, 1.0)


@pytest.fixture
def lvis(tmp_path: Path) -> dict[str, str]:
    """data= and images= of two photographs with rectangles of a frequent, a common and a rare class."""
    boxes = {1: [(5, 5, 20, 20, 1), (40, 10, 50, 50, 2)], 2: [(0, 0, 30, 40, 3), (50, 20, 8, 8, 1), (5, 50, 40, 9, 1)]}
    record = {
        "images": [
            {
                "id": n, "height": 70, "width": 100, "coco_url": f"http://images/val2017/{n}.png",
                "neg_category_ids": [], "not_exhaustive_category_ids": [],
            }
            for n in boxes
        ],
        "categories": [{"id": n + 1, "name": f, "frequency": f} for n, f in enumerate("fcr")],
        "annotations": [],
    }  # fmt: skip
    for image, found in boxes.items():
        for x, y, w, h, category in found:
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            note = {"image_id": image, "category_id": category, "bbox": [x, y, w, h], "area": w * h}
            record["annotations"].append(note | {"id": len(record["annotations"]) + 1, "segmentation": [corners]})
    (tmp_path / "val2017").mkdir()
    for n in boxes:
        pixels = np.random.default_rng(n).integers(0, 255, (70, 100, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "val2017" / f"{n}.png")
    (tmp_path / "lvis.json").write_text(json.dumps(record))
    return {"data": str(tmp_path / "lvis.json"), "images": str(tmp_path)}


def test_finding_every_object_scores_one(lvis: dict[str, str], tiny_sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task(Config(task="everything", **lvis), 64)
    items = [task.load(n) for n in range(len(task))]
    rows = []
    for item in items:
        monkeypatch.setattr(module, "everything", lambda *_, item=item: answer(item.photo.rles[::-1]))
        rows.append(task.answer(tiny_sam, item))
    numbers = task.summarise(rows)
    ones = ["ar1000", "ar1000_s", "ar1000_m", "ar1000_f", "ar1000_c", "ar1000_r", "miou", "miou_s", "miou_m"]
    assert {name: numbers[name] for name in ones} == dict.fromkeys(ones, 1.0)
    assert np.isnan(numbers["ar1000_l"]) and (numbers["objects"], numbers["images"], numbers["masks"]) == (5, 2, 2.5)
    table = task.table({"model": numbers})
    assert "f / c / r" in table and "100.0  (100.0 / 100.0 /     –)" in table
    assert all(word in task.sentence for word in ("32 x 32", "> 0.88", ">= 0.95", "LVIS lvis.json", "1000 masks"))


def test_a_class_of_frequency_counts_its_own_objects(
    lvis: dict[str, str], tiny_sam: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task(Config(task="everything", **lvis), 64)
    item = task.load(1)
    frequent = [mask for mask, of in zip(item.photo.rles, item.photo.categories, strict=True) if of == 1]
    monkeypatch.setattr(module, "everything", lambda *_: answer(frequent))
    numbers = task.summarise([task.answer(tiny_sam, item)])
    assert (numbers["ar1000_f"], numbers["ar1000_r"]) == (1.0, 0.0) and np.isnan(numbers["ar1000_c"])


def test_finding_nothing_scores_zero_and_is_drawn(lvis: dict[str, str], tiny_sam: Sam) -> None:
    block = {"points_per_side": 2, "pred_iou_thresh": 9}
    task = Task(Config(task="everything", everything=block, **lvis), 64)
    item = task.load(0)
    row = task.answer(tiny_sam, item)
    numbers = task.summarise([row])
    assert numbers["ar1000"] == numbers["miou"] == numbers["masks"] == 0.0
    (photo, found, truth) = task.picture(item, {"model": row})
    assert found.masks.shape == (0, *item.frame.size) and truth.masks.any(axis=(1, 2)).all()
    assert "0 masks" in found.title and photo.title == "1"


@pytest.mark.parametrize("layers", [0, 1])
def test_a_real_models_numbers_are_those_counted_by_hand(lvis: dict[str, str], tiny_sam: Sam, layers: int) -> None:
    block = {"points_per_side": 4, "pred_iou_thresh": 0, "stability_score_thresh": 0, "crop_n_layers": layers}
    task = Task(Config(task="everything", everything=block, **lvis), 64)
    item = task.load(1)
    row = task.answer(tiny_sam, item)
    predictor = Predictor(tiny_sam)
    predictor.set_image(task.photographs[1].image)
    found = everything(predictor, grid.Config(**block))
    assert row["masks"] == len(found) > 0
    masks = coco_mask.decode(found.rles).astype(bool)
    truth = coco_mask.decode(item.photo.rles).astype(bool)
    best = [max((m & t).sum() / (m | t).sum() for m in np.moveaxis(masks, 2, 0)) for t in np.moveaxis(truth, 2, 0)]
    assert row["best"] == pytest.approx(best) and row["miou"] == pytest.approx(np.mean(best))
    # no mask is the best of two objects here, so each threshold finds the objects whose best IoU reaches it
    reached = np.mean([np.mean(np.array(best) >= t) for t in THRESHOLDS])
    assert row["ar1000"] == pytest.approx(reached)
    kept = {name: value for name, value in row.items() if not name.startswith("_")}
    assert len(json.dumps(kept, default=lambda a: a.tolist() if hasattr(a, "tolist") else str(a))) < 2500  # no masks


def test_more_masks_than_allowed_are_ranked_by_the_mean_of_both_scores() -> None:
    found = answer([{"counts": str(n)} | {"size": [1, 1]} for n in range(4)], [0.9, 0.5, 0.8, 0.9])
    found.stability = torch.tensor([0.5, 1.0, 0.9, 0.5])
    assert [one["counts"] for one in ranked(found, 3)] == ["2", "1", "0"]
    assert overlaps([], [{}]).shape == (0, 1) and overlaps([{}], []).shape == (1, 0)


def test_photographs_without_objects_and_crowds_are_left_out(lvis: dict[str, str]) -> None:
    path = Path(lvis["data"])
    record = json.loads(path.read_text())
    for note in record["annotations"]:
        note["iscrowd"] = int(note["image_id"] == 1 or note["category_id"] == 3)
    path.write_text(json.dumps(record))
    task = Task(Config(task="everything", **lvis), 64)
    assert task.load(0) is None and len(task.load(1).photo) == 2


def test_the_verb_writes_numbers_rows_and_pictures(
    tiny_shards: Path, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml = Path(__file__).parents[2] / "configs" / "eval_everything.yaml"
    words = [f"data={tiny_shards / 'val'}", f"checkpoint={tiny_teacher}", f"out={tmp_path}", "limit=2", "pictures=1"]
    assert main(["eval", str(yaml), *words, "everything.points_per_side=4"]) == 0
    report = json.loads((tmp_path / "eval.json").read_text())
    assert report["task"] == "everything" and 0 <= report["ar1000"] <= report["miou"] <= 1
    assert (
        "no filters, box NMS 0.9" in report["protocol"]["sentence"] and "4 x 4 points" in report["protocol"]["sentence"]
    )
    assert (tmp_path / "per_image.csv").read_text().startswith("model,key,objects,masks,ar1000,miou\n")
    assert "AR@1000 (S / M / L)" in capsys.readouterr().out
    assert {"masks.png", "best.png", "worst.png"} <= {path.name for path in tmp_path.iterdir()}


def test_mistakes_are_sentences(lvis: dict[str, str]) -> None:
    with pytest.raises(UserError, match="max_masks=0 must be 1 or more"):
        settings.from_dict(Config, {"task": "everything", "max_masks": 0, **lvis}, "a.yaml")
    with pytest.raises(UserError, match="did you mean 'grid'"):
        Task(Config(task="everything", everything={"strategy": "gird"}, **lvis), 64)
    with pytest.raises(UserError, match="there is no data="):
        Task(Config(task="everything"), 64)
