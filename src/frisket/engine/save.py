"""Checkpoints that are whole or absent: last.ckpt every N steps, by rename, files and DeepSpeed folders alike.

    trainer = L.Trainer(plugins=[AtomicIO()], callbacks=[KeepLast(run.checkpoints, every=500)], …)

Our choice over Lightning's ModelCheckpoint, which renames to `-v1` when a name exists and may then resume the older.
Also mends one gap of Lightning 2.6: a checkpoint taken at a step where validation is due, but before it ran, resumes
*without* that validation. Ours are all taken before it, so KeepLast, on a resume, rewrites the loop counters to run it.
Whether it is due is asked then, of the settings of the resumed run: a raised max_steps may have moved it.
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


def validation_due(trainer: L.Trainer, loops: dict[str, Any]) -> bool:
    """Whether `trainer` would validate at the batch that a checkpoint's loop counters ended with."""
    done = loops["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
    return bool(trainer.enable_validation and done and done % int(trainer.val_check_interval) == 0)


def begin_after(loops: dict[str, Any], *, validate: bool) -> None:
    """Rewrite a checkpoint's loop counters (in place) to "batch done, validation about to begin" or "…, none due"."""
    train = loops["fit_loop"]["epoch_loop.batch_progress"]
    for part in ("total", "current"):
        # one batch processed and not completed is what Lightning reads as "stopped at the batch's end"
        train[part]["completed"] = train[part]["processed"] - (not validate)
    validation = loops["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    done = validation["total"]["completed"]
    # and one validation batch started and not processed as "stopped inside validation"
    validation["total"].update(ready=done + validate, started=done + validate, processed=done, completed=done)
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

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save when the step is due, before any validation of that step."""
        step = trainer.global_step
        if not self.stepped(trainer) or not (step % self.every == 0 or step >= trainer.max_steps):
            return
        save(trainer, self.folder / LAST)
        if trainer.is_global_zero:
            preempted = self.folder / PREEMPT
            shutil.rmtree(preempted) if preempted.is_dir() else preempted.unlink(missing_ok=True)
            if self.wrote:
                self.wrote(step)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Resume with the validation of the checkpoint's last step, where it is due."""
        begin_after(checkpoint["loops"], validate=validation_due(trainer, checkpoint["loops"]))
