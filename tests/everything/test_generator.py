"""The generator against SAM's written out plainly, on drawn and on genuine photographs; its parts; and nothing found.

The model has random weights, but its logits are drawn towards the click (`clicking`): masks then are as ragged as the
photograph's texture, of three sizes, stable and not, and a good share of them passes SAM's own limits.
"""

from pathlib import Path

import numpy as np
import plain_generator
import pytest
import torch
from PIL import Image

from frisket.errors import UserError
from frisket.everything import grid
from frisket.everything.candidates import sift
from frisket.everything.crops import Crop, crops, near_inner_edge
from frisket.everything.generator import _cleaned, everything, survivors
from frisket.everything.regions import without_holes, without_islands
from frisket.everything.result import Everything
from frisket.everything.strategy import chosen
from frisket.geometry import Frame, boxes_of_masks, resize_image
from frisket.kernels import rle
from frisket.kernels.upscaled import enlarged, measure
from frisket.models.sam import Sam
from frisket.models.zoo import build
from frisket.predict.predictor import Predictor
from frisket.prep.synthetic import scene
from frisket.sample import Prediction, Prompts


def clicking(sam: Sam) -> Sam:
    """`sam` with its answers spread: logits (N, 3, G, G) become texture plus a cone around the click, with a slope for
    each mask (2.5 to 200 per radius), and predicted IoU (N, 3) lies around SAM's limit; both by its own predicted IoU,
    which varies by hundredths."""
    plain = sam.decode

    def decode(embeddings, image_index, prompts: Prompts, multimask: bool) -> Prediction:
        found = plain(embeddings, image_index, prompts, multimask)
        side = found.logits.shape[-1]
        centre = (prompts.points[:, 0] + 0.5) / 4 - 0.5
        steps = torch.arange(side)
        away = torch.hypot(steps[None, None, :] - centre[:, :1, None], steps[None, :, None] - centre[:, 1:, None])
        texture = found.logits - found.logits.mean((2, 3), keepdim=True)
        texture = texture / texture.std((2, 3), keepdim=True)
        radius = side * torch.tensor([0.06, 0.15, 0.35])[:, None, None]
        slope = 10 ** (1.4 + 0.9 * torch.sin(250 * found.iou))[:, :, None, None]
        logits = slope * (1 - away[:, None] / radius + 0.35 * texture)
        return Prediction(logits, 0.88 + 0.1 * torch.sin(400 * found.iou))

    sam.decode = decode  # type: ignore[method-assign]
    return sam.eval()


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(0)
    return clicking(build("sam_vit_t", image_size=128, width=48, depth=2, heads=3, global_blocks=(1,)))


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    """Two synthetic photographs, one of them turned."""
    wide, tall = (scene(np.random.default_rng(seed), 224)[0] for seed in range(2))
    return {"wide": wide, "tall": np.ascontiguousarray(tall.transpose(1, 0, 2))}


@pytest.fixture(scope="module")
def photos(data_root: Path) -> dict[str, np.ndarray]:
    """The eight photographs, longest side 224 px."""
    found = {}
    for path in sorted((data_root / "sa1b_images").glob("*.jpg")):
        with Image.open(path) as opened:
            opened.draft("RGB", (448, 448))
            small = opened.convert("RGB")
            small.thumbnail((224, 224))
            found[path.stem] = np.array(small)
    assert len(found) == 8
    return found


def agree(sam: Sam, image: np.ndarray, **changes) -> tuple[int, int, np.ndarray]:
    """(asked, kept, IoU of each pair of masks): ours and the plain generator's kept masks are the same ones."""
    wanted, asked = plain_generator.generate(sam, image, **changes)
    predictor = Predictor(sam)
    predictor.set_image(image)
    found = everything(predictor, grid.Config(**changes))
    assert found.asked == asked and len(found) == len(wanted)
    # the same set, in the same order: the click, the predicted IoU and the box name a candidate
    assert torch.allclose(found.points, torch.tensor([m["point"] for m in wanted]).reshape(-1, 2).float(), atol=1e-3)
    assert torch.allclose(found.iou, torch.tensor([m["iou"] for m in wanted]))
    boxes = torch.tensor([m["box"] for m in wanted]).reshape(-1, 4).float()
    assert torch.equal(found.boxes, boxes + torch.tensor([0, 0, 1, 1]))
    assert torch.allclose(found.stability, torch.tensor([m["stability"] for m in wanted]), atol=1e-3)
    iou = np.diagonal(plain_generator.mask_iou([m["mask"] for m in wanted], found.rles)) if wanted else np.ones(0)
    return asked, len(found), iou


