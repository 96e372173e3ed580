"""Edge maps without training for edges: from the masks of segment everything, or by Sobel from the photograph itself.

Use     predictor.set_image("photo.jpg"); edges = everything_edges(predictor)          # float (H, W) in 0..1
        edges = thinned(photograph_edges(predictor.image))                             # the classical baseline
Source  Segment Anything (arXiv 2304.02643, appendix D.2): 16 x 16 points, three masks each, no filters, box NMS 0.7; of
        each mask the Sobel magnitude of its probabilities, where it meets the outer boundary of the mask; the largest
        over masks; minimum to 0 and maximum to 1; edge NMS. Box NMS takes the mask of higher predicted IoU first.
Ours    The paper does not publish its edge NMS. Here a pixel stays when neither neighbour one pixel away along the
        normal of its edge is larger; the normal is the main direction of the map's gradients around (structure tensor),
        which is as well defined on the crest of an edge as on its sides. The 3 x 3 blur before it, which helps by
        report of others, is optional.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from frisket.everything import grid
from frisket.everything.candidates import Filters
from frisket.everything.generator import survivors
from frisket.everything.strategy import chosen
from frisket.geometry import Frame, upscale_logits
from frisket.predict.predictor import Predictor

OPEN: dict[str, Any] = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 0.7}
GRID = grid.Config(points_per_side=16, **OPEN)
"""What the masks of an edge map are asked with."""

SMOOTHING = 2.0  # pixels; standard deviation of the Gaussian that weighs the gradients around a pixel
LUMA = (0.299, 0.587, 0.114)


def asked_by(strategy: str) -> Filters:
    """GRID, or another strategy with its own points and the same filters: Lite-SAM has 256 by autoppn, and does not say
    what its edges were made with. Raises UserError for an unknown name."""
    return GRID if strategy == GRID.strategy else chosen({"strategy": strategy, **OPEN})


@torch.inference_mode()
def everything_edges(predictor: Predictor, asked: Filters = GRID, *, blur: bool = True, nms: bool = True) -> Tensor:
    """Edge map (H, W) of the predictor's photograph at its own size, float on the CPU, 0..1."""
    edges = scaled(strongest(survivors(predictor, asked).logits, predictor.frame))
    return (thinned(edges, blur=blur) if nms else edges).cpu()


def photograph_edges(image: Tensor) -> Tensor:
    """Sobel magnitude of the grey photograph uint8 (3, H, W), scaled to 0..1: float (H, W)."""
    grey = (image.float() * torch.tensor(LUMA, device=image.device)[:, None, None]).sum(0)
    return scaled(sobel(grey[None])[0])


def strongest(logits: Tensor, frame: Frame, *, chunk: int = 16) -> Tensor:
    """The largest of `mask_edges` at each pixel (H, W) over masks given as low-resolution logits (N, G, G).

    `chunk` masks are at full size at once. Without masks there are no edges: zeros.
    """
    edges = torch.zeros(frame.original, device=logits.device)
    for part in logits.split(chunk):
        if len(part):
            edges = torch.maximum(edges, mask_edges(upscale_logits(part, frame)).amax(0))
    return edges


def mask_edges(logits: Tensor) -> Tensor:
    """Sobel magnitude of the probabilities of masks (N, H, W), zero off the outer boundary of each mask."""
    return sobel(logits.sigmoid()) * outer_boundary(logits > 0)


def sobel(values: Tensor) -> Tensor:
    """Magnitude of the 3 x 3 Sobel gradient of pictures (N, H, W); beyond the border they go on unchanged."""
    return torch.hypot(*gradient(values))


def gradient(values: Tensor) -> tuple[Tensor, Tensor]:
    """The two 3 x 3 Sobel derivatives of pictures (N, H, W), to the right and down; each (N, H, W)."""
    wide = F.pad(values[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    right = wide[:, :, 2:] - wide[:, :, :-2]
    down = wide[:, 2:] - wide[:, :-2]
    dx = right[:, :-2] + 2 * right[:, 1:-1] + right[:, 2:]
    dy = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    return dx, dy


def outer_boundary(masks: Tensor) -> Tensor:
    """The pixels beside bool masks (N, H, W), corners included, that do not belong to them."""
    grown = F.max_pool2d(masks[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0
    return grown & ~masks


def scaled(edges: Tensor) -> Tensor:
    """The map moved and stretched so that its smallest value is 0 and its largest 1; zeros when all are equal."""
    low, high = edges.amin(), edges.amax()
    return (edges - low) / (high - low) if high > low else torch.zeros_like(edges)


def thinned(edges: Tensor, *, blur: bool = False) -> Tensor:
    """Edge NMS: the map (H, W), zero where a neighbour one pixel away along the edge's normal is larger.

    blur: smooth the map by a 3 x 3 Gaussian first. Values are those of the (blurred) map, scaled to 0..1 again.
    """
    if blur:
        edges = smoothed(edges, torch.tensor([0.25, 0.5, 0.25]))
    normal = normals(edges)
    beside = torch.maximum(sample(edges, normal), sample(edges, -normal))
    return scaled(edges * (edges >= beside))


def normals(edges: Tensor) -> Tensor:
    """Unit vectors (2, H, W), (x, y): the main direction of the map's gradients around each pixel, of either sign."""
    reach = int(3 * SMOOTHING)
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / SMOOTHING) ** 2)
    dx, dy = (derivative[0] for derivative in gradient(edges[None]))
    xx, xy, yy = (smoothed(product, bell / bell.sum()) for product in (dx * dx, dx * dy, dy * dy))
    angle = 0.5 * torch.atan2(2 * xy, xx - yy)
    return torch.stack([angle.cos(), angle.sin()])


def smoothed(edges: Tensor, weights: Tensor) -> Tensor:
    """The map (H, W) smoothed by odd symmetric `weights` along both axes; beyond the border it goes on unchanged."""
    row = weights.to(edges)[None, None, None]
    reach = row.shape[-1] // 2
    wide = F.pad(edges[None, None], (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(wide, row), row.mT)[0, 0]


def sample(values: Tensor, step: Tensor) -> Tensor:
    """The map (H, W) read bilinearly at each pixel plus `step` (2, H, W), (x, y) pixels; border values beyond it."""
    height, width = values.shape
    y, x = torch.meshgrid(
        torch.arange(height, device=values.device), torch.arange(width, device=values.device), indexing="ij"
    )
    at = torch.stack([x + step[0], y + step[1]], dim=-1)
    unit = 2 * at / torch.tensor([max(width - 1, 1), max(height - 1, 1)], device=values.device) - 1
    return F.grid_sample(
        values[None, None], unit[None].to(values), mode="bilinear", padding_mode="border", align_corners=True
    )[0, 0]
