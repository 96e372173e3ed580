"""AP and AR against published answers, and against pycocotools and lvis on random results with crowds and ties."""

import contextlib
import copy
import importlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO as Official
from pycocotools.cocoeval import COCOeval

from frisket.data.coco import Category, CocoFile
from frisket.data.detections import Detections, read_boxes, read_masks
from frisket.eval.ap import COCO, LVIS, Detected, Objects, Rules, matched, summarise

FAKES = (
    0.3195452758576433, 0.5622883972521636, 0.29892653412086784, 0.3873740315997837, 0.31018272403369485,
    0.3269339071005138, 0.2682297225711534, 0.41544868114906375, 0.4168394992198818, 0.4694498622754236,
    0.37675922666197265, 0.3814715099715099,
)  # fmt: skip
COCO_NAMES = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l", "ar1", "ar10", "ar100", "ar_s", "ar_m", "ar_l")
LVIS_NAMES = (
    "ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l", "ap_r", "ap_c", "ap_f", "ar300", "ar_s", "ar_m", "ar_l",
)  # fmt: skip
VECTOR_A = (
    0.5629240643, 0.8219990878, 0.4930325222, 0.5802549515, 0.5827941800, 0.5988837869, 0.2, 0.5347378071,
    0.5705247673, 0.6161624900, 0.6223720064, 0.6179218881, 0.6308431102,
)  # fmt: skip


def numbers(file: CocoFile, found: Detections, rules: Rules, *, boxes: bool = False) -> dict[str, float]:
    """Every image of the file, in order."""
    matches = []
    for index in range(len(file)):
        truth, image = file.objects(index), file.images[index]
        shapes, categories, scores = found.of(int(image["id"]))
        xywh = [note["bbox"] for note in file.notes(index)]  # as written: IoU 0.6 is one of A's
        areas = shapes[:, 2] * shapes[:, 3] if boxes else np.array([coco_mask.area(s) for s in shapes], float)
        matches.append(
            matched(
                Detected(shapes.tolist(), areas, categories, scores),
                Objects(
                    xywh if boxes else truth.rles, truth.areas, truth.categories, truth.crowd,
                    image.get("neg_category_ids", ()), image.get("not_exhaustive_category_ids", ()),
                ),
                rules,
            )
        )  # fmt: skip
    return summarise(matches, rules, file.categories)


def test_coco_fakes_to_1e_9(data_root: Path) -> None:
    file = CocoFile(data_root / "coco100/instances_val2014_100.json")
    found = numbers(file, read_masks(data_root / "coco100/fakesegm100_results.json", file), COCO)
    assert [found[name] for name in COCO_NAMES] == pytest.approx(FAKES, abs=1e-9)


def test_coco_fake_boxes_equal_pycocotools(data_root: Path) -> None:
    file = CocoFile(data_root / "coco100/instances_val2014_100.json")
    path = data_root / "coco100/fakebbox100_results.json"
    found = numbers(file, read_boxes(path, file), COCO, boxes=True)
    theirs = pycocotools(json.loads(file.path.read_text()), json.loads(path.read_text()), "bbox")
    assert [found[name] for name in COCO_NAMES] == pytest.approx(theirs, abs=1e-12)


def vector_a(file: CocoFile, folder: Path) -> Path:
    """Boxes shifted and scored by rule, from the ground truth alone (the specification's section 6.2)."""
    notes = sorted((note for index in range(len(file)) for note in file.notes(index)), key=lambda note: note["id"])
    results = []
    for note in notes:
        x, y, w, h = note["bbox"]
        shift = (0, 0.02, 0.05, 0.1, 0.15, 0.25, 0.4)[note["id"] % 7]
        results.append(
            {
                "image_id": note["image_id"], "category_id": note["category_id"], "bbox": [x + shift * w, y, w, h],
                "score": round(1 - ((note["id"] * 37) % 101) / 101, 6),
            }
        )  # fmt: skip
    (folder / "a.json").write_text(json.dumps(results))
    return folder / "a.json"


def test_lvis_vector_a(data_root: Path, tmp_path: Path) -> None:
    file = CocoFile(data_root / "lvis/lvis_val_100.json")
    results = json.loads(vector_a(file, tmp_path).read_text())
    columns = [np.array([r[name] for r in results]) for name in ("image_id", "category_id", "score", "bbox")]
    found = numbers(file, Detections(*columns), LVIS, boxes=True)
    assert [found[name] for name in LVIS_NAMES] == pytest.approx(VECTOR_A, abs=1e-9)


# ---------------------------------------------------------------- random results against the official code


