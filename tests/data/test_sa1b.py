"""Records: masks on the grid equal pycocotools at the sampled pixels, frames are right, every fault is one sentence."""

import json

import numpy as np
import pytest
import simplejpeg
import torch
from pycocotools import mask as coco

from frisket.data.sa1b import RecordError, check_record, decode, decode_jpeg, grid_samples, jpeg_size, parse
from frisket.errors import UserError
from frisket.geometry import Frame, resize_image
from frisket.proposals import targets


def draw(raw, size=64, masks=0, seed=0, **how):
    return decode(raw, image_size=size, masks_per_image=masks, rng=np.random.default_rng(seed), **how)


@pytest.mark.parametrize("original", [(60, 90), (90, 60), (64, 64), (33, 101), (7, 200), (500, 333)])
@pytest.mark.parametrize("side", [64, 128])
def test_grid_samples_are_the_pixel_under_each_cell_centre(original, side):
    frame = Frame.fit(original, side)
    for found, length, valid in zip(grid_samples(frame), original, frame.size, strict=True):
        assert found.shape == (frame.grid,)
        for cell, source in enumerate(found.tolist()):
            centre = 4 * cell + 2  # in pixel edges of the input
            want = -1 if centre >= valid else int(np.floor(centre * length / valid + 1e-9))
            assert source == want and source < length
        inside = found[found >= 0]
        assert (np.diff(inside) >= 0).all() and (found[len(inside) :] == -1).all()


