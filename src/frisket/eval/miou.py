"""Box and click mIoU over prepared shards, at the photograph's own resolution. The first of the evaluation tasks.

Run `frisket eval configs/eval_miou.yaml checkpoint=runs/finetune_decoder data=SHARDS`. Protocol (named in every
result): each mask gives one prompt (its box from the annotation, or its innermost pixel on the mask padded by one
pixel), the decoder answers with three masks, the one with the highest predicted IoU is brought to the original size
and thresholded at 0, and IoU is counted there. Means are over masks. `box_fill` is the baseline that answers the
prompt box itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from frisket.data.module import collate
from frisket.data.sa1b import decode, parse
from frisket.data.shards import IndexedShards, expand
from frisket.eval.metrics import MaskIoU
from frisket.geometry import Frame, upscale_logits
from frisket.models.sam import Sam
from frisket.prompts import central_pixels
from frisket.sample import Batch, Prompts

PROTOCOL = "frisket/original-size: GT box or innermost pixel, multimask, highest predicted IoU"


@dataclass
class Truth:
    """One photograph to judge: key, batch of one, and at original size bool masks (M, H, W) and xyxy boxes (M, 4)."""

    key: str
    batch: Batch
    masks: Tensor
    boxes: Tensor

    @property
    def frame(self) -> Frame:
        """The photograph's frame."""
        return self.batch.frames[0]


@dataclass
class Result:
    """Running means per prompt kind and one row per image: key, masks, and mean IoU per prompt kind."""

    iou: dict[str, MaskIoU] = field(default_factory=lambda: {"box": MaskIoU(), "click1": MaskIoU()})
    rows: list[dict[str, object]] = field(default_factory=list)

    def add(self, truth: Truth, values: dict[str, Tensor]) -> None:
        """Add per-mask IoU (M,) of each prompt kind for one photograph."""
        areas = truth.masks.flatten(1).sum(1)
        for name, iou in values.items():
            self.iou[name].update(iou, areas)
        means = {f"{name}_miou": float(iou.mean()) for name, iou in values.items()}
        self.rows.append({"key": truth.key, "masks": len(areas)} | means)

    def numbers(self) -> dict[str, float]:
        """{"box/miou": …, "box/miou_s": …, "click1/miou": …, "masks": n}."""
        parts = {name: metric.compute() for name, metric in self.iou.items()}
        flat = {f"{name}/{key}": value for name, part in parts.items() for key, value in part.items() if key != "n"}
        return flat | {"masks": next(iter(parts.values()))["n"], "images": float(len(self.rows))}


def truths(pattern: str, *, image_size: int, limit: int | None = None) -> Iterator[Truth]:
    """Yield every photograph of the shards with its non-empty masks; UserError names a broken shard or sample."""
    shards = IndexedShards(expand(pattern))
    for index in range(min(len(shards), limit or len(shards))):
        raw = shards[index]
        sample = decode(raw, image_size=image_size, masks_per_image=0, rng=np.random.default_rng(0))
        annotations = parse(raw["json"], where=f"{raw['__shard__']}:{raw['__key__']}")
        keep = [i for i, rle in enumerate(annotations.rles) if coco_mask.area(rle) > 0]
        if not keep:
            continue
        masks = torch.from_numpy(coco_mask.decode([annotations.rles[i] for i in keep])).movedim(-1, 0).bool()
        xywh = torch.as_tensor(np.asarray(annotations.boxes, dtype=np.float32)[keep])
        boxes = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)
        yield Truth(raw["__key__"], collate([sample]), masks.contiguous(), boxes)


@torch.inference_mode()
def judge(sam: Sam, truth: Truth, *, chunk: int = 64) -> dict[str, Tensor]:
    """Masks (M, H, W) of `sam` for the photograph's boxes ("box") and innermost pixels ("click1")."""
    device = next(sam.parameters()).device
    batch, frame = truth.batch, truth.frame
    embeddings = sam.encode(batch.images.to(device), batch.sizes.to(device))
    clicks = torch.from_numpy(central_pixels(truth.masks.numpy())).float()
    prompts = {
        "box": Prompts(boxes=frame.boxes_to_input(truth.boxes).to(device)),
        "click1": Prompts(
            points=frame.to_input(clicks)[:, None].to(device),
            labels=torch.ones(len(clicks), 1, dtype=torch.long, device=device),
        ),
    }
    index = torch.zeros(chunk, dtype=torch.long, device=device)
    answers: dict[str, Tensor] = {}
    for name, prompt in prompts.items():
        parts = []
        for start in range(0, len(prompt), chunk):
            piece = prompt[slice(start, start + chunk)]
            low = sam.decode(embeddings, index[: len(piece)], piece, multimask=True).best()[0]
            parts.append((upscale_logits(low, frame) > 0).cpu())
        answers[name] = torch.cat(parts)
    return answers


def box_fill(truth: Truth) -> dict[str, Tensor]:
    """The baseline: the prompt box itself as the mask, (M, H, W). It has no answer to a click."""
    height, width = truth.frame.original
    ys, xs = torch.arange(height)[None, :, None] + 0.5, torch.arange(width)[None, None, :] + 0.5
    x0, y0, x1, y1 = (edge[:, None, None] for edge in truth.boxes.unbind(1))
    return {"box": (xs > x0) & (xs < x1) & (ys > y0) & (ys < y1)}
