"""The rows of strategies: what they compare, which model, and how the grid's masks are sought in another's."""

from pathlib import Path

import pytest
import torch
from pycocotools import mask as coco_mask

from frisket import checkpoint
from frisket.bench import harness, strategies
from frisket.bench.harness import BenchConfig, Setting
from frisket.bench.records import photographs
from frisket.errors import UserError
from frisket.everything import grid
from frisket.models.sam import Sam
from frisket.place import Place

CPU = Setting(quick=True, device=torch.device("cpu"))


def squares(*corners: int) -> strategies.Masks:
    """Squares of 4 x 4 pixels, by where they begin along the diagonal of 20 x 20 pixels."""
    rles = []
    for corner in corners:
        mask = torch.zeros(20, 20, dtype=torch.uint8)
        mask[corner : corner + 4, corner : corner + 4] = 1
        rles.append(coco_mask.encode(mask.numpy().copy(order="F")))
    return rles


def test_how_well_masks_are_found_again() -> None:
    assert strategies.found_again([squares(0, 8)], [squares(8, 0, 14)]) == 1.0
    assert strategies.found_again([squares(0, 8)], [squares(0)]) == 0.5
    assert strategies.found_again([squares(0)], [squares(2)]) == pytest.approx(4 / 28)
    assert strategies.found_again([squares(0), squares(8)], [squares(0), squares()]) == 0.5
    assert strategies.found_again([squares(), squares(4)], [squares(3), squares(4)]) == 1.0


@pytest.mark.parametrize("row", strategies.ROWS, ids=lambda row: row.name)
def test_both_sides_are_one_model_under_one_set_of_limits(row: harness.Row) -> None:
    case = row.make(CPU)
    theirs, ours = case.baseline(), case.ours()
    assert all(harness.ask(guard).ok for guard in case.guards)
    assert case.guards[0].measure() == strategies.found_again(theirs, ours)


def test_the_released_generator_asks_and_keeps_what_our_grid_does() -> None:
    sam, (pictures, _) = strategies.model(CPU), photographs(CPU)
    config = grid.Config(points_per_side=8, pred_iou_thresh=-9.0, stability_score_thresh=0.0, box_nms_thresh=1.0)
    theirs, ours = (by(sam, pictures[0], config) for by in (strategies.released, strategies.segment))
    assert len(theirs) == len(ours) > 3 and strategies.found_again([theirs], [ours]) > 0.99


def test_a_checkpoint_is_needed_and_used(tmp_path: Path, tiny_sam: Sam, capsys: pytest.CaptureFixture[str]) -> None:
    one = Place(threads=1, accelerator="cpu")
    with pytest.raises(UserError, match="row everything_hierarchical needs a trained model: give checkpoint=RUN"):
        harness.run(BenchConfig(rows=["everything_hierarchical"], place=one), strategies.ROWS)
    assert harness.run(BenchConfig(place=one, out=str(tmp_path / "b.json")), strategies.ROWS) == 0
    assert (
        "no trained model: everything_hierarchical, everything_autoppn, everything_litesam" in capsys.readouterr().out
    )
    checkpoint.save(tiny_sam, tmp_path / "model.pt")
    told = Setting(True, torch.device("cpu"), checkpoint=str(tmp_path / "model.pt"))
    weights = strategies.model(told).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in tiny_sam.state_dict().items())
    with pytest.raises(UserError, match="has no AutoPPN to propose points"):
        strategies.autoppn_row(told)
