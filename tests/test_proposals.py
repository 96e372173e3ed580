"""Targets and losses of AutoPPN against plain loops; a picker that is given the targets finds every object."""

import math

import pytest
import torch
from torch import Tensor

from frisket.geometry import boxes_of_masks, inside
from frisket.models.auto_ppn import Proposals, pick
from frisket.proposals import BETA, Targets, box_loss, focal_heat_loss, group_of, hard_heat_loss, targets


def scene(count: int, side: int = 32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Discs on the grid, many of them overlapping: masks, boxes in input px, shares of the photograph."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    masks = []
    for _ in range(count):
        radius = 0.8 + float(torch.rand(1, generator=generator)) ** 2 * side / 3
        cx, cy = (torch.rand(2, generator=generator) * (side - 1)).tolist()
        masks.append((x - cx) ** 2 + (y - cy) ** 2 <= radius**2)
    stacked = torch.stack(masks)
    stacked = stacked[stacked.flatten(1).any(1)]
    return stacked, boxes_of_masks(stacked) * 4, stacked.flatten(1).float().mean(1)


def slow(masks: Tensor, boxes: Tensor, shares: Tensor) -> Targets:
    """targets, cell by cell: the distance to every cell outside, border included, is measured."""
    side = masks.shape[-1]
    heat, ways = torch.zeros(3, side, side), torch.zeros(3, 4, side, side)
    outside = [(i, j) for i in range(-1, side + 1) for j in range(-1, side + 1)]
    for n, mask in enumerate(masks):
        if shares[n] > 0.9:
            continue
        group = 0 if shares[n] < 0.05 else 1 if shares[n] <= 0.25 else 2
        x0, y0, x1, y1 = boxes[n].tolist()
        if not mask.any():
            mask = mask.clone()
            mask[min(side - 1, int((y0 + y1) / 8)), min(side - 1, int((x0 + x1) / 8))] = True
        out = torch.tensor([p for p in outside if not (0 <= p[0] < side and 0 <= p[1] < side and mask[p])]).float()
        depth = {tuple(p): float((out - p).square().sum(1).min()) for p in mask.nonzero().float()}
        for (i, j), d in depth.items():
            i, j = int(i), int(j)
            value = (torch.tensor(d) / max(depth.values())).sqrt()
            if value > heat[group, i, j]:
                heat[group, i, j] = value
                x, y = (j + 0.5) * 4, (i + 0.5) * 4
                ways[group, :, i, j] = torch.tensor([x - x0, y - y0, x1 - x, y1 - y]) / (4 * side)
    return Targets(heat, ways)


def rubble(count: int, side: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, copies, single cells, whole and empty masks, as `scene` gives discs; equal depths abound."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, side, side, generator=generator) < torch.rand(count, 1, 1, generator=generator) ** 3
    masks[1::5], masks[2::7], masks[3::9] = torch.rand(side, side, generator=generator) < 0.97, True, False
    boxes = torch.rand(count, 4, generator=generator).sort(dim=1).values * 4 * side
    shares = torch.rand(count, generator=generator)
    return masks, boxes, torch.where(torch.rand(count, generator=generator) < 0.5, shares * 0.1, shares)


@pytest.mark.parametrize("seed", range(8))
def test_targets_are_depths_and_ways_to_the_box(seed: int) -> None:
    masks, boxes, shares = scene(12, side=14, seed=seed) if seed % 2 else rubble(30, side=8 + seed, seed=seed)
    masks[0], shares[0] = True, 1.0  # all of the picture: no object
    before = masks.clone()
    made, expected = targets(masks, boxes, shares), slow(masks, boxes, shares)
    torch.testing.assert_close(made.heat, expected.heat, atol=1e-6, rtol=0)
    torch.testing.assert_close(made.boxes, expected.boxes, atol=1e-6, rtol=0)
    single = targets(masks, boxes, shares, groups=1)
    assert torch.equal(single.heat[0], made.heat.amax(0)) and torch.equal(masks, before)


@pytest.mark.parametrize("kind", ["depth", "gaussian"])
def test_without_an_object_there_is_nothing_to_learn(kind) -> None:
    for count, share in ((0, 0.1), (2, 0.95)):
        heat, ways = targets(torch.ones(count, 8, 8) > 0, torch.ones(count, 4), torch.full((count,), share), kind=kind)
        assert heat.shape == (3, 8, 8) and ways.shape == (3, 4, 8, 8) and not heat.any() and not ways.any()


def test_an_object_below_the_grid_is_the_cell_of_its_box() -> None:
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    made = targets(masks, torch.tensor([[21.0, 41.0, 23.0, 43.0]]), torch.tensor([0.001]))
    assert made.heat.sum() == 1 and made.heat[0, 10, 5] == 1
    assert made.boxes[0, :, 10, 5].tolist() == pytest.approx([1 / 64, 1 / 64, 1 / 64, 1 / 64])


def slow_bells(boxes: Tensor, shares: Tensor, side: int) -> Targets:
    """CenterNet's targets, cell by cell; the radius is searched for: the largest by which corners may move, each way
    that boxes can meet, while they overlap by 0.7."""
    heat, ways = torch.zeros(3, side, side), torch.zeros(3, 4, side, side)
    for (x0, y0, x1, y1), share in zip((boxes / 4).tolist(), shares.tolist(), strict=True):
        group = 0 if share < 0.05 else 1 if share <= 0.25 else 2
        w, h = max(1, math.ceil(x1 - x0)), max(1, math.ceil(y1 - y0))

        def overlap(r: float, w: int = w, h: int = h) -> float:
            smaller, larger = max(0.0, w - 2 * r) * max(0.0, h - 2 * r), (w + 2 * r) * (h + 2 * r)
            beside = max(0.0, w - r) * max(0.0, h - r)
            return min(smaller / (w * h), w * h / larger, beside / (2 * w * h - beside))

        radius = 0
        while overlap(radius + 1 - 1e-9) >= 0.7:
            radius += 1
        cx, cy = int((x0 + x1) / 2), int((y0 + y1) / 2)
        for i, j in [(i, j) for i in range(side) for j in range(side)]:
            if max(abs(i - cy), abs(j - cx)) <= radius:
                sigma = (2 * radius + 1) / 6
                value = math.exp(-((i - cy) ** 2 + (j - cx) ** 2) / (2 * sigma**2))
                if value > float(heat[group, i, j]) + 1e-7:
                    heat[group, i, j] = value
                    way = torch.tensor([j + 0.5 - x0, i + 0.5 - y0, x1 - j - 0.5, y1 - i - 0.5])
                    ways[group, :, i, j] = way / side
    return Targets(heat, ways)


@pytest.mark.parametrize("seed", range(4))
def test_the_baselines_targets_are_bells_at_the_middles_of_boxes(seed: int) -> None:
    masks, boxes, shares = scene(14, side=48, seed=seed)
    boxes += torch.rand(boxes.shape, generator=torch.Generator().manual_seed(seed)) * 0.5
    made, expected = targets(masks, boxes, shares, kind="gaussian"), slow_bells(boxes, shares, 48)
    torch.testing.assert_close(made.heat, expected.heat, atol=1e-6, rtol=0)
    torch.testing.assert_close(made.boxes, expected.boxes, atol=1e-6, rtol=0)
    assert (made.heat == 1).sum() > 5 and (made.heat > 0).sum() > 2 * (made.heat == 1).sum()


def test_groups_begin_at_5_and_end_at_25_percent() -> None:
    assert group_of(torch.tensor([0.0, 0.0499, 0.05, 0.25, 0.2501, 1.0])).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("seed", range(6))
def test_from_its_own_targets_the_picker_hits_every_object(seed: int) -> None:
    """Nested and crossing objects share a map; still one pick at least lies in each, and where an object is the
    deepest its box comes back."""
    masks, boxes, shares = scene(40, side=64, seed=seed)
    made = targets(masks, boxes, shares)
    answer = pick(Proposals(made.heat.logit(eps=1e-6)[None], made.boxes[None]), torch.tensor([[256, 256]]), 256)
    cells = (answer.points[0] / 4).long()[answer.scores[0] > 1e-5]
    hit = masks[:, cells[:, 1], cells[:, 0]].any(1) | (shares > 0.9)
    assert hit.all()
    sure = answer.scores[0] > 1 - 1e-5
    corners = answer.boxes[0][sure]
    assert ((corners[:, None] - boxes[None]).abs().amax(-1).min(1).values < 0.01).all()


def heat_by_loops(heat: Tensor, wanted: Tensor, valid: Tensor, hard: int) -> float:
    """hard_heat_loss of one group, with `hard` worst cells."""
    inner, empty = [], []
    for b, i, j in valid.nonzero().tolist():
        error = (1 / (1 + math.exp(-float(heat[b, i, j]))) - float(wanted[b, i, j])) ** 2
        (inner if wanted[b, i, j] > 0 else empty).append(error)
    worst = sorted(empty, reverse=True)[:hard]
    return sum(inner) / max(1, len(inner)) + sum(worst) / max(1, len(worst))


def test_the_heat_loss_counts_objects_and_the_worst_of_the_rest() -> None:
    torch.manual_seed(0)
    side = 40
    masks, boxes, shares = scene(20, side=side)
    wanted = torch.stack([targets(masks[n::2], boxes[n::2], shares[n::2]).heat for n in range(2)])
    valid = inside(torch.tensor([[160, 120], [100, 160]]), side, 4)
    heat = torch.randn(2, 3, side, side, requires_grad=True)
    loss = hard_heat_loss(heat, wanted, valid=valid)
    expected = 0.0
    for g in range(3):
        cells = int(((wanted[:, g] > 0) & valid).sum())
        expected += heat_by_loops(heat[:, g].detach(), wanted[:, g], valid, max(1024, 3 * cells))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert heat.grad is not None
    assert not any(heat.grad[b, :, ~valid[b]].any() for b in range(2))
    together = hard_heat_loss(heat, wanted, valid=valid, grouped=False)
    assert together.isfinite() and float(together) < float(loss)


def test_without_objects_only_the_worst_empty_cells_cost() -> None:
    heat = torch.full((1, 1, 40, 40), -9.0)
    heat[0, 0, :32, :32] = 0.0  # 1,024 cells that say "perhaps"
    loss = hard_heat_loss(heat, torch.zeros_like(heat), valid=torch.ones(1, 40, 40, dtype=torch.bool))
    assert float(loss) == pytest.approx(0.25)


def test_the_focal_loss_is_its_formula() -> None:
    torch.manual_seed(0)
    heat, wanted = torch.randn(1, 2, 5, 5), torch.rand(1, 2, 5, 5)
    wanted[0, 0, 2, 2] = wanted[0, 1, 1, 3] = 1
    valid = torch.ones(1, 5, 5, dtype=torch.bool)
    valid[0, :, 4] = False
    total = 0.0
    for g, i, j in [(g, i, j) for g in range(2) for i in range(5) for j in range(4)]:
        p, y = float(heat[0, g, i, j].sigmoid()), float(wanted[0, g, i, j])
        total -= (1 - p) ** 2 * math.log(p) if y == 1 else (1 - y) ** 4 * p**2 * math.log(1 - p)
    assert float(focal_heat_loss(heat, wanted, valid=valid)) == pytest.approx(total / 2, rel=1e-5)


def test_boxes_are_taught_where_an_object_is_deep_each_group_alike() -> None:
    heat = torch.zeros(1, 3, 2, 2)
    heat[0, 0, 0, 0], heat[0, 0, 0, 1], heat[0, 2, 1, 1] = 1.0, 0.49, 0.6
    wanted = Targets(heat, torch.zeros(1, 3, 4, 2, 2))
    boxes = torch.zeros(1, 3, 4, 2, 2)
    boxes[0, 0, :, 0, 0] = 0.25  # straight: 0.25 - BETA / 2
    boxes[0, 0, :, 0, 1] = 9.0  # not deep enough
    boxes[0, 2, 0, 1, 1] = 0.01  # square, one of four
    boxes.requires_grad_()
    loss = box_loss(boxes, wanted)
    assert float(loss) == pytest.approx(((0.25 - BETA / 2) + 0.5 * 0.01**2 / BETA / 4) / 3, rel=1e-5)
    loss.backward()
    assert boxes.grad is not None and not boxes.grad[0, 0, :, 0, 1].any() and boxes.grad.isfinite().all()
