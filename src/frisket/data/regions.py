"""Which of many bool masks of one photograph are worth keeping: by size, and without near doubles.

Use     kept = distinct(suitable(masks, min_area=100, max_fraction=0.9), iou=0.9)
Source  our choice, for masks that people or programs drew several times over (BSDS500's annotators, drawn scenes).
"""

from collections.abc import Sequence

import numpy as np

MIN_AREA, MAX_FRACTION, DEDUPE_IOU = 100, 0.9, 0.9
"""What `frisket prep` and the judge of BSDS500 apply: pixels, share of the image, IoU."""


def suitable(masks: Sequence[np.ndarray], *, min_area: int, max_fraction: float) -> list[np.ndarray]:
    """The bool masks (H, W) whose area is at least `min_area` pixels and at most `max_fraction` of the image."""
    return [m for m in masks if min_area <= int(np.count_nonzero(m)) <= max_fraction * m.size]


def distinct(masks: Sequence[np.ndarray], *, iou: float) -> list[np.ndarray]:
    """The bool masks (H, W) without near doubles: one whose IoU with an earlier kept one is >= `iou` is dropped."""
    kept: list[tuple[np.ndarray, int]] = []
    for mask in masks:
        area = int(np.count_nonzero(mask))
        # IoU never exceeds the ratio of the areas, which spares nearly all comparisons.
        near = (k for k, other in kept if min(area, other) >= iou * max(area, other))
        if not any(_iou(mask, k) >= iou for k in near):
            kept.append((mask, area))
    return [mask for mask, _ in kept]


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / max(1, np.count_nonzero(a | b))
