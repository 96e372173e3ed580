"""Box-prompted AP: each detection's box prompts the model, its mask takes the detector's score and class.

Run     frisket eval configs/eval_instance.yaml data=instances_val2017.json images=val2017 \\
          detections=coco_instances_results_vitdet.json checkpoint=runs/finetune_decoder
        … without detections: ground-truth boxes; with results=FILE: a file of masks is scored, no checkpoint needed
Rules   COCO's, or LVIS v1's (federated, 300 per photograph, rare / common / frequent) when the annotations are LVIS';
        frisket.eval.ap. Detections that those rules never look at are not prompted: for LVIS that spares most.
Scores  the detector's. Ground-truth boxes have none, so the model's own predicted IoU stands in (no paper defines it):
        such numbers compare models, and say little beside a detector's.
Source  SAM, appendix D.4 (one refinement pass with the first pass's logits and the box); EdgeSAM (single mask, none);
        EfficientSAM (of three masks the one with the largest IoU with the box; on the decoder's grid is our choice).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from frisket.data.annotated import JsonPhotographs, Photograph
from frisket.data.coco import Category
from frisket.data.detections import read_boxes, read_masks
from frisket.errors import UserError
from frisket.eval.ap import COCO, LVIS, Detected, Matches, Objects, counted, matched, summarise, unpack
from frisket.eval.reference import difference, reference
from frisket.eval.task import PROMPTS, PhotographConfig, PhotographTask, Row
from frisket.files import write_json
from frisket.geometry import Frame, pad_square, upscale_logits
from frisket.kernels import rle
from frisket.models.sam import Sam
from frisket.picture import Panel, row
from frisket.sample import Prediction, Prompts

PIXELS = 1 << 25
"""Float logits enlarged at once."""
SHOWN = 12  # masks in a picture
OUTPUTS = {
    "multimask": "of three masks the one with the highest predicted IoU",
    "single": "the single-mask token",
    "box_iou": "of three masks the one with the largest IoU with the prompt box, on the decoder's grid",
}


@dataclass
class Item:
    """One photograph: its truth, the boxes to prompt (xyxy, original px, float64 (D, 4)) with categories and scores
    (None: the model's own), and the picture uint8 (1, 3, S, S), None when nothing is prompted."""

    photo: Photograph
    boxes: np.ndarray
    categories: np.ndarray
    scores: np.ndarray | None
    image: Tensor | None
    frame: Frame
    results: Detected | None = None

    @property
    def key(self) -> str:
        """The photograph's name."""
        return self.photo.key


@dataclass
class Config(PhotographConfig):
    """What prompts, which mask answers, by whose rules. Sets other than COCO's and LVIS' are judged class-agnostic."""

    renamed: ClassVar[dict[str, str]] = {"batch": "place.prompts_at_once"}
    detections: str = ""
    """A detector's results file; empty: ground-truth boxes."""
    results: str = ""
    """A results file of masks to score too."""
    output: Literal["multimask", "single", "box_iou"] = "multimask"
    """Which mask answers: the highest predicted IoU of three, the single one, or the likest to its box of three."""
    refine: bool = False
    """A second pass with the first one's logits and the box."""
    rules: Literal["auto", "coco", "lvis"] = "auto"
    """auto follows the annotations."""
    save_masks: bool = False
    """Write the masks as COCO results."""
    verify: bool = False
    """Run pycocotools or lvis on the same masks too, and tell the largest difference; all masks stay in memory."""


class Task(PhotographTask):
    """Items are photographs with boxes; a row holds the photograph's `Matches`."""

    protocol = "instance_ap"
    needs_model = False  # a results file can be scored alone

    def __init__(self, config: Config, image_size: int) -> None:
        if not config.checkpoint and not config.results:
            raise UserError(
                "eval needs checkpoint=… (a run folder, a file or a model name) or results=… (masks to score)"
            )
        super().__init__(config, image_size, pixels=bool(config.checkpoint))
        self.settings = config
        lvis = self.photographs.lvis if config.rules == "auto" else config.rules == "lvis"
        self.rules = LVIS if lvis else COCO
        self.categories = self.photographs.categories or {0: Category(0, "object")}
        self.detections = read_boxes(config.detections, self._file("detections")) if config.detections else None
        self.results = read_masks(config.results, self._file("results")) if config.results else None
        if self.results is not None:
            self.baseline = f"masks of {Path(config.results).name}"
        elif self.detections is not None:
            self.baseline = "box fill (baseline)"
        if config.verify:
            file = self._file("verify")
            if self.rules.federated and not file.lvis:
                raise UserError(
                    f"verify=true by LVIS' rules needs LVIS' own annotations, and {file.path.name} has none"
                )

    def _file(self, key: str) -> Any:
        if not isinstance(self.photographs, JsonPhotographs):
            raise UserError(f"{key}=… names images and classes of a COCO or LVIS .json: give that as data=…")
        return self.photographs.file

    @property
    def sentence(self) -> str:
        """Rules, boxes, mask choice, refinement, set."""
        s = self.settings
        boxes = {
            "detections": f"boxes and scores of {Path(s.detections).name}",
            "truth": "ground-truth boxes (non-crowd), scores = predicted IoU",
            "none": f"masks and scores of {Path(s.results).name}, nothing prompted",
        }[self.boxes]
        passes = "one refinement pass with the box and the first pass's logits" if s.refine else "no refinement"
        prompted = f"; {OUTPUTS[s.output]}; {passes}" if self.boxes != "none" else ""
        most = f"at most {self.rules.per_photo} per photograph" if self.rules.per_photo else (
            f"at most {self.rules.per_class} per photograph and class"
        )  # fmt: skip
        return f"mask AP by {self.rules.name}'s rules, {most}; {boxes}{prompted}; {self.photographs.name}"

    @property
    def boxes(self) -> str:
        """What prompts the models: "detections", "truth", or "none" when masks are scored without a model."""
        return "none" if not self.settings.checkpoint else "detections" if self.settings.detections else "truth"

    @property
    def arguments(self) -> dict[str, Any]:
        """Rules, boxes and who found them, which mask answers, refinement."""
        s = self.settings
        detector = None if self.detections is None else {
            "name": Path(s.detections).name, "digest": self.detections.digest
        }  # fmt: skip
        asked = {"output": s.output, "refine": s.refine} if self.boxes != "none" else {"output": None, "refine": None}
        rules = "lvis" if self.rules.federated else "coco"
        return {"rules": rules, "boxes": self.boxes, "detections": detector, **asked}

    def load(self, index: int) -> Item:
        """One photograph with the boxes that count, and its picture when there are any."""
        photo = self.photographs[index]
        truth = _truth(photo)
        if self.detections is None:
            chosen = np.flatnonzero(~photo.crowd & (photo.boxes[:, 2:] > photo.boxes[:, :2]).all(axis=1))
            boxes, categories, scores = photo.boxes[chosen], photo.categories[chosen], None
        else:
            xywh, categories, scores = self.detections.of(photo.image_id)
            if not self.settings.save_masks:
                chosen = np.sort(counted(categories, scores, truth, self.rules)[0])
                xywh, categories, scores = xywh[chosen], categories[chosen], scores[chosen]
            boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        image, frame = None, Frame.fit(photo.size, self.image_size)
        if self.settings.checkpoint and len(boxes):
            resized, frame = photo.fitted(self.image_size)
            image = pad_square(resized, frame.side)[None]
        photo.encoded = None  # decoded; the rest travels from a worker
        results = None if self.results is None else _detected(*self.results.of(photo.image_id))
        return Item(photo, boxes, categories, scores, image, frame, results)

    def answer(self, sam: Sam | None, item: Item) -> Row:
        """Masks for every box, matched with the truth."""
        if sam is None and item.results is not None:
            detected = item.results
        else:
            rles, own = filled(item) if sam is None else answer(sam, item, self.settings)
            detected = _detected(rles, item.categories, own if item.scores is None else item.scores)
        matches = matched(detected, _truth(item.photo), self.rules)
        told = self.settings.save_masks or self.settings.verify
        saved = {"image_id": item.photo.image_id, "results": _saved(item.photo.image_id, detected)} if told else {}
        score = _score(matches, f"ar{self.rules.recalls[-1]}")
        return {
            "key": item.key,
            "masks": len(detected.shapes),
            **score,
            "matches": vars(matches),
            **saved,
            "_detected": detected,
        }

    def summarise(self, rows: list[Row]) -> dict[str, Any]:
        """{"ap": …, "ap50": …, "ap_s": …, …}, see frisket.eval.ap; "masks" judged and "images"."""
        numbers = summarise([Matches(**part["matches"]) for part in rows], self.rules, self.categories)
        numbers |= self._verified(rows, numbers) if self.settings.verify else {}
        return numbers | {"masks": float(sum(part["masks"] for part in rows)), "images": float(len(rows))}

    def _verified(self, rows: list[Row], numbers: dict[str, float]) -> dict[str, Any]:
        """{"verify/difference", "verify/key", "verify/by"}: the largest difference from the reference's numbers."""
        results = [result for part in rows for result in part["results"]]
        if not results:
            return {}  # the references want at least one
        images = [part["image_id"] for part in rows]
        theirs = reference(self._file("verify").path, results, images, federated=self.rules.federated)
        worst, key = difference(numbers, theirs)
        return {
            "verify/difference": worst,
            "verify/key": key,
            "verify/by": "lvis" if self.rules.federated else "pycocotools",
        }

    def table(self, numbers: dict[str, dict[str, Any]]) -> str:
        """Models as rows; AP in percent."""
        names = ["ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l"]
        names += ["ap_r", "ap_c", "ap_f"] if self.rules.federated else []
        names.append(f"ar{self.rules.recalls[-1]}")
        width = max(len(label) for label in numbers)
        lines = [f"{'':{width}} " + "".join(f"{name.upper().replace('_', ' '):>7}" for name in names)]
        for label, values in numbers.items():
            cells = (f"{100 * values[name]:7.1f}" if values[name] == values[name] else f"{'–':>7}" for name in names)
            lines.append(f"{label:{width}} {''.join(cells)}")
        first = list(numbers.values())[-1]
        lines += [
            f"{label}: the largest difference from {values['verify/by']} is {values['verify/difference']:.1e}, in "
            f"{values['verify/key']}"
            for label, values in numbers.items()
            if "verify/by" in values
        ]
        return "\n".join([*lines, f"{int(first['images'])} photographs, {int(first['masks'])} masks; {self.sentence}"])

    def extras(self, folder: Path, label: str, rows: list[Row]) -> list[Path]:
        """results_<label>.json, COCO's results format without `bbox`, when save_masks asks for it."""
        if not self.settings.save_masks:
            return []
        path = folder / f"results_{''.join(c if c.isalnum() or c in '.-' else '_' for c in label)}.json"
        write_json(path, [result for part in rows for result in part["results"]])
        return [path]

    def picture(self, item: Item, answers: dict[str, Row]) -> list[Panel] | None:
        """The 12 detections of the highest scores by each model, and the largest objects."""
        if item.image is None:
            return None
        image = item.image[0, :, : item.frame.size[0], : item.frame.size[1]]
        shown = {}
        for label, answered in answers.items():
            detected = answered["_detected"]
            best = np.argsort(-detected.scores, kind="stable")[:SHOWN]
            if len(best):
                shown[label] = _decoded([detected.shapes[i] for i in best])
        largest = np.argsort(-item.photo.areas, kind="stable")[:SHOWN]
        return row(image, item.key, shown, torch.from_numpy(item.photo.masks(largest)))


def answer(sam: Sam, item: Item, config: Config) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The masks of an item's boxes as RLE, and their predicted IoU float64 (D,)."""
    if item.image is None:
        return [], np.zeros(0)
    frame, device = item.frame, sam.device
    embedding = sam.encode(item.image.to(device), torch.tensor([frame.size], device=device))
    boxes = frame.boxes_to_input(torch.from_numpy(item.boxes).float()).to(device)
    rles: list[dict[str, Any]] = []
    scores: list[Tensor] = []
    step = max(1, PIXELS // max(frame.side**2, frame.original[0] * frame.original[1]))
    for part in boxes.split(config.place.prompts_at_once or PROMPTS):
        index = torch.zeros(len(part), dtype=torch.long, device=device)
        prompts = Prompts(boxes=part)
        low, iou = choose(sam.decode(embedding, index, prompts, config.output != "single"), part, config.output)
        if config.refine:
            again = sam.decode(embedding, index, prompts.refine(low), config.output != "single")
            low, iou = choose(again, part, config.output)
        for few in low.split(step):
            rles += [rle.encode(mask) for mask in (upscale_logits(few, frame) > 0).cpu().numpy()]
        scores.append(iou)
    return rles, torch.cat(scores).double().cpu().numpy()


def choose(prediction: Prediction, boxes: Tensor, output: str) -> tuple[Tensor, Tensor]:
    """One output per prompt: logits (N, G, G) and predicted IoU (N,). boxes: (N, 4) xyxy in input pixels."""
    if output != "box_iou":
        return prediction.best()
    grid = prediction.logits.shape[-1]
    centre = 4.0 * torch.arange(grid, device=boxes.device) + 2
    columns = (centre > boxes[:, :1]) & (centre < boxes[:, 2:3])
    rows = (centre > boxes[:, 1:2]) & (centre < boxes[:, 3:])
    inside = (rows[:, :, None] & columns[:, None, :])[:, None]
    masks = prediction.logits > 0
    both, either = (masks & inside).flatten(2).sum(2), (masks | inside).flatten(2).sum(2)
    return prediction.pick((both / either.clamp(min=1)).argmax(dim=1))


def filled(item: Item) -> tuple[list[Any], np.ndarray]:
    """The baseline: every box itself as the mask, with score 1."""
    if not len(item.boxes):
        return [], np.zeros(0)
    xywh = np.concatenate([item.boxes[:, :2], item.boxes[:, 2:] - item.boxes[:, :2]], axis=1)
    return list(coco_mask.frPyObjects(xywh, *item.photo.size)), np.ones(len(item.boxes))


def _detected(rles: Any, categories: np.ndarray, scores: np.ndarray) -> Detected:
    """Areas come from the masks, never from boxes: S, M and L mean the mask's size."""
    areas = np.array([coco_mask.area(rle) for rle in rles], np.float64)  # of a list it overflows at 256 (2.0.11)
    return Detected(list(rles), areas, categories, scores)


def _truth(photo: Photograph) -> Objects:
    return Objects(
        photo.rles, photo.areas, photo.categories, photo.crowd, photo.negative, photo.not_exhaustive
    )  # fmt: skip


def _score(matches: Matches, name: str) -> dict[str, float]:
    """{name: recall over objects and IoU thresholds, "score": the same}, nothing where there is no object."""
    objects = int((~matches.truths_ignored[0]).sum())
    if not objects:
        return {}
    right = int((unpack(matches.matched)[0] & ~unpack(matches.ignored)[0]).sum())
    recall = right / objects / 10
    return {name: recall, "score": recall}


def _saved(image_id: int, detected: Detected) -> list[dict[str, Any]]:
    names = zip(detected.shapes, detected.categories.tolist(), detected.scores.tolist(), strict=True)
    return [
        {"image_id": image_id, "category_id": category, "score": score, "segmentation": _text(shape)}
        for shape, category, score in names
    ]


def _text(shape: dict[str, Any]) -> dict[str, Any]:
    counts = shape["counts"]
    return {"size": list(shape["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def _decoded(rles: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(coco_mask.decode(rles), -1, 0))).bool()
