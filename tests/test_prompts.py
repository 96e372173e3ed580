"""Simulated annotators: points fall where they should, evenly; boxes stay within their noise; clicks are RITM's."""

import numpy as np
import pytest
import torch
from torch import Generator

from frisket.models.sam import Sam
from frisket.prompts import (
    box_corners,
    cell_to_input,
    central_pixels,
    central_points,
    error_points,
    noised_boxes,
    random_points,
    weighed_points,
)
from frisket.sample import IGNORED, Prompts


@pytest.fixture
def generator() -> Generator:
    return torch.Generator().manual_seed(0)


def cells_of(points: torch.Tensor) -> torch.Tensor:
    """Grid cells (x, y) under input points; each must be a cell's exact centre."""
    cells = (points + 0.5) / 4 - 0.5
    assert torch.equal(cells, cells.round())
    return cells.long()


def test_cell_centres() -> None:
    # cell 0 covers pixels 0..3, whose centres are 0..3 in the pixel-index convention: the middle is 1.5
    assert cell_to_input(torch.tensor([[0, 0], [1, 15]])).tolist() == [[1.5, 1.5], [5.5, 61.5]]


def test_random_points_lie_inside_every_mask(generator: Generator) -> None:
    masks = torch.rand(500, 16, 16) < torch.linspace(0.004, 1, 500)[:, None, None]
    masks[:, 3, 5] |= ~masks.flatten(1).any(1)
    points, found = random_points(masks, generator)
    x, y = cells_of(points).unbind(1)
    assert found.all() and masks[torch.arange(500), y, x].all()


def test_weighed_points_come_as_often_as_their_weight_says(generator: Generator) -> None:
    weights = torch.rand(8, 8, generator=generator) ** 2
    weights[2] = 0
    mask = torch.rand(8, 8, generator=generator) < 0.6
    points, found = weighed_points(mask.expand(20000, 8, 8), weights.expand(20000, 8, 8), generator)
    x, y = cells_of(points).unbind(1)
    share = torch.bincount(y * 8 + x, minlength=64).view(8, 8) / 20000
    expected = weights * mask / (weights * mask).sum()
    assert found.all() and (share - expected).abs().max() < 0.01 and not share[expected == 0].any()
    points, found = weighed_points(mask[None], torch.zeros(1, 8, 8), generator)
    assert not found.any() and cells_of(points).max() < 8  # nowhere to draw from: the caller's uniform point stays


def test_random_points_are_uniform(generator: Generator) -> None:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[0, 0] = mask[15, 15] = mask[4:8, 6:9] = mask[9, 15] = True
    count = 30_000
    points, _ = random_points(mask.expand(count, 16, 16), generator)
    x, y = cells_of(points).unbind(1)
    hits = torch.bincount(y * 16 + x, minlength=256).view(16, 16)
    expected = count / int(mask.sum())
    assert hits[~mask].sum() == 0
    # 15 cells: chi-squared with 14 degrees of freedom passes 36.1 once in a thousand; the seed is fixed
    assert ((hits[mask] - expected) ** 2 / expected).sum() < 36.1


def test_a_full_large_grid_reaches_its_ends(generator: Generator) -> None:
    """256 x 256 foreground cells: float32 chances must not fall past the last one or skip the first rows."""
    points, found = random_points(torch.ones(1, 256, 256, dtype=torch.bool).expand(2000, -1, -1), generator)
    cells = cells_of(points)
    assert found.all() and cells.min() >= 0 and cells.max() <= 255
    assert cells[:, 1].min() < 3 and cells[:, 1].max() > 252


def test_empty_masks_say_so(generator: Generator) -> None:
    points, found = random_points(torch.zeros(2, 16, 16, dtype=torch.bool), generator)
    assert not found.any() and cells_of(points).tolist() == [[8, 8], [8, 8]]
    points, found = random_points(torch.zeros(0, 16, 16, dtype=torch.bool), generator)
    assert points.shape == (0, 2) and found.shape == (0,)


