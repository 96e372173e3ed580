"""The words data, models, recipes and judges share: Sample, Batch, Prompts, Prediction.

Shapes: B images, N objects (flat over the batch, `image_index` says whose), S input side, G = S/4 mask grid side.
Frames (see frisket.geometry): boxes and points in *input* pixels, masks on the *grid*.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frisket.geometry import CELL, Frame, inside

BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = 0, 1, 2, 3
"""Labels of real points. A box is the points TOP_LEFT and BOTTOM_RIGHT: rows of one batch may mix boxes and clicks."""
PADDING = -1
"""SAM's own padding: position dropped, `not_a_point` instead. The token exists and takes part in attention."""
IGNORED = -2
"""No token at all: excluded exactly in the decoder, so rows with fewer points equal the unpadded ones."""


@dataclass
class Sample:
    """One photograph with its masks, decoded and resized but not padded.

    key: WebDataset key; image: uint8 RGB (3, h, w) with (h, w) = frame.size; masks: bool (M, G, G) on the padded grid;
    boxes: float (M, 4) xyxy input px; areas: float (M,) in original px; frame: the way back;
    embedding: stored teacher image embedding float32 (256, S/16, S/16) with zeros in the padding, or None;
    features: stored teacher features float16 (width, S/stride, S/stride) of the blocks that were asked for, likewise;
    heat: float (g, G, G) and ways: float (g, 4, G, G), what AutoPPN is to learn of all the photograph's masks
    (frisket.proposals.Targets), or None.
    """

    key: str
    image: Tensor
    masks: Tensor
    boxes: Tensor
    areas: Tensor
    frame: Frame
    embedding: Tensor | None = None
    features: tuple[Tensor, ...] = ()
    heat: Tensor | None = None
    ways: Tensor | None = None


@dataclass
class Batch:
    """Samples side by side; objects flat. Torch pins it and Lightning moves it by its own `pin_memory` and `to`.

    images: uint8 (B, 3, S, S), zero-padded; masks: bool (N, G, G); boxes: float (N, 4) xyxy input px; areas: float (N,)
    original px; image_index: long (N,); sizes: long (B, 2) valid (h, w) of each input; embedding: float (B, 256, S/16,
    S/16), heat (B, g, G, G) and ways (B, g, 4, G, G) as in Sample, or None; features: a tuple, B first, of Sample's.
    """

    keys: list[str]
    images: Tensor
    masks: Tensor
    boxes: Tensor
    areas: Tensor
    image_index: Tensor
    frames: list[Frame]
    sizes: Tensor
    embedding: Tensor | None = None
    features: tuple[Tensor, ...] = ()
    heat: Tensor | None = None
    ways: Tensor | None = None

    @property
    def num_images(self) -> int:
        """B."""
        return len(self.keys)

    def pin_memory(self) -> "Batch":
        """All tensors in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """All tensors on `device`; from pinned memory without waiting, which Lightning does not ask for by itself."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking or tensor.is_pinned()))

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        moved: dict[str, Any] = {k: function(v) for k, v in fields.items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **moved, features=tuple(map(function, self.features)))


@dataclass
class Prompts:
    """What a person points at, for N objects, in input pixels.

    points: (N, K, 2) or None with labels: long (N, K), FOREGROUND, BACKGROUND, TOP_LEFT, BOTTOM_RIGHT, PADDING or
    IGNORED; boxes: (N, 4) xyxy or None; masks: (N, 1, G, G) logits of an earlier prediction or None.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None

    def __len__(self) -> int:
        for field in (self.points, self.boxes, self.masks):
            if field is not None:
                return len(field)
        return 0

    def __getitem__(self, index: Tensor | slice) -> "Prompts":
        """The prompts of some objects."""
        pick = [None if field is None else field[index] for field in (self.points, self.labels, self.boxes, self.masks)]
        return Prompts(*pick)

    def click(self, points: Tensor, labels: Tensor) -> "Prompts":
        """These prompts and one more point each: points (N, 2), labels (N,)."""
        points, labels = points[:, None], labels[:, None]
        if self.points is not None and self.labels is not None:
            points = torch.cat([self.points, points], dim=1)
            labels = torch.cat([self.labels, labels], dim=1)
        return Prompts(points, labels, self.boxes, self.masks)

    def refine(self, logits: Tensor) -> "Prompts":
        """These prompts with the mask prompt replaced: logits (N, G, G) of the last prediction."""
        return Prompts(self.points, self.labels, self.boxes, logits[:, None])


@dataclass
class Prediction:
    """What the decoder answers for N objects: logits (N, C, G, G) on the grid, predicted IoU (N, C), and the tokens
    (N, 5, 256) that both were made of, where they are asked for."""

    logits: Tensor
    iou: Tensor
    tokens: Tensor | None = None

    def __getitem__(self, rows: slice) -> "Prediction":
        """The answers about some objects."""
        return Prediction(self.logits[rows], self.iou[rows], None if self.tokens is None else self.tokens[rows])

    @staticmethod
    def join(parts: list["Prediction"]) -> "Prediction":
        """The answers of several questions (at least one), in their order."""
        tokens = [part.tokens for part in parts if part.tokens is not None]
        logits, iou = torch.cat([part.logits for part in parts]), torch.cat([part.iou for part in parts])
        return Prediction(logits, iou, torch.cat(tokens) if len(tokens) == len(parts) else None)

    def best(self) -> tuple[Tensor, Tensor]:
        """The output with the highest predicted IoU: logits (N, G, G) and its predicted IoU (N,)."""
        return self.pick(self.iou.argmax(dim=1))

    def pick(self, winner: Tensor) -> tuple[Tensor, Tensor]:
        """One output for each object, long `winner` (N,): logits (N, G, G) and predicted IoU (N,)."""
        return picked(self.logits, winner), picked(self.iou, winner)


def picked(values: Tensor, winner: Tensor) -> Tensor:
    """values (N, C, …) and long winner (N,) -> the winner's values (N, …)."""
    return values[torch.arange(len(winner), device=winner.device), winner]


def valid_cells(batch: Batch) -> Tensor:
    """bool (N, G, G): grid cells whose centre lies on the photograph, per object."""
    return inside(batch.sizes, batch.images.shape[-1] // CELL, CELL)[batch.image_index]


def valid_tokens(batch: Batch, rows: int) -> Tensor:
    """bool (B, rows, rows): tokens whose centre lies on the photograph (more than half of the token is no padding)."""
    return inside(batch.sizes, rows, batch.images.shape[-1] // rows)
