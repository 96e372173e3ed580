"""What an evaluation is: photographs in, one row for each, numbers out. A task is a file beside this one.

    class Config(TaskConfig): …          its settings: dataclass <- configs/eval_<task>.yaml <- key=value
    class Task(BaseTask): …              load, answer, summarise; found by its file's name, as recipes are

`frisket eval configs/eval_<task>.yaml` runs it: frisket.engine.judge spreads the items over workers and ranks, and
brings the rows together in the order of the items, so that two ranks give exactly the numbers of one. Rows, not
masks, travel: a task keeps in a row what its numbers need and no more. Our choice.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from frisket.data.identity import Identity
from frisket.models.sam import Sam
from frisket.picture import Panel
from frisket.plugins import Extensible, Room

TASKS = Room("frisket.eval", "task", "Task")
"""Every task, as in `task: miou` and configs/eval_miou.yaml: a file beside this one, or a plug-in of the same form."""

Row = dict[str, Any]
"""What one photograph gave. "key": its name; plain numbers go to per_image.csv; arrays stay for `summarise`; names
that begin with "_" (masks, say) live only until the photograph's picture is drawn. "score" orders best and worst."""


@dataclass
class TaskConfig(Extensible):
    """Shared by all tasks.

    checkpoint: models, in the table's order, each what frisket.checkpoint.load takes (run folder, file, zoo name),
    optionally after `label:`; image_size: input side, the model's own when unset; limit: first n photographs only;
    pictures: rows in masks.png, and in each of best.png and worst.png (0 for none); workers: loader processes;
    wandb: auto, online, offline or off.
    """

    task: str = ""
    checkpoint: list[str] = field(default_factory=list)
    data: str = ""
    out: str = "runs/eval"
    image_size: int | None = None
    limit: int | None = None
    pictures: int = 6
    workers: int = 0
    accelerator: str = "auto"
    devices: str = "auto"
    num_nodes: int = 1
    wandb: str = "off"
    project: str = "frisket"


class BaseTask(ABC):
    """One evaluation, bound to its data. Made on every rank; must be cheap to pickle into loader workers."""

    baseline: str | None = None  # label of the answer that needs no model; answer(None, item) gives it
    protocol: ClassVar[str] = ""  # what is measured, as programs tell it apart: "prompted_miou", …
    needs_model: ClassVar[bool] = True

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
