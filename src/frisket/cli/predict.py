"""`frisket predict PICTURE [YAML …] checkpoint=… box=[x0,y0,x1,y1]`: masks for one picture, drawn and as COCO RLE.

    frisket predict photo.jpg checkpoint=runs/finetune_decoder box=[120,80,610,540]
    frisket predict photo.jpg checkpoint=sam_vit_b "point=[[300,200],[40,60,0]]" out=masks.png
    frisket predict photo.jpg checkpoint=runs/finetune_decoder mode=everything everything.points_per_side=64

Boxes and points are original pixels of the upright picture. Several boxes are several objects; all points together are
clicks on one object (a third number 0 marks a point that is not on it), and with a single box they refine that box.
mode=everything asks a grid of points and keeps the good masks, see frisket.everything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from frisket import checkpoint, config
from frisket.errors import UserError, nearest
from frisket.everything.generator import everything
from frisket.everything.strategy import chosen
from frisket.everything.strategy import describe as described
from frisket.files import atomic, write_json
from frisket.geometry import Frame, boxes_of_masks, resize_image
from frisket.kernels import rle
from frisket.picture import overlay
from frisket.plugins import Extensible
from frisket.predict.predictor import Answer, Predictor

MODES = ("prompts", "everything")
SHEET = 1600  # px: the longest side of a picture of everything, which may hold a thousand masks


@dataclass
class PredictConfig(Extensible):
    """What to ask and where to write.

    image: the picture (or the first word of the command); checkpoint: whatever `frisket.checkpoint.load` takes; mode:
    prompts or everything; box and point: see the top of this file; multimask: choose among three outputs (None: for a
    single click); everything: see frisket.everything.strategy; image_size: input side, the model's own when
    unset; out: the PNG, with the masks beside it as .json (runs/predict/<picture's name>.png when empty).
    """

    image: str = ""
    checkpoint: str = ""
    mode: str = "prompts"
    box: list[Any] = field(default_factory=list)
    point: list[Any] = field(default_factory=list)
    multimask: bool | None = None
    everything: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    device: str = "auto"
    out: str = ""


def schema(files: Sequence[str], overrides: Sequence[str]) -> type[PredictConfig]:
    """The config dataclass that these sources fill."""
    return PredictConfig


def run(files: Sequence[str], overrides: Sequence[str]) -> int:
    """Answer the prompts, write the PNG and the JSON, print a line per mask; return the exit code."""
    yamls, pictures = config.split(files)
    settings = config.load(PredictConfig, yamls, overrides)
    if len(pictures) > 1:
        raise UserError(f"predict takes one picture, not {len(pictures)} ({', '.join(pictures)}): run it once for each")
    settings.image = pictures[0] if pictures else settings.image
    if not settings.image:
        raise UserError("predict needs a picture: frisket predict photo.jpg checkpoint=… box=[x0,y0,x1,y1]")
    if not settings.checkpoint:
        raise UserError("predict needs checkpoint=…: a run folder, a checkpoint file or a model name")
    if settings.mode not in MODES:
        raise UserError(f"mode={settings.mode} does not exist: {nearest(settings.mode, MODES)}")
    out = Path(settings.out) if settings.out else Path("runs/predict") / f"{Path(settings.image).stem}.png"
    if out.suffix.lower() != ".png":
        raise UserError(f"out={out} must end in .png: the masks go beside it as .json")
    # before seconds go into loading the model
    boxes, points, labels = _prompts(settings)
    if not Path(settings.image).is_file():
        raise UserError(f"there is no picture at {settings.image}: give the path of a JPEG, PNG or another picture")

    device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    predictor = Predictor(checkpoint.load(settings.checkpoint, device=device), image_size=settings.image_size)
    predictor.set_image(settings.image)
    if settings.mode == "everything":
        lines = _everything(predictor, settings, out)
    else:
        lines = _answer(predictor, settings, out, boxes, points, labels)
    print("\n".join(lines))
    print(f"picture: {out}   masks (COCO RLE): {out.with_suffix('.json')}")
    return 0


def _answer(
    predictor: Predictor,
    settings: PredictConfig,
    out: Path,
    boxes: list[list[float]],
    points: list[list[float]],
    labels: list[int],
) -> list[str]:
    """Answer boxes and points, write both files; a line for each mask."""
    answer = predictor.predict(
        points=points or None, labels=labels or None, boxes=boxes or None, multimask=settings.multimask
    )
    records = describe(answer, boxes, points, labels)
    drawn = overlay(
        predictor.image,
        answer.masks,
        boxes=torch.tensor(boxes) if boxes else None,
        points=torch.tensor(points) if points else None,
        labels=torch.tensor(labels) if labels else None,
        captions=[f"IoU {record['predicted_iou']:.2f}" for record in records],
    )
    _write(out, predictor, settings, {"masks": records}, drawn)
    return [
        f"mask {number}: {record['area']} px, predicted IoU {record['predicted_iou']:.3f}"
        for number, record in enumerate(records)
    ]


def _everything(predictor: Predictor, settings: PredictConfig, out: Path) -> list[str]:
    """Ask the grid, write both files; how many masks there are."""
    made = chosen(settings.everything)
    predictor.batch = made.points_per_batch
    found = everything(predictor, made)
    size = found.size if max(found.size) <= SHEET else Frame.fit(found.size, SHEET).size
    drawn = overlay(resize_image(predictor.image, size), rle.thumbnails(found.rles, size))
    more = {"everything": described(made), "asked": found.asked, "masks": found.records()}
    _write(out, predictor, settings, more, drawn)
    if len(found):
        return [f"{len(found)} masks kept of {found.asked}"]
    return [
        f"none of {found.asked} masks passed the filters (predicted IoU > {made.pred_iou_thresh:g}, of which the best "
        f"had {found.highest:.2f}, and stability >= {made.stability_score_thresh:g}): lower everything.pred_iou_thresh "
        "or everything.stability_score_thresh, or ask a model that is trained further"
    ]


def _write(out: Path, predictor: Predictor, settings: PredictConfig, more: dict[str, Any], drawn: Image.Image) -> None:
    """The JSON and the PNG, each whole or not at all."""
    about = {
        "image": settings.image,
        "size": list(predictor.frame.original),
        "checkpoint": settings.checkpoint,
        "model": predictor.sam.name,
    }
    write_json(out.with_suffix(".json"), about | more)
    with atomic(out) as tmp:
        drawn.save(tmp, format="PNG")


def _prompts(settings: PredictConfig) -> tuple[list[list[float]], list[list[float]], list[int]]:
    """Boxes, points and labels, checked as far as that is possible without the picture."""
    if settings.mode == "everything":
        if settings.box or settings.point:
            raise UserError("mode=everything asks a grid of points: leave box and point out, or say mode=prompts")
        chosen(settings.everything)
        return [], [], []
    boxes, points, labels = _boxes(settings.box), *_points(settings.point)
    if not boxes and not points:
        raise UserError(
            "predict needs a prompt: box=[x0,y0,x1,y1] or point=[x,y], in pixels of the picture, or mode=everything"
        )
    if points and len(boxes) > 1:
        raise UserError(
            f"the points belong to one object, but there are {len(boxes)} boxes: give one box, or no points"
        )
    return boxes, points, labels


def describe(
    answer: Answer, boxes: list[list[float]], points: list[list[float]], labels: list[int]
) -> list[dict[str, Any]]:
    """One record per mask: prompt, segmentation (COCO RLE), area, bbox (xywh), predicted_iou; original pixels."""
    masks = answer.masks.cpu()
    corners = boxes_of_masks(masks)
    records = []
    for number, mask in enumerate(masks):
        prompt: dict[str, Any] = {"box": boxes[number]} if boxes else {}
        if points:
            prompt |= {"points": points, "labels": labels}
        x0, y0, x1, y1 = corners[number].tolist()
        records.append(
            {
                "prompt": prompt,
                "segmentation": rle.encode(mask.numpy()),
                "area": int(mask.sum()),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "predicted_iou": float(answer.iou[number]),
            }
        )
    return records


def _boxes(given: list[Any]) -> list[list[float]]:
    """One box or a list of boxes -> list of boxes."""
    if given and not isinstance(given[0], list):
        given = [given]
    return [_numbers(box, (4,), "box", "box=[x0,y0,x1,y1]") for box in given]


def _points(given: list[Any]) -> tuple[list[list[float]], list[int]]:
    """One point or a list of points -> points, labels."""
    if given and not isinstance(given[0], list):
        given = [given]
    rows = [
        _numbers(point, (2, 3), "point", "point=[x,y] (or [x,y,0] for a point beside the object)") for point in given
    ]
    for row in rows:
        if len(row) == 3 and row[2] not in (0, 1):
            raise UserError(f"point {row} has label {row[2]:g}: 1 is on the object, 0 beside it")
    return [row[:2] for row in rows], [int(row[2]) if len(row) == 3 else 1 for row in rows]


def _numbers(given: Any, sizes: tuple[int, ...], what: str, example: str) -> list[float]:
    good = isinstance(given, list) and len(given) in sizes and all(type(v) in (int, float) for v in given)
    if not good:
        raise UserError(f"{what} {given} is not understood: write {example}")
    return [float(v) for v in given]
