"""MaskIoU against hand-counted means, in any number of batches, and over two ranks."""

import math

import pytest
import torch

from frisket.eval.metrics import MaskIoU


def test_means_over_masks_and_sizes() -> None:
    metric = MaskIoU()
    metric.update(torch.tensor([0.2, 0.4, 0.6]), torch.tensor([1023.0, 1024.0, 9216.0]))
    metric.update(torch.tensor([1.0]), torch.tensor([9217.0]))
    values = metric.compute()
    # 32^2 and 96^2 are both medium
    assert values == pytest.approx({"miou": 0.55, "miou_s": 0.2, "miou_m": 0.5, "miou_l": 1.0, "n": 4.0})


def test_a_size_without_masks_is_nan() -> None:
    metric = MaskIoU()
    metric.update(torch.tensor([0.5]), torch.tensor([10.0]))
    values = metric.compute()
    assert values["miou_s"] == 0.5 and math.isnan(values["miou_m"]) and math.isnan(values["miou_l"])


def test_batches_do_not_matter() -> None:
    iou, areas = torch.rand(1000), torch.rand(1000) * 20_000
    whole, parts = MaskIoU(), MaskIoU()
    whole.update(iou, areas)
    for start in range(0, 1000, 7):
        parts.update(iou[start : start + 7], areas[start : start + 7])
    assert whole.compute() == pytest.approx(parts.compute(), abs=1e-12)  # sums in float64
    assert whole.compute()["miou"] == pytest.approx(iou.double().mean().item(), abs=1e-12)


def test_ranks_add_up() -> None:
    """What torchmetrics does between ranks: states are gathered and summed."""
    iou, areas = torch.rand(90), torch.rand(90) * 20_000
    whole, left, right = MaskIoU(), MaskIoU(), MaskIoU()
    whole.update(iou, areas)
    left.update(iou[:31], areas[:31])
    right.update(iou[31:], areas[31:])
    left.total += right.total
    left.count += right.count
    assert left._reductions["total"] is left._reductions["count"] is not None
    assert torch.equal(left._reductions["total"](torch.stack([whole.total, whole.total])), 2 * whole.total)
    assert left.compute() == pytest.approx(whole.compute(), abs=1e-12)


def test_reset_and_empty_updates() -> None:
    metric = MaskIoU()
    metric.update(torch.rand(3), torch.rand(3))
    metric.reset()
    metric.update(torch.zeros(0), torch.zeros(0))
    metric.update(torch.tensor([0.25]), torch.tensor([5000]))  # areas may be integers
    values = metric.compute()
    assert values["miou"] == 0.25 and values["n"] == 1.0


def test_shared_borders_count_on_both_sides() -> None:
    """Objects of exactly 32² and 96² pixels; elsewhere both are medium."""
    iou, areas = torch.tensor([0.25, 0.75]), torch.tensor([32.0**2, 96.0**2])
    shared, plain = MaskIoU(shared_borders=True), MaskIoU()
    for metric in (shared, plain):
        metric.update(iou, areas)
    assert [shared.compute()[f"miou_{size}"] for size in "sml"] == [0.25, 0.5, 0.75]
    assert plain.count.tolist() == [2, 0, 2, 0]
