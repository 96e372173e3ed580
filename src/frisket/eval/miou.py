"""Box and click mIoU over prepared shards, at the photograph's own resolution. The first of the evaluation tasks.

Run `frisket eval configs/eval_miou.yaml checkpoint=runs/finetune_decoder data=SHARDS`. Protocol (named in every
result): each mask gives one prompt (its box from the annotation, or its innermost pixel on the mask padded by one
pixel), the decoder answers with three masks, the one with the highest predicted IoU is brought to the original size
and thresholded at 0, and IoU is counted there. Means are over masks. `box_fill` is the baseline that answers the
prompt box itself.
"""

from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from frisket.data.module import collate
from frisket.data.sa1b import decode, parse
from frisket.data.shards import IndexedShards, expand
from frisket.errors import UserError
from frisket.eval.metrics import MaskIoU
from frisket.eval.task import BaseTask, Row, TaskConfig
from frisket.geometry import Frame, mask_iou, upscale_logits
from frisket.models.sam import Sam
from frisket.predict.picture import Panel, row
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
class Config(TaskConfig):
    """data: prepared shards (folder, glob or braces)."""


class Task(BaseTask):
    """Items are `Truth`s; a row holds per-mask IoU (M,) of each prompt kind and areas (M,) in original pixels."""

    baseline = "box fill (baseline)"
    protocol = PROTOCOL

    def __init__(self, config: Config, image_size: int) -> None:
        super().__init__(config, image_size)
        if not config.data:
            raise UserError("eval needs data=…: the folder of prepared shards to judge on")
        self.shards = IndexedShards(expand(config.data))

    def __len__(self) -> int:
        return len(self.shards)

    def load(self, index: int) -> Truth | None:
        """One photograph with its non-empty masks; None when it has none."""
        raw = self.shards[index]
        sample = decode(raw, image_size=self.image_size, masks_per_image=0, rng=np.random.default_rng(0))
        annotations = parse(raw["json"], where=f"{raw['__shard__']}:{raw['__key__']}")
        keep = [i for i, rle in enumerate(annotations.rles) if coco_mask.area(rle) > 0]
        if not keep:
            return None
        masks = torch.from_numpy(coco_mask.decode([annotations.rles[i] for i in keep])).movedim(-1, 0).bool()
        xywh = torch.as_tensor(np.asarray(annotations.boxes, dtype=np.float32)[keep])
        boxes = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)
        return Truth(raw["__key__"], collate([sample]), masks.contiguous(), boxes)

    def judge(self, sam: Sam | None, item: Truth) -> Row:
        """IoU of every mask by every prompt kind."""
        found = box_fill(item) if sam is None else answer(sam, item)
        iou = {kind: mask_iou(masks, item.masks) for kind, masks in found.items()}
        means = {f"{kind}_miou": float(values.mean()) for kind, values in iou.items()}
        return {
            "key": item.key,
            "masks": len(item.masks),
            **means,
            "score": means["box_miou"],
            "iou": iou,
            "areas": item.masks.flatten(1).sum(1),
            "_boxed": found["box"],
        }

    def summarise(self, rows: list[Row]) -> dict[str, float]:
        """{"box/miou": …, "box/miou_s": …, "click1/miou": …, "masks": n, "images": n}."""
        numbers: dict[str, float] = {}
        for kind in rows[0]["iou"]:
            metric = MaskIoU()
            for one in rows:
                metric.update(one["iou"][kind], one["areas"])
            numbers |= {f"{kind}/{name}": value for name, value in metric.compute().items() if name != "n"}
        return numbers | {"masks": float(sum(one["masks"] for one in rows)), "images": float(len(rows))}

    def table(self, numbers: dict[str, dict[str, float]]) -> str:
        """Models as rows; 1-box and 1-point mIoU in percent, all sizes and S / M / L."""
        width = max(len(label) for label in numbers)
        lines = [f"{'':{width}}   1-box mIoU (S / M / L)          1-point mIoU (S / M / L)"]
        for label, values in numbers.items():
            cells = []
            for kind in ("box", "click1"):
                found = [values.get(f"{kind}/{key}", float("nan")) for key in ("miou", "miou_s", "miou_m", "miou_l")]
                text = [f"{100 * v:5.1f}" if v == v else "    –" for v in found]
                cells.append(f"{text[0]}  ({text[1]} / {text[2]} / {text[3]})")
            lines.append(f"{label:{width}}   {cells[0]}   {cells[1]}")
        first = next(iter(numbers.values()))
        return "\n".join([*lines, f"{int(first['images'])} photographs, {int(first['masks'])} masks; {PROTOCOL}"])

    def picture(self, item: Truth, answers: dict[str, Row]) -> list[Panel]:
        """The 12 largest masks by each model, and the truth."""
        image = item.batch.images[0, :, : item.frame.size[0], : item.frame.size[1]]
        largest = item.masks.flatten(1).sum(1).argsort(descending=True)[:12]
        shown = {label: one["_boxed"][largest] for label, one in answers.items() if label != self.baseline}
        return row(image, item.key, shown, item.masks[largest])


@torch.inference_mode()
def answer(sam: Sam, truth: Truth, *, chunk: int = 64) -> dict[str, Tensor]:
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