def test_the_kept_set_is_the_plain_generators_on_eight_photographs(sam: Sam, photos: dict[str, np.ndarray]) -> None:
    """SAM's own limits; done when: the same kept set, and IoU >= 0.99 for >= 99 % of the masks."""
    parts = [agree(sam, image, points_per_side=12) for image in photos.values()]
    asked, kept = sum(part[0] for part in parts), sum(part[1] for part in parts)
    assert 0.05 * asked < kept < 0.95 * asked
    iou = np.concatenate([part[2] for part in parts])
    assert (iou >= 0.99).mean() >= 0.99


def test_the_kept_set_is_the_plain_generators_on_drawn_photographs(sam: Sam, drawn: dict[str, np.ndarray]) -> None:
    parts = [agree(sam, image, points_per_side=10) for image in drawn.values()]
    asked, kept = sum(part[0] for part in parts), sum(part[1] for part in parts)
    assert 0.05 * asked < kept < 0.95 * asked
    assert (np.concatenate([part[2] for part in parts]) >= 0.99).mean() >= 0.99


SETTINGS = [
    {"stability_score_thresh": 0.8, "pred_iou_thresh": 0.85, "stability_score_offset": 0.5, "box_nms_thresh": 0.5},
    {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 0.9},
    {"min_mask_region_area": 60, "points_per_batch": 7},
    {"crop_n_layers": 1, "points_per_side": 6},
    {"crop_n_layers": 2, "points_per_side": 8, "crop_n_points_downscale_factor": 2, "min_mask_region_area": 30},
]


@pytest.mark.parametrize("changes", SETTINGS, ids=lambda changes: ",".join(changes)[:40])
def test_other_settings_keep_what_the_plain_generator_keeps(
    sam: Sam, drawn: dict[str, np.ndarray], changes: dict
) -> None:
    asked, kept, iou = agree(sam, drawn["wide"], **{"points_per_side": 8, **changes})
    assert 0 < kept < 0.95 * asked and (iou >= 0.99).mean() >= 0.99


