"""The depth of pixels equals scipy's distance transform, squared, on every kind of mask."""

import numpy as np
import pytest
from scipy import ndimage

from frisket.kernels.distance import squared_depths


def reference(mask: np.ndarray) -> np.ndarray:
    """The exact distance, the border counting as outside, squared."""
    return np.rint(np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1] ** 2).astype(np.int32)


@pytest.mark.parametrize("seed", range(60))
def test_depths_equal_scipy(seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = (int(n) for n in random.integers(1, 70, 2))
    mask = random.random((height, width)) < random.choice([0.1, 0.5, 0.9, 0.99, 1.0])
    if seed % 2:  # blobs
        y, x = np.mgrid[:height, :width]
        mask = np.zeros((height, width), bool)
        for cy, cx, r in random.random((4, 3)) * (height, width, max(height, width) / 2):
            mask |= (y - cy) ** 2 + (x - cx) ** 2 < r * r
    assert np.array_equal(squared_depths(mask), reference(mask))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (700, 500)])
def test_a_full_mask_is_deepest_in_the_middle(shape: tuple[int, int]) -> None:
    found = squared_depths(np.ones(shape, bool))
    assert np.array_equal(found, reference(np.ones(shape, bool)))
    assert found.max() == ((min(shape) + 1) // 2) ** 2


def test_nothing_in_an_empty_mask_or_picture() -> None:
    assert not squared_depths(np.zeros((5, 7), bool)).any()
    assert squared_depths(np.zeros((0, 7), bool)).shape == (0, 7)
    with pytest.raises(ValueError, match="two dimensions"):
        squared_depths(np.ones((2, 3, 4), bool))
