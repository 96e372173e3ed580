"""Masks on their way to being kept: the settings every strategy shares, and the two filters each batch passes first.

Use     candidates = sift(points, prediction, frame, filters)
Source  The automatic mask generator of Segment Anything (arXiv 2304.02643, appendix B), with the names and defaults of
        its release: predicted IoU above and stability at or above their limits. An empty mask is never kept (ours).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from frisket.geometry import Frame
from frisket.kernels.upscaled import measure
from frisket.sample import Prediction


@dataclass
class Filters:
    """What is kept of a strategy's masks, under SAM's names; 0 switches a limit or the clean-up off."""

    strategy: str
    """How masks are asked for: a file of frisket.everything, or a plug-in."""
    points_per_batch: int = field(default=64, metadata={"least": 1, "most": 65536})
    """Prompts decoded at once."""
    pred_iou_thresh: float = 0.88
    """Predicted IoU must be above it."""
    stability_score_thresh: float = 0.95
    """Stability must reach it."""
    stability_score_offset: float = field(default=1.0, metadata={"least": 0})
    """Stability is the share of a mask's area that stays between this logit above 0 and as much below."""
    box_nms_thresh: float = 0.7
    """Largest box IoU of two kept masks of one crop."""
    crop_n_layers: int = field(default=0, metadata={"least": 0, "most": 6})
    """Layer i adds 2^i x 2^i overlapping crops, each asked by itself."""
    crop_nms_thresh: float = 0.7
    """Largest box IoU of two kept masks of different crops; smaller crops win."""
    crop_overlap_ratio: float = field(default=512 / 1500, metadata={"least": 0, "most": 1})
    """Of the photograph's short side, in layer 1."""
    min_mask_region_area: int = field(default=0, metadata={"least": 0})
    """Islands and holes below so many pixels are removed."""


@dataclass
class Candidates:
    """N masks of one picture that passed the filters.

    points (N, 2): the click of each, that picture's pixels; logits (N, G, G) on the grid of its padded input; iou (N,):
    predicted; stability (N,); boxes: long (N, 4), first and last column and row, (x0, y0, x1, y1); asked: how many
    masks there were before the filters, highest: the best predicted IoU among those.
    """

    points: Tensor
    logits: Tensor
    iou: Tensor
    stability: Tensor
    boxes: Tensor
    asked: int
    highest: float

    def __len__(self) -> int:
        return len(self.iou)

    @staticmethod
    def pick(parts: list["Candidates"], chosen: Tensor) -> "Candidates":
        """Those of long `chosen` (K,), counted through all `parts` (at least one), which are not joined on the way:
        the logits of a dense grid take gigabytes."""
        ends = torch.tensor([len(part) for part in parts], device=chosen.device).cumsum(0)
        owner = torch.bucketize(chosen, ends, right=True)
        picked = {}
        for name in ("points", "logits", "iou", "stability", "boxes"):
            first = getattr(parts[0], name)
            picked[name] = first.new_empty(len(chosen), *first.shape[1:])
            for number, part in enumerate(parts):
                mine = owner == number
                picked[name][mine] = getattr(part, name)[chosen[mine] - (ends[number] - len(part))]
        asked, highest = sum(part.asked for part in parts), max(part.highest for part in parts)
        return Candidates(**picked, asked=asked, highest=highest)


def sift(points: Tensor, prediction: Prediction, frame: Frame, filters: Filters) -> Candidates:
    """The masks of one batch that pass both filters and are not empty: of P prompts, C masks each.

    points (P, 2): where each prompt was put, pixels of the frame's original; logits (P, C, G, G), IoU (P, C).
    """
    count = prediction.iou.shape[1]
    iou, logits = prediction.iou.flatten(), prediction.logits.flatten(0, 1)
    sure = iou > filters.pred_iou_thresh if filters.pred_iou_thresh > 0 else torch.ones_like(iou, dtype=torch.bool)
    index = sure.nonzero()[:, 0]
    offset, limit = filters.stability_score_offset, filters.stability_score_thresh
    measured = measure(logits[index], frame, offset=offset, at_least=limit)
    kept = measured.kept & (measured.area > 0)
    index = index[kept]
    clicks = points.to(index.device)[index // count]
    best = float(iou.max()) if len(iou) else -math.inf
    return Candidates(clicks, logits[index], iou[index], measured.stability[kept], measured.boxes[kept], len(iou), best)
