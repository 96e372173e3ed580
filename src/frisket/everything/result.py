"""What segment everything gives back, as tensors and RLE or as SA-1B's annotations."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

TENSORS = ("boxes", "areas", "iou", "stability", "points", "crops")


@dataclass
class Everything:
    """N masks of the photograph, in the generator's order (best predicted IoU first, when there are no crops).

    rles: COCO RLE; boxes: float (N, 4) xyxy, ending after the last pixel; areas: long (N,); iou, stability (N,);
    points (N, 2); crops: long (N, 4) xyxy, where the photograph was cut; size: its (h, w); asked: masks before the
    filters, highest: the best predicted IoU among those. All on the CPU, in original pixels.
    """

    rles: list[dict[str, Any]]
    boxes: Tensor
    areas: Tensor
    iou: Tensor
    stability: Tensor
    points: Tensor
    crops: Tensor
    size: tuple[int, int]
    asked: int
    highest: float

    def __len__(self) -> int:
        return len(self.rles)

    @staticmethod
    def join(parts: list["Everything"]) -> "Everything":
        """The masks of several crops of one photograph, in their order."""
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS}
        asked, highest = sum(part.asked for part in parts), max(part.highest for part in parts)
        rles = [mask for part in parts for mask in part.rles]
        return Everything(rles, **joined, size=parts[0].size, asked=asked, highest=highest)

    def pick(self, chosen: Tensor) -> "Everything":
        """The masks of long `chosen` (K,), in that order."""
        rles = [self.rles[n] for n in chosen.tolist()]
        return replace(self, rles=rles, **{name: getattr(self, name)[chosen] for name in TENSORS})

    def records(self) -> list[dict[str, Any]]:
        """One annotation for each mask with the fields of SA-1B; bbox and crop_box are xywh."""

        def xywh(box: list[float]) -> list[float]:
            return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

        return [
            {
                "segmentation": self.rles[n],
                "area": int(self.areas[n]),
                "bbox": xywh(self.boxes[n].tolist()),
                "predicted_iou": float(self.iou[n]),
                "point_coords": [self.points[n].tolist()],
                "stability_score": float(self.stability[n]),
                "crop_box": xywh(self.crops[n].tolist()),
            }
            for n in range(len(self))
        ]