def test_error_points_are_labelled_by_the_truth(generator: Generator) -> None:
    truth = torch.rand(400, 16, 16) < 0.5
    prediction = torch.rand(400, 16, 16) < 0.5
    points, labels = error_points(prediction, truth, generator)
    x, y = cells_of(points).unbind(1)
    rows = torch.arange(400)
    said, real = prediction[rows, y, x], truth[rows, y, x]
    assert (said != real).all()
    assert labels[real & ~said].eq(1).all()  # a missed pixel is a foreground click
    assert labels[~real & said].eq(0).all()  # a wrongly covered one is a background click
    assert {0, 1} == set(labels.tolist())


@pytest.mark.parametrize(("prediction", "label"), [(False, 1), (True, 0)])
def test_only_misses_or_only_false_alarms(generator: Generator, prediction: bool, label: int) -> None:
    truth = torch.zeros(50, 16, 16, dtype=torch.bool)
    truth[:, 4:9, 4:9] = True
    points, labels = error_points(torch.full_like(truth, prediction), truth, generator)
    x, y = cells_of(points).unbind(1)
    assert labels.eq(label).all() and truth[torch.arange(50), y, x].eq(label == 1).all()


def test_no_error_becomes_a_background_click(generator: Generator) -> None:
    truth = torch.rand(200, 16, 16) < 0.5
    points, labels = error_points(truth, truth, generator)
    x, y = cells_of(points).unbind(1)
    assert labels.eq(0).all() and not truth[torch.arange(200), y, x].any()


def test_no_error_and_no_background_is_ignored(generator: Generator) -> None:
    truth = torch.ones(3, 16, 16, dtype=torch.bool)
    truth[0, 2, 7] = False
    _, labels = error_points(truth, truth, generator)
    assert labels.tolist() == [0, IGNORED, IGNORED]


def test_clicks_never_land_in_the_padding(generator: Generator) -> None:
    valid = torch.zeros(300, 16, 16, dtype=torch.bool)
    valid[:, :11, :5] = True
    truth = (torch.rand(300, 16, 16) < 0.5) & valid
    prediction = torch.rand(300, 16, 16) < 0.5
    prediction[:100] = truth[:100]  # the fall-back must respect the padding, too
    truth[100:110] = prediction[100:110] = valid[100:110]
    points, labels = error_points(prediction, truth, generator, valid=valid)
    x, y = cells_of(points).unbind(1)
    seen = labels != IGNORED
    assert valid[torch.arange(300), y, x][seen].all()
    assert (~seen).nonzero().flatten().tolist() == list(range(100, 110))


def test_an_ignored_click_changes_nothing(tiny_sam: Sam) -> None:
    """The label of last resort must really be invisible to the decoder."""
    embeddings = tiny_sam.encode(torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64]]))
    one = Prompts(points=torch.tensor([[[9.5, 13.5]]]), labels=torch.tensor([[1]]))
    two = one.click(torch.tensor([[33.5, 33.5]]), torch.tensor([IGNORED]))
    index = torch.zeros(1, dtype=torch.long)
    first, second = (tiny_sam.decode(embeddings, index, p, multimask=False) for p in (one, two))
    assert torch.allclose(first.logits, second.logits, atol=1e-5)
    assert torch.allclose(first.iou, second.iou, atol=1e-5)


def test_ritm_click() -> None:
    """specs/sam_and_evaluation.md 6.4: 7 x 9, rows 1..5 and columns 1..7 set: distance 3, first maximum at (3, 3)."""
    mask = np.zeros((1, 7, 9), dtype=bool)
    mask[0, 1:6, 1:8] = True
    assert central_pixels(mask).tolist() == [[3, 3]]


