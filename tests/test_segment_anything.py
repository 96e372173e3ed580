"""A script written for segment_anything runs with its import line changed, and gives what ours gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from frisket import checkpoint
from frisket.everything import grid
from frisket.everything.generator import everything
from frisket.geometry import upscale_logits
from frisket.predict.predictor import Predictor
from frisket.segment_anything import SamAutomaticMaskGenerator, SamPredictor, build_sam_vit_b, sam_model_registry

SCRIPT = """
import numpy as np
import torch
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

device = "cpu"
sam = sam_model_registry[model_type](checkpoint=checkpoint)
sam.to(device=device)
sam.eval()
image = np.array(Image.open(photo).convert("RGB"))

predictor = SamPredictor(sam)
predictor.set_image(image)
point, label = np.array([[20, 30]]), np.array([1])
masks, scores, logits = predictor.predict(point_coords=point, point_labels=label, multimask_output=True)
best = logits[np.argmax(scores), :, :]
refined, _, _ = predictor.predict(
    point_coords=np.array([[20, 30], [70, 10]]), point_labels=np.array([1, 0]), mask_input=best[None, :, :],
    multimask_output=False,
)
boxed, box_score, _ = predictor.predict(
    point_coords=None, point_labels=None, box=np.array([10, 10, 60, 50])[None, :], multimask_output=False
)
soft, _, _ = predictor.predict(box=np.array([10, 10, 60, 50]), multimask_output=False, return_logits=True)

boxes = torch.tensor([[10, 10, 60, 50], [0, 0, 90, 30]], device=predictor.device)
transformed = predictor.transform.apply_boxes_torch(boxes, image.shape[:2])
many, many_scores, _ = predictor.predict_torch(
    point_coords=None, point_labels=None, boxes=transformed, multimask_output=False
)
embedding = predictor.get_image_embedding().cpu().numpy()

predictor.set_image(np.ascontiguousarray(image[:, :, ::-1]), image_format="BGR")
flipped, _, _ = predictor.predict(point_coords=point, point_labels=label)
predictor.reset_image()

generator = SamAutomaticMaskGenerator(
    model=sam, points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0, crop_n_layers=1,
    crop_n_points_downscale_factor=2, min_mask_region_area=5, box_nms_thresh=1.0, crop_nms_thresh=1.0,
)
annotations = sorted(generator.generate(image), key=lambda a: a["area"], reverse=True)
painted = np.ones((*annotations[0]["segmentation"].shape, 4))
for annotation in annotations:
    painted[annotation["segmentation"]] = np.array([1.0, 0.0, 0.0, 0.35])
