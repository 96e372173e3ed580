"""Small islands and holes of a mask, removed; `min_mask_region_area` asks for it. Source: SAM's released generator."""

import numpy as np
from scipy import ndimage


def regions_of(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected regions of a bool mask (H, W), numbered from 1, and how many; pixels that share a corner connect."""
    numbers = np.zeros(mask.shape, np.int32)
    return numbers, int(ndimage.label(mask, np.ones((3, 3), bool), output=numbers))  # type: ignore[arg-type]


def without_holes(mask: np.ndarray, smallest: int) -> np.ndarray:
    """bool (H, W) with background regions of less than `smallest` pixels filled."""
    regions, _ = regions_of(~mask)
    small = np.bincount(regions.ravel()) < smallest
    small[0] = False
    return mask | small[regions]


def without_islands(mask: np.ndarray, smallest: int) -> np.ndarray:
    """bool (H, W) without regions of less than `smallest` pixels; the largest stays when all are small."""
    regions, count = regions_of(mask)
    if not count:
        return mask
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    wanted = sizes >= smallest
    wanted[0] = False
    if not wanted.any():
        wanted[sizes.argmax()] = True
    return wanted[regions]
