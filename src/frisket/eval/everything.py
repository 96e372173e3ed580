"""Segment everything judged: class-agnostic mask AR@1000 with S / M / L, and everything-mIoU.

Run     frisket eval configs/eval_everything.yaml data=lvis_v1_val.json images=coco checkpoint=runs/finetune_decoder
        … data=SHARDS | data=/data/BSDS500 split=val | configs/eval_everything_tinysam.yaml
Numbers ar1000, ar1000_s, _m, _l (by the objects' annotated areas), on LVIS ar1000_f, _c, _r; miou, miou_s, _m, _l;
        masks (kept per photograph), images, objects.
Source  AR: Segment Anything, appendix D.3: every object of every category, mask IoU 0.50:0.05:0.95, at most 1000 masks
        a photograph, by the mean of predicted IoU and stability where there are more; greedy COCO matching
        (frisket.eval.recall). f, c and r count one group of objects as if the others were not annotated.
        mIoU: the mean over objects of the best IoU any kept mask reaches. TinySAM's Table 2 does not say how masks and
        objects are paired; this is our reading (it published 0.6137 for its own model). Crowds are left out of both.
Memory  A row keeps counts and one IoU per object; masks are gone when the photograph's picture is drawn.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from frisket.data.annotated import Photograph
from frisket.eval.metrics import MaskIoU
from frisket.eval.recall import SIZES, add, average_recall, best_iou, groups, tally
from frisket.eval.task import PhotographConfig, PhotographTask, Row
from frisket.everything.generator import everything
from frisket.everything.result import Everything
from frisket.everything.strategy import chosen, describe
from frisket.geometry import Frame
from frisket.kernels import rle
from frisket.models.sam import Sam
from frisket.picture import Panel
from frisket.predict.predictor import Predictor

FREQUENCIES = ("f", "c", "r")


@dataclass
class Config(PhotographConfig):
    """Whose masks are judged."""

    renamed: ClassVar[dict[str, str]] = {"generator": "everything"}
    max_masks: int = field(default=1000, metadata={"least": 1})
    """Of a photograph, the best ones."""
    everything: dict[str, Any] = field(default_factory=dict)
    """The strategy and its settings, see frisket.everything.strategy."""


@dataclass
class Truth:
    """One photograph to judge: its objects that are no crowds, and its pixels, fitted uint8 (3, h, w) and, when the
    generator crops, original uint8 (H, W, 3)."""

    photo: Photograph
    fitted: Tensor
    frame: Frame
    pixels: np.ndarray | None

    @property
    def key(self) -> str:
        """The photograph's name."""
        return self.photo.key


