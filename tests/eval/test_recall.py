"""Recall against pycocotools, exactly: LVIS' vector B', random sets with ties, and cases done by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from frisket.eval.recall import THRESHOLDS, add, average_recall, best_iou, groups, recalled, tally

NONE = np.zeros(0, bool)


def by_pycocotools(
    truth: list[dict], answers: list[dict], images: dict[int, tuple[int, int]], most: int = 1000
) -> list[float]:
    """AR@most without categories of annotations {image_id, segmentation, area}: all, small, medium, large."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": n, "height": h, "width": w} for n, (h, w) in images.items()],
        "annotations": [{**one, "id": n + 1, "iscrowd": 0, "category_id": 1} for n, one in enumerate(truth)],
        "categories": [{"id": 1}],
    }
    coco.createIndex()
    dets = COCO()
    dets.dataset = coco.dataset | {
        "annotations": [
            {**one, "id": n + 1, "iscrowd": 0, "category_id": 1, "area": float(coco_mask.area(one["segmentation"]))}
            for n, one in enumerate(answers)
        ]
    }
    dets.createIndex()
    run = COCOeval(coco, dets, "segm")
    run.params.useCats = 0
    run.params.maxDets = [1, 2, most]  # it sorts them
    run.evaluate()
    run.accumulate()
    recall = run.eval["recall"][:, 0, :, -1]  # thresholds x sizes
    return [float(np.mean(recall[:, n])) if (recall[:, n] > -1).all() else float("nan") for n in range(4)]


def by_ours(
    truth: list[dict], answers: list[dict], images: dict[int, tuple[int, int]], most: int = 1000
) -> list[float]:
    tallies = []
    for image in images:
        objects = [one for one in truth if one["image_id"] == image]
        found = [one for one in answers if one["image_id"] == image]
        order = np.argsort([-one["score"] for one in found], kind="stable")[:most]
        masks = [found[n]["segmentation"] for n in order]
        iou = np.zeros((len(masks), len(objects)))
        if iou.size:
            iou = coco_mask.iou(masks, [one["segmentation"] for one in objects], [0] * len(objects))
        tallies.append(tally(iou, groups(np.array([one["area"] for one in objects]))))
    return list(average_recall(add(tallies)).values())


def test_lvis_vector_b(data_root: Path) -> None:
    """Each mask of LVIS' sample rolled to the right: known answers of the specification."""
    path = data_root / "lvis" / "lvis_val_100.json"
    data = json.loads(path.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    truth, answers = [], []
    for one in sorted(data["annotations"], key=lambda one: one["id"]):
        rle = coco_mask.merge(coco_mask.frPyObjects(one["segmentation"], *sizes[one["image_id"]]))
        rolled = np.roll(coco_mask.decode(rle), one["id"] % 5, axis=1)
        score = round(1 - ((one["id"] * 37) % 101) / 101, 6)
        truth.append({"image_id": one["image_id"], "segmentation": rle, "area": one["area"]})
        rolled = coco_mask.encode(np.asfortranarray(rolled))
        answers.append({"image_id": one["image_id"], "segmentation": rolled, "score": score})
    known = [0.6313203685, 0.4871929825, 0.7894197952, 0.9456140351]
    found = by_ours(truth, answers, sizes)
    assert found == pytest.approx(known, abs=1e-9 + 0.5e-10)  # the answers are given to ten digits
    assert found == pytest.approx(by_pycocotools(truth, answers, sizes), abs=1e-12)


def boxes(rng: np.random.Generator, count: int, image: int) -> list[dict]:
    """Rectangles on a coarse lattice: many meet with equal IoU, many areas lie on 32² and 96²."""
    made = []
    for _ in range(count):
        x, y, w, h = (int(v) * 16 for v in (*rng.integers(0, 8, 2), *rng.integers(1, 7, 2)))
        if rng.random() < 0.2:
            w = h = int(rng.choice([32, 96]))
        mask = np.zeros((224, 224), np.uint8, order="F")
        mask[y : y + h, x : x + w] = 1
        rle = coco_mask.encode(mask)
        made.append({"image_id": image, "segmentation": rle, "area": float(mask.sum())})
    return made


@pytest.mark.parametrize("seed", range(12))
def test_it_is_pycocotools_on_random_sets_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, answers = [], []
    for image in range(1, 5):
        truth += boxes(rng, int(rng.integers(0, 9)), image)
        found = boxes(rng, int(rng.integers(0, 25)), image)
        answers += [{**one, "score": float(rng.integers(0, 5)) / 4} for one in found]
    most = [1000, 7, 3][seed % 3]
    sizes = dict.fromkeys((1, 2, 3, 4), (224, 224))
    ours, theirs = by_ours(truth, answers, sizes, most), by_pycocotools(truth, answers, sizes, most)
    assert ours == pytest.approx(theirs, abs=1e-12, nan_ok=True)


def test_a_detection_takes_one_object_and_the_best_scored_goes_first() -> None:
    iou = np.array([[0.8, 0.6], [0.9, 0.0]])
    table = recalled(iou, np.zeros(2, bool), np.array([0.5, 0.85]))
    assert table.tolist() == [[True, True], [False, False]]  # 0.8 takes object 0, so 0.9 has nothing left; at 0.85 not
    assert recalled(iou[::-1], np.zeros(2, bool), np.array([0.5])).tolist() == [[True], [True]]


def test_an_ignored_object_is_taken_only_when_no_other_fits() -> None:
    iou = np.array([[0.9, 0.6]])
    assert recalled(iou, np.array([True, False]), np.array([0.5])).tolist() == [[False], [True]]
    assert recalled(iou, np.array([True, False]), np.array([0.7])).tolist() == [[True], [False]]


def test_classes_are_matched_as_if_alone() -> None:
    iou = np.array([[0.9, 0.8]])  # one detection over a frequent and a rare object
    areas = np.array([100.0, 100.0])
    classes = {"f": np.array([True, False]), "r": np.array([False, True])}
    found = average_recall(tally(iou, groups(areas, classes), np.array([0.5])))
    assert found["all"] == 0.5 and found["s"] == 0.5 and found["f"] == found["r"] == 1.0


def test_nothing_found_nothing_there() -> None:
    empty = tally(np.zeros((0, 3)), groups(np.array([10.0, 2000.0, 2000.0])))
    assert average_recall(empty)["all"] == 0.0 and np.isnan(average_recall(empty)["l"])
    assert np.isnan(average_recall(tally(np.zeros((5, 0)), groups(np.zeros(0))))["all"])
    assert best_iou(np.zeros((0, 3))).tolist() == [0, 0, 0] and best_iou(np.zeros((4, 0))).tolist() == []
    assert best_iou(np.array([[0.2, 0.0], [0.1, 0.4]])).tolist() == [0.2, 0.4]
    assert len(THRESHOLDS) == 10 and recalled(np.zeros((0, 0)), NONE).shape == (0, 10)
