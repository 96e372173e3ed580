"""Average recall of masks: COCO's greedy matching, and what one photograph adds to the recall of a whole set.

Use     hits = tally(iou, groups(areas))                    # of one photograph: detections (best first) x objects
        average_recall(add([hits, …]))["all"]               # mean recall over IoU 0.50, 0.55, …, 0.95
Source  pycocotools' COCOeval without categories (specs: SAM D.3, mask AR@1000 on LVIS): in order of score a detection
        takes the free object of highest IoU at or above the threshold, the later one of equals; objects outside the
        size in question are ignored, which is to say: taken only when no other fits.
Memory  A photograph leaves one count per group and threshold. No mask is kept.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from frisket.eval.greedy import SIZES, THRESHOLDS, greedy, outside

Group = tuple[np.ndarray, np.ndarray]
"""Which objects are there, bool (G,), and which of them are ignored, bool (G,)."""
Tally = dict[str, tuple[np.ndarray, int]]
"""Group -> found objects at each threshold, int64 (T,), and objects in all."""


def recalled(iou: np.ndarray, ignored: np.ndarray, thresholds: np.ndarray = THRESHOLDS) -> np.ndarray:
    """Which objects are found: bool (G, T) of IoU (D, G) with the detections' rows in falling order of score.

    ignored: bool (G,); such an object is taken only by a detection that no other object fits. Nothing is a crowd.
    """
    winner = greedy(iou, ignored[None], thresholds=thresholds)[0]
    hit = np.zeros((len(ignored), len(thresholds)), bool)
    for t, taken in enumerate(winner):
        hit[taken[taken >= 0], t] = True
    return hit


def groups(areas: np.ndarray, classes: Mapping[str, np.ndarray] | None = None) -> dict[str, Group]:
    """all, s, m, l by the objects' areas (G,); and for {name: bool (G,)} those objects as if there were no others."""
    everyone = np.ones(len(areas), bool)
    sized = {name: (everyone, far) for name, far in zip(SIZES, outside(areas), strict=True)}
    return sized | {name: (member, ~everyone) for name, member in (classes or {}).items()}


def tally(iou: np.ndarray, which: Mapping[str, Group], thresholds: np.ndarray = THRESHOLDS) -> Tally:
    """What one photograph's IoU (D, G), best detection first, adds to each group."""
    total: Tally = {}
    for name, (there, ignored) in which.items():
        counted = ~ignored[there]
        table = recalled(iou[:, there], ~counted, thresholds)
        total[name] = (table[counted].sum(axis=0), int(counted.sum()))
    return total


def add(tallies: Iterable[Tally]) -> Tally:
    """The sum of photographs."""
    total: Tally = {}
    for tallied in tallies:
        for name, (hits, count) in tallied.items():
            before = total.get(name, (np.zeros_like(hits), 0))
            total[name] = (before[0] + hits, before[1] + count)
    return total


def average_recall(total: Tally) -> dict[str, float]:
    """Recall averaged over the thresholds, a fraction, for each group; NaN for a group without objects."""
    return {name: float(np.mean(hits / count)) if count else float("nan") for name, (hits, count) in total.items()}


def best_iou(iou: np.ndarray) -> np.ndarray:
    """The best IoU (G,) that any detection reaches with each object, of IoU (D, G); 0 where there is no detection."""
    return iou.max(axis=0, initial=0.0)