class Task(PhotographTask):
    """Items are `Truth`s; a row holds the photograph's tally, each object's best IoU (M,) and area (M,)."""

    protocol = "everything"

    def __init__(self, config: Config, image_size: int) -> None:
        super().__init__(config, image_size)
        self.filters, self.most = chosen(config.everything), config.max_masks

    @property
    def sentence(self) -> str:
        """The strategy with its settings, both measures, and the set."""
        return (
            f"everything: {self.strategy['sentence']}; at most {self.most} masks, by the mean of predicted "
            f"IoU and stability; ar{self.most}: class-agnostic greedy COCO matching, IoU .50:.05:.95; miou: mean over "
            f"objects of the best IoU of any mask; no crowds; {self.photographs.name}"
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """What is kept."""
        return {"max_masks": self.most}

    @property
    def strategy(self) -> dict[str, Any]:
        """The generator's."""
        return describe(self.filters)

    def load(self, index: int) -> Truth | None:
        """One photograph with its objects; None when it has none, which changes no number."""
        photo = self.photographs[index]
        photo = photo.select(np.flatnonzero(~photo.crowd))
        if not len(photo):
            return None
        fitted, frame = photo.fitted(self.image_size)
        pixels = photo.image if self.filters.crop_n_layers else None
        photo.encoded = None  # decoded; the rest travels from a worker
        return Truth(photo, fitted, frame, pixels)

    def answer(self, sam: Sam | None, item: Truth) -> Row:
        """What the model's masks find of the photograph's objects."""
        assert sam is not None  # there is no baseline
        predictor = Predictor(sam, image_size=self.image_size, batch=self.filters.points_per_batch)
        if item.pixels is None:
            predictor.set_fitted(item.fitted, item.frame)
        else:
            predictor.set_image(item.pixels)
        candidates = everything(predictor, self.filters)
        masks = ranked(candidates, self.most)
        iou = overlaps(masks, item.photo.rles)
        hits = tally(iou, groups(item.photo.areas, self._frequencies(item.photo)))
        best = best_iou(iou)
        return {
            "key": item.key,
            "objects": len(item.photo),
            "masks": len(masks),
            f"ar{self.most}": average_recall(hits)["all"],
            "miou": float(best.mean()),
            "score": float(best.mean()),
            "tally": hits,
            "best": best,
            "areas": item.photo.areas,
            "_masks": masks,
        }

    def _frequencies(self, photo: Photograph) -> dict[str, np.ndarray]:
        """{"f": bool (M,), …} on LVIS, else nothing."""
        if not self.photographs.lvis:
            return {}
        of = np.array([self.photographs.categories[int(number)].frequency for number in photo.categories])
        return {name: of == name for name in FREQUENCIES}

    def summarise(self, rows: list[Row]) -> dict[str, float]:
        """{"ar1000": …, "ar1000_s": …, "miou": …, "masks": per photograph, "images": n, "objects": n}."""
        recall = average_recall(add(row["tally"] for row in rows))
        numbers = {f"ar{self.most}" + ("" if name == "all" else f"_{name}"): v for name, v in recall.items()}
        metric = MaskIoU(gathered=True)
        for row in rows:
            metric.update(torch.from_numpy(row["best"]), torch.from_numpy(row["areas"]))
        means = metric.compute()
        numbers |= {name: value for name, value in means.items() if name != "n"}
        masks = float(np.mean([row["masks"] for row in rows]))
        return numbers | {"masks": masks, "images": float(len(rows)), "objects": means["n"]}

    def table(self, numbers: dict[str, dict[str, float]]) -> str:
        """Models as rows; AR and mIoU in percent, all sizes and S / M / L, on LVIS f / c / r too."""
        width = max(len(label) for label in numbers)
        name, first = f"ar{self.most}", next(iter(numbers.values()))
        kinds = {f"AR@{self.most} (S / M / L)": [name] + [f"{name}_{size}" for size in list(SIZES)[1:]]}
        if f"{name}_f" in first:
            kinds["f / c / r"] = [f"{name}_{group}" for group in FREQUENCIES]
        kinds["mIoU (S / M / L)"] = ["miou"] + [f"miou_{size}" for size in list(SIZES)[1:]]
        spaces = [max(len(title), 7 * len(keys) + 2) for title, keys in kinds.items()]
        lines = [f"{'':{width}}   " + "   ".join(f"{t:{n}}" for t, n in zip(kinds, spaces)) + "   masks"]
        for label, values in numbers.items():
            cells = [f"{percents([values[key] for key in keys]):{n}}" for keys, n in zip(kinds.values(), spaces)]
            lines.append(f"{label:{width}}   " + "   ".join(cells) + f"   {values['masks']:.0f}")
        tail = f"{int(first['images'])} photographs, {int(first['objects'])} objects; {self.sentence}"
        return "\n".join([*lines, tail])

    def picture(self, item: Truth, answers: dict[str, Row]) -> list[Panel]:
        """Every mask of each model, and the truth."""
        size = item.frame.size
        panels = [Panel(item.fitted, title=item.key)]
        for label, row in answers.items():
            title = f"{label}  {row['masks']} masks, mIoU {row['miou']:.2f}"
            panels.append(Panel(item.fitted, masks=rle.thumbnails(row["_masks"], size), title=title))
        return [*panels, Panel(item.fitted, masks=rle.thumbnails(item.photo.rles, size), title="truth")]


def ranked(result: Everything, most: int) -> list[dict[str, Any]]:
    """At most `most` masks, COCO RLE, best first by the mean of predicted IoU and stability (equal ones in order)."""
    order = torch.argsort((result.iou + result.stability) / 2, descending=True, stable=True)
    return [result.rles[n] for n in order[:most].tolist()]


def overlaps(masks: list[dict[str, Any]], objects: list[dict[str, Any]]) -> np.ndarray:
    """IoU (D, M) of two lists of COCO RLE of one size."""
    if not masks or not objects:
        return np.zeros((len(masks), len(objects)))
    return np.asarray(coco_mask.iou(masks, objects, [0] * len(objects)), np.float64)  # type: ignore[arg-type]


def percents(values: list[float]) -> str:
    """12.3 (4.5 / 6.7 / –): the first, and the rest in brackets when the first is of all."""
    text = [f"{100 * v:5.1f}" if v == v else "    –" for v in values]
    return f"{text[0]}  ({' / '.join(text[1:])})" if len(text) == 4 else " / ".join(text)
