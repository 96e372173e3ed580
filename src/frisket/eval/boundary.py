"""The Berkeley edge metric as pure functions: counts of one map, and ODS, OIS, AP and R50 of many.

Use     counts = curve(edges, drawings, thresholds(99))              # one photograph: (T, 4)
        numbers = summary([counts, …], thresholds(99))               # {"ods": …, "ois": …, "ap": …, "r50": …, …}
Source  Arbelaez et al., Contour Detection and Hierarchical Image Segmentation, TPAMI 2011, and its benchmark's rules;
        R50 as in Dollar and Zitnick's structured edges (TPAMI 2015).

At each threshold t the pixels with value >= t are thinned to one pixel's width and matched with every annotator's
drawing (frisket.kernels.matching), a pair being at most 0.0075 of the picture's diagonal apart. Recall counts drawn
pixels, over all annotators; precision counts found pixels that at least one annotator's drawing matches.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frisket.kernels.matching import match
from frisket.kernels.thinning import thin

MAX_DIST = 0.0075
"""How far a pair may be apart, as a part of the picture's diagonal."""

MATCHED_TRUTH, TRUTH, MATCHED_FOUND, FOUND = range(4)
"""The columns of a curve: drawn pixels that were found, drawn pixels, found pixels that were drawn, found pixels."""

Counts = NDArray[np.int64]
Curve = NDArray[np.float64]


def thresholds(number: int) -> Curve:
    """`number` thresholds (T,) from 1 / (T + 1) to 1 - 1 / (T + 1), made as the original makes them.

    Their last bits matter: 8-bit maps have values that ought to equal a threshold, such as 85 / 255 and 1 / 3.
    """
    return np.linspace(1 / (number + 1), 1 - 1 / (number + 1), number)


def curve(
    edges: NDArray[Any], drawings: NDArray[np.bool_], levels: Curve, *, max_dist: float = MAX_DIST, threads: int = 1
) -> Counts:
    """Counts (T, 4) of one map, floats (H, W) in 0..1, against the drawings (A, H, W) of its annotators.

    The columns are MATCHED_TRUTH, TRUTH, MATCHED_FOUND, FOUND. A threshold that keeps the same pixels as the one
    before is not matched again. Raises ValueError when the sizes differ or a value is not a number.
    """
    if edges.shape != drawings.shape[1:]:
        raise ValueError(f"a map {edges.shape} cannot be matched with drawings {drawings.shape[1:]}")
    if np.isnan(edges).any():
        raise ValueError("a map must hold numbers, and this one has NaN")
    reach = max_dist * math.hypot(*edges.shape)
    kept = edges.size - np.searchsorted(np.sort(edges, axis=None), levels, side="left")
    first = {int(number): at for at, number in reversed(list(enumerate(kept)))}  # of each distinct picture
    with ThreadPoolExecutor(threads) as pool:
        counted = dict(
            zip(first, pool.map(lambda at: at_threshold(edges >= levels[at], drawings, reach), first.values()))
        )
    return np.stack([counted[int(number)] for number in kept])


def at_threshold(kept: NDArray[np.bool_], drawings: NDArray[np.bool_], reach: float) -> Counts:
    """Counts (4,) of one binary picture (H, W), thinned here, against drawings (A, H, W); `reach` in pixels."""
    lines = thin(kept)
    drawn = np.zeros(lines.size, bool)
    matched = 0
    for drawing in drawings:
        pairs = match(lines, drawing, reach)
        matched += len(pairs)
        drawn[pairs[:, 0]] = True
    return np.array([matched, np.count_nonzero(drawings), np.count_nonzero(drawn), np.count_nonzero(lines)])


def rates(counts: Counts) -> tuple[Curve, Curve]:
    """Recall and precision (…,) of counts (…, 4); 0 where there is nothing to count."""
    recall = counts[..., MATCHED_TRUTH] / np.maximum(counts[..., TRUTH], 1)
    precision = counts[..., MATCHED_FOUND] / np.maximum(counts[..., FOUND], 1)
    return recall, precision


def f_measure(recall: Curve, precision: Curve) -> Curve:
    """2 R P / (R + P), 0 where both are 0."""
    total = recall + precision
    return 2 * recall * precision / np.where(total > 0, total, 1)


def best(levels: Curve, recall: Curve, precision: Curve) -> tuple[float, float, float, float]:
    """(threshold, R, P, F) where F is highest, on straight lines of 100 points between neighbouring thresholds."""
    share = np.linspace(0, 1, 100)
    t, r, p = (
        np.concatenate([line[:1], (line[1:, None] * share + line[:-1, None] * (1 - share)).ravel()])
        for line in (levels, recall, precision)
    )
    f = f_measure(r, p)
    at = int(f.argmax())
    return float(t[at]), float(r[at]), float(p[at]), float(f[at])


def average_precision(recall: Curve, precision: Curve) -> float:
    """Precision interpolated at recall 0, 0.01, … 1 and summed times 0.01; what the curve does not reach adds nothing.

    A curve of a single recall (a map of zeros and ones) has no area.
    """
    reached, first = np.unique(recall, return_index=True)
    if len(reached) < 2:
        return 0.0
    at = np.linspace(0, 1, 101)
    return float(np.interp(at, reached, precision[first], left=0, right=0).sum() * 0.01)


def recall_at_half(recall: Curve, precision: Curve) -> float:
    """Recall at precision 0.5, or at the lowest precision when that is higher; 0 when precision stays below 0.5."""
    reached, first = np.unique(precision, return_index=True)
    return float(np.interp(max(reached[0], 0.5), reached, recall[first], right=0))


def summary(curves: Sequence[Counts], levels: Curve) -> dict[str, Any]:
    """The numbers of a set of photographs, from the counts (T, 4) of each; fractions, lists of T are curves.

    ods: the best F of the summed counts, with its threshold, recall and precision; ois: F of the counts summed at each
    photograph's own best threshold; ap, r50: see `average_precision` and `recall_at_half`.
    """
    counts = np.stack(list(curves))
    recall, precision = rates(counts.sum(0))
    threshold, r, p, f = best(levels, recall, precision)
    own = f_measure(*rates(counts)).argmax(1)
    own_recall, own_precision = rates(counts[np.arange(len(counts)), own].sum(0))
    return {
        "ods": f,
        "ois": float(f_measure(own_recall, own_precision)),
        "ap": average_precision(recall, precision),
        "r50": recall_at_half(recall, precision),
        "ods/threshold": threshold,
        "ods/recall": r,
        "ods/precision": p,
        "ois/recall": float(own_recall),
        "ois/precision": float(own_precision),
        "curve/threshold": levels.tolist(),
        "curve/recall": recall.tolist(),
        "curve/precision": precision.tolist(),
        "curve/f": f_measure(recall, precision).tolist(),
    }