def test_stability_counted_on_the_low_grid_would_keep_others(sam: Sam, drawn: dict[str, np.ndarray]) -> None:
    """The comparison above can tell: the cheap estimate, cells instead of pixels, decides some masks differently."""
    predictor = Predictor(sam)
    predictor.set_image(drawn["wide"])
    points = grid.grid_points(12, predictor.frame.original)
    low = grid.ask_points(predictor, points).logits.flatten(0, 1)
    height, width = (length // 4 for length in predictor.frame.size)
    cells = low[:, :height, :width].flatten(1)
    cheap = (cells > 1).sum(1) / (cells > -1).sum(1) >= 0.95
    exact = measure(low, predictor.frame, offset=1.0, at_least=0.95).kept
    assert (cheap != exact).sum() >= 5


@pytest.mark.parametrize(
    "changes",
    [{"pred_iou_thresh": 5.0}, {"stability_score_thresh": 1.1}, {"pred_iou_thresh": 5.0, "crop_n_layers": 1}],
)
def test_nothing_found_is_no_error(tiny_sam: Sam, changes: dict) -> None:
    predictor = Predictor(tiny_sam)
    predictor.set_image(np.zeros((60, 90, 3), np.uint8))
    found = everything(predictor, grid.Config(points_per_side=3, min_mask_region_area=10, **changes))
    assert len(found) == 0 and found.records() == [] and found.asked >= 27 and found.boxes.shape == (0, 4)


def test_empty_masks_are_never_kept(tiny_sam: Sam) -> None:
    plain = tiny_sam.decode
    tiny_sam.decode = lambda *given: Prediction(-plain(*given).logits.abs(), plain(*given).iou)  # type: ignore
    predictor = Predictor(tiny_sam)
    predictor.set_image(np.zeros((60, 90, 3), np.uint8))
    config = grid.Config(points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    assert len(everything(predictor, config)) == 0


def test_records_are_sa1bs_annotations(sam: Sam, drawn: dict[str, np.ndarray]) -> None:
    image = drawn["tall"]
    predictor = Predictor(sam)
    predictor.set_image(image)
    config = grid.Config(points_per_side=5, crop_n_layers=1)
    for one in everything(predictor, config).records():
        mask = rle.fill_many([one["segmentation"]], range(image.shape[0]), range(image.shape[1]))[0]
        ys, xs = np.nonzero(mask)
        assert one["bbox"] == [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
        assert one["area"] == mask.sum() and one["predicted_iou"] > 0.88 and one["stability_score"] >= 0.95
        x, y, w, h = one["crop_box"]
        ((px, py),) = one["point_coords"]
        assert x <= px < x + w and y <= py < y + h and not mask[: int(y)].any() and not mask[:, int(x + w) :].any()


def test_the_grid_is_sams() -> None:
    points = grid.grid_points(32, (1500, 2250))
    assert points.shape == (1024, 2)
    assert points[0].tolist() == pytest.approx([2250 / 64, 1500 / 64])
    assert points[1].tolist() == pytest.approx([3 * 2250 / 64, 1500 / 64])  # along the first row
    assert points[-1].tolist() == pytest.approx([2250 * 63 / 64, 1500 * 63 / 64])


def test_crops_cover_the_photograph_and_overlap() -> None:
    found = crops((1500, 2250), 2)
    assert [crop.layer for crop in found] == [0] + 4 * [1] + 16 * [2]
    assert found[0].x1 == 2250 and found[0].y1 == 1500
    # layer 1: overlap int(512/1500 * 1500) = 512, so ceil((512 + 2250) / 2) = 1381 wide and 1006 high
    assert (found[1].x1, found[1].y1) == (1381, 1006) and (found[4].x0, found[4].y0) == (869, 494)
    for layer in (1, 2):
        seen = np.zeros((1500, 2250), bool)
        for crop in (crop for crop in found if crop.layer == layer):
            seen[crop.y0 : crop.y1, crop.x0 : crop.x1] = True
        assert seen.all()


def test_survivors_are_what_everything_encodes(sam: Sam, drawn: dict[str, np.ndarray]) -> None:
    predictor = Predictor(sam)
    predictor.set_image(drawn["tall"])
    config = grid.Config(points_per_side=6)
    low, found = survivors(predictor, config), everything(predictor, config)
    assert len(low) == len(found) > 0 and torch.equal(low.iou, found.iou) and low.asked == 108
    assert low.logits.shape == (len(low), 32, 32)


def test_a_fitted_photograph_gives_the_same_masks(sam: Sam, drawn: dict[str, np.ndarray]) -> None:
    predictor, fitted = Predictor(sam), Predictor(sam)
    predictor.set_image(drawn["wide"])
    small = module_resize(drawn["wide"], predictor)
    fitted.set_fitted(small, predictor.frame)
    config = grid.Config(points_per_side=5)
    assert everything(fitted, config).rles == everything(predictor, config).rles
    with pytest.raises(UserError, match="at its own size"):
        everything(fitted, grid.Config(points_per_side=5, crop_n_layers=1))
    with pytest.raises(ValueError, match="does not fit"):
        fitted.set_fitted(small[:, 1:], predictor.frame)


def module_resize(image: np.ndarray, predictor: Predictor) -> torch.Tensor:
    return resize_image(torch.from_numpy(image).permute(2, 0, 1), predictor.frame.size)


def test_the_limits_themselves(tiny_sam: Sam) -> None:
    """Predicted IoU must be above its limit, stability must reach its own; a prompt's three masks keep its click."""
    frame = Frame.fit((64, 64), 64)
    logits = torch.full((2, 3, 16, 16), -8.0)
    logits[:, :, 4:12, 4:12] = 8.0
    logits[1, 2] = -8.0  # empty
    points, iou = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.5, 0.6, 0.4], [0.9, 0.7, 0.8]])
    plain = enlarged(logits.flatten(0, 1), frame, offset=1.0, at_least=0.5)
    limits = {"pred_iou_thresh": 0.5, "stability_score_thresh": float(plain.stability[0])}
    kept = sift(points, Prediction(logits, iou), frame, grid.Config(**limits))
    assert kept.iou.tolist() == pytest.approx([0.6, 0.9, 0.7]) and kept.points.tolist() == [[1, 2], [3, 4], [3, 4]]
    assert kept.asked == 6 and kept.highest == pytest.approx(0.9)
    steadier = float(torch.nextafter(plain.stability[0], torch.tensor(2.0)))
    limits["stability_score_thresh"] = steadier
    assert len(sift(points, Prediction(logits, iou), frame, grid.Config(**limits))) == 0


