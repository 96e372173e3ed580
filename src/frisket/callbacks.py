"""What a person sees while it trains: speed, a progress line, a gallery of masks, and a record of sample ids.

    speed = Throughput(every=10)
    callbacks = [speed, Gallery(run, every=500, images=8), …, Progress(speed, every=10)]   # Progress last

Our choice. Log names: speed/images_per_second, speed/data_wait, speed/memory_gib, speed/mfu.
"""

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from frisket.budget import peak_flops
from frisket.errors import warn
from frisket.files import atomic, full_disk_is_a_sentence, write_text
from frisket.geometry import CELL
from frisket.picture import Panel, comparison, row
from frisket.runfiles import RunFiles
from frisket.sample import Batch


class Throughput(L.Callback):
    """Measure images/s (all ranks), the share of time spent waiting for data, memory, and MFU; log every `every` steps.

    Validation, checkpoints and galleries are outside the clock: `mark` restarts it after them.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.values: dict[str, float] = {}
        self._flops: float | None = None
        self._peak: float | None = None
        self._logged = -1
        self._mark = self._started = time.perf_counter()
        self._wait = self._work = 0.0
        self._images = 0

    def mark(self) -> None:
        """What follows from now until the next batch starts is waiting for data."""
        self._mark = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Ask the recipe for its FLOPs per image, where a known GPU makes an MFU of them."""
        if trainer.strategy.root_device.type == "cuda":
            self._peak = peak_flops(torch.cuda.get_device_name(trainer.strategy.root_device))
        if self._peak and hasattr(pl_module, "model_flops_per_image"):
            self._flops = pl_module.model_flops_per_image()
        self.mark()

    def on_train_batch_start(self, *_: Any) -> None:
        """The batch has arrived."""
        self._started = time.perf_counter()
        self._wait += self._started - self._mark

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the batch; at a logging step turn the counts into rates."""
        self._work += time.perf_counter() - self._started
        self._images += batch.num_images
        step = trainer.global_step
        if not step or step % self.every or step == self._logged:  # step 0: batches still accumulate
            return
        self._logged = step
        seconds = max(self._wait + self._work, 1e-9)
        self.values = {
            "images_per_second": self._images * trainer.world_size / seconds,
            "data_wait": self._wait / seconds,
            "memory_gib": memory_gib(trainer.strategy.root_device),
        }
        if self._flops and self._peak:
            self.values["mfu"] = self._flops * self._images / seconds / self._peak
        self._wait, self._work, self._images = 0.0, 0.0, 0
        pl_module.log_dict({f"speed/{name}": value for name, value in self.values.items()}, batch_size=1)


def memory_gib(device: torch.device) -> float:
    """Peak memory in GiB: what CUDA allocated on `device`, or the process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


class Line:
    """A line of progress on `stream` (standard output): redrawn in place on a terminal, printed plainly elsewhere."""

    def __init__(self, stream: Any = None) -> None:
        self.stream = stream or sys.stdout
        self.live = bool(getattr(self.stream, "isatty", lambda: False)())

    def show(self, text: str, keep: bool) -> None:
        """Write `text`; on a terminal the next one takes its place unless `keep`."""
        if self.live:
            width = shutil.get_terminal_size().columns
            self.stream.write("\r" + text[: width - 1].ljust(width - 1) + ("\n" if keep else ""))
        else:
            self.stream.write(text + "\n")
        self.stream.flush()