@pytest.mark.parametrize("size", [(60, 90), (120, 77), (201, 50)])
def test_masks_equal_pycocotools_at_the_sampled_pixels(record, size):
    raw = record(3, size=size, masks=12)
    sample = draw(raw, max_area_fraction=1.0)
    notes = parse(raw["json"], where="x")
    rows, cols = grid_samples(sample.frame)
    valid = (rows[:, None] >= 0) & (cols[None] >= 0)
    want = np.stack([np.where(valid, coco.decode(r)[rows[:, None], cols[None]], 0) for r in notes.rles]).astype(bool)
    want = want[want.any(axis=(1, 2))]
    assert sample.masks.dtype == torch.bool and len(want) > 5
    assert np.array_equal(sample.masks.numpy(), want)
    assert not sample.masks[:, -(-sample.frame.size[0] // 4) :].any()


def test_boxes_enclose_masks_in_input_pixels(record):
    sample = draw(record(5, masks=8), size=128)
    assert tuple(sample.image.shape) == (3, *sample.frame.size) and sample.image.dtype == torch.uint8
    assert len(sample.boxes) == len(sample.masks) == len(sample.areas)
    for mask, (x0, y0, x1, y1) in zip(sample.masks, sample.boxes.tolist(), strict=True):
        y, x = torch.nonzero(mask, as_tuple=True)
        centres_x, centres_y = 4 * x + 2, 4 * y + 2
        assert x0 <= centres_x.min() and centres_x.max() <= x1
        assert y0 <= centres_y.min() and centres_y.max() <= y1
        assert centres_x.min() - x0 < 6 and x1 - centres_x.max() < 6


def test_drawing_depends_on_the_generator_only(record):
    raw = record(1, masks=12)
    first, again, other = draw(raw, masks=4, seed=1), draw(raw, masks=4, seed=1), draw(raw, masks=4, seed=2)
    assert torch.equal(first.masks, again.masks) and torch.equal(first.boxes, again.boxes)
    assert len(first.masks) == 4 and first.areas.tolist() != other.areas.tolist()


def test_filters_and_empty_masks(record):
    raw = record(2, masks=6)
    content = json.loads(raw["json"])
    full = coco.encode(np.asfortranarray(np.ones((60, 90), np.uint8)))
    dot = np.zeros((60, 90), np.uint8)
    dot[0, 0] = 1  # no grid cell samples pixel (0, 0) of a 64 px input
    small = coco.encode(np.asfortranarray(dot))
    for rle, area in ((full, 5400), (small, 1), (small, 0)):
        box = coco.toBbox(rle).tolist()
        item = {"segmentation": {"size": [60, 90], "counts": rle["counts"].decode()}, "bbox": box, "area": area}
        content["annotations"].append(item)
    more = {**raw, "json": json.dumps(content).encode()}
    assert draw(more).areas.tolist() == draw(raw).areas.tolist(), "full, dot and zero-area masks are not drawn"
    assert len(draw(more, max_area_fraction=1.0).masks) == len(draw(raw).masks) + 1
    largest = draw(raw).areas.max().item()
    assert draw(raw, min_area=largest).areas.tolist() == [largest]
    assert len(draw(more, masks=7, max_area_fraction=1.0).masks) == 7, "an empty mask is replaced by another one"


def test_targets_are_of_all_masks_drawn_or_not_and_of_those_below_the_grid(record):
    raw = record(3, size=(60, 90), masks=12)
    notes = json.loads(raw["json"])
    dot = np.zeros((60, 90), np.uint8)
    dot[0:2, 0:2] = 1  # no cell's centre lies in it
    rle = coco.encode(np.asfortranarray(dot))
    counts = {"size": [60, 90], "counts": rle["counts"].decode()}
    notes["annotations"].append({"segmentation": counts, "bbox": [0, 0, 1, 1], "area": 4})
    raw["json"] = json.dumps(notes).encode()
    few, every = (draw(raw, masks=count, targets=targets) for count in (2, 0))
    assert len(few.masks) == 2 and len(every.masks) == 12 and torch.equal(few.heat, every.heat)
    rows, cols = grid_samples(every.frame)
    grids = torch.from_numpy(np.stack([
        np.where((rows[:, None] >= 0) & (cols[None] >= 0), coco.decode(note["segmentation"])[rows[:, None], cols], 0)
        for note in notes["annotations"]
    ])).bool()  # fmt: skip
    xywh = torch.tensor([note["bbox"] for note in notes["annotations"]])
    boxes = every.frame.boxes_to_input(torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1).float())
    shares = torch.tensor([note["area"] for note in notes["annotations"]]) / (60 * 90)
    heat, ways = targets(grids, boxes, shares)
    assert torch.equal(few.heat, heat) and torch.equal(few.ways, ways) and heat[0, 0, 0] == 1
    assert torch.equal(draw(raw, masks=2).masks, few.masks) and draw(raw).heat is None  # the same are drawn


def test_700_masks_in_one_photograph(record):
    sample = draw(record(3, masks=700), masks=5, targets=targets)
    assert len(sample.masks) == 5 and (sample.heat == 1).sum() > 20 and sample.heat.isfinite().all()


def test_a_photograph_of_1_by_3000_pixels_and_one_without_objects_have_targets(record):
    line = draw(record(3, size=(1, 3000), masks=0), targets=targets)
    assert line.heat.shape == (3, 16, 16) and not line.heat.any()
    raw = record(3, size=(1, 3000), masks=0)
    notes = json.loads(raw["json"])
    half = coco.encode(np.asfortranarray((np.arange(3000) < 600)[None].astype(np.uint8)))
    counts = {"size": [1, 3000], "counts": half["counts"].decode()}
    notes["annotations"].append({"segmentation": counts, "bbox": [0, 0, 599, 0], "area": 600})
    raw["json"] = json.dumps(notes).encode()
    sample = draw(raw, targets=targets)  # 1 input pixel is less than half of a cell: no mask, but a cell to click
    assert not len(sample.masks) and sample.heat.nonzero().tolist() == [[1, 0, 1]]


def test_no_masks_is_allowed(record):
    sample = draw(record(1, masks=0))
    assert sample.masks.shape == (0, 16, 16) and sample.boxes.shape == (0, 4)


def test_prepared_jpeg_keeps_the_original_frame(record):
    size = (500, 333)
    small = Frame.fit(size, 128).size
    raw, whole = record(4, size=size, jpeg=small), record(4, size=size, jpeg=small[::-1])
    sample = draw(raw)
    assert sample.frame == Frame.fit(size, 64)
    rows, _ = grid_samples(sample.frame)
    assert rows.max() > 400
    check_record("sa_4", raw["jpg"], raw["json"])
    with pytest.raises(RecordError, match=r"sample sa_4: the \.jpg is 128x85, but the \.json says 333x500"):
        draw(whole)


def test_dct_scaling_stays_close_to_a_full_decode():
    y, x = np.mgrid[:480, :640]
    pixels = np.stack([127 + 80 * np.sin(x / 9) * np.cos(y / 13), 90 + x / 8, 60 + y / 5], -1).astype(np.uint8)
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=95, colorspace="RGB")
    assert jpeg_size(data) == (480, 640)
    exact = resize_image(decode_jpeg(data, where="x"), (96, 128)).float()
    scaled = decode_jpeg(data, where="x", at_least=(192, 256))
    assert scaled.shape[1] < 480
    assert (resize_image(scaled, (96, 128)).float() - exact).abs().mean() < 1.0  # one of 255 levels


