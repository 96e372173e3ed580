"""Data sets are known by what they hold, under any name; a changed byte changes the digest."""

import json
from pathlib import Path
from typing import Any

import pytest

from frisket.data.annotated import open_annotated
from frisket.data.coco import CocoFile
from frisket.data.identity import of_bsds, of_json


def written(path: Path, images: int, notes: int, classes: int, crowds: int, **more: Any) -> CocoFile:
    """An annotation file of so many of each, with annotations on the first images."""
    note = {"segmentation": [], "bbox": [0, 0, 1, 1], "area": 1, "category_id": 1}
    record = {
        "images": [{"id": i, "height": 2, "width": 2, **more} for i in range(images)],
        "categories": [{"id": c, "name": str(c)} for c in range(classes)],
        "annotations": [note | {"id": n, "image_id": n % 7, "iscrowd": int(n < crowds)} for n in range(notes)],
    }
    path.write_text(json.dumps(record))
    return CocoFile(path)


def test_coco_val2017_is_told_by_its_content_and_not_by_a_name(tmp_path: Path) -> None:
    whole = of_json(written(tmp_path / "any.json", 5000, 36781, 80, 446), 5000)
    assert (whole.name, whole.split, whole.images, whole.objects) == ("coco", "val2017", 5000, 36781)
    relabelled = of_json(written(tmp_path / "instances_val2017.json", 5000, 36780, 80, 446), 5000)
    assert (relabelled.name, relabelled.split) == ("coco_json", None)
    assert whole.digest != relabelled.digest
    part = of_json(CocoFile(tmp_path / "any.json"), 3)
    assert (part.name, part.images, part.objects) == ("coco", 3, 3 * (36781 // 7 + 1)) and part.digest == whole.digest


def test_a_small_lvis_file_is_no_public_set(tmp_path: Path) -> None:
    file = written(tmp_path / "lvis_part.json", 8, 8, 2, 0, neg_category_ids=[], not_exhaustive_category_ids=[])
    assert of_json(file, 8).name == "lvis_json"


@pytest.mark.parametrize(("count", "name", "split"), [(100, "bsds500", "val"), (99, "photographs", None)])
def test_bsds500_is_a_split_of_the_right_size(tmp_path: Path, count: int, name: str, split: str | None) -> None:
    files = [tmp_path / f"{n:03}.mat" for n in range(count)]
    for file in files:
        file.write_bytes(b"drawn")
    told = of_bsds(files, files, "val", 2)
    assert (told.name, told.split, told.images) == (name, split, 2)
    files[0].write_bytes(b"other")  # of the same size
    assert of_bsds(files, files, "val", 2).digest != told.digest


def test_shards_are_known_wherever_they_lie(tiny_shards: Path, tmp_path: Path) -> None:
    here = open_annotated(tiny_shards / "val")
    (tmp_path / "link").symlink_to(tiny_shards / "val")
    assert open_annotated(tmp_path / "link").identity(2) == here.identity(2)
    assert here.identity(2).name == "shards"
    assert open_annotated(tiny_shards / "train").identity(2).digest != here.identity(2).digest
