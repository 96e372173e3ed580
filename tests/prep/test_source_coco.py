"""Sources coco and masks, and docs/own_data.md from its first command to its last."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toyrun import command, environment

from frisket.data.sa1b import encode_jpeg, jpeg_size, parse
from frisket.data.shards import IndexedShards, expand
from frisket.errors import UserError
from frisket.kernels import rle
from frisket.place import Place
from frisket.prep import coco, masks
from frisket.prep.run import prep

ROOT = Path(__file__).parents[2]
SIZE = (60, 80)
SQUARE, OTHER, CROWD = (np.zeros(SIZE, bool) for _ in range(3))
SQUARE[10:30, 20:50] = True
OTHER[35:55, 5:25] = True
CROWD[5:50, 60:79] = True
Rejections = Callable[[Path], list[dict[str, str]]]


def photo(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), np.uint8)
    path.write_bytes(encode_jpeg(pixels)) if path.suffix == ".jpg" else Image.fromarray(pixels).save(path)
    return path


def instances(root: Path, name: str = "instances.json", numbers: tuple[int, ...] = (3, 7, 12)) -> Path:
    """Photographs of three objects: a polygon (dog), a list of runs (cat), and a crowd (dog) as compressed RLE."""
    notes: list[dict[str, Any]] = []
    shapes = (
        ([[20, 10, 50, 10, 50, 30, 20, 30]], 1, 0),
        ({"size": list(SIZE), "counts": rle.counts(rle.encode(OTHER)["counts"]).tolist()}, 2, 0),
        (rle.encode(CROWD), 1, 1),
    )
    for number in numbers:
        photo(root / f"photos/{number:012d}.jpg", number)
        for shape, category, crowd in shapes:
            about = {"id": len(notes) + 1, "image_id": number, "category_id": category, "iscrowd": crowd}
            notes.append({**about, "segmentation": shape, "bbox": [0, 0, 1, 1], "area": 1})
    images = [{"id": n, "height": SIZE[0], "width": SIZE[1], "file_name": f"{n:012d}.jpg"} for n in numbers]
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    (root / name).write_text(json.dumps({"images": images, "annotations": notes, "categories": categories}))
    return root / name


def config(root: Path, out: Path, **changes: object) -> coco.Config:
    values: dict[str, Any] = {"inputs": str(root / "instances.json"), "images": str(root / "photos"), "out": str(out)}
    return coco.Config(place=Place(workers=1), **(values | changes))


def stored(out: Path) -> dict[str, list[np.ndarray]]:
    """{key: masks} of the shards in a folder."""
    shards, masks = IndexedShards(expand(out)), {}
    for raw in (shards[n] for n in range(len(shards))):
        notes = parse(raw["json"], where="test")
        grids = rle.fill_many(notes.rles, np.arange(notes.height), np.arange(notes.width)).astype(bool)
        masks[raw["__key__"]] = list(grids)
        assert jpeg_size(raw["jpg"]) == notes.size
        for mask, (x, y, w, h) in zip(grids, notes.boxes.astype(int), strict=True):
            assert mask[y : y + h, x : x + w].sum() == mask.sum() and mask[y : y + h, x].any()
    return masks


def same(found: list[np.ndarray], *wanted: np.ndarray) -> bool:
    return len(found) == len(wanted) and all(np.array_equal(a, b) for a, b in zip(found, wanted))


def test_every_form_of_segmentation_and_no_crowds(tmp_path: Path) -> None:
    instances(tmp_path)
    totals = prep(config(tmp_path, tmp_path / "out", samples_per_shard=2))
    assert totals == {"images": 3, "masks": 6, "rejected": 0, "shards": 2}
    found = stored(tmp_path / "out")
    assert sorted(found) == ["coco_12", "coco_3", "coco_7"]
    assert all(same(grids, SQUARE, OTHER) for grids in found.values())
    raw = IndexedShards(expand(tmp_path / "out"))[0]
    assert raw["jpg"] == (tmp_path / f"photos/{int(raw['__key__'][5:]):012d}.jpg").read_bytes()


def test_categories_crowds_and_what_is_left_empty(tmp_path: Path) -> None:
    path = instances(tmp_path)
    prep(config(tmp_path, tmp_path / "dogs", categories=["dog"], crowds=True))
    assert same(stored(tmp_path / "dogs")["coco_3"], SQUARE, CROWD)
    record = json.loads(path.read_text())
    record["annotations"] = [
        note for note in record["annotations"] if note["image_id"] != 7 or note["category_id"] == 1
    ]
    path.write_text(json.dumps(record))
    assert prep(config(tmp_path, tmp_path / "cats", categories=["cat"]))["images"] == 2
    assert prep(config(tmp_path, tmp_path / "all", categories=["cat"], empty=True))["images"] == 3
    assert stored(tmp_path / "all")["coco_7"] == []
    with pytest.raises(UserError, match="has no category 'dogs': did you mean 'dog'"):
        prep(config(tmp_path, tmp_path / "no", categories=["dogs"]))


@pytest.mark.parametrize(
    "shape",
    [
        5,
        None,
        [],
        [[1]],
        [["a", "b"] * 3],
        [[1e9, 0, 1e9, 1e9, 0, 1e9]],
        [[float("nan")] * 6],
        {"counts": [5]},
        {"size": [9, 9], "counts": [81]},
        {"size": list(SIZE), "counts": "ooo"},
    ],
)
def test_a_damaged_annotation_rejects_its_photograph(shape: Any, tmp_path: Path, rejections: Rejections) -> None:
    path = instances(tmp_path)
    record = json.loads(path.read_text())
    record["annotations"][0]["segmentation"] = shape
    path.write_text(json.dumps(record))
    assert prep(config(tmp_path, tmp_path / "out"))["images"] == 2
    (row,) = rejections(tmp_path / "out")
    assert row["key"] == "coco_3" and row["reason"].startswith("annotation 1 is damaged")


def test_changed_annotations_and_photographs_are_read_again(tmp_path: Path, rejections: Rejections) -> None:
    """The stamp: each unit knows its own annotations and photographs, and only those."""
    path = instances(tmp_path)
    prep(config(tmp_path, tmp_path / "out", samples_per_shard=1))
    shards = expand(tmp_path / "out")
    times = [Path(shard).stat().st_mtime_ns for shard in shards]
    record = json.loads(path.read_text())
    del record["annotations"][4]  # the cat of photograph 7
    path.write_text(json.dumps(record))
    photo(tmp_path / "photos/000000000012.jpg", 99).write_bytes(b"\xff\xd8 cut off")
    prep(config(tmp_path, tmp_path / "out", samples_per_shard=1))
    assert same(stored(tmp_path / "out")["coco_7"], SQUARE)
    assert Path(shards[0]).stat().st_mtime_ns == times[0] and Path(shards[1]).stat().st_mtime_ns != times[1]
    assert [row["key"] for row in rejections(tmp_path / "out")] == ["coco_12"]


def test_an_image_that_is_listed_twice_is_one_sentence_and_nothing_is_left(tmp_path: Path) -> None:
    instances(tmp_path, numbers=(3, 7, 7))
    with pytest.raises(UserError, match="lists the image 7 more than once"):
        prep(config(tmp_path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_one_sentence(tmp_path: Path) -> None:
    instances(tmp_path)
    for changes, words in (
        ({"images": ""}, "source coco needs images="),
        ({"inputs": str(tmp_path / "no.json")}, "the annotation file .* does not exist"),
        ({"subset": "0.0001pct"}, "no photograph is left"),
    ):
        with pytest.raises(UserError, match=words):
            prep(config(tmp_path, tmp_path / "out", **changes))
    (tmp_path / "photos/000000000003.jpg").unlink()
    with pytest.raises(UserError, match=r"lacks 000000000003\.jpg"):
        prep(config(tmp_path, tmp_path / "out"))


# ---------------------------------------------------------------- masks


def png(path: Path, values: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    (picture.convert(mode) if mode else picture).save(path)


def folder(tmp_path: Path, **changes: object) -> masks.Config:
    values: dict[str, Any] = {"inputs": str(tmp_path / "photos"), "out": str(tmp_path / "out")} | changes
    return masks.Config(place=Place(workers=1), **values)


def test_label_pictures_of_every_kind(tmp_path: Path) -> None:
    both = SQUARE * np.uint8(1) + OTHER * np.uint8(200)
    for number, name in enumerate(("grey", "deep", "colours", "palette", "bits")):
        photo(tmp_path / f"photos/{name}.jpg", number)
    png(tmp_path / "labels/grey.png", both)
    png(tmp_path / "labels/deep.png", both.astype(np.uint16) * 300)
    png(tmp_path / "labels/colours.png", np.stack([SQUARE * np.uint8(9), OTHER * np.uint8(7), both * 0], axis=2))
    palette = Image.fromarray(both)
    palette.putpalette([0, 0, 0] * 256)  # now of mode P: the numbers count, not the colours
    palette.save(tmp_path / "labels/palette.png")
    png(tmp_path / "labels/bits.png", SQUARE)
    totals = prep(folder(tmp_path, masks=str(tmp_path / "labels"), dedupe_iou=2.0))
    assert totals == {"images": 5, "masks": 9, "rejected": 0, "shards": 1}
    found = stored(tmp_path / "out")
    assert same(found.pop("bits"), SQUARE) and same(found.pop("colours"), OTHER, SQUARE)
    assert all(same(grids, SQUARE, OTHER) for grids in found.values())


def test_several_pngs_beside_the_photographs_and_in_folders(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "a_b", "dir")):
        photo(tmp_path / f"photos/{name}.jpg", number)
    png(tmp_path / "photos/a_1.png", SQUARE)
    png(tmp_path / "photos/a-left.png", OTHER * np.uint8(255))
    png(tmp_path / "photos/a_b.png", CROWD)  # the label picture of a_b, not a mask of a
    png(tmp_path / "photos/dir/x.png", SQUARE)
    png(tmp_path / "photos/dir/y.png", OTHER)
    assert prep(folder(tmp_path))["masks"] == 5
    found = stored(tmp_path / "out")
    assert same(found["a"], OTHER, SQUARE) and same(found["a_b"], CROWD) and same(found["dir"], SQUARE, OTHER)


def test_ignored_labels_parts_and_png_photographs(tmp_path: Path) -> None:
    photo(tmp_path / "photos/a.png", 1)
    png(tmp_path / "labels/a.png", (SQUARE | OTHER) * np.uint8(3) + CROWD * np.uint8(255))
    config = folder(tmp_path, masks=str(tmp_path / "labels"), ignore=[0, 255], parts=True)
    assert prep(config)["masks"] == 2
    assert same(stored(tmp_path / "out")["a"], SQUARE, OTHER)


def test_photographs_that_cannot_serve_are_rejected(tmp_path: Path, rejections: Rejections) -> None:
    for number, name in enumerate(("good", "alone", "small", "broken")):
        photo(tmp_path / f"photos/{name}.jpg", number)
    for name in ("good", "broken"):
        png(tmp_path / f"photos/{name}.png", SQUARE)
    png(tmp_path / "photos/small.png", SQUARE[:30])
    (tmp_path / "photos/broken.png").write_bytes(b"\x89PNG broken")
    assert prep(folder(tmp_path))["images"] == 1
    reasons = {row["key"]: row["reason"] for row in rejections(tmp_path / "out")}
    assert sorted(reasons) == ["alone", "broken", "small"]
    assert "there is no alone.png" in reasons["alone"] and "80x30, the photograph 80x60" in reasons["small"]
    assert "broken.png is damaged" in reasons["broken"]
    png(tmp_path / "photos/alone.png", OTHER)  # a file more is another stamp
    assert prep(folder(tmp_path))["images"] == 2


def test_names_that_would_collide_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"inputs=.* is not a folder"):
        prep(folder(tmp_path))
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="holds no photograph of subset all"):
        prep(folder(tmp_path))
    photo(tmp_path / "photos/a-b.jpg", 1)
    photo(tmp_path / "photos/a_b.jpg", 2)
    with pytest.raises(UserError, match="several photographs that are all called a_b"):
        prep(folder(tmp_path))


# ---------------------------------------------------------------- the page


@pytest.mark.slow
def test_the_pages_commands_run(tmp_path: Path, tiny_teacher: Path) -> None:
    """docs/own_data.md as it stands, but for a tiny model and a few steps."""
    text = (ROOT / "docs/own_data.md").read_text()
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    assert [line.split()[1] for line in lines] == ["prep", "prep", "train", "eval", "prep"]
    instances(tmp_path, "instances_train.json", tuple(range(1, 9)))
    instances(tmp_path, "instances_val.json", (21, 22))
    for path in (tmp_path / "photos").iterdir():
        png(tmp_path / f"labels/{path.stem}.png", SQUARE)
    small = {
        "train": ["data.image_size=64", "trainer.max_steps=2", "optim.warmup_steps=1", "log.wandb=off"],
        "eval": ["pictures=0"],
    }
    here = ["place.accelerator=cpu", "place.workers=0", "place.precision=32-true", "place.images_per_device=4"]
    for line in lines:
        verb = line.split()[1]
        words = line.replace("sam_vit_b", str(tiny_teacher)).replace("max_steps=2000", "max_steps=2").split()[1:]
        more = [*small.get(verb, []), *(here if verb == "train" else [])]
        done = subprocess.run(command(*words, *more), cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    results = json.loads((tmp_path / "runs/eval/eval.json").read_text())
    assert "before" in json.dumps(results) and "after" in json.dumps(results)
    assert len(IndexedShards(expand(tmp_path / "data/labels/train"))) == 10