def test_central_pixels_against_brute_force() -> None:
    """Oracle: the distance to every background pixel of the mask padded by one, by hand."""
    rng = np.random.default_rng(0)
    masks = np.stack([rng.random((9, 12)) < share for share in (0.1, 0.5, 0.8, 0.9, 0.97, 1.0)])
    masks[0] = False
    masks[1, :, :6] = True
    for mask, (x, y) in zip(masks, central_pixels(masks)):
        if not mask.any():
            assert (x, y) == (6, 4)
            continue
        outside = np.argwhere(~np.pad(mask, 1))
        inside = np.argwhere(mask)  # row-major
        nearest = ((inside[:, None] + 1 - outside[None]) ** 2).sum(-1).min(1)
        assert [y, x] == inside[nearest.argmax()].tolist()


def test_a_mask_on_the_border_is_not_clicked_on_the_border() -> None:
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[0, :7, :7] = True
    assert central_points(masks).tolist() == [[13.5, 13.5]]  # cell (3, 3)


def test_noised_boxes_stay_within_their_noise(generator: Generator) -> None:
    corners = torch.rand(2000, 2, 2) * 1024
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    lengths = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    for kind in ("gaussian", "uniform"):
        moved = noised_boxes(boxes, generator, side=1024, scale=0.1, cap=20.0, kind=kind)
        assert moved.min() >= 0 and moved.max() <= 1024
        assert (moved[:, 2:] >= moved[:, :2]).all()
        assert (moved - boxes).abs().max() <= 20 + 1e-3
        if kind == "uniform":  # a box thinner than its noise may swap corners, hence the factor
            assert ((moved - boxes).abs() <= 0.1 * lengths + 1e-3).all()


def test_noise_is_a_share_of_its_own_side(generator: Generator) -> None:
    """A wide, flat box in the middle: x moves about 5 px (10 % of 50), y about 1 px (10 % of 10)."""
    box = torch.tensor([[400.0, 500.0, 450.0, 510.0]]).expand(20_000, 4)
    spread = (noised_boxes(box, generator, side=1024) - box).std(dim=0)
    assert torch.allclose(spread, torch.tensor([5.0, 1.0, 5.0, 1.0]), rtol=0.03)


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_noise_goes_both_ways(generator: Generator, kind: str) -> None:
    box = torch.tensor([[400.0, 500.0, 450.0, 510.0]]).expand(20_000, 4)
    moved = noised_boxes(box, generator, side=1024, kind=kind) - box
    # the standard error of a mean over 20,000 draws is at most 5 / 141 px
    assert moved.mean(0).abs().max() < 0.2 and ((moved > 0).float().mean(0) - 0.5).abs().max() < 0.02


def test_the_cap_shrinks_with_the_input(generator: Generator) -> None:
    boxes = torch.tensor([[0.0, 0.0, 64.0, 64.0]]).expand(1000, 4)
    moved = noised_boxes(boxes, generator, side=64, scale=0.5)
    assert (moved - boxes).abs().max().item() == pytest.approx(20 * 64 / 1024)
    assert torch.equal(noised_boxes(boxes, generator, side=64, scale=0.0), boxes)


def test_corners_give_the_tokens_of_a_box(tiny_sam: Sam) -> None:
    embeddings = tiny_sam.encode(torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8), torch.tensor([[64, 64]]))
    boxes = torch.tensor([[3.0, 8.0, 40.0, 50.0], [0.0, 1.0, 20.0, 64.0]])
    points, labels = box_corners(boxes)
    index = torch.zeros(2, dtype=torch.long)
    as_box = tiny_sam.decode(embeddings, index, Prompts(boxes=boxes), multimask=True)
    as_points = tiny_sam.decode(embeddings, index, Prompts(points=points, labels=labels), multimask=True)
    assert torch.allclose(as_box.logits, as_points.logits, atol=1e-5)


def test_the_generator_decides() -> None:
    masks = torch.rand(20, 16, 16) < 0.5
    draws = [random_points(masks, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
