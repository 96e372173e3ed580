"""segment_anything's spelling of prediction: a script written for that package runs with only its import line changed.

    from frisket.segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

    sam = sam_model_registry["vit_b"](checkpoint="runs/finetune_decoder")     # or Meta's sam_vit_b_01ec64.pth
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    masks, scores, logits = predictor.predict(point_coords=points, point_labels=labels, multimask_output=True)
    annotations = SamAutomaticMaskGenerator(sam).generate(image)

Source  The published interface of Segment Anything (github.com/facebookresearch/segment-anything): names, keywords,
        shapes, and what is numpy. Thin: frisket.predict and frisket.everything do the work, and say more in errors.
Ours    A registry entry takes any checkpoint that `frisket.checkpoint.load` reads; its file says which model it is.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frisket import checkpoint as weights
from frisket.everything import grid
from frisket.everything.generator import everything
from frisket.geometry import Frame, upscale_logits
from frisket.kernels import rle
from frisket.models import zoo
from frisket.models.sam import Sam
from frisket.predict.predictor import Predictor
from frisket.sample import Prompts

Size = tuple[int, int]
AT_ONCE = 8  # masks at full size as floats: 32 MB each at 8 MP


def _build(name: str, checkpoint: str | Path | None = None) -> Sam:
    return zoo.build(name).eval() if checkpoint is None else weights.load(checkpoint)


build_sam_vit_h = build_sam = partial(_build, "sam_vit_h")
build_sam_vit_l, build_sam_vit_b = partial(_build, "sam_vit_l"), partial(_build, "sam_vit_b")
sam_model_registry: dict[str, Callable[..., Sam]] = {
    "default": build_sam, "vit_h": build_sam_vit_h, "vit_l": build_sam_vit_l, "vit_b": build_sam_vit_b,
}  # fmt: skip
"""name -> function of `checkpoint` (None: random weights) that gives the model."""


class ResizeLongestSide:
    """Pictures, points and boxes of a photograph (h, w) to the model's input, whose longest side is `target_length`."""

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3), resized."""
        return self.apply_image_torch(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()

    def apply_image_torch(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), resized."""
        size = Frame.fit((image.shape[2], image.shape[3]), self.target_length).size
        return F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)

    def apply_coords_torch(self, coords: Tensor, original_size: Size) -> Tensor:
        """Points (..., 2)."""
        return Frame.fit(original_size, self.target_length).to_input(coords.float())

    def apply_boxes_torch(self, boxes: Tensor, original_size: Size) -> Tensor:
        """Boxes (N, 4) xyxy."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_coords(self, coords: np.ndarray, original_size: Size) -> np.ndarray:
        """Points (..., 2), numpy."""
        return self.apply_coords_torch(torch.as_tensor(coords), original_size).numpy()

    def apply_boxes(self, boxes: np.ndarray, original_size: Size) -> np.ndarray:
        """Boxes (N, 4) xyxy, numpy."""
        return self.apply_boxes_torch(torch.as_tensor(boxes), original_size).numpy()


class SamPredictor:
    """One model, one photograph at a time; `set_image` first."""

    def __init__(self, sam_model: Sam) -> None:
        self.model = sam_model
        self.transform = ResizeLongestSide(sam_model.image_size)
        self.reset_image()

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.model.device

    def reset_image(self) -> None:
        """Forget the photograph."""
        self._predictor = Predictor(self.model)
        self.is_image_set, self.features = False, None
        self.original_size: Size | None = None
        self.input_size: Size | None = None

    def set_image(self, image: np.ndarray, image_format: Literal["RGB", "BGR"] = "RGB") -> None:
        """Embed a photograph, uint8 (H, W, 3)."""
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"image_format must be RGB or BGR, not {image_format}")
        self._predictor.set_image(image if image_format == "RGB" else image[..., ::-1])
        self._is_set()

    def set_torch_image(self, transformed_image: Tensor, original_image_size: Size) -> None:
        """Embed a photograph that `transform` made ready: (1, 3, h, w), values 0..255."""
        frame = Frame.fit((int(original_image_size[0]), int(original_image_size[1])), self.model.image_size)
        self._predictor.set_fitted(transformed_image[0].round().to(torch.uint8).cpu(), frame)
        self._is_set()

    def _is_set(self) -> None:
        self.is_image_set, self.features = True, self._predictor.embedding
        self.original_size, self.input_size = self._predictor.frame.original, self._predictor.frame.size

    def get_image_embedding(self) -> Tensor:
        """(1, 256, S/16, S/16)."""
        self._needs_image()
        return self._predictor.embedding

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks (C, H, W), bool or logits; their predicted IoU (C,); low-resolution logits (C, S/4, S/4).

        In the photograph's pixels: point_coords (N, 2) with point_labels (N,), box (4,); mask_input (1, S/4, S/4).
        """
        self._needs_image()
        size, points, labels, boxes = self._predictor.frame.original, None, None, None
        if point_coords is not None:
            if point_labels is None:
                raise ValueError("point_labels must be given with point_coords")
            points = self.transform.apply_coords_torch(torch.as_tensor(point_coords), size)[None]
            labels = torch.as_tensor(point_labels)[None]
        if box is not None:
            boxes = self.transform.apply_boxes_torch(torch.as_tensor(box).reshape(1, 4), size)
        low = None if mask_input is None else torch.as_tensor(mask_input)[None]
        masks, iou, logits = self.predict_torch(points, labels, boxes, low, multimask_output, return_logits)
        return masks[0].cpu().numpy(), iou[0].cpu().numpy(), logits[0].cpu().numpy()

    @torch.inference_mode()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Masks (B, C, H, W), predicted IoU (B, C), low-resolution logits (B, C, S/4, S/4), on the model's device.

        In input pixels (see `transform`): point_coords (B, N, 2), point_labels (B, N), boxes (B, 4); mask_input
        (B, 1, S/4, S/4).
        """
        self._needs_image()
        given = [None if part is None else part.to(self.device).float() for part in (point_coords, boxes, mask_input)]
        labels = None if point_labels is None else point_labels.to(self.device).long()
        prediction = self._predictor.ask(Prompts(given[0], labels, given[1], given[2]), multimask_output)
        frame, parts = self._predictor.frame, []
        for part in prediction.logits.flatten(0, 1).split(AT_ONCE):
            full = upscale_logits(part, frame)
            parts.append(full if return_logits else full > 0)
        return torch.cat(parts).unflatten(0, prediction.iou.shape), prediction.iou, prediction.logits

    def _needs_image(self) -> None:
        if not self.is_image_set:
            raise RuntimeError("An image must be set with .set_image(...) before mask prediction.")


class SamAutomaticMaskGenerator:
    """Segment everything; the keywords are those of frisket.everything.grid's settings, which has their meaning."""

    def __init__(
        self,
        model: Sam,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: list[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: Literal["binary_mask", "uncompressed_rle", "coco_rle"] = "binary_mask",
    ) -> None:
        if (points_per_side is None) == (point_grids is None):
            raise ValueError("give exactly one of points_per_side and point_grids")
        if output_mode not in ("binary_mask", "uncompressed_rle", "coco_rle"):
            raise ValueError(f"output_mode must be binary_mask, uncompressed_rle or coco_rle, not {output_mode}")
        self.config = grid.Config(
            points_per_side=points_per_side or 1,
            point_grids=[np.asarray(points).tolist() for points in point_grids or []],
            points_per_batch=points_per_batch,
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            stability_score_offset=stability_score_offset,
            box_nms_thresh=box_nms_thresh,
            crop_n_layers=crop_n_layers,
            crop_nms_thresh=crop_nms_thresh,
            crop_overlap_ratio=crop_overlap_ratio,
            crop_n_points_downscale_factor=crop_n_points_downscale_factor,
            min_mask_region_area=min_mask_region_area,
        )
        self.output_mode, self.predictor = output_mode, SamPredictor(model)

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        """One dict for each mask of a photograph uint8 (H, W, 3): segmentation (bool (H, W), or RLE by output_mode),
        area, bbox and crop_box (xywh), predicted_iou, point_coords, stability_score. As segment_anything's, a bbox ends
        with the mask's last pixel: one less in width and height than COCO's."""
        predictor = Predictor(self.predictor.model, batch=self.config.points_per_batch)
        predictor.set_image(image)
        records = everything(predictor, self.config).records()
        rows, columns = (np.arange(length) for length in image.shape[:2])
        for record in records:
            mask, (x, y, width, height) = record["segmentation"], record["bbox"]
            record["bbox"] = [x, y, width - 1, height - 1]
            if self.output_mode == "binary_mask":
                record["segmentation"] = rle.fill_many([mask], rows, columns)[0].astype(bool)
            elif self.output_mode == "uncompressed_rle":
                record["segmentation"] = {"size": mask["size"], "counts": rle.counts(mask["counts"]).tolist()}
        return records