def spoil(raw, change):
    content = json.loads(raw["json"])
    change(content)
    return {**raw, "json": json.dumps(content).encode()}


FAULTS = {
    "no annotations": (lambda c: c.pop("annotations"), "has no `annotations`"),
    "no image": (lambda c: c.pop("image"), "has no `image`"),
    "zero size": (lambda c: c["image"].update(width=0), "0x60 pixels"),
    "wrong RLE size": (
        lambda c: c["annotations"][2]["segmentation"].update(size=[90, 60]),
        r"mask 2 is an RLE of size",
    ),
    "bad counts": (lambda c: c["annotations"][1]["segmentation"].update(counts="0"), "mask 1: "),
    "counts not text": (lambda c: c["annotations"][1]["segmentation"].update(counts=None), "mask 1: "),
    "no counts": (lambda c: c["annotations"][1]["segmentation"].pop("counts"), "mask 1: "),
    "no bbox": (lambda c: c["annotations"][0].pop("bbox"), "has no 'bbox'"),
    "short bbox": (lambda c: c["annotations"][0].update(bbox=[1, 2]), "not a number"),
    "NaN area": (lambda c: c["annotations"][0].update(area=float("nan")), "not finite"),
    "other size": (
        lambda c: (
            c["image"].update(height=70),
            [a["segmentation"].update(size=[70, 90]) for a in c["annotations"]],
            c.update(annotations=[]),
        ),
        r"the \.jpg is 90x60, but the \.json says 90x70",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_one_sentence_naming_shard_and_sample(record, name):
    change, words = FAULTS[name]
    raw = {**spoil(record(7), change), "__shard__": "a.tar"}
    for attempt in (lambda: draw(raw), lambda: check_record("sa_7", raw["jpg"], raw["json"], shard="a.tar")):
        with pytest.raises(UserError, match=words) as error:
            attempt()
        assert str(error.value).startswith("shard a.tar, sample sa_7: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("cut", [2, 40, 600])
def test_truncated_jpegs_are_caught(record, cut):
    raw = record(7)
    for attempt in (
        lambda: draw({**raw, "jpg": raw["jpg"][:-cut]}),
        lambda: check_record("sa_7", raw["jpg"][:-cut], raw["json"]),
    ):
        with pytest.raises(RecordError, match=r"sa_7: the \.jpg is (truncated|damaged)"):
            attempt()


def test_other_garbage(record):
    raw = record(7)
    with pytest.raises(RecordError, match="not readable"):
        draw({**raw, "json": b"{'"})
    with pytest.raises(RecordError, match="has no `image`"):
        draw({**raw, "json": b"[]"})
    with pytest.raises(RecordError, match="no JPEG"):
        check_record("sa_7", b"GIF89a", raw["json"])
    with pytest.raises(RecordError, match=r"has no \.json member"):
        draw({"__key__": "sa_7", "jpg": raw["jpg"]})
