"""The global batch, divided: images per device x devices x batches accumulated into one optimizer step.

    division = divide(config.data.global_batch, devices=8, at_once=4)       # print it: "batch 64 = 4 per device x …"
    L.Trainer(accumulate_grad_batches=division.accumulated, callbacks=[Recount(), …])

The global batch belongs to the experiment, the division to the place: a run may go on with another one. Lightning
counts batches, we count steps, so `Recount` rewrites a checkpoint's counters for the division of this start. Our
choice.
"""

from dataclasses import dataclass
from typing import Any

import lightning as L

from frisket.errors import UserError


@dataclass(frozen=True)
class Division:
    """per_device images at once on each of `devices` devices, `accumulated` times per step."""

    per_device: int
    devices: int
    accumulated: int

    def __str__(self) -> str:
        total = self.per_device * self.devices * self.accumulated
        return f"batch {total} = {self.per_device} per device x {self.devices} devices x {self.accumulated} accumulated"


def divide(total: int, *, devices: int, at_once: int | None) -> Division:
    """Divide `total` images; a device takes at most `at_once` of them at once (None: any number).

    Raises UserError when that does not come out even, with the nearest numbers that do.
    """
    share, rest = divmod(total, devices)
    if rest:
        near = _either({max(1, share) * devices, (share + 1) * devices})
        fewer = max(count for count in range(1, devices) if total % count == 0)
        raise UserError(
            f"data.global_batch={total} cannot be divided among {devices} devices: {near} can, or take {fewer} of them"
        )
    size = min(share, at_once or share)
    if share % size:
        sizes = [count for count in range(1, share + 1) if share % count == 0]
        near = _either({max(n for n in sizes if n < size), min(n for n in sizes if n > size)})
        raise UserError(
            f"place.images_per_device={size} does not divide the {share} images that data.global_batch={total} gives "
            f"each of {devices} devices: {near} does"
        )
    return Division(size, devices, share // size)


def _either(numbers: set[int]) -> str:
    return " or ".join(str(number) for number in sorted(numbers))


class Recount(L.Callback):
    """Rewrite the counters of a checkpoint that another division made: batches = steps x this start's accumulation.

    Put it before the callbacks that read those counters.
    """

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Change the counts of the whole run, of the epoch, and the data's own count of the epoch."""
        fit, step = checkpoint["loops"]["fit_loop"], int(checkpoint["global_step"])
        progress, now = fit["epoch_loop.batch_progress"], trainer.accumulate_grad_batches
        then = -(-progress["total"]["processed"] // max(1, step))
        epoch = -(-progress["current"]["processed"] // max(1, then)) * now
        for part, count in (("total", step * now), ("current", epoch)):
            progress[part].update(ready=count, started=count, processed=count, completed=count)
        for loader in fit["state_dict"].get("combined_loader", ()):
            loader.update({key: epoch for key in ("batches", "done") if key in loader})
