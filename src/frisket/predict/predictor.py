"""Embed a photograph once, then ask for masks as often as you like, in the photograph's own pixels.

Use     predictor = Predictor(frisket.checkpoint.load("runs/finetune_decoder"))
        predictor.set_image("photo.jpg")
        answer = predictor.predict(boxes=[[30, 40, 200, 180]])      # answer.masks (N, H, W) bool
Source  The protocol of Segment Anything (arXiv 2304.02643): longest side to S, pad, embed; logits go back to the
        photograph in two bilinear steps. Batching and one answer per prompt are our choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from frisket.errors import UserError
from frisket.geometry import Frame, pad_square, resize_image, upscale_logits
from frisket.models.encoder import STRIDE
from frisket.models.sam import Sam
from frisket.sample import FOREGROUND, Prediction, Prompts, picked

Numbers = Tensor | np.ndarray | Sequence
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # what a folder of photographs holds
SLACK = 1.0  # pixels a prompt may stick out of the photograph: detectors round outwards


@dataclass
class Answer:
    """What came back for N prompts, the best output of each.

    masks: bool (N, H, W) in original pixels; iou: float (N,), the model's own estimate; logits: float (N, G, G) on the
    grid of the padded input (feed them back as `masks=` to refine).
    """

    masks: Tensor
    iou: Tensor
    logits: Tensor


UNTRUSTED = 0.5
"""A single output that rates itself below this much of the best of three is not taken; ours."""


class Predictor:
    """One model and one photograph at a time.

    `device` None keeps the model where it is. `image_size` is the input side S, the model's own when None. `batch`
    prompts are decoded at once. The model is put in eval mode. Raises UserError for a side that is no multiple of 16.
    """

    def __init__(
        self, sam: Sam, device: str | torch.device | None = None, *, image_size: int | None = None, batch: int = 64
    ) -> None:
        self.sam = (sam if device is None else sam.to(device)).eval()
        self.side = image_size or sam.image_size
        if self.side % STRIDE:
            raise UserError(f"image_size={self.side} must be a multiple of {STRIDE}, e.g. {sam.image_size}")
        self.batch = batch
        self._image: Tensor | None = None
        self._frame: Frame | None = None
        self._embedding: Tensor | None = None

    @property
    def frame(self) -> Frame:
        """The way between the photograph and the model's input. Raises UserError before `set_image`."""
        if self._frame is None:
            raise UserError("no photograph is set: call set_image first")
        return self._frame

    @property
    def image(self) -> Tensor:
        """The photograph as it was set, uint8 (3, H, W). Raises UserError before `set_image`."""
        if self._image is None:
            raise UserError("no photograph is set: call set_image first")
        return self._image

    @property
    def embedding(self) -> Tensor:
        """The photograph's embedding (1, 256, S/16, S/16). Raises UserError before `set_image`."""
        if self._embedding is None:
            raise UserError("no photograph is set: call set_image first")
        return self._embedding

    @torch.inference_mode()
    def set_image(self, image: np.ndarray | Image.Image | str | Path) -> None:
        """Embed a photograph: uint8 RGB (H, W, 3), a PIL image or the path of one (turned upright by its EXIF tag).

        Raises UserError for a path that cannot be read, ValueError for an array of another shape or type.
        """
        pixels = read_image(image) if isinstance(image, str | Path) else image
        pixels = upright(pixels) if isinstance(pixels, Image.Image) else pixels
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
            raise ValueError(f"a photograph is uint8 (H, W, 3) RGB, not {pixels.dtype} {pixels.shape}")
        frame = Frame.fit((pixels.shape[0], pixels.shape[1]), self.side)
        photograph = torch.from_numpy(np.array(pixels, copy=True)).permute(2, 0, 1)
        self.set_fitted(resize_image(photograph, frame.size), frame)
        self._image = photograph

    @torch.inference_mode()
    def set_fitted(self, image: Tensor, frame: Frame) -> None:
        """Embed a photograph that is already at input size: uint8 (3, h, w) with (h, w) = frame.size; prompts and
        answers are in the pixels of frame.original. Raises ValueError for another size, or another side than S."""
        if frame.side != self.side or tuple(image.shape) != (3, *frame.size):
            raise ValueError(
                f"a picture of {tuple(image.shape)} for side {frame.side} does not fit {frame} at {self.side}"
            )
        device, padded = self.sam.device, pad_square(image, self.side)[None]
        self._embedding = self.sam.encode(padded.to(device), torch.tensor([frame.size], device=device))
        self._frame, self._image = frame, image

    def prompts(
        self,
        points: Numbers | None = None,
        labels: Numbers | None = None,
        boxes: Numbers | None = None,
        masks: Numbers | None = None,
    ) -> Prompts:
        """Prompts in original pixels -> `Prompts` in input pixels on the model's device. See `predict` for shapes.

        Raises UserError for a prompt outside the photograph, a box without area or no prompt at all, ValueError for
        shapes that do not fit.
        """
        prompts = Prompts()
        if masks is not None:
            logits, grid = _tensor(masks), (self.frame.grid, self.frame.grid)
            if logits.ndim < 2 or tuple(logits.shape[-2:]) != grid or not bool(logits.isfinite().all()):
                raise ValueError(f"masks are finite logits (N, {grid[0]}, {grid[1]}), not {tuple(logits.shape)}")
            prompts.masks = logits.reshape(-1, 1, *grid).to(self.sam.device)
        if points is not None:
            xy = _floats(points, 2)
            xy = xy.reshape(1, -1, 2) if xy.ndim < 3 else xy
            kinds = torch.full(xy.shape[:2], FOREGROUND) if labels is None else _tensor(labels).long()
            kinds = kinds.reshape(1, -1) if kinds.ndim < 2 else kinds
            if kinds.shape != xy.shape[:2]:
                raise ValueError(
                    f"points are {tuple(xy.shape[:2])} and labels {tuple(kinds.shape)}: one label per point"
                )
            self._inside(xy[kinds >= 0].reshape(-1, 2), "point")
            prompts.points = self.frame.to_input(xy).to(self.sam.device)
            prompts.labels = kinds.to(self.sam.device)
        if boxes is not None:
            xyxy = _floats(boxes, 4).reshape(-1, 4)
            self._inside(xyxy, "box")
            for box in xyxy[(xyxy[:, 2:] <= xyxy[:, :2]).any(dim=1)].tolist():
                raise UserError(f"box {_text(box)} has no area: write [x0,y0,x1,y1] with x0 < x1 and y0 < y1")
            prompts.boxes = self.frame.boxes_to_input(xyxy).to(self.sam.device)
        counts = {len(part) for part in (prompts.points, prompts.boxes, prompts.masks) if part is not None}
        if not counts:
            raise UserError("there is no prompt: give points, boxes or masks")
        if len(counts) > 1:
            raise ValueError(f"points, boxes and masks must be of the same number of objects, not {sorted(counts)}")
        return prompts

    @torch.inference_mode()
    def ask(self, prompts: Prompts, multimask: bool | None) -> Prediction:
        """Decode N prompts given in input pixels: C outputs, logits (N, C, G, G) and IoU (N, C); see `Sam.decode`."""
        parts = []
        for start in range(0, len(prompts), self.batch):
            part = prompts[start : start + self.batch]
            index = torch.zeros(len(part), dtype=torch.long, device=self.sam.device)
            parts.append(self.sam.decode(self.embedding, index, part, multimask))
        return Prediction.join(parts)

    @torch.inference_mode()
    def predict(
        self,
        *,
        points: Numbers | None = None,
        labels: Numbers | None = None,
        boxes: Numbers | None = None,
        masks: Numbers | None = None,
        multimask: bool | None = None,
    ) -> Answer:
        """Masks of N objects, all prompts in ORIGINAL pixels.

        points (N, K, 2), or (K, 2) or (2,) for one object, with labels (N, K), (K,) or one number (1 on the object, 0
        beside it; all 1 when left out); boxes (N, 4) or (4,) xyxy; masks (N, G, G) or (G, G) logits of an earlier
        answer; each as a list, numpy array or tensor. Given together they describe
        the same N objects. `multimask` asks for three outputs and keeps the one the model rates best; None does so for
        a single click alone, which is ambiguous (SAM's advice), and else where the model rates its single output below
        UNTRUSTED of that one: a decoder that was trained with three outputs only (ours). Raises as `prompts` does.
        """
        asked = self.prompts(points, labels, boxes, masks)
        click = asked.boxes is None and asked.masks is None and asked.points is not None and asked.points.shape[1] == 1
        answer = self.ask(asked, True if click and multimask is None else multimask)
        if answer.iou.shape[1] > 3:  # all outputs: the single one, unless it distrusts itself
            best = 1 + answer.iou[:, 1:].argmax(dim=1)
            logits, iou = answer.pick(torch.where(answer.iou[:, 0] < UNTRUSTED * picked(answer.iou, best), best, 0))
        else:
            logits, iou = answer.best()
        # Upscaled in parts: at 8 MP, 64 float masks already take 2 GB.
        full = [upscale_logits(part, self.frame) > 0 for part in logits.split(8)]
        return Answer(torch.cat(full), iou, logits)

    def _inside(self, xy: Tensor, what: str) -> None:
        """Refuse the first row (…, 2 or 4) with a coordinate outside the photograph."""
        height, width = self.frame.original
        corners = xy.reshape(len(xy), -1, 2)
        limit = torch.tensor([width, height]) + SLACK
        outside = ~((corners >= -SLACK) & (corners <= limit)).flatten(1).all(dim=1)  # so that NaN is outside too
        for row in xy[outside].tolist():
            raise UserError(
                f"{what} {_text(row)} lies outside the photograph, which is {width} wide and {height} high: "
                "give original pixels"
            )


def read_image(path: str | Path) -> np.ndarray:
    """A picture file as uint8 RGB (H, W, 3), upright. Raises UserError when it is missing or cannot be decoded."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no picture at {path}: give the path of a JPEG, PNG or another picture")
    try:
        with Image.open(path) as opened:
            return upright(opened)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "no picture format is recognised" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(f"{path} cannot be read as a picture ({reason}): give a whole JPEG, PNG or the like") from error


def upright(image: Image.Image) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a PIL image, turned by its EXIF tag."""
    return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def _floats(values: Numbers, last: int) -> Tensor:
    numbers = _tensor(values)
    if not numbers.ndim or numbers.shape[-1] != last or not numbers.numel():
        raise ValueError(f"expected numbers in groups of {last}, not shape {tuple(numbers.shape)}")
    return numbers


def _tensor(values: Numbers) -> Tensor:
    """float32 on the CPU. Raises ValueError for what holds no numbers, or rows of different lengths."""
    try:
        return torch.as_tensor(values, dtype=torch.float32).cpu()
    except (TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"prompts are numbers in rows of equal length: {error}") from error


def _text(row: list[float]) -> str:
    return "[" + ",".join(f"{v:g}" for v in row) + "]"