def made_up(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Truth of 6 images with crowds, empty masks and LVIS' lists; results with ties, doubles, strays, empty masks and
    empty images. In every fourth set one image has as many results as LVIS and, in one class, as COCO allow, and more.
    """
    rng = np.random.default_rng(seed)
    size = (60, 80) if seed % 3 else (160, 200)
    classes = list(range(1, 5))
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [
        {"id": c, "name": f"c{c}", "frequency": "rcff"[c - 1]} for c in classes]}  # fmt: skip
    results: list[dict[str, Any]] = []

    def mask() -> np.ndarray:
        out = np.zeros(size, np.uint8)
        y, x = rng.integers(0, size[0] - 4), rng.integers(0, size[1] - 4)
        if rng.random() > 0.1:
            out[y : y + rng.integers(2, size[0]), x : x + rng.integers(2, size[1])] = 1
        return out

    def encoded(array: np.ndarray) -> dict[str, Any]:
        rle = coco_mask.encode(np.asfortranarray(array))
        return {"size": list(size), "counts": rle["counts"].decode()}

    def result(image: int, category: int, array: np.ndarray) -> dict[str, Any]:
        score = float(rng.integers(0, 6) / 5)
        return {"image_id": image, "category_id": category, "segmentation": encoded(array), "score": score}

    for image in (rng.permutation(6) * 7 + 3).tolist():
        lists = rng.permutation(classes)
        known = {"neg_category_ids": [int(lists[0])], "not_exhaustive_category_ids": [int(lists[1])]}
        truth["images"].append({"id": image, "height": size[0], "width": size[1], **known})
        for _ in range(rng.integers(1, 6)):
            array = mask()
            category = int(rng.choice(lists[1:4]))
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": image, "category_id": category,
                 "segmentation": encoded(array), "area": float(array.sum()), "bbox": [0, 0, 1, 1],
                 "iscrowd": int(rng.random() < 0.2)}
            )  # fmt: skip
            for _ in range(rng.integers(0, 4)):
                moved = np.roll(array, rng.integers(-3, 4, 2), axis=(0, 1)) if rng.random() > 0.2 else mask()
                results.append(result(image, category if rng.random() < 0.8 else int(rng.choice(classes)), moved))
        if seed % 4 == 0 and image == 3:
            shapes = [mask() for _ in range(9)]
            results += [result(image, int(lists[1 + (i % 5 == 0)]), shapes[i % 9]) for i in range(280 + seed)]
    return truth, [results[i] for i in rng.permutation(len(results))]


def pycocotools(truth: dict[str, Any], results: list[dict[str, Any]], kind: str = "segm") -> list[float]:
    """The twelve numbers of the reference; its -1 as nan."""
    with contextlib.redirect_stdout(io.StringIO()):
        official = Official()
        official.dataset = copy.deepcopy(truth)
        official.createIndex()
        judge = COCOeval(official, official.loadRes(copy.deepcopy(results)), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [np.nan if value == -1 else float(value) for value in judge.stats]


@pytest.fixture
def lvis(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """lvis' package; 0.5.3 uses `np.float`, which NumPy removed: given back for these tests only."""
    monkeypatch.setattr(np, "float", float, raising=False)
    yield importlib.import_module("lvis")


def official_lvis(lvis: Any, truth: dict[str, Any], results: list[dict[str, Any]], folder: Path) -> list[float]:
    path = folder / "truth.json"
    path.write_text(json.dumps(truth))
    data = lvis.LVIS(str(path))
    judge = lvis.LVISEval(data, lvis.LVISResults(data, copy.deepcopy(results)), "segm")
    judge.run()
    return [np.nan if value == -1 else float(value) for value in judge.get_results().values()]


def detections(results: list[dict[str, Any]], file: CocoFile, folder: Path) -> Detections:
    (folder / "results.json").write_text(json.dumps(results))
    return read_masks(folder / "results.json", file)


@pytest.mark.parametrize("seed", range(100))
def test_random_results_equal_pycocotools(seed: int, tmp_path: Path) -> None:
    truth, results = made_up(seed)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    file = CocoFile(tmp_path / "truth.json")
    found = numbers(file, detections(results, file, tmp_path), COCO)
    theirs = pycocotools(truth, results)
    assert [found[name] for name in COCO_NAMES] == pytest.approx(theirs, abs=1e-12, nan_ok=True)
    assert 0.002 < found["ap"] < 0.99  # the results are neither all right nor all wrong


@pytest.mark.parametrize("seed", range(100))
def test_random_results_equal_lvis(seed: int, tmp_path: Path, lvis: Any) -> None:
    truth, results = made_up(seed)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    file = CocoFile(tmp_path / "truth.json")
    found = numbers(file, detections(results, file, tmp_path), LVIS)
    theirs = official_lvis(lvis, truth, results, tmp_path)
    assert [found[name] for name in LVIS_NAMES] == pytest.approx(theirs, abs=1e-12, nan_ok=True)


def test_perfect_results_score_one_and_none_score_zero() -> None:
    rle = {"size": [4, 5], "counts": "0d0"}
    truth = Objects([rle], np.array([20.0]), np.array([3]), np.array([False]))
    categories = {3: Category(3, "thing", "r"), 4: Category(4, "absent", "f")}
    for rules in (COCO, LVIS):
        perfect = matched(Detected([rle], np.array([20.0]), np.array([3]), np.array([0.1])), truth, rules)
        nothing = matched(Detected([], np.zeros(0), np.zeros(0, int), np.zeros(0)), truth, rules)
        one, zero = summarise([perfect], rules, categories), summarise([nothing], rules, categories)
        assert one["ap"] == pytest.approx(1.0, abs=1e-12) and one["ap_s"] == pytest.approx(1.0, abs=1e-12)
        assert zero["ap"] == 0.0 and np.isnan(one["ap_l"])
        half = summarise([perfect, nothing], rules, categories)
        assert half["ap"] == pytest.approx(51 / 101) and half["ar_s"] == 0.5


@pytest.mark.parametrize(("area", "sizes"), [(32**2, "sm"), (96**2, "ml"), (96**2 + 1, "l"), (32**2 - 1, "s")])
def test_an_object_at_a_border_counts_on_both_sides(area: int, sizes: str) -> None:
    rle = {"size": [1, 96**2 + 1], "counts": [0, area, 96**2 + 1 - area]}
    rle = coco_mask.frPyObjects(rle, 1, 96**2 + 1)
    areas, categories = np.array([float(area)]), np.array([3])
    matches = matched(
        Detected([rle], areas, categories, np.array([0.1])), Objects([rle], areas, categories, np.array([False])), COCO
    )
    numbers = summarise([matches], COCO, {3: Category(3, "thing")})
    assert {size for size in "sml" if numbers[f"ap_{size}"] > 0.99} == set(sizes)
    assert {size for size in "sml" if np.isnan(numbers[f"ap_{size}"])} == set("sml") - set(sizes)
