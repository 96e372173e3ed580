"""Losses as pure functions: tensors first, everything else keyword-only.

Shapes: N masks, C candidate outputs per mask, G grid side, B images, D channels, (h, w) tokens. Mask losses follow SAM
(App. A: 20 focal + 1 dice + 1 IoU error); where the paper is silent (focal alpha and gamma, per-mask pixel mean, dice
smoothing, supervising every candidate's IoU) they follow the released SAM 2 training code's convention.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def focal_loss(
    logits: Tensor, truth: Tensor, *, alpha: float = 0.25, gamma: float = 2.0, valid: Tensor | None = None
) -> Tensor:
    """Sigmoid focal loss (...,): mean over the pixels of each mask.

    logits, truth: (..., G, G), truth in {0, 1}; valid: bool, broadcastable, the pixels that count (all when None).
    """
    truth = truth.to(logits.dtype)
    cross = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    right = torch.exp(-cross)  # the probability given to the true class
    loss = (alpha * truth + (1 - alpha) * (1 - truth)) * (1 - right) ** gamma * cross
    if valid is None:
        return loss.mean(dim=(-2, -1))
    weight = valid.to(loss.dtype).expand_as(loss)
    return (loss * weight).sum(dim=(-2, -1)) / weight.sum(dim=(-2, -1)).clamp(min=1)


def dice_loss(logits: Tensor, truth: Tensor, *, smooth: float = 1.0, valid: Tensor | None = None) -> Tensor:
    """Soft dice loss (...,) of each mask: 1 - (2 p.t + smooth) / (p + t + smooth). Shapes as `focal_loss`."""
    chance, truth = logits.sigmoid(), truth.to(logits.dtype)
    if valid is not None:
        chance, truth = chance * valid, truth * valid
    overlap = (chance * truth).sum(dim=(-2, -1))
    total = chance.sum(dim=(-2, -1)) + truth.sum(dim=(-2, -1))
    return 1 - (2 * overlap + smooth) / (total + smooth)


def logits_iou(logits: Tensor, truth: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Real IoU (...,) of logits thresholded at 0 against bool truth, both (..., G, G); no gradient flows.

    valid: bool, broadcastable, the pixels that count (all when None).
    """
    mask, truth = logits.detach() > 0, truth.bool()
    if valid is not None:
        mask, truth = mask & valid, truth & valid
    inter = (mask & truth).sum(dim=(-2, -1)).float()
    union = (mask | truth).sum(dim=(-2, -1)).float()
    return torch.where(union > 0, inter / union.clamp(min=1), torch.ones_like(union))


def mask_losses(
    logits: Tensor,
    iou: Tensor,
    truth: Tensor,
    *,
    focal: float = 20.0,
    dice: float = 1.0,
    alpha: float = 0.25,
    valid: Tensor | None = None,
    iou_power: int = 2,
) -> dict[str, Tensor]:
    """SAM's ambiguity-aware mask loss: each term (a scalar, mean over masks), not yet weighted.

    logits (N, C, G, G) and predicted iou (N, C) of C candidates; truth bool (N, G, G); valid bool (N, G, G) or None.
    Per mask only the candidate with the least focal * F + dice * D is trained; the IoU error is a mean square (TinySAM:
    iou_power 1, its absolute value) over all candidates (a head trained on winners alone flatters losers). `focal` and
    `dice` here only choose the winner; `alpha` is the focal loss's.
    """
    truth, valid = truth[:, None], None if valid is None else valid[:, None]
    target = truth.expand_as(logits)
    focals = focal_loss(logits.float(), target, alpha=alpha, valid=valid)
    dices = dice_loss(logits.float(), target, valid=valid)
    winner = (focal * focals + dice * dices).detach().argmin(dim=1, keepdim=True)
    error = (iou.float() - logits_iou(logits, truth, valid=valid)).abs() ** iou_power
    terms = {"focal": focals.gather(1, winner), "dice": dices.gather(1, winner), "iou": error}
    # a batch without masks gives 0 with a graph, not nan: other ranks wait for its gradients
    return {name: value.sum() / max(1, value.numel()) for name, value in terms.items()}


def answer_loss(logits: Tensor, iou: Tensor, wanted: Tensor, wanted_iou: Tensor, *, valid: Tensor) -> dict[str, Tensor]:
    """{"mask", "iou"}: how far one decoder's answers are from another's to the same prompts, every candidate counting.

    logits, wanted: (N, C, G, G); iou, wanted_iou: (N, C); valid: bool (N, G, G), the pixels that count. Cross entropy
    with the other's probabilities, a mean over pixels and candidates, and the squared error of the predicted IoU. Our
    choice, after Hinton et al. (arXiv 1503.02531).
    """
    cross = F.binary_cross_entropy_with_logits(logits.float(), wanted.float().sigmoid(), reduction="none")
    weight = valid[:, None].to(cross.dtype).expand_as(cross)
    error = (iou.float() - wanted_iou.float()).square()
    return {"mask": (cross * weight).sum() / weight.sum().clamp(min=1), "iou": error.sum() / max(1, error.numel())}


def feature_loss(student: Tensor, teacher: Tensor, *, valid: Tensor) -> Tensor:
    """Mean squared error over channels and valid tokens (a scalar).

    student, teacher: (B, h, w, D); valid: bool (B, h, w), False where a token holds only padding. A mean, not the
    paper's sum, so that the layer weights do not depend on batch, width or resolution (our choice).
    """
    error = (student.float() - teacher.float()).square().mean(dim=-1)
    weight = valid.to(error.dtype)
    return (error * weight).sum() / weight.sum().clamp(min=1)


def normalize_feature(feature: Tensor) -> Tensor:
    """Parameter-free LayerNorm over the last axis: teacher features (B, h, w, D) of every depth on one scale."""
    return F.layer_norm(feature.float(), feature.shape[-1:])


def distance(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """How far apart two tensors are, element by element: 'l1' (TinySAM's choice), 'mse' or 'smooth_l1'."""
    student, teacher = student.float(), teacher.float()
    if kind == "smooth_l1":
        return F.smooth_l1_loss(student, teacher, reduction="none")
    away = student - teacher
    return away.abs() if kind == "l1" else away.square()


def hardness(teacher_iou: Tensor, student_iou: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """TinySAM's weight of a mask, (N,) of IoU (N,) with the truth: sigmoid(teacher / (student + epsilon) - 1), without
    gradient (arXiv 2312.13789, equation 6). 0.27 where the teacher fails, 0.5 where both are alike, towards 1 where
    only the student fails."""
    return torch.sigmoid(teacher_iou / (student_iou + epsilon) - 1).detach()
