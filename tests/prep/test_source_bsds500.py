"""Source bsds500 on its real photographs (skips where they are absent) and on a made-up folder."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from frisket.data.bsds import regions
from frisket.data.regions import distinct, suitable
from frisket.data.sa1b import encode_jpeg, jpeg_size, parse
from frisket.data.shards import IndexedShards, expand
from frisket.errors import UserError
from frisket.place import Place
from frisket.prep import bsds500
from frisket.prep.run import prep

SIZE = (48, 64)


def ground_truth(path: Path, *segmentations: np.ndarray) -> None:
    """A .mat as Berkeley's: a 1 x n cell of 1 x 1 structs."""
    cells = np.empty((1, len(segmentations)), object)
    for n, labels in enumerate(segmentations):
        cells[0, n] = {"Segmentation": labels, "Boundaries": np.zeros_like(labels)}
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"groundTruth": cells})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photographs: 11 with two annotators who nearly agree, 12 with one."""
    root = tmp_path / "BSDS500" / "data"
    halves = np.ones(SIZE, np.uint16)
    halves[:, 32:] = 2
    shifted = np.ones(SIZE, np.uint16)
    shifted[:, 33:] = 2
    shifted[:5, :5] = 3  # 25 pixels: too small
    for n, segmentations in ((11, (halves, shifted)), (12, (halves,))):
        ground_truth(root / f"groundTruth/train/{n}.mat", *segmentations)
        (root / "images/train").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(n).integers(0, 255, (*SIZE, 3), np.uint8)
        (root / f"images/train/{n}.jpg").write_bytes(encode_jpeg(pixels))
    return tmp_path


def run(inputs: Path, out: Path, **changes: object) -> dict[str, int]:
    return prep(bsds500.Config(out=str(out), inputs=str(inputs), place=Place(workers=1), **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("inside", ["", "BSDS500/data"])
def test_regions_of_all_annotators_without_near_doubles(folder: Path, inside: str, tmp_path: Path) -> None:
    totals = run(folder / inside, tmp_path / "out")
    # 11: annotator 1's halves stay, annotator 2's are 0.97 and 0.95 alike, its corner too small.
    assert totals == {"images": 2, "masks": 4, "rejected": 0, "shards": 1}
    raw = IndexedShards(expand(tmp_path / "out"))[0]
    assert raw["__key__"] == "bsds_11"
    assert raw["jpg"] == (folder / "BSDS500/data/images/train/11.jpg").read_bytes()
    notes = parse(raw["json"], where="test")
    assert notes.boxes.tolist() == [[0, 0, 32, 48], [32, 0, 32, 48]]


def test_missing_and_wrong_ground_truth_are_rejected(
    folder: Path, rejections: Callable[[Path], list[dict[str, str]]], tmp_path: Path
) -> None:
    data = folder / "BSDS500/data"
    shutil.copy(data / "images/train/11.jpg", data / "images/train/13.jpg")
    shutil.copy(data / "images/train/11.jpg", data / "images/train/14.jpg")
    shutil.copy(data / "images/train/11.jpg", data / "images/train/15.jpg")
    ground_truth(data / "groundTruth/train/14.mat", np.ones((10, 10), np.uint16))
    (data / "groundTruth/train/15.mat").write_bytes(b"MATLAB 5.0, or so it says" * 20)
    whole = (data / "groundTruth/train/11.mat").read_bytes()
    for n, length in ((16, 100), (17, 300), (18, len(whole) // 2)):
        shutil.copy(data / "images/train/11.jpg", data / f"images/train/{n}.jpg")
        (data / f"groundTruth/train/{n}.mat").write_bytes(whole[:length])
    totals = run(folder, tmp_path / "out")
    assert (totals["images"], totals["rejected"]) == (2, 6)
    reasons = {row["key"]: row["reason"] for row in rejections(tmp_path / "out")}
    assert "no ground truth" in reasons["bsds_13"]
    assert "pixels" in reasons["bsds_14"]
    assert all("not readable" in reasons[f"bsds_{n}"] for n in (15, 16, 17, 18))


def test_a_wrong_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no images/val and groundTruth/val"):
        run(tmp_path, tmp_path / "out", split="val")


@pytest.mark.slow
def test_the_known_figures_of_val(data_root: Path) -> None:
    """8,077 masks, and filling every mask's box gives mIoU 0.565 (the data's README)."""
    images, truths = data_root / "bsds500/images/val", data_root / "bsds500/groundTruth/val"
    if not images.is_dir():
        pytest.skip("needs bsds500 in FRISKET_DATA_ROOT")
    ious = []
    for photo in sorted(images.glob("*.jpg")):
        masks = regions(truths / f"{photo.stem}.mat", jpeg_size(photo.read_bytes()))
        for mask in suitable(masks, min_area=100, max_fraction=0.9):
            rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            ious.append(np.count_nonzero(mask) / ((rows[-1] - rows[0] + 1) * (cols[-1] - cols[0] + 1)))
    assert len(ious) == 8077
    assert round(float(np.mean(ious)), 3) == 0.565


def test_real_photographs(data_root: Path, tmp_path: Path) -> None:
    root = data_root / "bsds500"
    if not root.is_dir():
        pytest.skip("needs bsds500 in FRISKET_DATA_ROOT")
    few = tmp_path / "few"
    for photo in sorted((root / "images/val").glob("*.jpg"))[:3]:
        for part in (f"images/val/{photo.stem}.jpg", f"groundTruth/val/{photo.stem}.mat"):
            (few / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / part, few / part)
    totals = run(few, tmp_path / "out", split="val", samples_per_shard=2)
    shards = IndexedShards(expand(tmp_path / "out"))
    masks = 0
    for i in range(len(shards)):
        raw = shards[i]
        name = raw["__key__"].removeprefix("bsds_")
        assert raw["jpg"] == (few / f"images/val/{name}.jpg").read_bytes()
        found = regions(few / f"groundTruth/val/{name}.mat", jpeg_size(raw["jpg"]))
        masks += len(distinct(suitable(found, min_area=100, max_fraction=0.9), iou=0.9))
    assert totals == {"images": 3, "masks": masks, "rejected": 0, "shards": 2}
