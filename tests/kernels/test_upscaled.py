"""Masks measured from low-resolution logits against enlarging every one of them.

Run     `pytest tests/kernels/test_upscaled.py` (the first run compiles for some seconds).
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from frisket.geometry import Frame, upscale_logits
from frisket.kernels import rle, upscaled
from frisket.kernels.upscaled import blocks_numba, blocks_torch, encode, enlarged, measure

# enlarged 2 to 9 times, shrunk, a strip, a column, more than half padding
FRAMES = [((60, 90), 64), ((90, 150), 128), ((301, 200), 128), ((50, 80), 256), ((3, 200), 64), ((200, 1), 64)]


def ragged(count: int, side: int, seed: int) -> Tensor:
    """Random fields (N, G, G): coarse, with slopes and levels that spread their stability over 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    field = torch.randn(count, 1, 6, 6, generator=generator)
    field = F.interpolate(field, size=(side, side), mode="bicubic")[:, 0]
    slope = 10 ** (2.5 * torch.rand(count, 1, 1, generator=generator))
    return slope * (field + 1.5 * torch.rand(count, 1, 1, generator=generator) - 0.75)


def stepped(count: int, side: int, seed: int) -> Tensor:
    """Fields (N, G, G) of small whole numbers: wide flats that lie exactly on the levels 1, 0 and -1."""
    return ragged(count, side, seed).round().clamp(-3, 3)


def same(found: upscaled.Upscaled, plain: upscaled.Upscaled) -> None:
    assert torch.equal(found.kept, plain.kept)
    assert torch.equal(found.boxes[plain.kept], plain.boxes[plain.kept])
    assert torch.equal(found.area[plain.kept] > 0, plain.area[plain.kept] > 0)
    assert torch.allclose(found.stability[plain.kept], plain.stability[plain.kept], atol=upscaled.VAGUE, equal_nan=True)


@pytest.mark.parametrize("make", [ragged, stepped])
@pytest.mark.parametrize(("size", "side"), FRAMES)
def test_what_is_kept_is_what_enlarging_keeps(size: tuple[int, int], side: int, make) -> None:
    frame = Frame.fit(size, side)
    low = make(80, frame.grid, seed=side + size[0])
    everywhere = []
    for at_least in (0.5, 0.8, 0.95, 0.0):
        plain = enlarged(low, frame, offset=1.0, at_least=at_least)
        same(measure(low, frame, offset=1.0, at_least=at_least), plain)
        everywhere.append(int(plain.kept.sum()))
    assert everywhere[3] == 80 and 80 > everywhere[0] >= everywhere[1] >= everywhere[2] and everywhere[1] > 0


@pytest.mark.parametrize("step", [-1, 0, 1])
def test_a_limit_at_a_masks_own_stability_is_decided_as_by_enlarging(step: int) -> None:
    """The hardest limits there are: each mask's stability itself, and the next floats beside it."""
    frame = Frame.fit((90, 150), 128)
    low = ragged(40, frame.grid, seed=5)
    towards = torch.tensor(float(step))
    found = enlarged(low, frame, offset=1.0, at_least=0.5).stability
    found = found[(found > 0) & (found < 1)]
    assert len(found) > 20
    for stability in found:
        limit = float(torch.nextafter(stability, towards) if step else stability)
        same(measure(low, frame, offset=1.0, at_least=limit), enlarged(low, frame, offset=1.0, at_least=limit))


def test_few_masks_are_enlarged_and_doubtful_ones_are() -> None:
    frame = Frame.fit((301, 200), 128)
    smooth = ragged(100, frame.grid, seed=1)
    assert measure(smooth, frame, offset=1.0, at_least=0.9).enlarged <= 3
    flat = torch.ones(4, frame.grid, frame.grid)  # every pixel lies on the level +1
    assert measure(flat, frame, offset=1.0, at_least=0.9).enlarged == 4
    same(measure(flat, frame, offset=1.0, at_least=0.9), enlarged(flat, frame, offset=1.0, at_least=0.9))


def test_rounding_is_within_its_bound() -> None:
    """The proof's one assumption, with margin: evaluated pixels are within a quarter of ROUNDING of the plain ones."""
    for size, side in (((301, 200), 128), ((90, 150), 128), ((50, 80), 256)):
        frame = Frame.fit(size, side)
        low = 100 * torch.randn(8, frame.grid, frame.grid)
        rows, columns = (upscaled.axis(frame, dim, low.device) for dim in (0, 1))
        index = torch.ones(8, len(rows.cell), len(columns.cell)).nonzero()
        values = upscaled._patches(low, rows, columns, *index.unbind(1))
        plain = upscale_logits(low, frame)
        most = upscaled._blockwise(low.abs(), torch.maximum, rows, columns)
        for (n, q, k), block in zip(index[::17].tolist(), values[::17]):
            y, x, high, wide = int(rows.pixel[q]), int(columns.pixel[k]), int(rows.size[q]), int(columns.size[k])
            error = (block[:high, :wide] - plain[n, y : y + high, x : x + wide]).abs().max()
            assert error <= upscaled.ROUNDING / 4 * most[n, q, k]


