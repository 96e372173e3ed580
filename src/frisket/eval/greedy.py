"""COCO's greedy matching of detections with objects: the one copy, for average precision and for average recall.

Use     winner = greedy(iou, ignored, crowd)                  # (A, T, D): each detection's object, or -1
Source  pycocotools' COCOeval.evaluateImg, whose order of comparisons is kept, so that ties fall the same way: in order
        of score a detection takes the free object of highest IoU at or above the threshold, the later one of equals;
        an ignored object is taken only when no other fits; a crowd is never used up.
Shape letters: D detections, G objects, A area ranges (or other ways to ignore), T = 10 IoU thresholds.
"""

import numba
import numpy as np

from frisket.eval.metrics import LARGE, SMALL

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""IoU, exactly the floats of pycocotools."""
SIZES = {"all": (0.0, 1e10), "s": (0.0, SMALL), "m": (SMALL, LARGE), "l": (LARGE, 1e10)}
"""COCO's ranges of area in original pixels; both ends belong to them, so 32² is small and medium."""
AREAS = np.array(list(SIZES.values()))


def outside(areas: np.ndarray) -> np.ndarray:
    """bool (A, N): whether each area (N,) lies outside each of SIZES."""
    return (areas < AREAS[:, :1]) | (areas > AREAS[:, 1:])


def greedy(
    iou: np.ndarray, ignored: np.ndarray, crowd: np.ndarray | None = None, thresholds: np.ndarray = THRESHOLDS
) -> np.ndarray:
    """The object that each detection takes, int64 (A, T, D), -1 for none.

    iou: (D, G), detections by falling score; ignored: bool (A, G); crowd: bool (G,), none when left out.
    """
    winner = np.full((len(ignored), len(thresholds), len(iou)), -1, np.int64)
    if iou.size:
        crowd = np.zeros(iou.shape[1], bool) if crowd is None else crowd
        _greedy(np.ascontiguousarray(iou, np.float64), ignored, crowd.astype(bool), np.asarray(thresholds), winner)
    return winner


@numba.njit(cache=True, nogil=True)
def _greedy(iou, ignored, crowd, thresholds, winner):  # pragma: no cover (compiled)
    count, objects = iou.shape
    for a in range(ignored.shape[0]):
        order = np.argsort(ignored[a].astype(np.int64), kind="mergesort")
        for t in range(thresholds.size):
            taken = np.zeros(objects, np.bool_)
            for d in range(count):
                best, m = min(thresholds[t], 1 - 1e-10), -1
                for g in order:
                    if taken[g] and not crowd[g]:
                        continue
                    if m > -1 and not ignored[a, m] and ignored[a, g]:
                        break
                    if iou[d, g] < best:
                        continue
                    best, m = iou[d, g], g
                if m > -1:
                    winner[a, t, d] = m
                    taken[m] = True
