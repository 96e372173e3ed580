"""SA-1B records, COCO files, detections and stored embeddings with odd values and damaged bytes."""

import json

import numpy as np
import torch
from hostile import ODD, changed, damaged, fuzz
from hypothesis import strategies as st

from frisket.data.coco import CocoFile
from frisket.data.detections import read_boxes, read_masks
from frisket.data.embeddings import Stamp, pack, stamp_of, unpack
from frisket.data.sa1b import RecordError, check_record, decode
from frisket.geometry import Frame
from frisket.prep.records import shrink_jpeg


def read(jpg: bytes, notes: bytes) -> None:
    """As training reads a record and as prep does: what prep takes, training can decode."""
    raw = {"__key__": "sa_7", "__shard__": "x.tar", "jpg": jpg, "json": notes}
    try:
        found = check_record("sa_7", jpg, notes)
        shrink_jpeg(jpg, found.size, 8, 90, where="x")
    except RecordError:
        decode(raw, image_size=32, masks_per_image=0, rng=np.random.default_rng(0))
        raise
    decode(raw, image_size=32, masks_per_image=0, rng=np.random.default_rng(0))


def test_notes_with_odd_values(good: dict[str, bytes]) -> None:
    notes = changed(json.loads(good["json"])).map(lambda value: json.dumps(value).encode())
    tally = fuzz(notes, 500, lambda text: read(good["jpg"], text))
    assert min(tally["answered"], tally["refused"]) > 10


def test_notes_and_photographs_with_damaged_bytes(good: dict[str, bytes]) -> None:
    either = st.one_of(
        damaged(good["json"]).map(lambda data: (good["jpg"], data)),
        damaged(good["jpg"]).map(lambda data: (data, good["json"])),
    )
    tally = fuzz(either, 300, lambda pair: read(*pair))
    assert min(tally["answered"], tally["refused"]) > 10


@st.composite
def masks(draw: st.DrawFn) -> object:
    """Runs near 12 x 20 pixels: numbers that add up or not, strings of the right characters, and odd things."""
    kind = draw(st.integers(0, 3))
    if kind == 0:
        runs = draw(st.lists(st.integers(0, 240), min_size=1, max_size=8))
        return [*runs, max(0, 240 - sum(runs))]
    if kind == 1:
        return draw(st.text(st.characters(min_codepoint=47, max_codepoint=112), max_size=30))
    return draw(st.lists(ODD, max_size=4)) if kind == 2 else draw(ODD)


def test_runs_of_any_kind(good: dict[str, bytes]) -> None:
    def attack(counts: object) -> None:
        notes = json.loads(good["json"])
        notes["annotations"][0]["segmentation"]["counts"] = counts
        read(good["jpg"], json.dumps(notes).encode())

    tally = fuzz(masks(), 300, attack)
    assert min(tally["answered"], tally["refused"]) > 10


COCO = {
    "images": [{"id": 7, "width": 20, "height": 12, "file_name": "a.jpg"}, {"id": 9, "width": 5, "height": 4}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12.0, "iscrowd": 0,
         "segmentation": [[1, 2, 5, 2, 5, 8]]},
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 5], "area": 25.0, "iscrowd": 1,
         "segmentation": {"size": [12, 20], "counts": [0, 60, 180]}},
    ],
}  # fmt: skip
FOUND = [
    {"image_id": 7, "category_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4],
     "segmentation": {"size": [12, 20], "counts": "0l1d5"}},
    {"image_id": 9, "category_id": 3, "score": 0.25, "bbox": [0, 0, 5, 4], "segmentation": [[0, 0, 5, 0, 5, 4]]},
]  # fmt: skip


def test_annotation_files_with_odd_values(tmp_path) -> None:
    path = tmp_path / "instances.json"

    def attack(value: object) -> None:
        path.write_text(json.dumps(value))
        file = CocoFile(path)
        for index in range(len(file)):
            file.objects(index)

    tally = fuzz(changed(COCO), 250, attack)
    assert min(tally["answered"], tally["refused"]) > 10


def test_results_files_with_odd_values(tmp_path) -> None:
    path, truth = tmp_path / "found.json", tmp_path / "instances.json"
    truth.write_text(json.dumps(COCO))
    file = CocoFile(truth)

    def attack(value: object) -> None:
        path.write_text(json.dumps(value))
        for reader in (read_boxes, read_masks):
            reader(path, file).of(7)

    tally = fuzz(changed(FOUND), 250, attack)
    assert min(tally["answered"], tally["refused"]) > 10


def test_deep_json_is_a_sentence_everywhere(tmp_path) -> None:
    path, truth = tmp_path / "deep.json", tmp_path / "instances.json"
    truth.write_text(json.dumps(COCO))
    path.write_text("[" * 100_000)
    readers = [CocoFile, *(lambda p, r=r: r(p, CocoFile(truth)) for r in (read_boxes, read_masks))]
    assert fuzz(st.sampled_from(readers), 3, lambda reader: reader(path))["refused"] == 3


def test_stored_embeddings(tmp_path) -> None:
    stamp, frame = Stamp("ab" * 32, 64), Frame.fit((48, 64), 64)
    whole = pack(torch.ones(3, 4, 4), frame, stamp=stamp)
    length = int.from_bytes(whole[4:8], "little")
    header = json.loads(whole[8 : 8 + length])

    def again(value: object) -> bytes:
        text = json.dumps(value).encode()
        return whole[:4] + len(text).to_bytes(4, "little") + text + whole[8 + length :]

    def attack(data: bytes) -> None:
        stamp_of(data, where="x")
        unpack(data, frame=frame)
        unpack(data)

    tally = fuzz(st.one_of(damaged(whole), changed(header).map(again)), 300, attack)
    assert min(tally["answered"], tally["refused"]) > 5
