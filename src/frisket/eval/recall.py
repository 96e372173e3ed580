"""Average recall of masks: COCO's greedy matching, and what one photograph adds to the recall of a whole set.

Use     hits = tally(iou, groups(areas))                    # of one photograph: detections (best first) x objects
        average_recall(add([hits, …]))["all"]               # mean recall over IoU 0.50, 0.55, …, 0.95
Source  pycocotools' COCOeval without categories (specs: SAM D.3, mask AR@1000 on LVIS): in order of score a detection
        takes the free object of highest IoU at or above the threshold, the later one of equals; objects outside the
        size in question are ignored, which is to say: taken only when no other fits.
Memory  A photograph leaves one count per group and threshold. No mask is kept.
"""

from collections.abc import Iterable, Mapping

import numba
import numpy as np

from frisket.eval.metrics import LARGE, SMALL

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""IoU, exactly the floats of pycocotools."""
SIZES = {"all": (0.0, 1e10), "s": (0.0, SMALL), "m": (SMALL, LARGE), "l": (LARGE, 1e10)}
"""COCO's ranges of area in original pixels; both ends belong to them, so 32² is small and medium."""

Group = tuple[np.ndarray, np.ndarray]
"""Which objects are there, bool (G,), and which of them are ignored, bool (G,)."""
Tally = dict[str, tuple[np.ndarray, int]]
"""Group -> found objects at each threshold, int64 (T,), and objects in all."""


def match(iou: np.ndarray, ignored: np.ndarray, thresholds: np.ndarray = THRESHOLDS) -> np.ndarray:
    """Which objects are found: bool (G, T) of IoU (D, G) with the detections' rows in falling order of score.

    ignored: bool (G,); such an object is taken only by a detection that no other object fits. Nothing is a crowd.
    """
    order = np.argsort(ignored, kind="stable")
    found = np.zeros((len(order), len(thresholds)), np.bool_)
    if not iou.size:
        return found
    _match(
        np.ascontiguousarray(iou[:, order], np.float64),
        int((~ignored).sum()),
        np.asarray(thresholds, np.float64),
        found,
    )
    back = np.empty_like(found)
    back[order] = found
    return back


@numba.njit(cache=True, nogil=True)
def _match(iou, counted, thresholds, found):  # pragma: no cover (compiled)
    """Fill `found` (G, T); the first `counted` columns of `iou` (D, G) are not ignored."""
    for t in range(thresholds.size):
        for d in range(iou.shape[0]):
            best, chosen = min(thresholds[t], 1 - 1e-10), -1
            for g in range(iou.shape[1]):
                if g == counted and chosen >= 0:
                    break  # an object that counts goes before every ignored one
                if not found[g, t] and iou[d, g] >= best:
                    best, chosen = iou[d, g], g
            if chosen >= 0:
                found[chosen, t] = True


def groups(areas: np.ndarray, classes: Mapping[str, np.ndarray] | None = None) -> dict[str, Group]:
    """all, s, m, l by the objects' areas (G,); and for {name: bool (G,)} those objects as if there were no others."""
    everyone = np.ones(len(areas), bool)
    found = {name: (everyone, (areas < low) | (areas > high)) for name, (low, high) in SIZES.items()}
    return found | {name: (member, ~everyone) for name, member in (classes or {}).items()}


def tally(iou: np.ndarray, which: Mapping[str, Group], thresholds: np.ndarray = THRESHOLDS) -> Tally:
    """What one photograph's IoU (D, G), best detection first, adds to each group."""
    found: Tally = {}
    for name, (there, ignored) in which.items():
        counted = ~ignored[there]
        table = match(iou[:, there], ~counted, thresholds)
        found[name] = (table[counted].sum(axis=0), int(counted.sum()))
    return found


def add(tallies: Iterable[Tally]) -> Tally:
    """The sum of photographs."""
    total: Tally = {}
    for one in tallies:
        for name, (hits, count) in one.items():
            before = total.get(name, (np.zeros_like(hits), 0))
            total[name] = (before[0] + hits, before[1] + count)
    return total


def average_recall(total: Tally) -> dict[str, float]:
    """Recall averaged over the thresholds, a fraction, for each group; NaN for a group without objects."""
    return {name: float(np.mean(hits / count)) if count else float("nan") for name, (hits, count) in total.items()}


def best_iou(iou: np.ndarray) -> np.ndarray:
    """The best IoU (G,) that any detection reaches with each object, of IoU (D, G); 0 where there is no detection."""
    return iou.max(axis=0, initial=0.0)
