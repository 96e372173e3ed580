"""Thinning against the definition written out for whole arrays, and against what another thinner keeps."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frisket.kernels.thinning import thin


def plain(picture: np.ndarray) -> np.ndarray:
    """Both subiterations on whole arrays, neighbours x1..x8 from the east counter-clockwise, until nothing changes."""
    now = picture.copy()
    while True:
        before = now
        for second in (False, True):
            wide = np.pad(now, 1)
            h, w = now.shape
            steps = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
            x1, x2, x3, x4, x5, x6, x7, x8 = (wide[1 + y : 1 + y + h, 1 + x : 1 + x + w] for y, x in steps)
            crossings = sum(
                (~a & (b | c)).astype(int) for a, b, c in ((x1, x2, x3), (x3, x4, x5), (x5, x6, x7), (x7, x8, x1))
            )
            odd = sum((a | b).astype(int) for a, b in ((x1, x2), (x3, x4), (x5, x6), (x7, x8)))
            even = sum((a | b).astype(int) for a, b in ((x2, x3), (x4, x5), (x6, x7), (x8, x1)))
            fewer = np.minimum(odd, even)
            side = ((x6 | x7 | ~x4) & x5) if second else ((x2 | x3 | ~x8) & x1)
            now = now & ~((crossings == 1) & (fewer >= 2) & (fewer <= 3) & ~side)
        if (now == before).all():
            return now


def test_equals_the_definition() -> None:
    rng = np.random.default_rng(0)
    for number in range(60):
        noise = rng.random(rng.integers(1, 40, 2))
        if number % 2:  # thick blobs, which need many rounds
            noise = np.kron(noise, np.ones((6, 6)))
        picture = noise < rng.uniform(0.2, 0.95)
        assert (thin(picture) == plain(picture)).all()


def test_a_bar_becomes_a_line() -> None:
    bar = np.zeros((20, 40), bool)
    bar[5:10, 3:37] = True
    found = thin(bar)
    assert (found.sum(0) <= 1).all() and found.sum() >= 30 and set(np.flatnonzero(found.any(1))) == {7}


def test_lines_and_nothing_stay() -> None:
    line = np.eye(9, dtype=bool)
    assert (thin(line) == line).all()
    assert not thin(np.zeros((4, 4))).any() and thin(np.zeros((0, 3))).shape == (0, 3)
    with pytest.raises(ValueError, match="two axes"):
        thin(np.zeros(4))


def test_keeps_what_other_thinners_keep_of_the_benchmarks_maps(data_root: Path) -> None:
    """scikit-image's `thin`, which names the same source, keeps 12,573 of 15,805 pixels of the five maps at 1/6."""
    maps = sorted((data_root / "bsds_bench/png").glob("*.png"))
    if not maps:
        pytest.skip("needs bsds_bench in FRISKET_DATA_ROOT")
    kept = [np.asarray(Image.open(path)) / 255 >= 1 / 6 for path in maps]
    assert (sum(k.sum() for k in kept), sum(thin(k).sum() for k in kept)) == (15805, 12573)
