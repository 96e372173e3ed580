"""The edges task: from the command to eval.json, for folders, Sobel and checkpoints; one sentence for each mistake."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from frisket.cli.eval import run
from frisket.errors import UserError
from frisket.eval.boundary import curve, thresholds
from frisket.eval.edges import Config, Task
from frisket.everything.edges import asked_by, everything_edges, photograph_edges, thinned
from frisket.models.auto_ppn import AutoPPNConfig
from frisket.models.sam import Sam
from frisket.place import Place
from frisket.predict.predictor import Predictor

YAML = str(Path(__file__).parents[2] / "configs/eval_edges.yaml")
SIZE = (40, 60)
NAMES = ("11", "12", "9")  # as text sorts them


@pytest.fixture
def bsds(tmp_path: Path) -> Path:
    """Three photographs with a bright disc, and two annotators who draw its outline, the second 1 px wider."""
    root = tmp_path / "bsds"
    for folder in ("images/val", "groundTruth/val"):
        (root / folder).mkdir(parents=True)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    for number, name in enumerate(NAMES):
        away = np.hypot(y - 20, x - 25 - 3 * number)
        cells = np.empty((1, 2), object)
        for person in range(2):
            edge = (np.abs(away - 12 - person) < 0.5).astype(np.uint8)
            cells[0, person] = {"Segmentation": edge.astype(np.uint16), "Boundaries": edge}
        scipy.io.savemat(root / f"groundTruth/val/{name}.mat", {"groundTruth": cells})
        light = np.where(away < 12, 220, 40) + np.random.default_rng(number).normal(0, 6, SIZE)
        Image.fromarray(light.clip(0, 255).astype(np.uint8)).convert("RGB").save(
            root / f"images/val/{name}.jpg", quality=95
        )
    return root


@pytest.fixture
def maps(bsds: Path) -> Path:
    """What the first annotator drew, with weaker noise: a folder of .png and one .mat."""
    folder = bsds.parent / "maps"
    folder.mkdir()
    for name in NAMES:
        drawn = drawings(bsds, name)[0]
        values = np.where(drawn, 200, np.random.default_rng(0).integers(0, 100, SIZE)).astype(np.uint8)
        if name == "12":
            full = np.zeros((2 * SIZE[0] + 1, 2 * SIZE[1] + 1))
            full[2::2, 2::2] = values / 255
            scipy.io.savemat(folder / "12.mat", {"ucm2": full})
        else:
            Image.fromarray(values).save(folder / f"{name}.png")
    return folder


def drawings(bsds: Path, name: str) -> np.ndarray:
    cells = scipy.io.loadmat(bsds / f"groundTruth/val/{name}.mat")["groundTruth"].ravel()
    return np.stack([cell["Boundaries"][0, 0] != 0 for cell in cells])


def task(**words: object) -> Task:
    return Task(Config(task="edges", **words), 64)  # type: ignore[arg-type]


def test_a_folder_of_maps_needs_no_checkpoint(bsds: Path, maps: Path, tmp_path: Path, capsys: object) -> None:
    out = tmp_path / "out"
    words = [f"maps={maps}", f"truth={bsds / 'groundTruth/val'}", "thresholds=9", f"out={out}", "place.workers=0"]
    assert run([YAML], [*words, "pictures=1", "max_dist=0.03"]) == 0
    found = json.loads((out / "eval.json").read_text())
    # above the noise only the drawing is left; both annotators' pixels lie within 2.2 px of it
    assert found["ods/precision"] == 1 and found["ods"] > 0.9 and found["ois"] == pytest.approx(found["ods"])
    assert {"ods", "ois", "ap", "r50"} <= set(found) and found["models"]["maps"]["ods"] == found["ods"]
    assert "9 thresholds" in found["protocol"]["sentence"] and "within 0.03 of" in found["protocol"]["sentence"]
    assert found["protocol"]["name"] == "edges" and found["strategy"] is None
    assert found["protocol"]["arguments"]["maps"] == {"maps": "maps"} and len(found["dataset"]["digest"]) == 64
    assert len(found["curve/recall"]) == 9 and found["images"] == 3
    with open(out / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == list(NAMES)
    assert all(float(row["ois/precision"]) == 1 for row in rows)
    assert (out / "masks.png").is_file() and (out / "worst.png").is_file()


def test_several_maps_by_workers_are_those_of_one_process(bsds: Path, maps: Path, tmp_path: Path) -> None:
    shutil.copytree(maps, tmp_path / "again" / "maps")
    found = []
    for workers in (0, 2):
        out = tmp_path / f"out{workers}"
        words = [f"maps=[a:{maps},{tmp_path / 'again/maps'},sobel]", f"truth={bsds}", "thresholds=5", f"out={out}"]
        run([YAML], [*words, f"place.workers={workers}", "pictures=1"])
        found.append(json.loads((out / "eval.json").read_text()))
    assert found[0]["models"] == found[1]["models"]
    models = found[0]["models"]
    assert list(models) == ["a", "maps", "sobel"] and models["a"] == models["maps"] != models["sobel"]
    assert "ods" not in found[0]  # several answers: none stands for all


@pytest.mark.parametrize("nms", [True, False])
def test_sobel_is_the_photographs_gradient(bsds: Path, nms: bool) -> None:
    ours = task(maps=["sobel"], data=str(bsds), thresholds=5, nms=nms, max_dist=0.03)
    item = ours.load(1)
    pixels = np.asarray(Image.open(bsds / "images/val/12.jpg"))
    edges = photograph_edges(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    edges = thinned(edges, blur=True) if nms else edges
    row = ours.without_model(item)["sobel"]
    assert (row["counts"] == curve(edges.numpy(), drawings(bsds, "12"), thresholds(5), max_dist=0.03)).all()
    assert row["ois"] > 0.5  # a clean disc
    assert ("blur and edge NMS" in ours.sentence) == nms


def test_a_checkpoints_masks_make_the_map(bsds: Path, tiny_sam: Sam) -> None:
    ours = task(checkpoint=["x"], truth=str(bsds), thresholds=5, place=Place(workers=2))
    item = ours.load(0)
    assert ours.without_model(item) == {}
    row = ours.answer(tiny_sam.eval(), item)
    predictor = Predictor(tiny_sam)
    predictor.set_image(bsds / "images/val/11.jpg")
    edges = everything_edges(predictor).numpy()
    assert (row["counts"] == curve(edges, drawings(bsds, "11"), thresholds(5))).all()
    assert "16 x 16 points" in ours.sentence and len(ours.picture(item, {"x": row})) == 3


def test_a_checkpoints_own_points_make_the_map_where_asked(bsds: Path, tiny_sam: Sam) -> None:
    ours = task(checkpoint=["x"], truth=str(bsds), thresholds=5, strategy="autoppn")
    item = ours.load(0)
    with pytest.raises(UserError, match="has no AutoPPN"):
        ours.answer(tiny_sam.eval(), item)
    tiny_sam.propose(AutoPPNConfig(width=8)).eval()
    row = ours.answer(tiny_sam, item)
    predictor = Predictor(tiny_sam)
    predictor.set_image(bsds / "images/val/11.jpg")
    edges, grids = everything_edges(predictor, asked_by("autoppn")).numpy(), everything_edges(predictor).numpy()
    assert (row["counts"] == curve(edges, drawings(bsds, "11"), thresholds(5))).all() and (edges != grids).any()
    assert "points of AutoPPN, 256 at most" in ours.sentence and ours.strategy is not None
    assert ours.strategy["name"] == "autoppn" and ours.strategy["arguments"]["pred_iou_thresh"] == 0


def test_a_checkpoint_by_the_command(bsds: Path, maps: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    words = [f"checkpoint=small:{tiny_teacher}", f"maps={maps}", f"truth={bsds}", "thresholds=3", "place.workers=0"]
    assert run([YAML], [*words, "limit=1", f"out={tmp_path / 'out'}"]) == 0
    found = json.loads((tmp_path / "out/eval.json").read_text())
    assert list(found["models"]) == ["maps", "small"] and found["image_size"] == 64
    assert all(0 <= numbers["ods"] <= 1 for numbers in found["models"].values())


def test_pictures_do_not_match_again(bsds: Path, maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = task(maps=[str(maps)], truth=str(bsds), thresholds=3)
    first = ours.without_model(ours.load(0))["maps"]
    monkeypatch.setattr("frisket.eval.edges.curve", lambda *a, **k: pytest.fail("matched twice"))
    again = ours.without_model(ours.load(0))["maps"]
    assert (again["counts"] == first["counts"]).all() and again["ois"] == first["ois"]


def test_photographs_are_found_beside_the_truth_or_where_images_says(bsds: Path, tmp_path: Path) -> None:
    truth = str(bsds / "groundTruth/val")
    beside = task(maps=["sobel"], truth=truth).load(0).photograph
    assert beside == bsds / "images/val/11.jpg"
    shutil.copytree(bsds / "images/val", tmp_path / "pictures")
    named = task(maps=["sobel"], truth=truth, images=str(tmp_path / "pictures")).load(0).photograph
    assert named == tmp_path / "pictures/11.jpg"


def test_one_sentence_for_each_mistake(bsds: Path, maps: Path, tmp_path: Path) -> None:
    truth, empty = str(bsds), tmp_path / "empty"
    empty.mkdir()
    mistakes: list[tuple[dict[str, object], str]] = [
        ({"truth": truth}, "no edges to judge"),
        ({"maps": [str(maps)]}, "no ground truth is named"),
        ({"maps": [str(maps)], "truth": str(tmp_path / "nowhere")}, "there is no folder"),
        ({"maps": [str(maps)], "truth": str(empty)}, "holds no ground truth: no .mat files, and"),
        ({"maps": [str(maps)], "truth": truth, "split": "test"}, "images/test"),
        ({"maps": [str(empty)], "truth": truth}, "holds no maps"),
        ({"maps": [str(tmp_path / "nowhere")], "truth": truth}, "no folder of maps"),
        ({"maps": [str(maps), f"maps:{empty}"], "truth": truth}, "both|two folders of maps are called 'maps'"),
        ({"maps": [str(maps)], "checkpoint": ["maps:x"], "truth": truth}, "maps and a checkpoint are both called"),
        ({"maps": [str(maps)], "truth": truth, "max_dist": 3.0}, "a part of the picture's diagonal"),
        ({"maps": ["sobel"], "truth": truth, "images": str(empty)}, "has no photograph 11"),
        ({"checkpoint": ["x"], "truth": truth, "strategy": "autopn"}, "did you mean 'autoppn'"),
        ({"maps": ["sobel"], "truth": truth, "images": "/nowhere"}, "there is no folder /nowhere"),
    ]
    for words, sentence in mistakes:
        with pytest.raises(UserError, match=sentence) as caught:
            task(**words)
        assert "\n" not in str(caught.value)
    shutil.copytree(bsds / "groundTruth/val", tmp_path / "truth")
    with pytest.raises(UserError, match="the photographs are not known: give images="):
        task(checkpoint=["x"], truth=str(tmp_path / "truth"))


def test_a_bad_photograph_ends_the_command_with_one_sentence(bsds: Path, maps: Path, tmp_path: Path) -> None:
    words = [f"maps={maps}", f"truth={bsds}", "thresholds=3", f"out={tmp_path / 'out'}"]
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(maps / "9.png")
    for workers in (0, 1):  # a worker's sentence travels without its traceback
        with pytest.raises(UserError, match="9 wide and 9 high, its photograph 60 and 40") as caught:
            run([YAML], [*words, f"place.workers={workers}"])
        assert "\n" not in str(caught.value)
    (bsds / "groundTruth/val/11.mat").write_bytes(b"MATLAB 5.0" * 30)
    with pytest.raises(UserError, match=r"the photograph 11: the ground truth 11\.mat is not readable"):
        run([YAML], [*words, "place.workers=0"])


def test_a_photograph_of_another_size_is_refused(bsds: Path) -> None:
    Image.new("RGB", (30, 30)).save(bsds / "images/val/11.jpg")
    ours = task(maps=["sobel"], truth=str(bsds), thresholds=3)
    with pytest.raises(UserError, match="30 wide and 30 high, its ground truth 60 and 40"):
        ours.without_model(ours.load(0))


def test_berkeleys_sample_by_the_command(data_root: Path, tmp_path: Path) -> None:
    root = data_root / "bsds_bench"
    if not root.is_dir():
        pytest.skip("needs bsds_bench in FRISKET_DATA_ROOT")
    words = [f"maps={root / 'png'}", f"truth={root / 'groundTruth'}", "thresholds=5", f"out={tmp_path}"]
    run([YAML], [*words, "place.workers=0", "pictures=0"])
    found = json.loads((tmp_path / "eval.json").read_text())
    official = (0.704628, 0.708698, 0.307627)  # tolerance: see test_boundary
    assert [found[name] for name in ("ods", "ois", "ap")] == pytest.approx(official, abs=1e-3)
