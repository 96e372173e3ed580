"""Box-prompted AP: a perfect model, what is prompted, results files, ranks, and each mistake as one sentence."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from perfectsam import PerfectSam, boxes_as_detections, coco_folder
from pycocotools import mask as coco_mask

from frisket.cli.main import main
from frisket.data.annotated import open_annotated
from frisket.errors import UserError
from frisket.eval.instance import Config, Task, answer, choose
from frisket.eval.reference import difference
from frisket.models.sam import Sam
from frisket.sample import Prediction

SIDE = 96


@pytest.fixture(scope="module")
def coco(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return coco_folder(tiny_shards / "val", tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def lvis(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return coco_folder(tiny_shards / "val", tmp_path_factory.mktemp("lvis"), lvis=True, crowd=False)


def make(data: tuple[Path, Path], side: int = SIDE, **settings: Any) -> Task:
    settings = {"checkpoint": ["x"], "images": str(data[1])} | settings
    return Task(Config(task="instance", data=str(data[0]), **settings), side)


def judged(task: Task, sam: Any) -> dict[str, Any]:
    """The numbers of all items; a PerfectSam is told the masks whose boxes it is asked about."""
    rows = []
    for index in range(len(task)):
        item = task.load(index)
        if isinstance(sam, PerfectSam):
            same = [int(np.abs(item.photo.boxes - box).sum(axis=1).argmin()) for box in item.boxes]
            sam.truth = item.photo.masks(same)
        with torch.inference_mode():
            rows.append(task.answer(sam, item))
    return task.summarise(rows)


@pytest.mark.parametrize("kind", ["coco", "lvis", "shards"])
@pytest.mark.parametrize("detected", [True, False])
def test_a_perfect_model_scores_one(
    kind: str, detected: bool, coco: tuple[Path, Path], lvis: tuple[Path, Path], tiny_shards: Path, tmp_path: Path
) -> None:
    if kind == "shards":
        if detected:
            return
        task = make((tiny_shards / "val", Path("")), refine=True)
    else:
        data = coco if kind == "coco" else lvis
        given = {"detections": str(boxes_as_detections(data[0], tmp_path / "d.json"))} if detected else {}
        task = make(data, **given)
    found = judged(task, PerfectSam(SIDE))
    assert found["ap"] == pytest.approx(1.0, abs=1e-9) and found["ap75"] == pytest.approx(1.0, abs=1e-9)
    assert found[f"ar{task.rules.recalls[-1]}"] == 1.0 and found["images"] == 6
    assert ("ap_r" in found) == (kind == "lvis")
    assert task.rules.name in task.sentence
    assert ("scores = predicted IoU" in task.sentence) == (not detected)


def test_the_baseline_is_the_box_itself(coco: tuple[Path, Path], tmp_path: Path) -> None:
    task = make(coco, detections=str(boxes_as_detections(coco[0], tmp_path / "d.json")))
    assert task.baseline == "box fill (baseline)"
    found = judged(task, None)
    assert 0 < found["ap"] < found["ap50"] < 1


def test_a_results_file_needs_no_model_and_gives_the_known_numbers(data_root: Path, tmp_path: Path) -> None:
    """The official fakes through the command: AP .3195…, as in tests/eval/test_ap.py."""
    folder = data_root / "coco100"
    results = json.loads((folder / "fakesegm100_results.json").read_text())
    for one in results:
        one["bbox"] = [0, 0, 1, 1]  # must be dropped: areas from it would change S, M and L
    (tmp_path / "r.json").write_text(json.dumps(results))
    words = [f"data={folder / 'instances_val2014_100.json'}", f"results={tmp_path / 'r.json'}", f"out={tmp_path}"]
    assert main(["eval", "configs/eval_instance.yaml", *words, "place.accelerator=cpu"]) == 0
    found = json.loads((tmp_path / "eval.json").read_text())
    assert found["ap"] == pytest.approx(0.3195452758576433, abs=1e-9)
    assert found["ap_s"] == pytest.approx(0.3873740315997837, abs=1e-9)
    assert list(found["models"]) == ["masks of r.json"]


def test_only_what_counts_is_prompted_and_all_of_it_when_masks_are_saved(
    lvis: tuple[Path, Path], tmp_path: Path, tiny_teacher: Path
) -> None:
    path = boxes_as_detections(lvis[0], tmp_path / "d.json")
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([dict(row, category_id=3, score=0.9) for row in rows] * 12 + rows))
    few = make(lvis, detections=str(path))
    counts = [len(few.load(n).boxes) for n in range(6)]
    assert all(0 < n <= 300 for n in counts)
    words = ["eval", "configs/eval_instance_lvis.yaml", f"data={lvis[0]}", f"images={lvis[1]}", "limit=2"]
    words += [f"detections={boxes_as_detections(lvis[0], path)}", f"checkpoint=[m:{tiny_teacher}]", "save_masks=true"]
    assert main([*words, f"out={tmp_path / 'out'}", "place.accelerator=cpu", "pictures=1"]) == 0
    saved = json.loads((tmp_path / "out/results_m.json").read_text())
    first = [photo.image_id for photo in open_annotated(lvis[0], pixels=False)][:2]
    assert sorted({row["image_id"] for row in saved}) == first
    assert all(set(row) == {"image_id", "category_id", "score", "segmentation"} for row in saved)
    assert coco_mask.decode(saved[0]["segmentation"]).shape == tuple(saved[0]["segmentation"]["size"])
    again = ["eval", "configs/eval_instance_lvis.yaml", f"data={lvis[0]}", "limit=2", f"out={tmp_path / 'again'}"]
    assert main([*again, f"results={tmp_path / 'out/results_m.json'}", "place.accelerator=cpu"]) == 0
    one, two = (json.loads((tmp_path / name / "eval.json").read_text()) for name in ("out", "again"))
    for name, value in one["models"]["m"].items():
        assert two["models"]["masks of results_m.json"][name] == pytest.approx(value, abs=1e-12, nan_ok=True)


def test_which_output_answers() -> None:
    logits = torch.full((1, 3, 16, 16), -1.0)
    logits[0, 0], logits[0, 1, 2:6, 2:6], logits[0, 2, 2:4, 2:4] = 1.0, 1.0, 1.0
    prediction = Prediction(logits, torch.tensor([[0.2, 0.3, 0.9]]))
    box = torch.tensor([[8.0, 8.0, 24.0, 24.0]])  # exactly the second mask's cells
    assert torch.equal(choose(prediction, box, "box_iou")[0], logits[:, 1])
    assert choose(prediction, box, "box_iou")[1].item() == pytest.approx(0.3)
    assert torch.equal(choose(prediction, box, "multimask")[0], logits[:, 2])


def test_refinement_feeds_the_logits_back(coco: tuple[Path, Path], tiny_sam: Sam) -> None:
    sam = PerfectSam(SIDE)
    task = make(coco, refine=True, output="single")
    judged(task, sam)
    first, second = sam.asked[0][0], sam.asked[1][0]
    assert first.masks is None and second.masks is not None and torch.equal(first.boxes, second.boxes)  # type: ignore[arg-type]
    assert not any(multimask for _, multimask in sam.asked)
    assert "one refinement pass" in task.sentence
    plain, refined = (judged(make(coco, 64, refine=r), tiny_sam.eval()) for r in (False, True))
    assert plain != refined


def test_a_results_file_alone_says_that_nothing_was_prompted(coco: tuple[Path, Path], tmp_path: Path) -> None:
    path = boxes_as_detections(coco[0], tmp_path / "boxes.json")
    masks = [dict(row, segmentation={"size": [1, 1], "counts": "01"}) for row in json.loads(path.read_text())]
    sizes = {image["id"]: [image["height"], image["width"]] for image in json.loads(coco[0].read_text())["images"]}
    for row in masks:
        height, width = row["segmentation"]["size"] = sizes[row["image_id"]]
        row["segmentation"]["counts"] = [0, height * width]
    (tmp_path / "masks.json").write_text(json.dumps(masks))
    alone = make(coco, checkpoint=[], results=str(tmp_path / "masks.json"))
    assert alone.arguments | {"rules": ""} == {
        "rules": "", "boxes": "none", "detections": None, "output": None, "refine": None
    }  # fmt: skip
    assert "ground-truth" not in alone.sentence and "masks and scores of masks.json" in alone.sentence
    prompted = make(coco, detections=str(path))
    assert prompted.arguments["boxes"] == "detections" and len(prompted.arguments["detections"]["digest"]) == 64
    assert make(coco).arguments["boxes"] == "truth"


@pytest.mark.parametrize("kind", ["coco", "lvis"])
def test_the_reference_agrees_on_the_same_masks(
    kind: str, request: pytest.FixtureRequest, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, images = request.getfixturevalue(kind)
    words = ["task=instance", f"data={path}", f"images={images}", f"checkpoint=m:{tiny_teacher}", "pictures=0"]
    assert main(["eval", *words, f"out={tmp_path}", "verify=true", "limit=3", "place.accelerator=cpu"]) == 0
    numbers = json.loads((tmp_path / "eval.json").read_text())["models"]["m"]
    assert numbers["verify/difference"] < 1e-9 and numbers["ap"] is not None
    assert numbers["verify/by"] == {"coco": "pycocotools", "lvis": "lvis"}[kind]
    assert f"m: the largest difference from {numbers['verify/by']} is" in capsys.readouterr().out


def test_a_difference_from_the_reference_is_told() -> None:
    nan = float("nan")
    assert difference({"ap": 0.5, "ap_s": nan, "n": 9.0}, {"ap": 0.25, "ap_s": nan}) == (0.25, "ap")
    assert difference({"ap": 0.5, "ap_s": 0.1}, {"ap": 0.5, "ap_s": nan}) == (float("inf"), "ap_s")


@pytest.mark.parametrize(("words", "sentence"), [({"rules": "lvis"}, "needs LVIS' own"), ({}, "verify=… names")])
def test_what_no_reference_can_judge_is_refused(
    coco: tuple[Path, Path], tiny_shards: Path, words: dict[str, str], sentence: str
) -> None:
    data = coco if words else (tiny_shards / "val", "")
    with pytest.raises(UserError, match=sentence):
        make(data, verify=True, **words)  # type: ignore[arg-type]


def test_as_many_masks_as_lvis_allows_in_one_photograph(lvis: tuple[Path, Path], tmp_path: Path) -> None:
    image = json.loads(lvis[0].read_text())["images"][0]
    size = [image["height"], image["width"]]
    shape = {"size": size, "counts": [0, size[0] * size[1]]}
    rows = [{"image_id": image["id"], "category_id": 1, "score": n / 300, "segmentation": shape} for n in range(300)]
    (tmp_path / "masks.json").write_text(json.dumps(rows))
    task = make(lvis, checkpoint=[], results=str(tmp_path / "masks.json"))
    index = next(n for n in range(len(task)) if task.photographs[n].image_id == image["id"])
    assert task.answer(None, task.load(index))["masks"] == 300


@pytest.mark.gpu
@pytest.mark.parametrize("output", ["multimask", "single", "box_iou"])
def test_a_gpu_gives_the_same_masks(output: Any, coco: tuple[Path, Path], tiny_sam: Sam) -> None:
    config = Config(output=output, refine=True)
    item = make(coco, 64).load(0)
    with torch.inference_mode():
        here, scores = answer(tiny_sam.eval(), item, config)
        there, others = answer(tiny_sam.cuda(), item, config)
    assert others == pytest.approx(scores, abs=1e-3)
    iou = np.diag(coco_mask.iou(here, there, [0] * len(here)))
    assert (iou[[coco_mask.area(rle) > 0 for rle in here]] > 0.9).all()


CODE = """
import json, sys
from frisket.engine.judge import judge
from frisket.engine.strategy import place, quiet
from frisket.place import Place
from frisket.eval.instance import Config, Task

