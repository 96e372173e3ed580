"""Runs an evaluation task over loader workers and ranks: the one evaluation LightningModule.

    verdict = judge(task, {"student": sam}, place(…))          # rank 0: numbers, rows, picture panels; others: None

Rank r of w judges items r, r + w, …; no rank waits for another inside the pass, and no item counts twice, so numbers
do not depend on the number of ranks. Pictures of the best and worst items are drawn after the pass, on rank 0, by
judging those few once more. Our choice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from frisket.data.sampler import Failure
from frisket.errors import UserError
from frisket.eval.task import BaseTask, Row
from frisket.models.sam import Sam
from frisket.picture import Panel


@dataclass
class Verdict:
    """numbers and rows by model label (rows in item order); pictures: {"masks" | "best" | "worst": rows of panels}."""

    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[str, list[Row]] = field(default_factory=dict)
    pictures: dict[str, list[list[Panel]]] = field(default_factory=dict)


class Items(Dataset):
    """A task's items, as (index, item or Failure): a worker's UserError travels without torch's traceback."""

    def __init__(self, task: BaseTask) -> None:
        self.task = task

    def __len__(self) -> int:
        return min(len(self.task), self.task.config.limit or len(self.task))

    def __getitem__(self, index: int) -> tuple[int, Any]:
        try:
            return index, self.task.load(index)
        except UserError as error:
            return index, Failure(str(error))


class Order(torch.utils.data.Sampler):
    """Items rank, rank + world, …: each exactly once over all ranks; some ranks may have one fewer."""

    def __init__(self, count: int, rank: int, world: int) -> None:
        self.items = range(rank, count, world)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[int]:
        return iter(self.items)


class Judge(L.LightningModule):
    """test_step judges one item with every model; the end of the epoch gathers the rows on rank 0."""

    def __init__(self, task: BaseTask, models: dict[str, Sam]) -> None:
        super().__init__()
        self.task = task
        self.labels: list[str] = list(models)
        self.sams = nn.ModuleList(models.values())
        self.found: list[tuple[int, dict[str, Row]]] = []
        self.verdict: Verdict | None = None

    def answers(self, item: Any) -> dict[str, Row]:
        """{label: row} of one item, those that need no model first."""
        with torch.inference_mode():
            rows = self.task.without_model(item)
            sams: list[Any] = list(self.sams)
            return rows | {label: self.task.answer(sam, item) for label, sam in zip(self.labels, sams, strict=True)}

    def test_step(self, batch: tuple[int, Any], index: int) -> None:
        number, item = batch
        if isinstance(item, Failure):
            raise UserError(item.sentence)
        if item is not None:
            rows = self.answers(item)
            self.found.append((number, {label: kept(row) for label, row in rows.items()}))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Items stay on the CPU: a task moves what its model needs."""
        return batch

    def on_test_epoch_end(self) -> None:
        found = self._gather()
        if found is None:
            return
        if not found:
            raise UserError(
                f"{self.task.config.data or 'the data'} holds nothing to judge: give photographs with masks"
            )
        found.sort(key=lambda pair: pair[0])
        rows = {label: [answer[label] for _, answer in found] for label in found[0][1]}
        numbers = {label: self.task.summarise(part) for label, part in rows.items()}
        self.verdict = Verdict(numbers, rows, self._pictures([number for number, _ in found], rows))

    def _gather(self) -> list[tuple[int, dict[str, Row]]] | None:
        world = self.trainer.world_size
        if world == 1:
            return self.found
        parts: list[Any] | None = [None] * world if self.global_rank == 0 else None
        torch.distributed.gather_object(self.found, parts)
        return None if parts is None else [pair for part in parts for pair in part]

    def _pictures(self, numbers: list[int], rows: dict[str, list[Row]]) -> dict[str, list[list[Panel]]]:
        """Panels of the first items, and of those the last model did best and worst on."""
        count = self.task.config.pictures
        last = list(rows.values())[-1]
        chosen = {"masks": numbers[:count]}
        scored = [(row["score"], number) for row, number in zip(last, numbers, strict=True) if "score" in row]
        if scored:
            scored.sort()
            chosen |= {"best": [n for _, n in scored[::-1][:count]], "worst": [n for _, n in scored[:count]]}
        drawn: dict[int, list[Panel] | None] = {}
        for number in {number for part in chosen.values() for number in part}:
            item = self.task.load(number)
            drawn[number] = self.task.picture(item, self.answers(item))
        pictures = {name: [panels for n in part if (panels := drawn[n])] for name, part in chosen.items()}
        return {name: part for name, part in pictures.items() if part}


def kept(row: Row) -> Row:
    """A row without what only its picture needs."""
    return {name: value for name, value in row.items() if not name.startswith("_")}


def judge(
    task: BaseTask,
    models: dict[str, Sam],
    where: dict[str, Any],
    *,
    workers: int = 0,
    callbacks: Sequence[L.Callback] = (),
) -> Verdict | None:
    """Run `task` for every model. `where`: the Trainer's place, see frisket.engine.strategy. None except on rank 0.

    Raises UserError for a bad item (the first one met) and when there is nothing to judge.
    """
    module, items = Judge(task, models), Items(task)
    trainer = L.Trainer(
        **where,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=True,
    )
    # with DDP the Trainer starts the other ranks itself, so the rank is known only when it asks for the loader
    module.test_dataloader = lambda: DataLoader(  # type: ignore[method-assign]
        items,
        sampler=Order(len(items), trainer.global_rank, trainer.world_size),
        batch_size=None,
        num_workers=workers,
    )
    trainer.test(module, verbose=False)
    return module.verdict
