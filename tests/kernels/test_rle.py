"""Run-length masks against pycocotools: bit-equal fills and strings, and safety on damaged text.

Run     `pytest tests/kernels/test_rle.py` (the first run compiles for some seconds).
"""

import numpy as np
import pytest
from pycocotools import mask as coco

from frisket.kernels import rle


def blobs(rng, height, width):
    """A mask with structure: random noise smoothed by thresholded block growth, or an extreme."""
    kind = rng.integers(0, 5)
    if kind == 0:
        return np.zeros((height, width), np.uint8)
    if kind == 1:
        return np.ones((height, width), np.uint8)
    if kind == 2:
        return (rng.random((height, width)) < rng.random()).astype(np.uint8)
    coarse = rng.random((height // 5 + 1, width // 5 + 1)) < 0.5
    return np.kron(coarse, np.ones((5, 5), bool))[:height, :width].astype(np.uint8)


def as_coco(mask):
    encoded = coco.encode(np.asfortranarray(mask))
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"]}


def runs_of(mask):
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return np.diff([0, *edges, flat.size]).tolist()


@pytest.mark.parametrize("seed", range(60))
def test_fill_equals_decode_and_index(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(1, 70, 2))
    h, w = (int(n) for n in rng.integers(1, 90, 2))  # smaller and larger than the source: both samplings
    rows = np.sort(rng.integers(0, height, h))
    columns = np.sort(rng.integers(0, width, w))
    if seed % 2:
        rows[rng.integers(0, h) :] = -1
        columns[rng.integers(0, w) :] = -1
    masks = [blobs(rng, height, width) for _ in range(4)]
    expected = np.stack([coco.decode(as_coco(m))[rows][:, columns] for m in masks])
    expected[:, rows < 0] = 0
    expected[:, :, columns < 0] = 0
    byte_text = [as_coco(m) for m in masks]
    text = [{**r, "counts": r["counts"].decode()} for r in byte_text]
    lists = [{"size": [height, width], "counts": runs_of(m)} for m in masks]
    for given in (byte_text, text, lists):
        result = rle.fill_many(given, rows, columns)
        assert result.dtype == np.uint8
        assert np.array_equal(result, expected)
    out = np.full((h, w), 7, np.uint8)
    rle.fill(text[0], rows, columns, out)
    assert np.array_equal(out, expected[0])


@pytest.mark.parametrize("seed", range(30))
def test_encode_equals_pycocotools(seed):
    rng = np.random.default_rng(100 + seed)
    height, width = (int(n) for n in rng.integers(1, 200, 2))
    mask = blobs(rng, height, width)
    expected = as_coco(mask)
    for given in (mask, mask.astype(bool), np.asfortranarray(mask), mask * np.uint8(255)):
        assert rle.encode(given) == {"size": [height, width], "counts": expected["counts"].decode()}
    assert rle.area(expected) == int(mask.sum())
    assert rle.counts(expected["counts"]).tolist() == runs_of(mask)
    rle.check(expected, (height, width))


def test_large_runs_and_whole_grid():
    mask = np.zeros((1500, 2250), np.uint8)
    mask[10:1490, 5:2200] = 1
    mask[700, 1000] = 0
    given = rle.encode(mask)
    assert given["counts"] == as_coco(mask)["counts"].decode()
    assert np.array_equal(rle.fill_many([given], np.arange(1500), np.arange(2250))[0], mask)


def test_no_masks_give_an_empty_stack():
    assert rle.fill_many([], np.arange(3), np.arange(4)).shape == (0, 3, 4)


GOOD = {"size": [6, 5], "counts": rle.encode(np.eye(6, 5))["counts"]}


@pytest.mark.parametrize(
    "broken, reason",
    [
        ({"size": [5, 6], "counts": GOOD["counts"]}, "5 x 6, not 6 x 5"),
        ({"size": [6], "counts": GOOD["counts"]}, "height, width"),
        ({"size": [6, "x"], "counts": GOOD["counts"]}, "height, width"),
        ({"counts": GOOD["counts"]}, "height, width"),
        ({"size": [0, 5], "counts": ""}, "not a picture"),
        ({"size": [6, 5]}, "no counts"),
        ({"size": [6, 5], "counts": GOOD["counts"][:-1]}, "sum to"),
        ({"size": [6, 5], "counts": ""}, "sum to 0"),
        ({"size": [6, 5], "counts": []}, "sum to 0"),
        ({"size": [6, 5], "counts": [29]}, "sum to 29"),
        ({"size": [6, 5], "counts": [31]}, "longer than its picture"),
        ({"size": [6, float("inf")], "counts": [30]}, "height, width"),
        ({"size": [6, 5], "counts": "o"}, "middle of a run"),
        ({"size": [6, 5], "counts": "ooooooooo1"}, "35 bits"),
        ({"size": [6, 5], "counts": "a b"}, "outside"),
        ({"size": [6, 5], "counts": "é"}, "outside"),
        ({"size": [6, 5], "counts": b"\xff"}, "outside"),
        ({"size": [6, 5], "counts": "O"}, "negative"),
        ({"size": [6, 5], "counts": [31, -1]}, "negative"),
        ({"size": [6, 5], "counts": [1 << 62, 1 << 62]}, "longer than its picture"),
        ({"size": [6, 5], "counts": [1.5, 28.5]}, "whole numbers"),
        ({"size": [6, 5], "counts": [[30]]}, "whole numbers"),
        ({"size": [6, 5], "counts": 30}, "neither a string"),
        ({"size": [6, 5], "counts": None}, "neither a string"),
        (None, "height, width"),
    ],
)
def test_damage_is_named(broken, reason):
    rle.check(GOOD, (6, 5))
    with pytest.raises(ValueError, match=reason):
        rle.check(broken, (6, 5))


def compressed(runs):
    """COCO's string of runs, in plain Python: any whole numbers that 35 bits of difference reach."""
    text = []
    for n, run in enumerate(runs):
        value, more = run - (runs[n - 2] if n > 2 else 0), True
        while more:
            piece, value = value & 31, value >> 5
            more = value != (-1 if piece & 16 else 0)
            text.append(chr(piece + (80 if more else 48)))
    return "".join(text)


def test_runs_whose_sum_wraps_are_refused():
    """Each run a step longer than the one before last: in 64 bits their sum, 2^64 + 30, is a good 6 x 5 mask's."""
    weights = [n // 2 for n in range(92_700)]
    step, rest = divmod((1 << 64) + 30, sum(weights))
    runs = [step * weight for weight in weights]
    runs[-1] += rest
    assert np.array(runs, np.uint64).sum() == 30
    for given in (compressed(runs), runs, np.array(runs)):
        with pytest.raises(ValueError, match="longer than its picture"):
            rle.check({"size": [6, 5], "counts": given}, (6, 5))
    assert (
        compressed([3, 4, 2, 21])
        == coco.frPyObjects({"size": [6, 5], "counts": [3, 4, 2, 21]}, 6, 5)["counts"].decode()
    )


def test_fill_many_names_the_damaged_mask():
    with pytest.raises(ValueError, match=r"mask 1: .*middle of a run"):
        rle.fill_many([GOOD, {"size": [6, 5], "counts": "o"}], np.arange(6), np.arange(5))


@pytest.mark.parametrize("rows", [[0, 2, 1], [0, 6], [-1, 0], [0, -1, 3]])
def test_samples_that_do_not_rise_are_refused(rows):
    out = np.full((len(rows), 5), 9, np.uint8)
    with pytest.raises(ValueError, match="rows must rise"):
        rle.fill(GOOD, rows, np.arange(5), out)
    assert (out == 9).all()


def test_a_wrong_target_is_refused():
    for out in (np.zeros((5, 6), np.uint8), np.zeros((6, 5), np.float32)):
        with pytest.raises(ValueError, match="out must be"):
            rle.fill(GOOD, np.arange(6), np.arange(5), out)


def test_random_text_is_safe():
    """Every outcome is a mask of the right sum or a ValueError; the guard zones around `out` stay untouched."""
    rng = np.random.default_rng(5)
    good = list(rle.encode(rng.random((40, 30)) < 0.3)["counts"])
    refused = 0
    for _ in range(2000):
        text = list(good)
        for _ in range(rng.integers(1, 4)):
            text[rng.integers(0, len(text))] = chr(rng.integers(40, 120))
        text = text[: rng.integers(1, len(text) + 1)] if rng.random() < 0.3 else text
        guarded = np.full((3, 40, 30), 5, np.uint8)
        try:
            rle.fill({"size": [40, 30], "counts": "".join(text)}, np.arange(40), np.arange(30), guarded[1])
        except ValueError:
            refused += 1
            assert (guarded[1] == 5).all()
        assert (guarded[0] == 5).all() and (guarded[2] == 5).all() and (guarded[1] <= 5).all()
    assert refused > 1000


@pytest.mark.parametrize("seed", range(10))
def test_columns_thumbnails_and_windows_are_those_of_the_bitmap(seed):
    rng = np.random.default_rng(200 + seed)
    height, width = (int(n) for n in rng.integers(1, 90, 2))
    mask = blobs(rng, height, width).astype(bool)
    encoded = rle.encode(mask)
    assert rle.encode_columns(np.ascontiguousarray(mask.T)) == encoded
    h, w = (int(n) for n in rng.integers(1, 120, 2))
    rows = ((np.arange(h) + 0.5) * height / h).astype(int)  # the pixel under each centre
    columns = ((np.arange(w) + 0.5) * width / w).astype(int)
    found = rle.thumbnails([encoded, encoded], (h, w))
    assert found.dtype == bool and np.array_equal(found[1], mask[rows][:, columns])
    y, x = (int(n) for n in rng.integers(0, 9, 2))
    whole = np.zeros((height + 11, width + 9), bool)
    whole[y : y + height, x : x + width] = mask
    assert rle.placed(encoded, whole.shape, (y, x)) == rle.encode(whole)


def test_no_thumbnails_and_a_window_outside():
    assert rle.thumbnails([], (3, 4)).shape == (0, 3, 4)
    one = rle.encode(np.ones((3, 4), bool))
    assert rle.placed(one, (3, 4), (0, 0)) == one
    with pytest.raises(ValueError, match="does not lie in"):
        rle.placed(one, (3, 4), (0, 1))
