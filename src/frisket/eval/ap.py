"""Average precision and recall by COCO's and by LVIS' rules: matched photograph by photograph, added up at the end.

Use     matches = matched(detected, truth, COCO)                  # of one photograph, on whichever rank judged it
        numbers = summarise([matches, …], COCO, categories)       # photographs in ascending order of their ids
Rules   COCO: at most 100 detections per photograph and class, crowd regions neither count nor cost. LVIS v1: at most
        300 per photograph over all classes; only classes known to be present or absent count; unmatched detections of
        a class that is not annotated exhaustively cost nothing; there are no crowds; nothing of area 0 takes part, but
        an empty detection has used up one of the 300 places; means over rare, common and frequent classes.
Source  pycocotools' COCOeval and lvis' LVISEval, which the tests compare with to 1e-12; the arithmetic keeps their
        order, so that ties fall the same way. Only a few bytes per detection outlive its photograph: LVIS' millions of
        masks are never together in memory. One difference: there an object whose id is 0 counts as unmatched, here not.
Shape letters: D detections, G objects, A = 4 area ranges, T = 10 IoU thresholds, R = 101 recalls, K classes.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from frisket.data.coco import Category
from frisket.eval.greedy import AREAS, THRESHOLDS, greedy, outside

RECALLS = np.linspace(0.0, 1.0, 101)
SIZES = ("", "_s", "_m", "_l")


@dataclass(frozen=True)
class Rules:
    """A benchmark's conventions. per_photo and per_class: the most detections of a photograph, and of a class in it;
    recalls: where average recall is reported; federated: LVIS' treatment of unknown classes."""

    name: str
    per_photo: int | None
    per_class: int | None
    recalls: tuple[int, ...]
    federated: bool


COCO = Rules("COCO", per_photo=None, per_class=100, recalls=(1, 10, 100), federated=False)
LVIS = Rules("LVIS v1", per_photo=300, per_class=None, recalls=(300,), federated=True)


@dataclass
class Detected:
    """Detections in one photograph, in the order of their file. shapes: D masks as RLE, or D boxes xywh; areas, scores:
    float64 (D,); categories: int64 (D,)."""

    shapes: Sequence[Any]
    areas: np.ndarray
    categories: np.ndarray
    scores: np.ndarray


@dataclass
class Objects:
    """The truth in one photograph, as `Detected`. ignore: bool (G,), crowd regions; negative, not_exhaustive: LVIS'."""

    shapes: Sequence[Any]
    areas: np.ndarray
    categories: np.ndarray
    ignore: np.ndarray
    negative: Sequence[int] = ()
    not_exhaustive: Sequence[int] = ()

    def solid(self) -> "Objects":
        """Those that have an area, crowd or not: LVIS' truth."""
        kept = np.flatnonzero(self.areas > 0)
        return Objects(
            [self.shapes[i] for i in kept.tolist()], self.areas[kept], self.categories[kept], np.zeros(len(kept), bool),
            self.negative, self.not_exhaustive,
        )  # fmt: skip


@dataclass
class Matches:
    """What stays of one photograph. Of its D detections that count, class by class and by falling score: categories,
    rank in the class (from 0), scores, and packed bits (A·T / 8, D) of matched and ignored; of its G objects:
    categories and ignored (A, G)."""

    categories: np.ndarray
    ranks: np.ndarray
    scores: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    truths: np.ndarray
    truths_ignored: np.ndarray


def matched(detected: Detected, truth: Objects, rules: Rules) -> Matches:
    """Match one photograph's detections with its objects, class by class, greedily in the order of the scores."""
    order, ranks = counted(detected.categories, detected.scores, truth, rules)
    if rules.federated:
        solid = detected.areas[order] > 0
        order, ranks, truth = order[solid], ranks[solid], truth.solid()
    categories = detected.categories[order]

    ignored_truth = truth.ignore | outside(truth.areas)
    hit = np.zeros((len(AREAS), len(THRESHOLDS), len(order)), bool)
    by_ignored = np.zeros_like(hit)
    for category in np.intersect1d(categories, truth.categories):
        mine, theirs = np.flatnonzero(categories == category), np.flatnonzero(truth.categories == category)
        crowd = truth.ignore[theirs]
        shapes = [detected.shapes[i] for i in order[mine]], [truth.shapes[i] for i in theirs.tolist()]
        winner = greedy(np.asarray(coco_mask.iou(*shapes, crowd.astype(np.uint8))), ignored_truth[:, theirs], crowd)
        hit[:, :, mine] = winner >= 0
        for a, of_area in enumerate(winner):
            by_ignored[a][:, mine] = (of_area >= 0) & ignored_truth[a, theirs][of_area]
    free = outside(detected.areas[order])
    if rules.federated:
        free = free | np.isin(categories, np.asarray(truth.not_exhaustive, np.int64))
    ignored = by_ignored | (~hit & free[:, None])
    return Matches(
        categories, ranks, detected.scores[order], _pack(hit), _pack(ignored), truth.categories, ignored_truth
    )