def test_masks_at_a_cut_are_left_out_and_at_the_photographs_rim_are_not() -> None:
    right = Crop(100, 0, 300, 200, 1, (200, 300))  # cut at its left only
    boxes = torch.tensor([[20, 50, 90, 90], [21, 50, 90, 90], [60, 0, 199, 199], [-1, 50, 90, 90], [0, 0, 199, 199]])
    assert near_inner_edge(boxes, right).tolist() == [True, False, False, True, True]
    left = Crop(0, 0, 200, 200, 1, (200, 300))
    assert near_inner_edge(torch.tensor([[0, 0, 179, 199], [0, 0, 180, 199]]), left).tolist() == [False, True]
    whole = Crop(0, 0, 300, 200, 0, (200, 300))
    assert not near_inner_edge(boxes, whole).any()


def test_a_small_crops_mask_wins_over_the_whole_photographs(sam: Sam, drawn: dict[str, np.ndarray]) -> None:
    predictor = Predictor(sam)
    predictor.set_image(drawn["wide"])
    plain = {"points_per_side": 6, "pred_iou_thresh": 0, "stability_score_thresh": 0, "box_nms_thresh": 1}
    strict = everything(predictor, grid.Config(**plain, crop_n_layers=1, crop_nms_thresh=0.3))
    areas = (strict.crops[:, 2:] - strict.crops[:, :2]).prod(1)
    assert int(areas[0]) < 0.5 * drawn["wide"].shape[0] * drawn["wide"].shape[1]  # smaller crops come first: they win
    assert (areas.diff() >= 0).all()


def test_a_cleaned_mask_loses_to_an_untouched_one() -> None:
    """Small regions go, then NMS: of two alike masks the one that was whole stays, whatever its place."""
    speckled, whole = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    speckled[5:30, 5:30] = whole[5:30, 5:31] = True
    speckled[10, 10] = False
    speckled[39, 59] = True
    boxes = boxes_of_masks(torch.from_numpy(np.stack([speckled, whole])))
    ones, points = torch.ones(2), torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    crop = torch.tensor([[0, 0, 60, 40]]).expand(2, 4)
    rles = [rle.encode(speckled), rle.encode(whole)]
    given = Everything(rles, boxes, torch.tensor([625, 650]), ones, ones, points, crop, (40, 60), 2, 1.0)
    for limits, kept in (((0.9, 0.7), [2.0]), ((0.7, 0.9), [2.0]), ((0.97, 0.1), [2.0, 1.0])):
        config = grid.Config(min_mask_region_area=3, box_nms_thresh=limits[0], crop_nms_thresh=limits[1])
        cleaned = _cleaned(given, config)
        assert cleaned.points[:, 0].tolist() == kept
    assert cleaned.areas.tolist() == [650, 625] and cleaned.boxes[1].tolist() == [5, 5, 30, 30]
    assert rle.area(cleaned.rles[1]) == 625 and given.boxes[0].tolist() == [5, 5, 60, 40]  # what was given stays


def test_small_regions() -> None:
    mask = np.zeros((12, 12), bool)
    mask[1:9, 1:9] = True
    mask[3, 3] = mask[4, 4] = False  # one hole of two pixels that touch by a corner
    mask[11, 11] = True
    filled = without_holes(mask, 3)
    assert filled[3, 3] and filled[4, 4] and not filled[0, 0] and filled[11, 11]
    assert np.array_equal(without_holes(mask, 2), mask)
    assert np.array_equal(without_islands(mask, 1), mask) and without_islands(mask, 2).sum() == 62
    assert without_islands(mask, 1000).sum() == 62  # the largest stays
    assert not without_islands(np.zeros((3, 3), bool), 5).any()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"strategy": "gird"}, "did you mean 'grid'"),
        ({"points_per_side": 0}, "points_per_side=0 must be 1 or more"),
        ({"crop_n_layers": -1}, "crop_n_layers=-1 must be 0 or more"),
        ({"stability_score_offset": float("nan")}, "must be a finite number"),
        ({"points_per_sid": 3}, "unknown key 'points_per_sid', did you mean 'points_per_side'"),
        ({"crop_overlap_ratio": 1.5}, "must be 1 or less"),
    ],
)
def test_settings_that_make_no_sense(changes: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        chosen(changes)
