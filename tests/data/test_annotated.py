"""Every kind of annotated set gives the same Photograph; what is missing or damaged is one sentence."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from frisket.data.annotated import open_annotated
from frisket.data.coco import rle_of
from frisket.data.sa1b import decode
from frisket.errors import UserError
from frisket.place import Place
from frisket.prep import bsds500
from frisket.prep.run import prep

SQUARE = [[2.0, 3.0, 10.0, 3.0, 10.0, 12.0, 2.0, 12.0]]


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """(changes to the record) -> path of a.json with two images, of which the pictures lie in images/."""

    def make(name: str = "a.json", **changes: Any) -> Path:
        note = {"bbox": [2, 3, 8, 9], "area": 72.0, "category_id": 7, "iscrowd": 0}
        record = {
            "images": [
                {"id": 9, "width": 40, "height": 30, "file_name": "b.png"},
                {"id": 4, "width": 40, "height": 30, "file_name": "a.jpg"},
            ],
            "categories": [{"id": 7, "name": "thing"}],
            "annotations": [
                note | {"id": 1, "image_id": 9, "segmentation": SQUARE},
                note | {"id": 2, "image_id": 4, "iscrowd": 1, "segmentation": {"size": [30, 40], "counts": [1190, 10]}},
            ],
        }
        (tmp_path / "images").mkdir(exist_ok=True)
        for number, picture in enumerate(("a.jpg", "b.png")):
            pixels = np.full((30, 40, 3), 60 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / picture)
        (tmp_path / name).write_text(json.dumps(record | changes))
        return tmp_path / name

    return make


def test_json_photographs_come_by_image_id_with_their_objects(made: Callable[..., Path], tmp_path: Path) -> None:
    photographs = open_annotated(made(), images=tmp_path / "images")
    assert [p.key for p in photographs] == ["4", "9"] and not photographs.lvis
    crowd, square = photographs
    assert crowd.crowd.tolist() == [True] and crowd.masks().sum() == 10
    assert square.boxes.tolist() == [[2, 3, 10, 12]] and square.areas.tolist() == [72.0]
    assert square.categories.tolist() == [7] and photographs.categories[7].name == "thing"
    assert square.image.shape == (30, 40, 3) and (square.image == 60).all()
    fitted, frame = square.fitted(64)
    assert fitted.shape == (3, 48, 64) and frame.original == (30, 40)
    again = pickle.loads(pickle.dumps(square.select([0])))
    assert again.rles == square.rles and (again.image == 60).all()
    assert len(square.select([])) == 0 and square.select([]).masks().shape == (0, 30, 40)


def test_coco_masks_are_pycocotools_own(data_root: Path) -> None:
    path = data_root / "coco100/instances_val2014_100.json"
    official = COCO(path)
    photographs = open_annotated(path, pixels=False)
    assert [p.image_id for p in photographs] == sorted(official.getImgIds())
    found = {int(i): rle for p in photographs for i, rle in zip(p.ids, p.rles, strict=True)}
    assert len(found) == 839 and sum(int(p.crowd.sum()) for p in photographs) == 9
    for number, rle in found.items():
        theirs = official.annToRLE(official.anns[number])
        assert rle["counts"].encode() == theirs["counts"]


def test_lvis_brings_its_federated_lists(data_root: Path, tmp_path: Path) -> None:
    path = data_root / "lvis/lvis_val_100.json"
    photographs = open_annotated(path, pixels=False)
    assert photographs.lvis and len(photographs) == 100 and sum(len(p) for p in photographs) == 977
    counts = [sum(c.frequency == f for c in photographs.categories.values()) for f in "rcf"]
    assert counts == [454, 461, 315]
    one = next(p for p in photographs if p.image_id == 266409)
    assert one.negative == (284, 53, 754, 299, 654, 541, 566) and one.not_exhaustive == ()


def test_lvis_photographs_are_found_by_url_in_both_folders(made: Callable[..., Path], tmp_path: Path) -> None:
    images = [
        {"id": n, "width": 40, "height": 30, "neg_category_ids": [], "not_exhaustive_category_ids": [],
         "coco_url": f"http://images.cocodataset.org/{folder}/{n:012}.jpg"}
        for n, folder in ((4, "val2017"), (9, "train2017"))
    ]  # fmt: skip
    path = made(images=images)
    for image in images:
        picture = tmp_path / "coco" / "/".join(image["coco_url"].split("/")[-2:])
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(picture)
    photographs = open_annotated(path, images=tmp_path / "coco")
    assert photographs.lvis
    assert [p.image.shape for p in photographs] == [(30, 40, 3)] * 2
    with pytest.raises(UserError, match=r"lacks train2017/000000000009.jpg, one of 1 of the 2 photographs"):
        open_annotated(path, images=tmp_path / "coco/val2017")


def test_bsds_folder_and_its_shards_hold_the_same(data_root: Path, tmp_path: Path) -> None:
    root = data_root / "bsds500"
    names = sorted(path.stem for path in (root / "images/val").glob("*.jpg"))[:2]
    few = tmp_path / "few"
    for name in names:
        for part in (f"images/val/{name}.jpg", f"groundTruth/val/{name}.mat"):
            (few / part).parent.mkdir(parents=True, exist_ok=True)
            (few / part).write_bytes((root / part).read_bytes())
    prep(bsds500.Config(out=str(tmp_path / "out"), inputs=str(few), split="val", place=Place(workers=1)))
    folder, shards = open_annotated(few, split="val"), open_annotated(tmp_path / "out")
    assert len(folder) == len(shards) == 2
    for a, b in zip(folder, shards, strict=True):
        assert (a.key, a.image_id, a.size, a.rles) == (b.key, b.image_id, b.size, b.rles)
        assert np.array_equal(a.boxes, b.boxes) and np.array_equal(a.areas, b.areas)
        assert np.array_equal(a.image, b.image) and np.array_equal(a.ids, b.ids)


def test_shards_give_the_picture_that_training_sees(tiny_shards: Path) -> None:
    photographs = open_annotated(tiny_shards / "val")
    raw = photographs.shards[1]  # type: ignore[attr-defined]
    sample = decode(raw, image_size=64, masks_per_image=0, rng=np.random.default_rng(0))
    fitted, frame = photographs[1].fitted(64)
    assert frame == sample.frame and bool((fitted == sample.image).all())
    assert photographs[1].masks([0])[0].sum() == photographs[1].areas[0]
    assert len(photographs[1:3]) == 2 and photographs[-1].key == photographs[len(photographs) - 1].key


def test_segmentations_of_three_kinds_agree() -> None:
    polygon = rle_of(SQUARE, (30, 40))
    mask = coco_mask.decode(polygon)
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    assert rle_of({"size": [30, 40], "counts": runs}, (30, 40)) == polygon == rle_of(polygon, (30, 40))


def test_pictures_are_not_turned_and_must_fit(made: Callable[..., Path], tmp_path: Path) -> None:
    path = made()
    photographs = open_annotated(path, images=tmp_path / "images")
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me": COCO's annotations mean the stored pixels
    Image.new("RGB", (40, 30), (9, 9, 9)).save(tmp_path / "images/a.jpg", exif=exif)
    assert photographs[0].image.shape == (30, 40, 3)
    Image.new("CMYK", (40, 30)).save(tmp_path / "images/a.jpg")
    assert photographs[0].image.shape == (30, 40, 3)
    Image.new("L", (40, 30), 7).save(tmp_path / "images/a.jpg")
    assert (photographs[0].image == 7).all()
    Image.new("RGB", (40, 33)).save(tmp_path / "images/a.jpg")
    with pytest.raises(UserError, match=r"is 40x33, but the .json says 40x30"):
        _ = photographs[0].image
    (tmp_path / "images/a.jpg").write_bytes((tmp_path / "images/b.png").read_bytes()[:60])
    with pytest.raises(UserError, match=r"a.jpg is damaged or no picture"):
        _ = photographs[0].image
    (tmp_path / "images/a.jpg").unlink()
    with pytest.raises(UserError, match=r"a.jpg cannot be read: No such file"):
        photographs[0].fitted(64)
    with pytest.raises(UserError, match=r"lacks a.jpg, one of 1 of the 2 photographs in a.json"):
        open_annotated(path, images=tmp_path / "images")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"images": [], "annotations": []}, "lists no images"),
        ({"categories": None}, "is not a COCO or LVIS annotation file"),
        ({"annotations": [{"image_id": 5, "id": 3}]}, "annotation 3 belongs to image 5, which is not in `images`"),
        (
            {"annotations": [{"image_id": 4, "id": 3, "bbox": [0, 0, 1, 1], "segmentation": []}]},
            "of image 4 is damaged",
        ),
        ({"name": "lvis_v1_val.json"}, "lists 2 images, but the public file of this name has 19809"),
    ],
)
def test_damaged_annotations_are_one_sentence(
    made: Callable[..., Path], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        list(open_annotated(made(**changes), pixels=False))


def test_what_is_not_there_is_one_sentence(made: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no data="):
        open_annotated("")
    with pytest.raises(UserError, match=r"the annotation file .* does not exist"):
        open_annotated(tmp_path / "none.json")
    with pytest.raises(UserError, match="give images="):
        open_annotated(made())
    with pytest.raises(UserError, match="is not a folder: give the folder of the photographs"):
        open_annotated(made(), images=tmp_path / "nowhere")
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(UserError, match="is not readable as JSON"):
        open_annotated(tmp_path / "cut.json")
    (tmp_path / "B/groundTruth/val").mkdir(parents=True)
    with pytest.raises(UserError, match="has no images/val and groundTruth/val"):
        open_annotated(tmp_path / "B")
    (tmp_path / "B/images/val").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no photograph"):
        open_annotated(tmp_path / "B")
    (tmp_path / "B/images/val/7.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"the .jpg is damaged"):
        _ = open_annotated(tmp_path / "B")[0]
    Image.new("RGB", (20, 10)).save(tmp_path / "B/images/val/7.jpg")
    with pytest.raises(UserError, match=r"7.jpg has no ground truth 7.mat: fetch BSDS500 again"):
        _ = open_annotated(tmp_path / "B")[0]
    with pytest.raises(UserError, match="opened without its picture"):
        _ = open_annotated(made(), pixels=False)[0].image
