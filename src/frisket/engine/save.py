"""Checkpoints that are whole or absent: last.ckpt every N steps, by rename, files and DeepSpeed folders alike.

    trainer = L.Trainer(plugins=[AtomicIO()], callbacks=[KeepLast(RunFiles("runs/demo"), every=500)], …)

Two are kept: what a save replaces becomes previous.ckpt, should the newest turn out to be unreadable.

Our choice over Lightning's ModelCheckpoint, which renames to `-v1` when a name exists and may then resume the older.
Also mends one gap of Lightning 2.6: a checkpoint taken at a step where validation is due, but before it ran, resumes
*without* that validation. Ours are all taken before it, so KeepLast, on a resume, rewrites the loop counters to run it.
Whether it is due is asked then, of the settings of the resumed run: a raised max_steps may have moved it.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from frisket.checkpoint import trained
from frisket.files import atomic, remove, sync
from frisket.runfiles import RunFiles


class AtomicIO(TorchCheckpointIO):
    """Lightning's checkpoint plugin, writing through `frisket.files.atomic`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`. Raises UserError when the disk is full; the previous file stays."""
        with atomic(path) as tmp:
            torch.save(checkpoint, tmp)


def keep(trainer: L.Trainer, run: RunFiles, path: Path) -> None:
    """Save the whole training state to `path`, run.last or run.preempt; every rank must call it at the same step.

    It is written beside; then the newest so far becomes run.previous, and what was written takes its name. A kill at
    any moment leaves a whole checkpoint under one of the three names, and `tidy` removes the rest.
    """
    new = path.with_name(f".{path.name}.new")
    if trainer.is_global_zero:
        remove(new)
    trainer.strategy.barrier("frisket.save.clean")
    trainer.save_checkpoint(new)  # ends with a barrier: every rank has written its part
    if trainer.is_global_zero:
        former = run.preempt if run.preempt.exists() else path
        if former.exists():
            remove(run.previous)
            os.replace(former, run.previous)
        remove(path)
        os.replace(new, path)
        sync(path)
    trainer.strategy.barrier("frisket.save.done")


def also(path: Path, name: Path) -> None:
    """Give the checkpoint at `path` another name, by hard links where the file system has them: no second copy."""
    new = name.with_name(f".{name.name}.new")
    remove(new)
    if path.is_dir():
        shutil.copytree(path, new, copy_function=_linked)
    else:
        _linked(path, new)
    remove(name)
    os.replace(new, name)


def _linked(path: Path | str, name: Path | str) -> None:
    try:
        os.link(path, name)
    except OSError:
        shutil.copy2(path, name)


def step_of(path: Path) -> int:
    """The number in the name of step-N.ckpt."""
    return int(path.stem.rpartition("-")[2])


@rank_zero_only
def tidy(folder: Path) -> None:
    """Finish what a kill interrupted: put a moved-away checkpoint back, remove temporary ones."""
    for old in folder.glob("*.ckpt.old"):  # how a DeepSpeed folder was replaced before previous.ckpt was kept
        if old.with_suffix("").exists():
            remove(old)
        else:
            os.replace(old, old.with_suffix(""))
    for left in (*folder.glob(".*.new"), *folder.glob(".*.tmp")):
        remove(left)


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

    @staticmethod
    def write_row(trainer: L.Trainer) -> None:
        """Let the loggers have this step's row now, before a checkpoint says that the step is done.

        Lightning logs it only after these callbacks: a kill in between would lose it. CsvLog drops the repetition.
        """
        trainer._logger_connector.update_train_step_metrics()


class KeepLast(StepEnd):
    """Write last.ckpt of `run` every `every` optimizer steps and at the last one, and keep the `newest` of them.

    Put it behind every callback that writes something at a step: what a checkpoint counts as done must be on disk.
    """

    def __init__(self, run: RunFiles, every: int, newest: int = 0) -> None:
        super().__init__()
        self.run, self.every, self.newest = run, every, newest
        self.validated = -1

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save when the step is due, before any validation of that step."""
        step = trainer.global_step
        if self.stepped(trainer) and (step % self.every == 0 or step >= trainer.max_steps):
            self.write_row(trainer)
            keep(trainer, self.run, self.run.last)
            if self.newest and trainer.is_global_zero:
                also(self.run.last, self.run.kept(step))
                for old in sorted(self.run.checkpoints.glob("step-*.ckpt"), key=step_of)[: -self.newest]:
                    remove(old)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember when: a run is not finished before a validation of its last step."""
        self.validated = trainer.global_step

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put aside what a resume passed over as damaged: it must never take the place of a good one."""
        if trainer.is_global_zero and trainer.ckpt_path:
            for path in trained(self.run.path):
                if path == Path(trainer.ckpt_path):
                    break
                os.replace(path, path.with_name(f"{path.name}.damaged"))

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Resume with the validation of the checkpoint's last step, where it is due."""
        begin_after(checkpoint["loops"], validate=validation_due(trainer, checkpoint["loops"]))
