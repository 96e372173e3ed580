"""`frisket eval YAML… key=value…`: checkpoints in, numbers out: a table, eval.json, per_image.csv, a picture of masks.

    frisket eval configs/eval_miou.yaml data=SHARDS checkpoint=[teacher:runs/train_sam,runs/finetune_decoder]

Each `checkpoint` is whatever `frisket.checkpoint.load` takes (run folder, file, zoo name), optionally after `label:`.
"""

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from frisket import checkpoint, config
from frisket.errors import UserError
from frisket.eval import miou
from frisket.files import atomic, write_json
from frisket.geometry import mask_iou
from frisket.models.sam import Sam
from frisket.predict.picture import Panel, comparison, row

BASELINE = "box fill (baseline)"


@dataclass
class EvalConfig:
    """What to judge and where to write.

    checkpoint: models, in the table's order; data: prepared shards (folder, glob or braces); image_size: input side,
    the model's own when unset; limit: first n photographs only; pictures: rows of the picture (0 for none).
    """

    checkpoint: list[str] = field(default_factory=list)
    data: str = ""
    image_size: int | None = None
    limit: int | None = None
    device: str = "auto"
    pictures: int = 6
    out: str = "runs/eval"


def run(files: list[str], overrides: list[str]) -> int:
    """Judge every checkpoint on every photograph; print the table; return the exit code."""
    settings = config.load(EvalConfig, files, overrides)
    if not settings.checkpoint:
        raise UserError("eval needs checkpoint=…: a run folder, a checkpoint file or a model name (several as [a,b])")
    if not settings.data:
        raise UserError("eval needs data=…: the folder of prepared shards to judge on")
    device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    models = load_all(settings.checkpoint, device)
    sizes = {sam.image_size for sam in models.values()}
    if settings.image_size is None and len(sizes) > 1:
        raise UserError(f"the checkpoints take different input sides {sorted(sizes)}: judge them at one, image_size=…")
    side = settings.image_size or sizes.pop()

    answers: dict[str, Callable[[miou.Truth], dict[str, Tensor]]] = {BASELINE: miou.box_fill}
    answers |= {label: partial(miou.judge, sam.eval()) for label, sam in models.items()}
    results = {label: miou.Result() for label in answers}
    for label, result in results.items():
        if label == BASELINE:
            del result.iou["click1"]  # a box fill has no answer to a click
    panels: list[list[Panel]] = []
    for truth in miou.truths(settings.data, image_size=side, limit=settings.limit):
        given = {label: answer(truth) for label, answer in answers.items()}
        for label, masks in given.items():
            results[label].add(truth, {kind: mask_iou(found, truth.masks) for kind, found in masks.items()})
        if len(panels) < settings.pictures:
            panels.append(row_of(truth, {label: given[label]["box"] for label in models}))
    if not results[BASELINE].rows:
        raise UserError(f"{settings.data} holds no photograph with a mask: give prepared shards that do")

    numbers = {label: result.numbers() for label, result in results.items()}
    out = Path(settings.out)
    write_json(
        out / "eval.json", {"protocol": miou.PROTOCOL, "image_size": side, "data": settings.data, "models": numbers}
    )
    write_rows(
        out / "per_image.csv", ({"model": label} | line for label, result in results.items() for line in result.rows)
    )
    print(table(numbers))
    print(f"numbers: {out / 'eval.json'}   per image: {out / 'per_image.csv'}")
    if panels:
        with atomic(out / "masks.png") as tmp:
            comparison(panels).save(tmp, format="PNG")
        print(f"picture of masks: {out / 'masks.png'}")
    return 0


def load_all(names: list[str], device: str) -> dict[str, Sam]:
    """{label: model}; the label is what precedes ':', else the path's last part."""
    models: dict[str, Sam] = {}
    for name in names:
        label, colon, path = name.partition(":")
        label, path = (label, path) if colon else (Path(name).name, name)
        if label in models:
            raise UserError(f"two checkpoints are called '{label}': name one, as in other:{path}")
        models[label] = checkpoint.load(path, device=device)
    return models


def row_of(truth: miou.Truth, masks: dict[str, Tensor]) -> list[Panel]:
    """One row of the picture: the 12 largest masks by each model, and the truth."""
    image = truth.batch.images[0, :, : truth.frame.size[0], : truth.frame.size[1]]
    largest = truth.masks.flatten(1).sum(1).argsort(descending=True)[:12]
    return row(image, truth.key, {label: found[largest] for label, found in masks.items()}, truth.masks[largest])


def write_rows(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """A CSV whose columns are the union of all rows' keys."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic(path) as tmp, open(tmp, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def table(numbers: dict[str, dict[str, float]]) -> str:
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
    return "\n".join([*lines, f"{int(first['images'])} photographs, {int(first['masks'])} masks; {miou.PROTOCOL}"])