@pytest.mark.parametrize(("size", "side"), FRAMES)
def test_torch_counts_what_numba_counts(size: tuple[int, int], side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upscaled, "CROWDED", 1.0)
    monkeypatch.setattr(upscaled, "PATCHES", 777)
    frame = Frame.fit(size, side)
    low = torch.cat([ragged(15, frame.grid, seed=2), stepped(15, frame.grid, seed=3)])
    sure, doubt, strict, loose, unknown = blocks_torch(low, frame, (1.0, 0.0, -1.0))
    other = blocks_numba(low, frame, (1.0, 0.0, -1.0))
    # sums in another order: a pixel in doubt may change sides, no other can
    assert not unknown.any() and torch.equal(strict, other[2]) and torch.equal(loose, other[3])
    assert ((sure - other[0]).abs() <= torch.maximum(doubt, other[1])).all()
    assert (doubt - other[1]).abs().max() <= 2


def test_crowded_masks_are_left_to_enlarging() -> None:
    frame = Frame.fit((60, 90), 64)
    noise = torch.randn(5, frame.grid, frame.grid)
    assert blocks_torch(noise, frame, (1.0, 0.0, -1.0))[4].all()


@pytest.mark.parametrize(("size", "side"), FRAMES)
def test_encoding_equals_enlarging_and_encoding(size: tuple[int, int], side: int) -> None:
    frame = Frame.fit(size, side)
    low = ragged(30, frame.grid, seed=4)
    plain = (upscale_logits(low, frame) > 0).numpy()
    for found, mask in zip(encode(low, frame), plain):
        drawn = rle.fill_many([found], range(size[0]), range(size[1]))[0].astype(bool)
        assert found["size"] == list(size) and (drawn != mask).sum() <= 1  # a pixel within rounding of 0


def test_empty_sets_and_empty_masks() -> None:
    frame = Frame.fit((60, 90), 64)
    nothing = measure(torch.zeros(0, 16, 16), frame, offset=1.0, at_least=0.9)
    assert len(nothing.kept) == 0 and nothing.boxes.shape == (0, 4) and encode(torch.zeros(0, 16, 16), frame) == []
    assert len(enlarged(torch.zeros(0, 16, 16), frame, offset=1.0, at_least=0.9).kept) == 0
    assert len(blocks_torch(torch.zeros(0, 16, 16), frame, (1.0, 0.0, -1.0))[0]) == 0
    low = torch.stack([torch.full((16, 16), -5.0), torch.full((16, 16), -0.5), torch.full((16, 16), 5.0)])
    found = measure(low, frame, offset=1.0, at_least=0.9)
    assert found.kept.tolist() == [False, False, True] and found.area.tolist() == [0, 0, 5400]
    assert found.boxes.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 89, 59]]
    assert found.stability[0].isnan() and found.stability[1:].tolist() == [0.0, 1.0]


def test_faint_masks_count_as_strong_ones_do() -> None:
    """What lies above 0 by a thousandth is in the mask: the level is 0, not a little more."""
    frame = Frame.fit((60, 90), 64)
    for strength in (1e-5, 1e-3, 0.009):
        low = torch.full((1, 16, 16), -strength)
        low[0, 3:9, 2:11] = strength
        plain = upscale_logits(low, frame) > 0
        full = measure(low, frame, offset=strength / 2, at_least=0.0)
        assert full.area.tolist()[0] > 600 and abs(full.area[0] - plain.sum()) <= 2
        same(full, enlarged(low, frame, offset=strength / 2, at_least=0.0))
        drawn = rle.fill_many(encode(low, frame), range(60), range(90))[0].astype(bool)
        assert (drawn != plain[0].numpy()).sum() <= 2


@pytest.mark.parametrize("bounds", [blocks_numba, blocks_torch])
def test_masks_that_are_not_numbers_are_enlarged(bounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN is in doubt wherever it reaches, so that the plain way decides: as SAM's generator, it drops them."""
    monkeypatch.setattr(upscaled, "blocks_numba", bounds)  # the CPU's door to either
    monkeypatch.setattr(upscaled, "CROWDED", 1.0)
    frame = Frame.fit((60, 90), 64)
    low = torch.full((4, 16, 16), 5.0)
    low[0, 4, 4] = low[1, 0, 0] = low[1, 15, 15] = torch.nan
    low[2] = torch.nan
    full, plain = (way(low, frame, offset=1.0, at_least=0.9) for way in (measure, enlarged))
    same(full, plain)
    assert full.enlarged == 3 and torch.equal(full.area, plain.area) and torch.equal(full.boxes, plain.boxes)
    assert plain.area.tolist()[2:] == [0, 5400] and 4000 < plain.area[0] < 5400


def test_a_cells_edge_lies_between_its_pixels() -> None:
    """Absolute, not against our own enlargement: at four pixels a cell, a step from cell 4 to 5 lies at pixel 20."""
    frame = Frame.fit((64, 64), 64)
    low = torch.full((1, 16, 16), -3.0)
    low[0, 7:, 5:] = 3.0
    for way in (measure, enlarged):
        full = way(low, frame, offset=1.0, at_least=0.0)
        assert full.boxes.tolist() == [[20, 28, 63, 63]] and abs(int(full.area[0]) - 44 * 36) <= 4
    drawn = rle.fill_many(encode(low, frame), range(64), range(64))[0].astype(bool)
    assert drawn[40, 19:21].tolist() == [False, True] and drawn[27:29, 40].tolist() == [False, True]