def counted(categories: np.ndarray, scores: np.ndarray, truth: Objects, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """The detections of one photograph that the rules look at, class by class and by falling score: their numbers, and
    their ranks in their class. No other detection can change any result."""
    order = np.argsort(-scores, kind="stable")[: rules.per_photo]
    if rules.federated:
        known = np.union1d(truth.categories[truth.areas > 0], np.asarray(truth.negative, np.int64))
        order = order[np.isin(categories[order], known)]
    order = order[np.argsort(categories[order], kind="stable")]
    starts = np.flatnonzero(np.diff(categories[order], prepend=-1, append=-1)) if len(order) else np.zeros(1, int)
    ranks = np.arange(len(order)) - np.repeat(starts[:-1], np.diff(starts))
    if rules.per_class is not None:
        order, ranks = order[ranks < rules.per_class], ranks[ranks < rules.per_class]
    return order, ranks


def _pack(bits: np.ndarray) -> np.ndarray:
    """bool (A, T, D) -> uint8 (A·T / 8, D)."""
    return np.packbits(bits.reshape(len(AREAS) * len(THRESHOLDS), bits.shape[-1]), axis=0)


def unpack(bits: np.ndarray) -> np.ndarray:
    """uint8 (A·T / 8, D) -> bool (A, T, D)."""
    return np.unpackbits(bits, axis=0).reshape(len(AREAS), len(THRESHOLDS), bits.shape[1]).astype(bool)


@dataclass
class Curves:
    """precision (A, T, R, K), and recall (A, T, K) for each of the rules' `recalls`; -1 where a class has no object."""

    precision: np.ndarray
    recall: dict[int, np.ndarray] = field(default_factory=dict)


def curves(matches: Sequence[Matches], rules: Rules, categories: Sequence[int]) -> Curves:
    """Add up photographs, given in ascending order of their ids (ties in score keep it), over the classes K."""
    shape = (len(AREAS), len(THRESHOLDS))
    out = Curves(-np.ones((*shape, len(RECALLS), len(categories))))
    out.recall = {most: -np.ones((*shape, len(categories))) for most in rules.recalls}
    detected, truths = _by_class(matches)
    for k, category in enumerate(categories):
        if category not in truths:
            continue
        objects = (~truths[category]).sum(axis=1)  # (A,)
        scores, ranks, hit, ignored = detected.get(category) or _nothing()
        order = np.argsort(-scores, kind="mergesort")
        ranks, hit, ignored = ranks[order], unpack(hit[:, order]), unpack(ignored[:, order])
        right, wrong = (bits & ~ignored for bits in (hit, ~hit))
        hits = np.cumsum(right, axis=2, dtype=np.float64)
        misses = np.cumsum(wrong, axis=2, dtype=np.float64)
        precision = hits / (misses + hits + np.spacing(1))
        precision = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
        for a in np.flatnonzero(objects):
            out.precision[a, ..., k] = _at_recalls(hits[a] / objects[a], precision[a])
            for most, recall in out.recall.items():
                recall[a, :, k] = right[a][:, ranks < most].sum(axis=1) / objects[a]
    return out


def _by_class(matches: Sequence[Matches]) -> tuple[dict[int, tuple[np.ndarray, ...]], dict[int, np.ndarray]]:
    """{class: (scores, ranks, matched, ignored)} and {class: ignored (A, G)} over all photographs, in their order."""
    detected: dict[int, list[tuple[np.ndarray, ...]]] = defaultdict(list)
    truths: dict[int, list[np.ndarray]] = defaultdict(list)
    for m in matches:
        for category in np.unique(m.categories):
            mine = m.categories == category
            detected[int(category)].append((m.scores[mine], m.ranks[mine], m.matched[:, mine], m.ignored[:, mine]))
        for category in np.unique(m.truths):
            truths[int(category)].append(m.truths_ignored[:, m.truths == category])
    joined = {k: tuple(np.concatenate(p, axis=-1) for p in zip(*parts, strict=True)) for k, parts in detected.items()}
    return joined, {category: np.concatenate(parts, axis=1) for category, parts in truths.items()}


def _nothing() -> tuple[np.ndarray, ...]:
    bits = np.zeros((len(AREAS) * len(THRESHOLDS) // 8, 0), np.uint8)
    return np.zeros(0), np.zeros(0, int), bits, bits


def _at_recalls(recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Precision (T, R) at the fixed recalls, of recall and falling precision (T, D); 0 beyond the last."""
    out = np.zeros((len(THRESHOLDS), len(RECALLS)))
    for t in range(len(THRESHOLDS)):
        at = np.searchsorted(recall[t], RECALLS, side="left")
        reached = at < recall.shape[1]
        out[t, reached] = precision[t, at[reached]]
    return out


def summarise(matches: Sequence[Matches], rules: Rules, categories: Mapping[int, Category]) -> dict[str, float]:
    """{"ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l", "ar1", "ar10", "ar100", "ar_s", "ar_m", "ar_l"}, and by LVIS'
    rules "ap_r", "ap_c", "ap_f" and "ar300". Fractions; nan where there is no object (pycocotools says -1)."""
    ids = sorted(categories)
    added = curves(matches, rules, ids)
    most = rules.recalls[-1]
    numbers = {"ap": _mean(added.precision[0])}
    numbers |= {f"ap{round(100 * THRESHOLDS[t])}": _mean(added.precision[0, t]) for t in (0, 5)}
    numbers |= {f"ap{size}": _mean(added.precision[a]) for a, size in enumerate(SIZES) if size}
    if rules.federated:
        for frequency in "rcf":
            chosen = [k for k, category in enumerate(ids) if categories[category].frequency == frequency]
            numbers[f"ap_{frequency}"] = _mean(added.precision[0][..., chosen])
    numbers |= {f"ar{k}": _mean(added.recall[k][0]) for k in rules.recalls}
    return numbers | {f"ar{size}": _mean(added.recall[most][a]) for a, size in enumerate(SIZES) if size}


def _mean(values: np.ndarray) -> float:
    real = values[values > -1]
    return float(real.mean()) if real.size else float("nan")
