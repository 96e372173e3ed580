"""How near students are to their teacher, and whether they look at the photograph.

Run     frisket eval eval_fidelity data=SHARDS teacher=runs/train_sam checkpoint=runs/distill_lightening
Numbers box/miou, click1/miou: the model's own; teacher/box/miou, teacher/click1/miou: the teacher's, for the same
        prompts; box/error, click1/error: standard errors of the model's own; agreement/box, agreement/click1: mean IoU
        of the two models' masks; neck_error: mean squared error of the image embedding over the photograph's tokens;
        dependence/box, dependence/click1: what the model's mIoU loses when a photograph is answered from the next one's
        embedding (the last from the first's); the table has that as a row, "shuffled".
Files   masks_<label>.csv: every object's own values, for paired comparison (frisket.study).
Source  frisket.fidelity: on the decoder's grid, inside the photograph, of three outputs the one believed in most. Our
        choice; `frisket eval miou` judges at the photograph's own size under published protocols.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frisket import checkpoint
from frisket.data.annotated import open_annotated, sample
from frisket.data.identity import Identity
from frisket.data.module import collate
from frisket.errors import UserError
from frisket.eval.task import BaseTask, Row, TaskConfig
from frisket.fidelity import MEASURES, PROMPTS, Asked, asked, compare
from frisket.files import write_csv
from frisket.models.sam import Sam
from frisket.sample import Batch

CONTROL = "  shuffled"  # the same model, each photograph answered from another one's embedding
PER_MASK = tuple(name for name in MEASURES if name != "neck_error")


@dataclass
class Config(TaskConfig):
    """The photographs, and the teacher that all checkpoints are compared with."""

    teacher: str = ""
    """What frisket.checkpoint.load takes; empty: only what needs no teacher is measured."""
    images: str = ""
    """The folder of a COCO or LVIS JSON's photographs."""
    split: str = "val"
    """BSDS500's."""


