"""Row: one edge map against its annotators' drawings, at three thresholds, as the Berkeley benchmark counts.

    FRISKET_DATA_ROOT=…  frisket bench rows=[edge_match]

On the CPU always. The map is the first of $FRISKET_DATA_ROOT/bsds_bench when that folder is there, else lines drawn at
random, some with jitter and some missing. The baseline is the plain way to the same answer: SciPy's assignment on the
whole matrix of each connected piece. Thinning is the same on both sides. What
must be equal: the counts of pixels, of matches, and the total cost of each matching. Among matchings of equal cost the
two may choose differently, so that the precision count, a union over annotators, may differ by a few pixels.
"""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from frisket.bench.harness import Case, Row, Setting, at_most
from frisket.data.bsds import boundaries
from frisket.eval.boundary import FOUND, MATCHED_FOUND, MATCHED_TRUTH, MAX_DIST, TRUTH, thresholds
from frisket.kernels.matching import cost, lonely_cost, match
from frisket.kernels.thinning import thin

Bools = NDArray[np.bool_]
Matcher = Callable[[Bools, Bools, float], NDArray[np.int64]]


def assignment(edges: Bools, truth: Bools, reach: float) -> NDArray[np.int64]:
    """What frisket.kernels.matching.match does, by the definition: pairs (K, 2) of flat indices."""
    mine, theirs = np.argwhere(edges), np.argwhere(truth)
    if not len(mine) or not len(theirs):
        return np.zeros((0, 2), np.int64)
    near = [np.flatnonzero(((theirs - pixel) ** 2).sum(1) <= reach**2) for pixel in mine]
    rows = np.repeat(np.arange(len(mine)), [len(part) for part in near])
    columns = np.concatenate(near)
    total = len(mine) + len(theirs)
    graph = coo_array((np.ones(len(rows)), (rows, columns + len(mine))), shape=(total, total))
    _, piece = connected_components(graph, directed=False)
    order = np.argsort(piece, kind="stable")
    pairs = []
    for nodes in np.split(order, np.flatnonzero(np.diff(piece[order])) + 1):
        a, b = nodes[nodes < len(mine)], nodes[nodes >= len(mine)] - len(mine)
        if len(a) and len(b):
            i, j = _piece(mine[a], theirs[b], reach)
            pairs.append(np.stack([a[i], b[j]], axis=1))
    if not pairs:
        return np.zeros((0, 2), np.int64)
    edges_at, truth_at = np.flatnonzero(edges), np.flatnonzero(truth)
    matched = np.concatenate(pairs)
    flat = np.stack([edges_at[matched[:, 0]], truth_at[matched[:, 1]]], axis=1)
    return flat[np.argsort(flat[:, 0])]


def _piece(mine: NDArray[np.int64], theirs: NDArray[np.int64], reach: float) -> tuple[NDArray[np.int64], ...]:
    """Which of pixels `mine` (n, 2) has which of `theirs` (m, 2): the fewer ones are rows, and may stay alone."""
    if len(mine) > len(theirs):
        return _piece(theirs, mine, reach)[::-1]
    squared = ((mine[:, None] - theirs[None]) ** 2).sum(2)
    never = 4.0 * lonely_cost(reach) * (len(mine) + 1)
    price = np.full((len(mine), len(theirs) + len(mine)), never)
    price[:, : len(theirs)] = np.where(squared <= reach**2, np.rint(100 * np.sqrt(squared)), never)
    np.fill_diagonal(price[:, len(theirs) :], 2 * lonely_cost(reach))
    rows, columns = linear_sum_assignment(price)
    real = columns < len(theirs)
    return rows[real], columns[real]


def tally(matcher: Matcher, lines: list[Bools], drawings: Bools, reach: float) -> NDArray[np.int64]:
    """(T, 5): the benchmark's four counts of every thinned picture, and the total cost of its matchings."""
    rows = []
    for picture in lines:
        matched, total, hit = 0, 0, np.zeros(picture.size, bool)
        for drawing in drawings:
            pairs = matcher(picture, drawing, reach)
            matched += len(pairs)
            total += cost(pairs, picture, drawing, reach)
            hit[pairs[:, 0]] = True
        rows.append((matched, drawings.sum(), hit.sum(), picture.sum(), total))
    return np.array(rows)


def strokes(rng: np.random.Generator, size: tuple[int, int], people: int) -> tuple[NDArray[np.float64], Bools]:
    """A made map (H, W) of strokes of several strengths, and `people` jittered drawings (A, H, W) of most of them."""
    height, width = size
    sheet = Image.new("L", (width, height))
    drawn = [Image.new("L", (width, height)) for _ in range(people)]
    for _ in range(height * width // 1500):
        points = rng.uniform((0, 0), (width, height), (2, 2))
        points[1] = points[0] + (points[1] - points[0]) * 0.4
        ImageDraw.Draw(sheet).line([tuple(p) for p in points], fill=int(rng.integers(20, 256)), width=2)
        for page in drawn:
            if rng.random() < 0.7:
                ImageDraw.Draw(page).line([tuple(p) for p in points + rng.normal(0, 1.5, (2, 2))], fill=255)
    return np.asarray(sheet) / 255, np.stack([np.asarray(page) > 0 for page in drawn])


def photograph(rng: np.random.Generator, quick: bool) -> tuple[NDArray[np.float64], Bools, str]:
    """A map (H, W), its annotators' drawings (A, H, W), and where they are from."""
    folder = Path(os.environ.get("FRISKET_DATA_ROOT", "")) / "bsds_bench"
    genuine = sorted((folder / "png").glob("*.png")) if "FRISKET_DATA_ROOT" in os.environ and not quick else []
    if genuine:
        drawings = boundaries(folder / "groundTruth" / f"{genuine[0].stem}.mat")
        return np.asarray(Image.open(genuine[0])) / 255, drawings, f"the Berkeley benchmark's {genuine[0].stem}"
    size, people = ((60, 90), 2) if quick else ((321, 481), 5)
    return *strokes(rng, size, people), "made strokes"


def matching_row(setting: Setting) -> Case:
    """All matchings of one photograph."""
    edges, drawings, source = photograph(np.random.default_rng(setting.seed), setting.quick)
    reach = MAX_DIST * float(np.hypot(*edges.shape))
    lines = [thin(edges >= level) for level in thresholds(3)]

    @cache
    def off() -> NDArray[np.int64]:
        return np.abs(tally(match, lines, drawings, reach) - tally(assignment, lines, drawings, reach))

    def apart(*columns: int) -> float:
        return float(off()[:, list(columns)].max())

    guards = [
        at_most("counts and total cost apart", lambda: apart(MATCHED_TRUTH, TRUTH, FOUND, 4), 0),
        # a union over annotators, of matchings that may differ among equals: 1 % of the map's pixels is far off
        at_most("union of matched pixels apart", lambda: apart(MATCHED_FOUND), float(lines[0].sum() // 100)),
    ]
    pixels = f"{lines[0].sum()} to {lines[-1].sum()} found, {drawings.sum()} drawn by {len(drawings)}"
    note = f"{source}, {edges.shape[0]} x {edges.shape[1]}, three thresholds, {pixels}"

    def every(matcher: Matcher) -> list[NDArray[np.int64]]:
        return [matcher(edge, drawing, reach) for edge in lines for drawing in drawings]

    return Case(lambda: every(assignment), lambda: every(match), guards, note, "int32")


ROWS = [
    Row("edge_match", "edge map matched with its annotators vs SciPy's assignment by pieces", matching_row, cpu=True)
]
