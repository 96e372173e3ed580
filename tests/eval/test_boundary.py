"""The Berkeley metric: its own sample's known answers, closed forms, and each number against its plain definition."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frisket.data.bsds import boundaries
from frisket.eval import boundary
from frisket.eval.boundary import (
    MATCHED_FOUND,
    TRUTH,
    Counts,
    average_precision,
    best,
    curve,
    f_measure,
    rates,
    recall_at_half,
    summary,
    thresholds,
)

NAMES = ("2018", "3063", "5096", "6046", "8068")  # as text sorts them, which is the order of the answers


@pytest.fixture(scope="module")
def sample(data_root: Path) -> tuple[list[Counts], Path]:
    """The counts of Berkeley's five maps at five thresholds, and the folder of the official answers."""
    root = data_root / "bsds_bench"
    if not root.is_dir():
        pytest.skip("needs bsds_bench in FRISKET_DATA_ROOT")
    levels = thresholds(5)
    counts = [
        curve(np.asarray(Image.open(root / f"png/{n}.png")) / 255, boundaries(root / f"groundTruth/{n}.mat"), levels)
        for n in NAMES
    ]
    return counts, root / "expected"


def test_berkeleys_ods_ois_ap(sample: tuple[list[Counts], Path]) -> None:
    """Tolerances: the official program, run twice on one input, differs by up to 3.4e-4 from itself."""
    counts, expected = sample
    found = summary(counts, thresholds(5))
    threshold, recall, precision, ods, ois_recall, ois_precision, ois, ap = np.loadtxt(expected / "eval_bdry.txt")
    assert (found["ods"], found["ois"], found["ap"]) == pytest.approx((ods, ois, ap), abs=1e-3)
    assert found["ods/threshold"] == pytest.approx(threshold, abs=1e-6)  # six digits are printed
    ours = [found[f"{name}/{kind}"] for name in ("ods", "ois") for kind in ("recall", "precision")]
    assert ours == pytest.approx([recall, precision, ois_recall, ois_precision], abs=2e-3)


def test_berkeleys_curve(sample: tuple[list[Counts], Path]) -> None:
    counts, expected = sample
    found = summary(counts, thresholds(5))
    ours = np.stack([found[f"curve/{name}"] for name in ("threshold", "recall", "precision", "f")], axis=1)
    assert np.abs(ours - np.loadtxt(expected / "eval_bdry_thr.txt")).max() < 2e-3


def test_berkeleys_photographs(sample: tuple[list[Counts], Path]) -> None:
    counts, expected = sample
    ours = [best(thresholds(5), *rates(one)) for one in counts]
    assert np.abs(np.array(ours) - np.loadtxt(expected / "eval_bdry_img.txt")[:, 1:]).max() < 2e-3


def line(column: int) -> np.ndarray:
    """A vertical line in a picture of Berkeley's size."""
    made = np.zeros((321, 481), bool)
    made[:, column] = True
    return made


def test_a_perfect_map_scores_one() -> None:
    drawn = line(100)
    drawn[40, :] = True
    scores = summary([curve(drawn.astype(float), drawn[None], thresholds(99))] * 2, thresholds(99))
    assert [scores[name] for name in ("ods", "ois", "r50")] == [1, 1, 1]
    assert scores["ap"] == 0  # one recall alone spans no area


def test_a_perfect_ranking_has_full_average_precision() -> None:
    """A line whose strength falls evenly: recall 1 - t at every threshold, precision 1. Recall 0 is out of reach."""
    drawn = line(100)
    edges = np.where(drawn, np.linspace(1, 0, 321)[:, None], 0)
    scores = summary([curve(edges, drawn[None], thresholds(999))], thresholds(999))
    assert scores["ap"] == pytest.approx(0.99, abs=1e-9) and scores["r50"] == pytest.approx(1, abs=0.004)


@pytest.mark.parametrize(("shift", "value"), [(0, 1.0), (4, 1.0), (5, 0.0)])
def test_lines_within_the_reach_are_right(shift: int, value: float) -> None:
    scores = summary([curve(line(100 + shift) * 0.65, line(100)[None], thresholds(9))], thresholds(9))
    assert scores["ods"] == scores["ois"] == value
    assert scores["curve/recall"] == [value] * 6 + [0.0] * 3  # kept at 0.1 … 0.6


def test_one_pixel_drawn_and_eleven_found() -> None:
    drawn, found = np.zeros((1, 321, 481), bool), np.zeros((321, 481))
    drawn[0, 50, 100], found[50, 95:106] = True, 1
    assert rates(curve(found, drawn, thresholds(1))[0]) == (1, pytest.approx(1 / 11))