class Progress(L.Callback):
    """One line with step, loss, images/s, wait, memory and ETA: redrawn on a terminal, printed plainly elsewhere.

    Put it last in the callback list: it restarts the clock of `speed` when the other callbacks are done.
    """

    def __init__(self, speed: Throughput, every: int, stream: Any = None) -> None:
        self.speed, self.every = speed, every
        self._line = Line(stream)
        self._begin = (0, time.perf_counter())
        self._shown = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count steps and time from here, for the ETA."""
        self._begin = (trainer.global_step, time.perf_counter())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Print at every `every` steps, at the first and at the last."""
        step = trainer.global_step
        due = (step and step % self.every == 0) or step in (self._begin[0] + 1, trainer.max_steps)
        if trainer.is_global_zero and due and step != self._shown:
            self._shown = step
            loss = float(trainer.callback_metrics.get("train/loss", float("nan")))
            self._line.show(self.line(step, trainer.max_steps, loss), step >= trainer.max_steps)
        self.speed.mark()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the validation metrics on a line of their own."""
        values = {k.removeprefix("val/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        if trainer.is_global_zero and not trainer.sanity_checking and values:
            text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            self._line.show(f"val  {trainer.global_step}/{trainer.max_steps}  {text}", True)
        self.speed.mark()

    def line(self, step: int, steps: int, loss: float) -> str:
        """Return the progress line for `step` of `steps`."""
        first, since = self._begin
        per_step = (time.perf_counter() - since) / max(step - first, 1)
        parts = [f"step {step}/{steps}", f"loss {loss:.4g}"]
        if self.speed.values:
            v = self.speed.values
            parts += [f"{v['images_per_second']:.1f} img/s", f"wait {100 * v['data_wait']:.0f}%"]
            parts += [f"mem {v['memory_gib']:.1f} GiB"] + ([f"mfu {100 * v['mfu']:.0f}%"] if "mfu" in v else [])
        return "  ".join([*parts, f"eta {clock((steps - step) * per_step)}"])


def clock(seconds: float) -> str:
    """Return h:mm:ss."""
    whole = int(seconds + 0.5)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Gallery(L.Callback):
    """Every `every` steps draw the same validation images: image, then the recipe's columns, with IoU against truth.

    Rank 0 alone draws, with the recipe's own modules (no collective), into the gallery of run folder `run` and to W&B.
    `shown`: within it the module holds the weights that validation judges, where these are not the trained ones.
    """

    def __init__(self, run: Path, every: int, images: int, shown: Callable[[Any], Any] = nullcontext) -> None:
        self.files, self.every, self.images, self.shown = RunFiles(run), every, images, shown
        self._batches: list[Batch] | None = None
        self._drawn = -1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Draw when the step is due."""
        step = trainer.global_step
        if trainer.is_global_zero and step and step % self.every == 0 and step != self._drawn:
            self._drawn = step
            self.draw(trainer, pl_module, step)

    def draw(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        """Draw now. Leaves the random state, the modules' modes and the gradients as they were."""
        modes = {module: module.training for module in pl_module.modules()}
        with torch.random.fork_rng(devices=[]), torch.no_grad(), self.shown(pl_module):
            batches = self._load(trainer)
            pl_module.eval()
            try:
                rows = [panels for batch in batches for panels in self._rows(trainer, pl_module, batch)]
            finally:
                for module, mode in modes.items():
                    module.training = mode
        if not rows:
            return
        path = self.files.pictures(step)
        with atomic(path) as tmp:
            comparison(rows[: self.images], width=224).save(tmp, format="PNG")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("gallery", [str(path)], step=step - 1)  # our logger counts from 1

    def _load(self, trainer: Any) -> list[Batch]:
        if self._batches is None:
            self._batches, count = [], 0
            loader = trainer.datamodule.val_dataloader() if trainer.enable_validation else None
            for batch in loader or ():
                self._batches.append(batch)
                count += batch.num_images
                if count >= self.images:
                    break
        return self._batches

    def _rows(self, trainer: L.Trainer, pl_module: Any, batch: Batch) -> list[list[Panel]]:
        on_device = trainer.strategy.batch_to_device(batch)
        with trainer.precision_plugin.forward_context():
            columns = pl_module.gallery_columns(on_device)
        columns = {title: made.cpu() if isinstance(made, Tensor) else made for title, made in columns.items()}
        return [panels(batch, columns, index) for index in range(batch.num_images)]


def panels(batch: Batch, columns: dict[str, Tensor | list[Panel]], index: int) -> list[Panel]:
    """One row for photograph `index` of `batch`: the image, each column (bool (N, G, G) under its title, or a panel of
    each photograph), the truth."""
    height, width = (int(v) for v in batch.sizes[index])
    photo = batch.images[index, :, :height, :width].cpu()
    rows, cols = -(-height // CELL), -(-width // CELL)
    mine = batch.image_index.cpu() == index
    shown = {title: made[mine][:, :rows, :cols] for title, made in columns.items() if isinstance(made, Tensor)}
    first, *rest = row(photo, batch.keys[index], shown, batch.masks.cpu()[mine][:, :rows, :cols])
    return [first, *(made[index] for made in columns.values() if isinstance(made, list)), *rest]


class Samples(L.Callback):
    """Write the sample ids of each rank into run folder `run`: a line {"step", "keys"} per batch.

    A resume drops the lines after the checkpoint's step, so the file reads like that of an uninterrupted run.
    """

    def __init__(self, run: Path) -> None:
        self.files = RunFiles(run)
        self._path = self.files.samples(0)
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop what lies after the step we start from."""
        self._path = self.files.samples(trainer.global_rank)
        kept, damaged = [], 0
        if self._path.exists():
            text = self._path.read_text(encoding="utf-8", errors="replace")
            for line in text[: text.rfind("\n") + 1].splitlines(keepends=True):  # a kill may have cut the last one
                try:
                    kept += [line] if json.loads(line)["step"] <= trainer.global_step else []
                except (ValueError, KeyError, TypeError):
                    damaged += 1
        if damaged:
            warn(f"{self._path} is damaged: {damaged} of its lines are left out")
        write_text(self._path, "".join(kept))

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """The batch belongs to the step it will help to make."""
        self._step = trainer.global_step + 1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Append the batch's keys."""
        with full_disk_is_a_sentence(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self._step, "keys": batch.keys}) + "\n")


@rank_zero_only
def say(text: str) -> None:
    """Print a line from rank 0, at once (Slurm's log files are otherwise buffered)."""
    print(text, flush=True)
