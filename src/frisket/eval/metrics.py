"""Running means that add up over batches and ranks: mask IoU by prompt, split by object size.

iou = MaskIoU(); iou.update(values, areas); iou.compute() -> {"miou": .., "miou_s": .., "n": ..}
"""

import torch
from torch import Tensor
from torchmetrics import Metric

SMALL, LARGE = 32.0**2, 96.0**2  # COCO's size limits, in original pixels


class MaskIoU(Metric):
    """Mean IoU over masks (not images), and over small, medium and large ones by area in original pixels.

    The sums are exact in float64 and add over ranks, so one GPU and eight give the same number. `shared_borders`: an
    object of exactly 32² or 96² counts on both sides of the limit (EfficientViT-SAM), else it is medium. `gathered`:
    one rank computes alone, from what all ranks found; it must not wait for the others.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, *, shared_borders: bool = False, gathered: bool = False) -> None:
        super().__init__(sync_on_compute=not gathered)
        self.shared_borders = shared_borders
        self.add_state("total", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, iou: Tensor, areas: Tensor) -> None:
        """Add per-mask IoU (N,) with areas (N,) in original pixels."""
        small, large = areas < SMALL, areas > LARGE
        if self.shared_borders:
            small, large = areas <= SMALL, areas >= LARGE
        member = torch.stack([areas >= 0, small, (areas >= SMALL) & (areas <= LARGE), large]).double()
        self.total += member @ iou.to(member)
        self.count += member.sum(dim=1)

    def compute(self) -> dict[str, float]:
        """{"miou", "miou_s", "miou_m", "miou_l", "n"}; a size without masks is nan (COCO's -1 would mislead a mean)."""
        mean = torch.where(self.count > 0, self.total / self.count.clamp(min=1), torch.nan).tolist()
        return dict(zip(("miou", "miou_s", "miou_m", "miou_l"), mean)) | {"n": float(self.count[0])}


class Mean(Metric):
    """Mean of all values given; exact in float64, added over ranks; nan when there was none."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Add values of any shape."""
        self.total += values.double().sum()
        self.count += values.numel()

    def compute(self) -> float:
        """The mean."""
        return float(self.total / self.count) if self.count else float("nan")
