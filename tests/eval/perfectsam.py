"""A model that is always right, and a COCO or LVIS folder made of drawn scenes: what the judges' tests share."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from frisket.data.sa1b import parse
from frisket.data.shards import IndexedShards, expand
from frisket.sample import Prediction, Prompts


class PerfectSam(nn.Module):
    """Answers with `truth` (n, H, W), prompt by prompt, at full size. Of three outputs only the second is right, and it
    alone is rated high; `liar` rates it low instead, so that only a judge who knows the truth finds it."""

    def __init__(self, side: int, *, liar: bool = False) -> None:
        super().__init__()
        self.image_size, self.liar = side, liar
        self.truth = np.zeros((0, side, side), bool)
        self.asked: list[tuple[Prompts, bool]] = []
        self.encoded = 0

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def encode(self, images: Tensor, sizes: Tensor) -> Tensor:
        self.encoded += 1
        return torch.zeros(1, 1, 1, 1)

    def decode(self, embeddings: Tensor, image_index: Tensor, prompts: Prompts, multimask: bool) -> Prediction:
        assert len(prompts) == len(self.truth) == len(image_index)
        self.asked.append((prompts, multimask))
        right = torch.full((len(self.truth), self.image_size, self.image_size), -1.0)
        right[:, : self.truth.shape[1], : self.truth.shape[2]] += 2.0 * torch.from_numpy(self.truth)
        if not multimask:
            return Prediction(right[:, None], torch.full((len(right), 1), 0.9))
        wrong = torch.full_like(right, -1.0)
        rated = torch.tensor([0.5, 0.1 if self.liar else 0.9, 0.3]).expand(len(right), 3)
        return Prediction(torch.stack([wrong, right, wrong], dim=1), rated)


def coco_folder(shards: Path, folder: Path, *, lvis: bool = False, crowd: bool = True) -> tuple[Path, Path]:
    """(annotations, images) of a COCO or LVIS set: the photographs of prepared shards with classes 1 to 3."""
    pictures = folder / "pictures" / ("val2017" if lvis else "")
    pictures.mkdir(parents=True, exist_ok=True)
    classes = [{"id": c, "name": f"class {c}"} | ({"frequency": "rcf"[c - 1]} if lvis else {}) for c in (1, 2, 3)]
    record: dict[str, Any] = {"images": [], "annotations": [], "categories": classes}
    source = IndexedShards(expand(shards))
    for number in range(len(source)):
        raw = source[number]
        notes = parse(raw["json"], where="test")
        image_id, name = 100 - number, f"{100 - number:012}.jpg"
        (pictures / name).write_bytes(raw["jpg"])
        image = {"id": image_id, "width": notes.width, "height": notes.height, "file_name": name}
        if lvis:
            image |= {"coco_url": f"http://images.cocodataset.org/val2017/{name}", "neg_category_ids": [3],
                      "not_exhaustive_category_ids": [2]}  # fmt: skip
        record["images"].append(image)
        for k, rle in enumerate(notes.rles):
            record["annotations"].append(
                {"id": len(record["annotations"]) + 1, "image_id": image_id, "category_id": k % 2 + 1,
                 "segmentation": rle, "bbox": notes.boxes[k].tolist(), "area": float(coco_mask.area(rle)),
                 "iscrowd": int(crowd and number == 0 and k == 0)}
            )  # fmt: skip
    path = folder / ("lvis.json" if lvis else "coco.json")
    path.write_text(json.dumps(record))
    return path, folder / "pictures"


def boxes_as_detections(annotations: Path, out: Path, *, score: float | None = None) -> Path:
    """A detector's results that hold every object's own box, with falling scores."""
    notes = json.loads(annotations.read_text())["annotations"]
    rows = [
        {"image_id": n["image_id"], "category_id": n["category_id"], "bbox": n["bbox"],
         "score": score if score is not None else 1 - k / (2 * len(notes))}
        for k, n in enumerate(notes)
    ]  # fmt: skip
    out.write_text(json.dumps(rows))
    return out
