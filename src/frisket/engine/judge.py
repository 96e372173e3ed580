"""Runs an evaluation task over loader workers and ranks: the one evaluation LightningModule.

    verdict = judge(task, {"student": sam}, place(…))          # rank 0: numbers, rows, picture panels; others: None

Rank r of w judges items r, r + w, …; no rank waits for another inside the pass, and no item counts twice, so numbers
do not depend on the number of ranks. A rank that is asked to stop takes no further item; at the end of the pass all
ranks agree whether to leave. Rows that a journal kept from an earlier start are not made again, on whatever number of
ranks. Pictures of the best and worst items are drawn after the pass, on rank 0, by judging those few once more. Our
choice.
"""

import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from frisket.callbacks import Line, clock
from frisket.data.sampler import Failure
from frisket.engine import signals
from frisket.engine.journal import Journal, Rows
from frisket.engine.preempt import Stopped
from frisket.engine.strategy import together
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
        if index < 0:
            return index, None
        try:
            return index, self.task.load(index)
        except UserError as error:
            return index, Failure(str(error))


class Order(torch.utils.data.Sampler):
    """Items rank, rank + world, … of `numbers`: each exactly once over all ranks; some ranks may have one fewer. Ends
    early when this process is asked to stop. A rank without any gets -1, no item: Lightning skips an empty loader's
    end, where the others wait."""

    def __init__(self, numbers: list[int], rank: int, world: int) -> None:
        self.items = numbers[rank::world] or [-1]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[int]:
        for number in self.items:
            if signals.asked():
                return
            yield number


PICTURES = ("masks", "best", "worst")
"""Names of the pictures of an evaluation, without their .png."""


class Judge(L.LightningModule):
    """test_step judges one item with every model; the end of the epoch gathers the rows on rank 0."""

    def __init__(self, task: BaseTask, models: dict[str, Sam], memory: tuple[Path, Mapping[str, Any]] | None) -> None:
        super().__init__()
        self.task, self.memory = task, memory
        self.items = Items(task)
        self.labels: list[str] = list(models)
        self.sams = nn.ModuleList(models.values())
        self.judged: dict[int, Rows] = {}
        self.journal: Journal | None = None
        self.verdict: Verdict | None = None
        self.stopped, self.left = False, len(self.items)

    def test_dataloader(self) -> DataLoader:
        """What is left to judge. With DDP the Trainer starts the other ranks, so ranks are known only now."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        left = set(range(len(self.items)))
        if self.memory is not None:
            self.journal = Journal(*self.memory, rank=rank)
            self.judged = self.journal.read()
            kept = self._everyones(sorted(self.judged))  # nodes may not see each other's files
            before = set().union(*kept[:rank])
            self.judged = {number: rows for number, rows in self.judged.items() if number not in before}
            left = left.difference(*kept)
            self.journal.start(self.judged)
            self.left = len(left)
            if rank == 0 and len(left) < len(self.items):
                print(f"{len(self.items) - len(left)} of {len(self.items)} were judged before", flush=True)
        order = Order(sorted(left), rank, world)
        return DataLoader(self.items, sampler=order, batch_size=None, num_workers=self.task.config.place.workers)

    def _everyones(self, mine: Any) -> list[Any]:
        """Every rank's `mine`, in the order of the ranks."""
        everyones: list[Any] = [mine] * self.trainer.world_size
        if self.trainer.world_size > 1:
            torch.distributed.all_gather_object(everyones, mine)
        return everyones

    def answers(self, item: Any) -> dict[str, Row]:
        """{label: row} of one item, those that need no model first."""
        with torch.inference_mode():
            rows = self.task.without_model(item)
            sams: list[Any] = list(self.sams)
            return rows | {label: self.task.answer(sam, item) for label, sam in zip(self.labels, sams, strict=True)}

    def on_test_start(self) -> None:
        """Take the handlers back: Lightning has just put its own in front of ours."""
        signals.install()

    def test_step(self, batch: tuple[int, Any], index: int) -> None:
        number, item = batch
        if number < 0 or signals.asked():
            return
        if isinstance(item, Failure):
            raise UserError(item.sentence)
        rows = None if item is None else {label: kept(row) for label, row in self.answers(item).items()}
        self.judged[number] = rows
        if self.journal is not None:
            self.journal.add(number, rows)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Items stay on the CPU: a task moves what its model needs."""
        return batch

    def on_test_epoch_end(self) -> None:
        if signals.asked():  # ranks that Lightning started here may not have been told
            for process in getattr(self.trainer.strategy.launcher, "procs", []):
                process.send_signal(signal.SIGTERM)
        self.stopped = any(self._everyones(signals.asked()))
        judged = None if self.stopped else self._gather()
        if judged is None:
            return
        if not judged:
            raise UserError(
                f"{self.task.config.data or 'the data'} holds nothing to judge: give photographs with masks"
            )
        rows = {label: [answer[label] for answer in judged.values()] for label in next(iter(judged.values()))}
        numbers = {label: self.task.summarise(part) for label, part in rows.items()}
        self.verdict = Verdict(numbers, rows, self._pictures(list(judged), rows))

    def _gather(self) -> dict[int, dict[str, Row]] | None:
        """{item: rows by label} of all ranks in the order of the items, without empty ones; None but on rank 0."""
        parts: list[Any] | None = [self.judged]
        if self.trainer.world_size > 1:
            parts = [None] * self.trainer.world_size if self.global_rank == 0 else None
            torch.distributed.gather_object(self.judged, parts)
        if parts is None:
            return None
        return {number: rows for number, rows in sorted(p for part in parts for p in part.items()) if rows is not None}

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


class Judged(L.Callback):
    """How much of an evaluation is done, on rank 0 for all ranks: items, items a second, ETA.

    A terminal sees every item, a log file a line every `seconds`; a shorter pass prints nothing there.
    """

    def __init__(self, *, seconds: float = 30.0, stream: Any = None) -> None:
        self.seconds = seconds
        self._line = Line(stream)
        self._begin = self._shown = 0.0

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count time from here."""
        self._begin = self._shown = time.perf_counter()

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Print when it is time."""
        total = pl_module.left
        now, done = time.perf_counter(), min((batch_idx + 1) * trainer.world_size, total)
        if trainer.is_global_zero and (self._line.live or now - self._shown >= self.seconds):
            self._shown = now
            each = (now - self._begin) / max(done, 1)
            speed = f"{1 / each:.2f} a second" if each < 1 else f"{each:.1f} s each"
            self._line.show(f"judged {done}/{total}  {speed}  eta {clock((total - done) * each)}", done == total)


def judge(
    task: BaseTask,
    models: dict[str, Sam],
    where: dict[str, Any],
    *,
    memory: tuple[Path, Mapping[str, Any]] | None = None,
) -> Verdict | None:
    """Run `task` for every model. None except on rank 0.

    where: the Trainer's place, see frisket.engine.strategy; memory: (folder, identity) of a journal, None to keep none.
    Raises UserError for a bad item (the first one met) and when there is nothing to judge, and Stopped on every rank
    when any was asked to stop.
    """
    module = Judge(task, models, memory)
    trainer = L.Trainer(
        **where,
        callbacks=[Judged()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=True,
    )
    with together():
        trainer.test(module, verbose=False)
    if module.stopped:
        raise Stopped
    return module.verdict