class Task(BaseTask):
    """Items are Batches of two: the photograph with its objects, and another one, without."""

    protocol = "fidelity"

    def __init__(self, config: Config, image_size: int) -> None:
        super().__init__(config, image_size)
        self.settings = config
        self.photographs = open_annotated(config.data, config.images or None, config.split)
        if len(self.photographs) < 2:
            raise UserError(f"data={config.data} holds one photograph: fidelity needs another one's embedding, too")
        self._teacher: Sam | None = None
        self._told: tuple[Batch, Asked] | None = None

    @property
    def sentence(self) -> str:
        """What is compared, and where."""
        return (
            "on the decoder's grid inside the photograph, the output with the highest predicted IoU of three; box: the "
            "object's, click: the innermost cell; dependence: against the next photograph's embedding; "
            f"{self.photographs.name}"
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """The teacher, by its weights."""
        return {"teacher": checkpoint.weights_digest(self.teacher()) if self.settings.teacher else None}

    def dataset(self, images: int) -> Identity:
        """The annotated set's."""
        return self.photographs.identity(images)

    def __len__(self) -> int:
        return len(self.photographs)

    def load(self, index: int) -> Batch | None:
        """One photograph with its objects, and the next; None when no object has a cell on the grid."""
        mine = sample(self.photographs[index], self.image_size)
        if not len(mine.masks):
            return None
        other = sample(self.photographs[(index + 1) % len(self.photographs)], self.image_size, objects=False)
        return collate([mine, other])

    def teacher(self, device: torch.device | str = "cpu") -> Sam:
        """The teacher, loaded once in each process."""
        if self._teacher is None:
            self._teacher = checkpoint.load(self.settings.teacher, trust=self.settings.trust)
        self._teacher = self._teacher.to(device)
        return self._teacher

    def told(self, item: Batch, device: torch.device) -> Asked:
        """What the teacher says of an item: asked for the first of the models, remembered for the others."""
        if self._told is None or self._told[0] is not item:
            teacher = self.teacher(device)
            if teacher.image_size != self.image_size:
                raise UserError(
                    f"teacher {self.settings.teacher} takes {teacher.image_size} px and the students "
                    f"{self.image_size}: give one that takes the same"
                )
            self._told = item, asked(teacher, item.to(device))
        return self._told[1]

    def answer(self, sam: Sam | None, item: Batch) -> Row:
        """Every measure of the photograph's objects (M,), and its neck error."""
        assert sam is not None  # there is no baseline
        batch = item.to(sam.device)
        teacher = self.told(item, sam.device) if self.settings.teacher else None
        values = {name: value.double().cpu().numpy() for name, value in compare(sam, teacher, batch).items()}
        error = {"neck_error": float(values.pop("neck_error")[0])} if teacher is not None else {}
        means = {f"{name}/miou": float(values[name].mean()) for name in PROMPTS}
        return {"key": item.keys[0], **means, **error, "score": means["box/miou"], "measures": values}

    def summarise(self, rows: list[Row]) -> dict[str, Any]:
        """Means over masks; of the neck error over photographs."""
        every = {name: np.concatenate([row["measures"][name] for row in rows]) for name in rows[0]["measures"]}
        mean = {name: float(values.mean()) for name, values in every.items()}
        numbers = {f"{name}/miou": mean[name] for name in PROMPTS}
        if self.settings.teacher:
            numbers |= {f"teacher/{name}/miou": mean[f"teacher_{name}"] for name in PROMPTS}
            numbers |= {f"agreement/{name}": mean[f"agreement_{name}"] for name in PROMPTS}
            numbers["neck_error"] = float(np.mean([row["neck_error"] for row in rows]))
        numbers |= {f"dependence/{name}": mean[name] - mean[f"other_{name}"] for name in PROMPTS}
        numbers |= {f"{name}/error": standard_error([row["measures"][name] for row in rows]) for name in PROMPTS}
        return numbers | {"masks": float(sum(len(row["measures"]["box"]) for row in rows)), "images": float(len(rows))}

    def table(self, numbers: dict[str, dict[str, Any]]) -> str:
        """Models as rows, each with its control; percent and standard errors, but for the neck error."""
        width = max(len(label) for label in [*numbers, CONTROL])
        names = {"box/miou": "1-box", "click1/miou": "1-point", "agreement/box": "agree box",
                 "agreement/click1": "agree pt", "neck_error": "neck err"}  # fmt: skip
        lines = [f"{'':{width}} " + "".join(f"{title:>13}" for title in names.values())]
        for label, values in numbers.items():
            cells = (_cell(values, name) for name in names)
            lines.append(f"{label:{width}} " + "".join(f"{cell:>13}" for cell in cells))
            blind = (f"{100 * (values[f'{name}/miou'] - values[f'dependence/{name}']):.1f}" for name in PROMPTS)
            lines.append(f"{CONTROL:{width}} " + "".join(f"{cell:>13}" for cell in blind))
        last = list(numbers.values())[-1]
        if self.settings.teacher:
            box, click = (100 * last[f"teacher/{name}/miou"] for name in PROMPTS)
            lines.append(f"the teacher itself: 1-box {box:.1f}, 1-point {click:.1f}")
        return "\n".join([*lines, f"{int(last['images'])} photographs, {int(last['masks'])} masks; {self.sentence}"])

    def extras(self, folder: Path, label: str, rows: list[Row]) -> list[Path]:
        """masks_<label>.csv: key, object and each measure of every object, in full precision."""
        path = folder / f"masks_{''.join(c if c.isalnum() or c in '.-+' else '_' for c in label)}.csv"
        names = [name for name in PER_MASK if name in rows[0]["measures"]]
        rows_of_masks = (
            {"key": row["key"], "object": n} | {name: float(row["measures"][name][n]) for name in names}
            for row in rows
            for n in range(len(row["measures"]["box"]))
        )
        write_csv(path, rows_of_masks)
        return [path]


def standard_error(photographs: list[np.ndarray]) -> float:
    """Of the mean over masks, given each photograph's: those of one rise and fall together. Source: the usual one of a
    mean over clusters."""
    every = np.concatenate(photographs)
    sums = np.array([(values - every.mean()).sum() for values in photographs])
    return float(np.sqrt((sums**2).sum()) / len(every))


def _cell(values: dict[str, Any], name: str) -> str:
    if name not in values:
        return "–"
    error = values.get(name.replace("/miou", "/error")) if name.endswith("/miou") else None
    plain = f"{values[name]:.4f}" if name == "neck_error" else f"{100 * values[name]:.1f}"
    return plain if error is None else f"{plain} ± {100 * error:.1f}"
