"""`frisket predict PICTURE… [YAML …] checkpoint=… box=[x0,y0,x1,y1]`: masks for pictures, drawn and as COCO RLE.

    frisket predict photo.jpg checkpoint=runs/finetune_decoder box=[120,80,610,540]
    frisket predict photo.jpg checkpoint=sam_vit_b "point=[[300,200],[40,60,0]]" out=masks.png
    frisket predict photo.jpg checkpoint=runs/finetune_decoder mode=everything everything.points_per_side=64
    frisket predict photos/ 'more/*.jpg' checkpoint=runs/finetune_decoder mode=everything out=masks

A folder means the pictures in it. Boxes and points are original pixels of the upright picture, the same for all of
them. Several boxes are several objects; all points together are clicks on one object (a third number 0 marks a point
that is not on it), and with a single box they refine that box. The number at a prompt is that of its mask.
mode=everything asks a grid of points and keeps the good masks, see frisket.everything; where none is good enough, and
the limits were not set by hand, by the checkpoint's own limits (frisket.everything.limits), which the picture says.
A picture that cannot be answered is one sentence, the others go on, and the exit code is 2.
"""

import glob
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from PIL import Image

from frisket import checkpoint
from frisket import config as settings
from frisket.errors import UserError
from frisket.everything.generator import everything
from frisket.everything.limits import own_limits
from frisket.everything.strategy import chosen, describe
from frisket.files import atomic, writable, write_json
from frisket.geometry import Frame, boxes_of_masks, resize_image
from frisket.kernels import rle
from frisket.picture import noted, overlay
from frisket.place import Place, autocast, device
from frisket.plugins import Extensible
from frisket.predict.predictor import PICTURES, Answer, Predictor

SHEET = 1600  # px: the longest side of a picture of everything, which may hold a thousand masks
LIMITS = ("pred_iou_thresh", "stability_score_thresh")


@dataclass
class PredictConfig(Extensible):
    """What to ask and where to write."""

    renamed: ClassVar[dict[str, str]] = {"device": "place.accelerator"}
    image: list[str] = field(default_factory=list)
    """Pictures, folders and globs: the same as the command's bare words."""
    checkpoint: str = ""
    """A run folder, a checkpoint file or a model name."""
    trust: bool = False
    """Run what a DeepSpeed folder holds besides weights; else such a folder is refused."""
    mode: Literal["prompts", "everything"] = "prompts"
    """Masks of the prompts below, or of everything."""
    box: list[Any] = field(default_factory=list)
    """[x0,y0,x1,y1], or a list of them: one object each."""
    point: list[Any] = field(default_factory=list)
    """[x,y] on the object, [x,y,0] beside it, or a list of them: all about one object."""
    multimask: bool | None = None
    """Choose among three outputs; null: for a single click."""
    everything: dict[str, Any] = field(default_factory=dict)
    """The strategy and its settings, see frisket.everything.strategy."""
    image_size: int | None = field(default=None, metadata={"least": 16, "most": 16384})
    """Input side; null: the model's own."""
    place: Place = field(default_factory=Place)
    """One device: of its settings accelerator, precision, threads and prompts_at_once count."""
    out: str = ""
    """The PNG, or a folder; the masks go beside it as .json. Empty: runs/predict/<picture's name>.png."""


@dataclass
class Asked:
    """Prompts as the configuration gave them: boxes (x0, y0, x1, y1), points (x, y) and their labels."""

    boxes: list[list[float]]
    points: list[list[float]]
    labels: list[int]


def schema(files: Sequence[str], overrides: Sequence[str]) -> type[PredictConfig]:
    """The config dataclass that these sources fill."""
    return PredictConfig


