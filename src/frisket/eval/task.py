"""What an evaluation is: photographs in, one row for each, numbers out. A task is a file beside this one.

    class Config(TaskConfig): …          its settings: dataclass <- configs/eval_<task>.yaml <- key=value
    class Task(BaseTask): …              load, answer, summarise; found by its file's name, as recipes are

`frisket eval configs/eval_<task>.yaml` runs it: frisket.engine.judge spreads the items over workers and ranks, and
brings the rows together in the order of the items, so that two ranks give exactly the numbers of one. Rows, not
masks, travel: a task keeps in a row what its numbers need and no more. Our choice.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from frisket.data.annotated import open_annotated
from frisket.data.identity import Identity
from frisket.errors import UserError
from frisket.models.sam import Sam
from frisket.picture import Panel
from frisket.place import Log, Place
from frisket.plugins import Extensible, Room

TASKS = Room("frisket.eval", "task", "Task")
"""Every task, as in `task: miou` and configs/eval_miou.yaml: a file beside this one, or a plug-in of the same form."""

PROMPTS = 64
"""Prompts decoded at once where `place` says nothing."""

Row = dict[str, Any]
"""What one photograph gave. "key": its name; plain numbers go to per_image.csv; arrays stay for `summarise`; names
that begin with "_" (masks, say) live only until the photograph's picture is drawn. "score" orders best and worst."""


@dataclass
class TaskConfig(Extensible):
    """Shared by all tasks. An evaluation computes in fp32 wherever it runs: of `place`, precision and strategy do not
    apply."""

    renamed: ClassVar[dict[str, str]] = {
        **{key: f"place.{key}" for key in ("accelerator", "devices", "num_nodes", "workers")},
        **{key: f"log.{key}" for key in ("wandb", "project")},
    }
    task: str = ""
    """A file of frisket.eval, or a plug-in: miou, instance, everything, edges, latency."""
    checkpoint: list[str] = field(default_factory=list)
    """Models in the table's order: run folders, files or zoo names, each optionally after `label:`."""
    trust: bool = False
    """Run what a DeepSpeed folder holds besides weights; else such a folder is refused."""
    data: str = ""
    """Prepared shards (folder, glob or braces), a COCO or LVIS .json, or a BSDS500 folder."""
    out: str = "runs/eval"
    """The folder of the results."""
    image_size: int | None = field(default=None, metadata={"least": 16, "most": 16384})
    """The models' input side, a multiple of 16; null: their own, which must then be one."""
    limit: int | None = field(default=None, metadata={"least": 1})
    """The first n photographs only."""
    pictures: int = field(default=6, metadata={"least": 0})
    """Rows in masks.png, and in each of best.png and worst.png."""
    place: Place = field(default_factory=lambda: Place(workers=0))
    """Where it runs."""
    log: Log = field(default_factory=lambda: Log(wandb="off"))
    """Where the numbers go besides the folder."""


def labelled(entries: Sequence[str], what: str) -> dict[str, str]:
    """{label: path} of words such as teacher:sam_vit_b; the label is what precedes ':', else the path's last part.

    Raises UserError when two have one label; `what` they are is said there.
    """
    named: dict[str, str] = {}
    for entry in entries:
        label, colon, path = entry.partition(":")
        label, path = (label, path) if colon else (Path(entry).name, entry)
        if label in named:
            raise UserError(f"two {what} are called '{label}': name one, as in other:{path}")
        named[label] = path
    return named


@dataclass
class PhotographConfig(TaskConfig):
    """Of tasks over annotated photographs."""

    images: str = ""
    """The folder of a .json's photographs."""
    split: str = "val"
    """BSDS500's."""


class BaseTask(ABC):
    """One evaluation, bound to its data. Made on every rank; must be cheap to pickle into loader workers."""

    baseline: str | None = None  # label of the answer that needs no model; answer(None, item) gives it
    protocol: ClassVar[str] = ""  # what is measured, as programs tell it apart: "prompted_miou", …
    needs_model: ClassVar[bool] = True
    resumes: ClassVar[bool] = True  # whether rows of an earlier start, interrupted, may stand beside new ones

    def __init__(self, config: TaskConfig, image_size: int) -> None:
        self.config, self.image_size = config, image_size

    @property
    @abstractmethod
    def sentence(self) -> str:
        """One line that says exactly what is measured; stands in every result."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the protocol: results compare when protocol, arguments, strategy and data set are equal."""
        return {}

    @property
    def strategy(self) -> dict[str, Any] | None:
        """{"name", "arguments"} of what asks for all masks of a photograph; None where prompts are given."""
        return None

    @abstractmethod
    def dataset(self, images: int) -> Identity:
        """The data set, of which the first `images` items are judged."""

    @abstractmethod
    def __len__(self) -> int:
        """How many items (photographs) there are, before `limit`."""

    @abstractmethod
    def load(self, index: int) -> Any:
        """Item `index`, on the CPU, or None for nothing to judge. Runs in loader workers. Raises UserError."""

    @abstractmethod
    def answer(self, sam: Sam | None, item: Any) -> Row:
        """One model's answer to one item, as a row. `sam` is in eval mode on its device; None is the baseline."""

    def without_model(self, item: Any) -> dict[str, Row]:
        """{label: row} of the answers to one item that need no model: the baseline's, unless a task knows others."""
        return {} if self.baseline is None else {self.baseline: self.answer(None, item)}

    @abstractmethod
    def summarise(self, rows: list[Row]) -> dict[str, Any]:
        """The numbers: {"box/miou": 0.75, …} as fractions, not percent; a list is a curve. Rows in item order."""

    @abstractmethod
    def table(self, numbers: dict[str, dict[str, Any]]) -> str:
        """The printed table: models as rows, numbers as people quote them."""

    def extras(self, folder: Path, label: str, rows: list[Row]) -> list[Path]:
        """Write what else a task offers of one model under `folder` (masks, maps); the files. On rank 0, after all."""
        return []

    def picture(self, item: Any, answers: dict[str, Row]) -> list[Panel] | None:
        """One row of the picture of masks: the item, each model's answer, the truth; None when there is none."""
        return None


class PhotographTask(BaseTask):
    """A task over annotated photographs. pixels=False: only their annotations are needed."""

    def __init__(self, config: PhotographConfig, image_size: int, *, pixels: bool = True) -> None:
        super().__init__(config, image_size)
        self.photographs = open_annotated(config.data, config.images or None, config.split, pixels=pixels)

    def dataset(self, images: int) -> Identity:
        """The photographs'."""
        return self.photographs.identity(images)

    def __len__(self) -> int:
        return len(self.photographs)
