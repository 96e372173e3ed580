"""Greedy NMS against the rule written out pair by pair, and what happens at its limits."""

import numpy as np
import pytest
import torch

from frisket.kernels.nms import nms


def by_pairs(boxes: np.ndarray, scores: np.ndarray, limit: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        overlaps = []
        for j in kept:
            wide = max(0, min(boxes[i][2], boxes[j][2]) - max(boxes[i][0], boxes[j][0]))
            high = max(0, min(boxes[i][3], boxes[j][3]) - max(boxes[i][1], boxes[j][1]))
            areas = sum((boxes[n][2] - boxes[n][0]) * (boxes[n][3] - boxes[n][1]) for n in (i, j))
            overlaps.append(wide * high / (areas - wide * high) if wide * high else 0.0)
        if all(overlap <= limit for overlap in overlaps):
            kept.append(i)
    return kept


def test_it_is_greedy_and_ordered() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [2, 0, 12, 10], [0, 0, 10, 10]]).float()
    scores = torch.tensor([0.9, 0.8, 0.95, 0.7, 0.9])
    # 1 and 4 overlap 0 by more than 0.7; 3 overlaps 0 by 8/12 only, and 1, which would drop it, is gone
    assert nms(boxes, scores, 0.7).tolist() == [2, 0, 3]
    assert nms(boxes, scores, 1.0).tolist() == [2, 0, 4, 1, 3]
    assert nms(boxes[:0], scores[:0], 0.5).tolist() == []


@pytest.mark.parametrize("seed", range(8))
def test_it_equals_the_rule_written_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 12, (120, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 9, (120, 2))], axis=1)  # some without area
    scores = rng.integers(0, 6, 120) / 8  # many ties
    for limit in (0.3, 0.5, 0.7):  # ratios of such small numbers meet 0.5 exactly
        found = nms(torch.from_numpy(boxes), torch.from_numpy(scores), limit)
        assert found.tolist() == by_pairs(boxes, scores, limit)


def test_boxes_without_area_stay_and_drop_nothing() -> None:
    boxes = torch.tensor([[3, 3, 3, 9], [3, 3, 3, 9], [0, 0, 10, 10]]).float()
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.0).tolist() == [0, 1, 2]


def test_a_dense_grids_boxes_need_no_matrix() -> None:
    corners = torch.rand(12_288, 2) * 1000
    boxes = torch.cat([corners, corners + 5 + torch.rand(12_288, 2) * 200], dim=1)
    kept = nms(boxes, torch.rand(12_288), 0.9)  # 12,288² IoUs would be 600 MB
    assert 10_000 < len(kept) < 12_288