def run(files: Sequence[str], overrides: Sequence[str]) -> int:
    """Answer for every picture: its PNG and JSON, and a line; return the exit code."""
    yamls, words = settings.split(files)
    config = settings.load(PredictConfig, yamls, overrides)
    # before seconds go into loading the model
    if not config.checkpoint:
        raise UserError("predict needs checkpoint=…: a run folder, a checkpoint file or a model name")
    asked = prompts(config)
    pictures = gathered(words or config.image)
    outs = targets(pictures, config.out)
    for out in outs:
        if out.is_dir():
            raise UserError(f"{out} is a folder where the picture is to be: give another out=, or move it away")
    writable(outs[0].parent, f"out={config.out or outs[0].parent}")
    place = config.place
    if place.devices not in ("auto", "1") or place.num_nodes != 1:
        raise UserError("predict works on one device: leave place.devices and place.num_nodes out")
    if place.threads:
        torch.set_num_threads(place.threads)
    predictor = Predictor(
        checkpoint.load(config.checkpoint, device(place), trust=config.trust), image_size=config.image_size
    )
    failed, start = 0, time.monotonic()
    for number, (picture, out) in enumerate(zip(pictures, outs, strict=True)):
        left = f", {(time.monotonic() - start) / number * (len(pictures) - number):.0f} s left" if number else ""
        prefix = f"[{number + 1}/{len(pictures)}{left}] {picture}: " if len(pictures) > 1 else ""
        try:
            with autocast(place, predictor.sam.device):
                predictor.set_image(picture)
                lines = _everything(predictor, config, picture, out) if asked is None else (
                    _answer(predictor, config, asked, picture, out)
                )  # fmt: skip
        except UserError as error:
            if len(pictures) == 1:
                raise
            failed += 1
            print(f"frisket: {error}", file=sys.stderr, flush=True)
            continue
        print("\n".join(prefix + line for line in lines))
        print(f"picture: {out}   masks (COCO RLE): {out.with_suffix('.json')}", flush=True)
    if failed:
        print(f"frisket: {failed} of {len(pictures)} pictures got no answer, see above", file=sys.stderr)
    return 2 if failed else 0


def gathered(words: Sequence[str]) -> list[Path]:
    """The pictures that words mean: files, folders (the pictures in them, by name) and globs. Raises UserError for a
    folder or glob without pictures, and when no picture exists at all."""
    if not words:
        raise UserError("predict needs a picture: frisket predict photo.jpg checkpoint=… box=[x0,y0,x1,y1]")
    pictures: list[Path] = []
    for word in words:
        path = Path(word)
        here = [path]
        if path.is_dir():
            here = sorted(inner for inner in path.iterdir() if inner.suffix.lower() in PICTURES)
        elif not path.exists() and glob.has_magic(word):
            here = [Path(hit) for hit in sorted(glob.glob(word, recursive=True)) if Path(hit).is_file()]
        if not here:
            raise UserError(f"there are no pictures in {word}: give pictures ({', '.join(PICTURES)}), folders or globs")
        pictures += here
    if not any(picture.is_file() for picture in pictures):
        raise UserError(f"there is no picture at {pictures[0]}: give the path of a JPEG, PNG or another picture")
    return pictures


def targets(pictures: Sequence[Path], out: str) -> list[Path]:
    """The PNG of each picture; pictures of the same name get a number. Raises UserError for another kind of file, and
    for one file where several pictures are."""
    suffix = Path(out).suffix.lower()
    if suffix and suffix != ".png" and not Path(out).is_dir():
        raise UserError(f"out={out} must end in .png, or be a folder: the masks go beside it as .json")
    if suffix == ".png":
        if len(pictures) > 1:
            raise UserError(f"out={out} is one file for {len(pictures)} pictures: give a folder")
        return [Path(out)]
    names: list[str] = []
    for picture in pictures:
        name, number = picture.stem, 1
        while name in names:
            name, number = f"{picture.stem}-{number + 1}", number + 1
        names.append(name)
    return [Path(out or "runs/predict") / f"{name}.png" for name in names]


def _answer(predictor: Predictor, config: PredictConfig, asked: Asked, picture: Path, out: Path) -> list[str]:
    """Answer boxes and points, write both files; a line for each mask."""
    predictor.batch = config.place.prompts_at_once or predictor.batch
    answer = predictor.predict(
        points=asked.points or None,
        labels=asked.labels or None,
        boxes=asked.boxes or None,
        multimask=config.multimask,
    )
    masks = records(answer, asked)
    drawn = overlay(
        predictor.image,
        answer.masks,
        boxes=torch.tensor(asked.boxes) if asked.boxes else None,
        points=torch.tensor(asked.points) if asked.points else None,
        labels=torch.tensor(asked.labels) if asked.labels else None,
        captions=[f"{number}  IoU {mask['predicted_iou']:.2f}" for number, mask in enumerate(masks)],
        numbers=True,
    )
    _write(out, predictor, config, picture, {"masks": masks}, drawn)
    return [
        f"mask {number}: {mask['area']} px, predicted IoU {mask['predicted_iou']:.3f}"
        for number, mask in enumerate(masks)
    ]