if __name__ == "__main__":
    quiet()
    data, results, devices = sys.argv[1], sys.argv[2], int(sys.argv[3])
    where = place(
        Place(accelerator="cpu", devices=devices)
    )
    verdict = judge(Task(Config(task="instance", data=data, results=results), 64), {}, where)
    if verdict: print("VERDICT", json.dumps(verdict.numbers))
"""


@pytest.mark.slow
def test_two_ranks_give_the_numbers_of_one(data_root: Path, tmp_path: Path) -> None:
    """One real run of two processes against the sum in this one, to the last digit."""
    folder = data_root / "coco100"
    (tmp_path / "run.py").write_text(CODE)
    words = [str(folder / "instances_val2014_100.json"), str(folder / "fakesegm100_results.json"), "2"]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run.py"), *words], capture_output=True, text=True, timeout=240,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("VERDICT")] or [done.stderr]
    found = json.loads(line.removeprefix("VERDICT "))["masks of fakesegm100_results.json"]
    alone = judged(Task(Config(task="instance", data=words[0], results=words[1]), 64), None)
    assert found == alone and found["ap"] == pytest.approx(0.3195452758576433, abs=1e-9)


# ---------------------------------------------------------------- mistakes


Change = Callable[[list[dict[str, Any]]], Any]


def corners(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"bbox": [*row["bbox"][:2], row["bbox"][0] + row["bbox"][2], row["bbox"][1] + row["bbox"][3]]}
            for row in rows]  # fmt: skip


MISTAKES: list[tuple[str, Change, str]] = [
    ("unknown images", lambda r: [r[0] | {"image_id": 7}, *r[1:]],
     "1 of {n} detections are of images that coco.json does not have, such as 7"),
    ("empty", lambda r: [], "holds no detection"),
    ("corners", corners, "the boxes are written as corners [x0, y0, x1, y1]"),
    ("nan", lambda r: [r[0], r[1] | {"score": float("nan")}], "the score of detection 1 is nan: it must be a number"),
    ("no score", lambda r: [{k: v for k, v in r[0].items() if k != "score"}], "the score of detection 0 is None"),
    ("no box", lambda r: [{k: v for k, v in r[0].items() if k != "bbox"}], "detection 0 has no bbox of four numbers"),
    ("classes from 0", lambda r: [r[0] | {"category_id": 0}], "category 0 of 1 detections is not in coco.json"),
    ("other pixels", lambda r: [x | {"bbox": [v * 9 for v in x["bbox"]]} for x in r], "are not [x, y, width, height]"),
    ("annotations", lambda r: {"annotations": r}, "is not a list of detections"),
    ("words", lambda r: ["a"], "entry 0 is no detection"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_bad_results_file_is_one_sentence(
    change: Change, sentence: str, coco: tuple[Path, Path], tiny_teacher: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = boxes_as_detections(coco[0], tmp_path / "d.json")
    rows = json.loads(path.read_text())
    path.write_text(json.dumps(change(rows)))
    words = [f"data={coco[0]}", f"images={coco[1]}", f"detections={path}", f"checkpoint={tiny_teacher}"]
    assert main(["eval", "configs/eval_instance.yaml", *words, f"out={tmp_path}", "place.accelerator=cpu"]) == 2
    said = capsys.readouterr().err
    assert sentence.format(n=len(rows)) in said and str(path) in said
    assert said.count("\n") == 1 and said.startswith("frisket: ")


def test_what_is_missing_is_one_sentence(
    coco: tuple[Path, Path], tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str) -> str:
        assert main(["eval", "configs/eval_instance.yaml", *words, f"out={tmp_path}"]) == 2
        return capsys.readouterr().err

    assert "eval needs checkpoint=… (a run folder, a file or a model name) or results=…" in said(f"data={coco[0]}")
    assert "there is no results file" in said(f"data={coco[0]}", "results=none.json")
    assert "give that as data=" in said(f"data={tiny_shards / 'val'}", "results=none.json")
    broken = tmp_path / "m.json"
    broken.write_text(
        '[{"image_id": 100, "category_id": 1, "score": 1, "segmentation": {"size": [3, 3], "counts": "9"}}]'
    )
    assert "the segmentation of detection 0 is damaged" in said(f"data={coco[0]}", f"results={broken}")
    broken.write_text("[{")
    assert "is not readable as JSON" in said(f"data={coco[0]}", f"results={broken}")