def test_precision_counts_a_pixel_once_and_recall_every_annotator() -> None:
    nobody = np.zeros((321, 481), bool)
    counts = curve(line(100) * 1.0, np.stack([line(100), line(103), line(300), nobody]), thresholds(1))[0]
    assert counts.tolist() == [642, 963, 321, 321]


def test_equal_pictures_are_matched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    inner = boundary.at_threshold

    def counted(kept: np.ndarray, drawings: np.ndarray, reach: float) -> Counts:
        seen.append(int(kept.sum()))
        return inner(kept, drawings, reach)

    monkeypatch.setattr(boundary, "at_threshold", counted)
    rng = np.random.default_rng(0)
    edges = rng.choice([0.0, 0.2, 0.5, 0.7], (40, 50))
    drawings = rng.random((2, 40, 50)) < 0.1
    levels = thresholds(99)
    found = curve(edges, drawings, levels)
    assert len(seen) == len(set(seen)) == 4
    each = np.stack([inner(edges >= level, drawings, 0.0075 * np.hypot(40, 50)) for level in levels])
    assert (found == each).all()


def test_threads_change_nothing() -> None:
    rng = np.random.default_rng(1)
    edges, drawings = rng.random((60, 80)) ** 3, rng.random((3, 60, 80)) < 0.05
    assert (curve(edges, drawings, thresholds(9)) == curve(edges, drawings, thresholds(9), threads=3)).all()


def test_thresholds_meet_the_values_of_8_bit_maps() -> None:
    """As linspace rounds: 85 / 255 stays just below its 1 / 3, while 51 / 255 and its like reach 20 / 100."""
    assert thresholds(1).tolist() == [0.5] and len(thresholds(99)) == 99
    values = np.arange(256) / 255
    assert values[85] < thresholds(5)[1] and values[170] >= thresholds(5)[3]
    assert all(values[51 * k] >= thresholds(99)[20 * k - 1] for k in range(1, 5))


def test_best_searches_between_thresholds() -> None:
    """Against the loops of the definition."""
    levels, recall, precision = thresholds(3), np.array([1.0, 0.9, 0.1]), np.array([0.05, 0.1, 1.0])
    tried = [(levels[0], recall[0], precision[0])]
    for i in range(1, 3):
        for d in np.linspace(0, 1, 100):
            tried.append(tuple(line[i] * d + line[i - 1] * (1 - d) for line in (levels, recall, precision)))
    scores = [2 * r * p / (r + p) for _, r, p in tried]
    at = int(np.argmax(scores))
    assert best(levels, recall, precision) == pytest.approx((*tried[at], scores[at]))
    assert scores[at] > 2 * f_measure(recall, precision).max()


def test_ois_takes_each_photographs_own_threshold() -> None:
    one, two = np.array([[90, 100, 90, 100], [10, 100, 10, 10]]), np.array([[50, 50, 50, 500], [50, 50, 50, 100]])
    found = summary([one, two], thresholds(2))
    assert (found["ois/recall"], found["ois/precision"]) == (140 / 150, 140 / 200)
    assert found["ois"] == pytest.approx(2 * 140 / (150 + 200))  # F = 2 m / (drawn + found) when both matches are m


def test_average_precision_is_the_area_reached() -> None:
    recall, precision = np.array([0.8, 0.6, 0.2, 0.2]), np.array([0.4, 0.8, 1.0, 0.9])
    area = sum(np.interp(r, [0.2, 0.6, 0.8], [1.0, 0.8, 0.4]) for r in np.arange(20, 81) / 100) * 0.01
    assert average_precision(recall, precision) == pytest.approx(area)
    assert average_precision(np.zeros(3), np.ones(3)) == 0


def test_recall_at_half_precision() -> None:
    recall = np.array([0.9, 0.7, 0.5])
    assert recall_at_half(recall, np.array([0.4, 0.6, 0.8])) == pytest.approx(0.8)  # between 0.9 and 0.7
    assert recall_at_half(recall, np.array([0.6, 0.7, 0.8])) == pytest.approx(0.9)  # never as low as 0.5
    assert recall_at_half(recall, np.array([0.1, 0.2, 0.3])) == 0  # never as high


def test_nothing_found_and_nothing_drawn() -> None:
    none = np.zeros((1, 20, 30), bool)
    found = summary([curve(np.zeros((20, 30)), none, thresholds(3))], thresholds(3))
    assert all(found[name] == 0 for name in ("ods", "ois", "ap", "r50"))
    drawn = curve(np.zeros((20, 30)), ~none, thresholds(3))
    assert drawn[0, TRUTH] == 600 and drawn[0, MATCHED_FOUND] == 0


def test_wrong_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be matched"):
        curve(np.zeros((4, 5)), np.zeros((1, 5, 4), bool), thresholds(3))
    with pytest.raises(ValueError, match="NaN"):
        curve(np.full((4, 5), np.nan), np.zeros((1, 4, 5), bool), thresholds(3))
