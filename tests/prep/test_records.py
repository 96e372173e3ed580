"""Subset rule, masks -> json, interior points, near doubles, the smaller JPEG."""

import hashlib
import json

import numpy as np
import pytest
import simplejpeg

from frisket.data.regions import distinct, suitable
from frisket.data.sa1b import check_record, encode_jpeg, jpeg_size, parse
from frisket.errors import UserError
from frisket.kernels import rle
from frisket.prep.records import (
    percent,
    record_json,
    selected,
    shrink_jpeg,
    unit_name,
)


def test_subset_follows_the_written_rule_and_never_moves() -> None:
    # Frozen: these ids are "1 %" for every user for ever.
    assert [n for n in range(1, 500) if selected(n, 1.0)] == [
        n for n in range(1, 500) if int(hashlib.sha256(str(n).encode()).hexdigest()[:8], 16) * 100 < 2**32
    ]
    assert [n for n in range(1, 1000) if selected(n, 1.0)][:4] == [178, 245, 286, 342]


def test_subset_has_the_right_size_and_smaller_lies_in_larger() -> None:
    one = {n for n in range(20000) if selected(n, 1.0)}
    ten = {n for n in range(20000) if selected(n, 10.0)}
    assert abs(len(one) - 200) < 5 * 200**0.5  # five standard deviations of a binomial
    assert one < ten
    assert all(selected(n, 100.0) for n in range(1000))


@pytest.mark.parametrize("text", ["1%", "0pct", "101pct", "some", ""])
def test_a_wrong_subset_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not a subset: write all"):
        percent(text)
    assert percent("0.5pct") == 0.5


def test_json_says_what_the_masks_are() -> None:
    size = (50, 70)
    masks = [np.zeros(size, bool), np.zeros(size, bool)]
    masks[0][5:20, 10:30] = True
    masks[1][[3, 40], [2, 60]] = True
    notes = parse(record_json(7, "x_7.jpg", size, masks), where="test")
    assert (notes.image_id, notes.size) == (7, size)
    assert notes.boxes.tolist() == [[10, 5, 20, 15], [2, 3, 59, 38]]
    assert notes.areas.tolist() == [300, 2]
    points = [note["point_coords"] for note in json.loads(record_json(7, "x_7.jpg", size, masks))["annotations"]]
    assert points == [[[17, 12]], [[2, 3]]]  # the innermost pixel, as prompts.central_pixels has it
    for found, mask in zip(notes.rles, masks, strict=True):
        assert np.array_equal(rle.fill_many([found], np.arange(50), np.arange(70))[0].astype(bool), mask)


def test_filters_and_near_doubles() -> None:
    size = (40, 40)
    square = np.zeros(size, bool)
    square[5:25, 5:25] = True
    nearly = square.copy()
    nearly[5, 5:25] = False  # IoU 380/400 = 0.95
    other = ~square
    tiny = np.zeros(size, bool)
    tiny[:3, :3] = True
    everything = np.ones(size, bool)
    kept = suitable([square, nearly, other, tiny, everything], min_area=100, max_fraction=0.9)
    assert len(kept) == 3
    assert [np.array_equal(a, b) for a, b in zip(distinct(kept, iou=0.9), [square, other], strict=True)] == [True, True]
    assert len(distinct(kept, iou=0.951)) == 3


def test_shrunk_jpeg_keeps_its_json() -> None:
    size = (90, 120)
    pixels = np.repeat(np.linspace(0, 255, 120).astype(np.uint8)[None, :, None], 90, 0).repeat(3, 2)
    mask = np.zeros(size, bool)
    mask[10:50, 20:60] = True
    jpg, data = encode_jpeg(pixels, quality=95), record_json(1, "a.jpg", size, [mask])
    small = shrink_jpeg(jpg, size, 60, 95, where="test")
    assert jpeg_size(small) == (45, 60)
    assert simplejpeg.decode_jpeg_header(small)[3] == "444"
    assert len(check_record("a", small, data)) == 1  # a smaller JPEG beside the original's json is a valid record
    assert shrink_jpeg(jpg, size, 120, 95, where="test") is jpg
    assert shrink_jpeg(jpg, size, None, 95, where="test") is jpg


def test_unit_names_are_safe() -> None:
    assert unit_name("sa_000020") == "sa_000020"
    assert unit_name("a-b.c d") == "a_b_c_d"
