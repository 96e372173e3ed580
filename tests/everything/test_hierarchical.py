"""TinySAM's two rounds of clicks: which points are asked, against a second writing that enlarges every mask."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from frisket.checkpoint import load
from frisket.errors import UserError
from frisket.everything import grid
from frisket.everything.generator import everything
from frisket.everything.hierarchical import Config, Strategy
from frisket.everything.strategy import chosen, describe
from frisket.geometry import Frame, upscale_logits
from frisket.kernels.upscaled import lattice
from frisket.predict.predictor import Predictor

NONE = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}


@pytest.fixture
def predictor(tiny_teacher: Path) -> Callable[[int, int], Predictor]:
    """A small model and a picture of so many rows and columns."""

    def of(height: int, width: int) -> Predictor:
        predictor = Predictor(load(tiny_teacher))
        predictor.set_image(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
        return predictor

    return of


def dense(size: tuple[int, int], covered: bool = False, **changes: object) -> Tensor:
    """The second round's points where all, or nothing, of a picture (h, w) is covered."""
    strategy = Strategy(Config(**changes))
    rows, columns = strategy.lines(size[0]), strategy.lines(size[1])
    return strategy.remaining(rows, columns, torch.full((len(rows), len(columns)), covered))


@pytest.mark.parametrize(("size", "count"), [((480, 640), 897), ((640, 427), 928), ((375, 500), 960)])
def test_the_published_counts(size: tuple[int, int], count: int) -> None:
    points, sparse = dense(size), grid.grid_points(8, size)
    assert len(points) == len(points.unique(dim=0)) == count
    assert (points >= 0).all() and (points < torch.tensor([size[1], size[0]])).all()
    assert not (points[:, None] == sparse).all(-1).any()  # none is asked twice
    assert dense(size, covered=True).shape == (0, 2)


def test_the_dense_points_lie_in_whole_steps_around_the_sparse_ones() -> None:
    """As the released code walks: offsets -1, 0, 1, 2 of floor(W / 32) and floor(H / 32), but for (0, 0)."""
    height, width = 375, 500
    expected = set()
    for column in range(8):
        for row in range(8):
            for i in (-1, 0, 1, 2):
                for j in (-1, 0, 1, 2):
                    x, y = (column + 0.5) / 8 * width + i * (width // 32), (row + 0.5) / 8 * height + j * (height // 32)
                    if (i, j) != (0, 0) and x < width and y < height:
                        expected.add((x, y))
    assert {tuple(point) for point in dense((height, width)).tolist()} == expected


def test_sams_own_grid_when_nothing_is_covered() -> None:
    torch.testing.assert_close(dense((480, 640), alignment="sam_grid"), grid.grid_points(32, (480, 640)))
    assert len(dense((480, 640), alignment="sam_grid", sparse_points_per_side=10)) == 1024


def test_a_full_cover_asks_no_second_question(predictor: Callable[[int, int], Predictor]) -> None:
    ours = predictor(60, 90)
    assert (
        everything(ours, Config(sparse_points_per_side=3, points_per_side=6, high_score_thresh=-1e9, **NONE)).asked
        == 27
    )
    nothing = Config(sparse_points_per_side=3, points_per_side=6, high_score_thresh=-1e9, pred_iou_thresh=1e9)
    assert everything(ours, nothing).asked == 3 * (
        9 + 5 * 5 - 9
    )  # none is accepted, none covers; 2 lines on the border


def test_a_lattice_of_pixels_is_that_of_the_enlarged_masks() -> None:
    for size in ((40, 90), (300, 200)):
        frame = Frame.fit(size, 64)
        low = torch.randn(3, 16, 16)
        rows, columns = torch.tensor([0, 7, size[0] - 1]), torch.tensor([3, size[1] - 1])
        full = upscale_logits(low, frame)
        torch.testing.assert_close(lattice(low, frame, rows, columns), full[:, rows][:, :, columns], atol=1e-5, rtol=0)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(lattice(low, frame, rows, columns), lattice(low.float(), frame, rows, columns))
            torch.testing.assert_close(
                lattice(low, frame, rows, columns), full[:, rows][:, :, columns], atol=1e-5, rtol=0
            )
        assert lattice(low[:0], frame, rows, columns).shape == (0, 3, 2)


@pytest.mark.parametrize("size", [(60, 90), (90, 70)])
@pytest.mark.parametrize("alignment", ["paper", "sam_grid"])
def test_the_same_masks_as_enlarging_everything(
    predictor: Callable[[int, int], Predictor], size: tuple[int, int], alignment: str
) -> None:
    """A second writing: full-size masks, a map of what is covered, point after point."""
    ours = predictor(*size)
    unfiltered = grid.Config(points_per_side=4, **NONE)
    logits = torch.cat([part.logits for part in grid.Strategy(unfiltered).ask(ours, 0)])
    limit = float(upscale_logits(logits, ours.frame).quantile(0.97))  # covers some of the picture, not all
    config = Config(sparse_points_per_side=4, points_per_side=16, high_score_thresh=limit, alignment=alignment, **NONE)
    covered = (upscale_logits(logits, ours.frame) > limit).any(dim=0)
    height, width = size
    points = []
    for row in range(4):
        for column in range(4):
            for j in (-1, 0, 1, 2):
                for i in (-1, 0, 1, 2):
                    x = (column + 0.5) / 4 * width + i * (width // 16)
                    y = (row + 0.5) / 4 * height + j * (height // 16)
                    if (i, j) != (0, 0) and x < width and y < height and not covered[int(y), int(x)]:
                        points.append((x, y))
    if alignment == "sam_grid":
        every = grid.grid_points(16, size).tolist()
        points = [(x, y) for x, y in every if not covered[int(y), int(x)]]
    assert 0 < len(points) < 240
    masks = everything(ours, config)
    assert masks.asked == 3 * (16 + len(points))
    assert {tuple(point) for point in masks.points.tolist()} <= {
        *points,
        *map(tuple, grid.grid_points(4, size).tolist()),
    }


def test_with_nothing_sure_it_finds_what_the_grid_finds(predictor: Callable[[int, int], Predictor]) -> None:
    """With sam_grid and no cover the second round is SAM's: its masks are all there."""
    ours = predictor(60, 90)
    config = Config(
        sparse_points_per_side=2, points_per_side=6, high_score_thresh=float("inf"), alignment="sam_grid", **NONE
    )
    both = everything(ours, config)
    sam = everything(ours, grid.Config(points_per_side=6, **NONE))
    counts = {str(mask["counts"]) for mask in both.rles}
    assert {str(mask["counts"]) for mask in sam.rles} <= counts


def test_it_describes_itself_and_refuses_what_does_not_divide() -> None:
    told = describe(chosen({"strategy": "hierarchical", "high_score_thresh": 7.0}))
    assert told["sentence"].startswith("hierarchical, 8 x 8 points, then 32 x 32 where no logit is above 7, predicted")
    assert "alignment" in told["arguments"]
    with pytest.raises(UserError, match=r"points_per_side 32 is no multiple .* alignment=sam_grid"):
        chosen({"strategy": "hierarchical", "sparse_points_per_side": 10})
    assert chosen({"strategy": "hierarchical", "sparse_points_per_side": 10, "alignment": "sam_grid"})
