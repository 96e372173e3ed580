"""Name the rank that is slower than the rest: by its own time for data and forward pass, before ranks wait for another.

    Straggler(every=10)         # a callback; put it last: what follows it until the next batch is waiting for data

Every `every` steps the ranks' times are gathered; one that is SLOWER than the median of the others is named, once until
it changes. Log name: health/slowest_rank, the slowest's time to that median. Our choice.
"""

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import lightning as L
import torch

from frisket.errors import warn

SLOWER = 1.3


def slow(times: Sequence[float]) -> dict[int, float]:
    """{rank: its time to the median of the others'} of those who are SLOWER; `times` of two ranks at least."""
    ratios = {rank: own / max(median(others(times, rank)), 1e-12) for rank, own in enumerate(times)}
    return {rank: ratio for rank, ratio in ratios.items() if ratio > SLOWER}


def others(times: Sequence[float], rank: int) -> list[float]:
    """The times but one."""
    return [*times[:rank], *times[rank + 1 :]]


class Straggler(L.Callback):
    """Does nothing on a single rank."""

    clock = staticmethod(time.perf_counter)

    def __init__(self, every: int) -> None:
        self.every = every
        self._mark = self._entered = self._own = 0.0
        self._events: list[Any] = []
        self._named: set[int] = set()

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """From here on a batch is waited for."""
        if trainer.world_size > 1:
            pl_module.register_forward_pre_hook(self._enter)  # behind the strategy's own broadcast of buffers
        self._mark = self.clock()

    def on_train_batch_start(self, *_: Any) -> None:
        """The batch has arrived."""
        self._own += self.clock() - self._mark

    def _enter(self, *_: Any) -> None:
        self._entered = self.clock()
        if torch.cuda.is_available():
            self._events.append((_event(), torch.cuda.Event(enable_timing=True)))

    def on_before_backward(self, *_: Any) -> None:
        """The forward pass is queued; in the backward pass ranks wait for each other."""
        if self._events:
            self._events[-1][1].record()
        elif self._entered:
            self._own += self.clock() - self._entered

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Compare, where it is due; now, since a checkpoint must find the whole row of its step on disk."""
        if trainer.world_size > 1 and (trainer.global_step + 1) % self.every == 0:
            if self._events:
                torch.cuda.synchronize()
                self._own += sum(first.elapsed_time(last) for first, last in self._events) / 1000
            own = torch.tensor(self._own, device=trainer.strategy.root_device)
            times = torch.as_tensor(trainer.strategy.all_gather(own)).flatten().tolist()
            self._own, self._events = 0.0, []
            slower = slow(times)
            pl_module.log("health/slowest_rank", max(times) / max(median(times), 1e-12), batch_size=1)
            for rank, ratio in slower.items():
                if rank not in self._named:
                    node = rank // max(1, trainer.num_devices)
                    warn(
                        f"rank {rank} (node {node}) takes {100 * (ratio - 1):.0f} % longer than the others for data "
                        "and forward pass: look at that machine's disk, processor or GPU"
                    )
            self._named = set(slower)

    def on_train_batch_end(self, *_: Any) -> None:
        """From here on a batch is waited for again."""
        self._mark = self.clock()

    def on_validation_end(self, *_: Any) -> None:
        """A validation is no waiting for data."""
        self._mark = self.clock()


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
