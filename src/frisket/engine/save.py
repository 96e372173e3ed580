"""Checkpoints that are whole or absent: last.ckpt every N steps, by rename, files and DeepSpeed folders alike.

    trainer = L.Trainer(plugins=[AtomicIO()], callbacks=[KeepLast(run.checkpoints, every=500)], …)

Our choice over Lightning's ModelCheckpoint, which renames to `-v1` when a name exists and may then resume the older.
Also mends one gap of Lightning 2.6: a checkpoint taken at a step where validation is due, but before it ran, resumes
*without* that validation. `pending_validation` rewrites the loop counters so that it is run.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from frisket.files import atomic

LAST, PREEMPT = "last.ckpt", "preempt.ckpt"


class AtomicIO(TorchCheckpointIO):
    """Lightning's checkpoint plugin, writing through `frisket.files.atomic`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`. Raises UserError when the disk is full; the previous file stays."""
        with atomic(path) as tmp:
            torch.save(checkpoint, tmp)


def save(trainer: L.Trainer, path: Path) -> None:
    """Save the whole training state to `path`; every rank must call it at the same step.

    A DeepSpeed checkpoint is a folder, which no single rename can replace: it is written beside, then
    old -> `.old`, new -> `path`, and `.old` removed. `tidy` finishes that dance after a kill.
    """
    if type(trainer.strategy).__name__.lower().find("deepspeed") < 0:
        trainer.save_checkpoint(path)
        return
    new, old = path.with_name(f".{path.name}.new"), path.with_name(f"{path.name}.old")
    if trainer.is_global_zero:
        shutil.rmtree(new, ignore_errors=True)
    trainer.strategy.barrier("frisket.save.clean")
    trainer.save_checkpoint(new)  # ends with a barrier: every rank has written its part
    if trainer.is_global_zero:
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
        shutil.rmtree(old, ignore_errors=True)
    trainer.strategy.barrier("frisket.save.done")


@rank_zero_only
def tidy(folder: Path) -> None:
    """Finish what a kill interrupted: put a moved-away checkpoint back, remove temporary ones."""
    for old in folder.glob("*.ckpt.old"):
        path = old.with_suffix("")
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, path)
    for left in (*folder.glob(".*.new"), *folder.glob(".*.tmp")):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def validation_due(trainer: L.Trainer) -> bool:
    """Whether Lightning will validate at the end of the current training batch."""
    every = trainer.val_check_batch
    done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
    return bool(trainer.enable_validation and every and every != float("inf") and done % int(every) == 0)


def pending_validation(loops: dict[str, Any]) -> None:
    """Rewrite a checkpoint's loop counters to "batch complete, validation about to begin" (in place)."""
    train = loops["fit_loop"]["epoch_loop.batch_progress"]
    for part in ("total", "current"):
        train[part]["completed"] = train[part]["processed"]
    validation = loops["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    done = validation["total"]["completed"]
    # one batch started and not processed is what Lightning reads as "stopped inside validation"
    validation["total"].update(ready=done + 1, started=done + 1, processed=done, completed=done)
    validation["current"].update(ready=0, started=0, processed=0, completed=0)
    validation["is_last_batch"] = False


class StepEnd(L.Callback):
    """Base of callbacks that act once per optimizer step (not per accumulated batch), with every rank in line."""

    def __init__(self) -> None:
        self._before = -1

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the step, to see whether this batch completes one."""
        self._before = trainer.global_step

    def stepped(self, trainer: L.Trainer) -> bool:
        """Whether the batch that just ended made an optimizer step."""
        return trainer.global_step > self._before


class KeepLast(StepEnd):
    """Write `folder/last.ckpt` every `every` optimizer steps and at the last one; `wrote` is told the step."""

    def __init__(self, folder: Path, every: int, wrote: Callable[[int], None] | None = None) -> None:
        super().__init__()
        self.folder, self.every, self.wrote = folder, every, wrote
        self._due = False
        self._saved = -1

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save when the step is due, before any validation of that step."""
        step = trainer.global_step
        if not self.stepped(trainer) or not (step % self.every == 0 or step >= trainer.max_steps):
            return
        self._due = validation_due(trainer)
        save(trainer, self.folder / LAST)
        self._due = False
        self._saved = step
        if trainer.is_global_zero:
            preempted = self.folder / PREEMPT
            shutil.rmtree(preempted) if preempted.is_dir() else preempted.unlink(missing_ok=True)
            if self.wrote:
                self.wrote(step)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Mark the validation of this step as still to do."""
        if self._due:
            pending_validation(checkpoint["loops"])