def _everything(predictor: Predictor, config: PredictConfig, picture: Path, out: Path) -> list[str]:
    """Ask the strategy, write both files; how many masks there are."""
    made, note = chosen(config.everything), ""
    predictor.batch = config.place.prompts_at_once or made.points_per_batch
    masks = everything(predictor, made)
    if not len(masks) and not set(LIMITS) & set(config.everything):
        wanted, made = made, own_limits(predictor, made)
        masks = everything(predictor, made)
        if len(masks):
            note = (
                f"no mask passed predicted IoU > {wanted.pred_iou_thresh:g} and stability >= "
                f"{wanted.stability_score_thresh:g}; kept by this checkpoint's own limits, > {made.pred_iou_thresh:g} "
                f"and >= {made.stability_score_thresh:g}: the best tenth by predicted IoU, of those the steadier half"
            )
    size = masks.size if max(masks.size) <= SHEET else Frame.fit(masks.size, SHEET).size
    drawn = overlay(resize_image(predictor.image, size), rle.thumbnails(masks.rles, size))
    more = {"everything": describe(made), "note": note, "asked": masks.asked, "masks": masks.records()}
    _write(out, predictor, config, picture, more, noted(drawn, note) if note else drawn)
    if len(masks):
        return [f"{len(masks)} masks kept of {masks.asked}", *([note] if note else [])]
    return [
        f"none of {masks.asked} masks passed the filters (predicted IoU > {made.pred_iou_thresh:g}, of which the best "
        f"had {masks.highest:.2f}, and stability >= {made.stability_score_thresh:g}): lower everything.pred_iou_thresh "
        "or everything.stability_score_thresh, or ask a model that is trained further"
    ]


def _write(
    out: Path, predictor: Predictor, config: PredictConfig, picture: Path, more: dict[str, Any], drawn: Image.Image
) -> None:
    """The JSON and the PNG, each whole or not at all."""
    about = {
        "image": str(picture),
        "size": list(predictor.frame.original),
        "checkpoint": config.checkpoint,
        "model": predictor.sam.name,
    }
    write_json(out.with_suffix(".json"), about | more)
    with atomic(out) as tmp:
        drawn.save(tmp, format="PNG")


def prompts(config: PredictConfig) -> Asked | None:
    """What is asked, checked as far as that is possible without the picture; None for everything."""
    if config.mode == "everything":
        if config.box or config.point:
            raise UserError("mode=everything asks a grid of points: leave box and point out, or say mode=prompts")
        chosen(config.everything)
        return None
    asked = Asked(_boxes(config.box), *_points(config.point))
    if not asked.boxes and not asked.points:
        raise UserError(
            "predict needs a prompt: box=[x0,y0,x1,y1] or point=[x,y], in pixels of the picture, or mode=everything"
        )
    if asked.points and len(asked.boxes) > 1:
        raise UserError(
            f"the points belong to one object, but there are {len(asked.boxes)} boxes: give one box, or no points"
        )
    return asked


def records(answer: Answer, asked: Asked) -> list[dict[str, Any]]:
    """One record per mask: prompt, segmentation (COCO RLE), area, bbox (xywh), predicted_iou; original pixels."""
    masks = answer.masks.cpu()
    corners = boxes_of_masks(masks)
    described = []
    for number, mask in enumerate(masks):
        prompt: dict[str, Any] = {"box": asked.boxes[number]} if asked.boxes else {}
        if asked.points:
            prompt |= {"points": asked.points, "labels": asked.labels}
        x0, y0, x1, y1 = corners[number].tolist()
        described.append(
            {
                "prompt": prompt,
                "segmentation": rle.encode(mask.numpy()),
                "area": int(mask.sum()),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "predicted_iou": float(answer.iou[number]),
            }
        )
    return described


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