"""


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_script_runs_with_only_its_import_line_changed(photo: Path, tiny_teacher: Path) -> None:
    said: dict[str, Any] = {"checkpoint": str(tiny_teacher), "photo": str(photo), "model_type": "vit_b"}
    exec(SCRIPT.replace("from segment_anything import", "from frisket.segment_anything import"), said)
    ours = Predictor(checkpoint.load(tiny_teacher))
    ours.set_image(photo)

    three = ours.ask(ours.prompts(points=[20, 30]), multimask=True)
    assert said["masks"].shape == (3, 60, 90) and said["masks"].dtype == bool and said["logits"].shape == (3, 16, 16)
    assert np.array_equal(said["masks"], (upscale_logits(three.logits[0], ours.frame) > 0).numpy())
    assert np.array_equal(said["scores"], three.iou[0].numpy())
    best = three.logits[0, three.iou[0].argmax()]
    refined = ours.predict(points=[[20, 30], [70, 10]], labels=[1, 0], masks=best, multimask=False)
    assert np.array_equal(said["refined"], refined.masks.numpy()) and not np.array_equal(said["refined"], said["boxed"])
    boxed = ours.predict(boxes=[[10, 10, 60, 50], [0, 0, 90, 30]], multimask=False)
    assert said["boxed"].shape == (1, 60, 90) and np.array_equal(said["boxed"][0], boxed.masks[0].numpy())
    assert said["box_score"] == pytest.approx(boxed.iou[:1].numpy(), abs=1e-6)
    assert said["soft"].dtype == np.float32 and np.array_equal(said["soft"] > 0, said["boxed"])
    assert said["many"].shape == (2, 1, 60, 90) and torch.equal(said["many"][:, 0], boxed.masks)
    assert said["many_scores"].shape == (2, 1)
    assert np.array_equal(said["embedding"], ours.embedding.numpy())
    assert np.array_equal(said["flipped"], said["masks"])
    with pytest.raises(RuntimeError, match="set_image"):
        said["predictor"].predict(box=np.array([1, 1, 9, 9]))

    config = grid.Config(
        points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0, crop_n_layers=1, min_mask_region_area=5,
        crop_n_points_downscale_factor=2, box_nms_thresh=1, crop_nms_thresh=1,
    )  # fmt: skip
    wanted = sorted(everything(ours, config).records(), key=lambda record: record["area"], reverse=True)
    assert len(said["annotations"]) == len(wanted) > 3
    for annotation, record in zip(said["annotations"], wanted, strict=True):
        assert annotation.keys() == record.keys()
        mask = annotation["segmentation"]
        assert np.array_equal(mask, coco_mask.decode(record["segmentation"]).astype(bool))
        ys, xs = np.nonzero(mask)  # segment_anything's boxes end with the last pixel
        assert annotation["bbox"] == [xs.min(), ys.min(), xs.max() - xs.min(), ys.max() - ys.min()]
        for name in ("area", "predicted_iou", "point_coords", "stability_score", "crop_box"):
            assert annotation[name] == record[name]
    assert (said["painted"][..., 3] == 0.35).any()


def test_masks_as_rle_and_points_of_your_own(photo: Path, tiny_teacher: Path) -> None:
    sam, image = sam_model_registry["default"](checkpoint=tiny_teacher), np.array(Image.open(photo))
    limits: dict[str, Any] = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    points = [np.array([[0.25, 0.5], [0.75, 0.5]])]
    plain, text, runs = (
        SamAutomaticMaskGenerator(sam, None, point_grids=points, output_mode=mode, **limits).generate(image)
        for mode in ("binary_mask", "coco_rle", "uncompressed_rle")
    )
    assert len(plain) > 0 and {tuple(record["point_coords"][0]) for record in plain} <= {(22.5, 30), (67.5, 30)}
    for mask, short, long in zip(plain, text, runs, strict=True):
        assert np.array_equal(coco_mask.decode(short["segmentation"]).astype(bool), mask["segmentation"])
        whole = coco_mask.frPyObjects(long["segmentation"], 60, 90)
        assert np.array_equal(coco_mask.decode(whole).astype(bool), mask["segmentation"])
    with pytest.raises(ValueError, match="exactly one of"):
        SamAutomaticMaskGenerator(sam, 32, point_grids=points)
    with pytest.raises(ValueError, match="output_mode must be"):
        SamAutomaticMaskGenerator(sam, output_mode="png")  # type: ignore[arg-type]


def test_a_prepared_tensor_is_the_photograph(photo: Path, tiny_teacher: Path) -> None:
    predictor, image = SamPredictor(sam_model_registry["vit_b"](checkpoint=tiny_teacher)), np.array(Image.open(photo))
    assert not predictor.is_image_set and predictor.features is None
    predictor.set_image(image)
    features = predictor.features
    assert predictor.original_size == (60, 90) and predictor.input_size == (43, 64)
    assert predictor.transform.apply_image(image).shape == (43, 64, 3)
    ready = torch.from_numpy(predictor.transform.apply_image(image)).permute(2, 0, 1)[None]
    predictor.set_torch_image(ready, (60, 90))
    assert torch.equal(predictor.features, features)
    assert predictor.transform.apply_coords(np.array([[90, 60]]), (60, 90))[0] == pytest.approx([64, 43])
    # a detector's box may stick out of the photograph, as it may there
    assert predictor.predict(box=np.array([-5, -5, 95, 70]), multimask_output=False)[0].shape == (1, 60, 90)
    with pytest.raises(ValueError, match="point_labels"):
        predictor.predict(point_coords=np.array([[1, 1]]))


def test_a_model_without_a_checkpoint_is_built() -> None:
    with torch.device("meta"):  # its shape alone
        sam = build_sam_vit_b()
    assert sam.name == "sam_vit_b" and not sam.training
