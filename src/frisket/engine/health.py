"""Whether training is well: a loss or gradient that is no number stops it or skips the step; norms, spikes are logged.

    health = Health(RunFiles("runs/demo"), skips=0, every=10, scaled=False)     # a callback, before whatever saves

Before each optimizer step every rank looks at its loss and at the gradient; one flag is reduced over them, so that all
skip or all stop. A step that is skipped changes no weight, no optimizer state and no statistic, and counts as a step:
its samples and its place in the schedule are spent. A stop first saves the last good step; a resume meets the same
samples again. Log names: health/grad_norm, health/update_ratio (the weights' change to the weights, of the first
SAMPLED of each tensor), health/spikes (steps so far whose loss was SPIKE times the median of the WINDOW before),
health/skipped. Our choice.
"""

import copy
import math
from statistics import median
from typing import Any

import lightning as L
import torch
from torch import Tensor

from frisket.engine.save import StepEnd, keep
from frisket.errors import UserError, warn
from frisket.runfiles import RunFiles

SAMPLED = 1 << 16
SPIKE, WINDOW, FEWEST = 3.0, 100, 20
NAMED = 16  # samples of a rank in a sentence


class Health(StepEnd):
    """skips: steps in all that may be skipped. scaled: fp16, whose scaler skips steps of infinite gradients itself."""

    def __init__(self, run: RunFiles, *, skips: int, every: int, scaled: bool) -> None:
        super().__init__()
        self.run, self.skips, self.every, self.scaled = run, skips, every, scaled
        self.skipped = self.spikes = 0
        self._recent: list[float] = []  # losses of the steps before
        self._keys: list[str] = []  # of this step's batches so far
        self._losses: list[Tensor] = []
        self._buffers: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._values: dict[str, float] = {}
        self._good: dict[str, Any] | None = None  # the loops' counters after the last step of this start
        self._stopping = False

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return {"skipped": self.skipped, "spikes": self.spikes, "recent": self._recent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped, self.spikes, self._recent = (state_dict[key] for key in ("skipped", "spikes", "recent"))

    @torch.no_grad()
    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Remember what a bad forward pass would spoil."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if not self._keys:
            self._buffers = [buffer.clone() for buffer in pl_module.buffers()]
        self._keys += batch.keys

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Tensor) -> None:
        """Collect the losses of a step's batches."""
        self._losses.append(loss.detach().float())

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Decide, on all ranks alike. Raises UserError to stop."""
        graded = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        loss = torch.stack(self._losses).sum()
        norm = torch.nn.utils.get_total_norm([p.grad for p in graded]) if graded else loss.new_zeros(())
        ill = (~loss.isfinite() if self.scaled else ~(loss.isfinite() & norm.isfinite())).float()
        if trainer.world_size > 1:
            ill = trainer.strategy.reduce(ill, reduce_op="max")
        ill, mean, length = torch.stack([ill, loss, norm]).tolist()
        if ill:
            self._treat(trainer, pl_module, graded, mean, length)
            return
        self._watch(mean)
        due = (trainer.global_step + 1) % self.every == 0
        self._values = {"grad_norm": length} if graded and due else {}
        self._weights = [p.flatten()[:SAMPLED].clone() for p in graded] if due else []
        self._graded = graded

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        """Log, where it is due, and remember where a checkpoint of this step would go on."""
        if not self.stepped(trainer):
            return
        self._keys, self._losses = [], []
        if self._weights:
            after = [p.flatten()[:SAMPLED] for p in self._graded]
            moved = torch._foreach_sub(after, self._weights)
            sizes = [torch.stack(torch._foreach_norm(part)).norm() for part in (moved, self._weights)]
            self._values["update_ratio"] = float(sizes[0] / sizes[1].clamp(min=1e-30))
            self._weights = []
        if trainer.global_step % self.every == 0:
            counts = {"spikes": self.spikes, "skipped": self.skipped}
            values = {f"health/{name}": float(value) for name, value in (self._values | counts).items()}
            pl_module.log_dict(values, batch_size=1)
        self._good = copy.deepcopy(trainer.fit_loop.state_dict())

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Of the last good step, amid a bad one: weights and optimizer are still its own, the counters are not."""
        if self._stopping:
            checkpoint["loops"]["fit_loop"] = self._good

    def _watch(self, loss: float) -> None:
        if len(self._recent) >= FEWEST and loss > SPIKE * median(self._recent):
            self.spikes += 1
        self._recent = [*self._recent, loss][-WINDOW:]

    def _treat(self, trainer: L.Trainer, pl_module: Any, graded: list[Any], loss: float, norm: float) -> None:
        """Skip the step, or save and stop."""
        step = trainer.global_step
        mine = (math.isfinite(loss), f"loss {loss:.4g}, samples {', '.join(self._keys[:NAMED])}")
        everyone: list[Any] = [mine]
        if trainer.world_size > 1:
            everyone = [mine] * trainer.world_size
            torch.distributed.all_gather_object(everyone, mine)
        guilty = not all(fine for fine, _ in everyone)  # else the gradient alone is ill, and that is everyone's
        texts = [f"rank {rank}: {text}" for rank, (fine, text) in enumerate(everyone) if not (fine and guilty)]
        ill = "; ".join([*texts, f"gradient {norm:.4g}"])
        for buffer, kept in zip(pl_module.buffers(), self._buffers, strict=True):
            buffer.copy_(kept)
        if self.skipped < self.skips:
            self.skipped += 1
            for parameter in graded:
                parameter.grad = None
            self._values, self._weights = {"grad_norm": norm, "update_ratio": 0.0}, []
            warn(f"step {step + 1} is skipped, {self.skipped} of {self.skips} ({ill})")
            return
        where = "no step was made since this start"
        if self._good is not None:
            self._stopping = True
            keep(trainer, self.run, self.run.last)
            where = f"{self.run.last} holds step {step}"
        raise UserError(
            f"step {step + 1} has a loss or gradient that is no number ({ill}): {where}; lower optim.lr, look at the "
            "samples, or set trainer.nan_skips"
        )
