"""Order and resume: which samples the next batch holds is a pure function of (seed, samples consumed).

Use     sampler = ElasticSampler(shards.counts, batch_size=2, global_batch=64, rank=0, world=8, seed=0, window=4)
        loader = ElasticLoader(dataset, sampler, collate=collate, workers=4); state = loader.state_dict()
Order   per epoch: shuffle the shards, then shuffle the samples inside windows of `window` shards (reads stay local).
        The global batch at position c is order[c : c + global_batch]. It is handed out in rounds of world * batch_size,
        which Lightning accumulates; of each round rank r takes the r-th slice. So any number of ranks, rounds and
        workers sees the same stream, and one integer, equal on all ranks, resumes it.
Source  our choice; measured against Lightning 2.6 (a loader without a length is prefetched and loses a batch).
"""

import contextlib
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from frisket.errors import UserError

log = logging.getLogger(__name__)

SKIP_LIMIT = 100  # bad samples in a row; more than that is a bad shard


class Ticket(NamedTuple):
    """What a worker is asked for: sample `index` in `epoch`; `repeat` marks a validation sample that only fills up."""

    epoch: int
    index: int
    repeat: bool = False


@dataclass
class Failure:
    """A UserError on its way from a worker: torch would wrap the exception in a page of traceback."""

    sentence: str


def epoch_order(counts: np.ndarray, seed: int, epoch: int, window: int) -> np.ndarray:
    """Indices (n,) int64 of one epoch. counts (shards,): samples per shard, in index order."""
    rng = np.random.Generator(np.random.PCG64([seed, epoch]))
    starts = np.concatenate([[0], np.cumsum(counts)])
    shards = rng.permutation(len(counts))
    parts = [np.zeros(0, np.int64)]
    for first in range(0, len(shards), window):
        indices = [np.arange(int(starts[s]), int(starts[s + 1])) for s in shards[first : first + window]]
        parts.append(rng.permutation(np.concatenate(indices)))
    return np.concatenate(parts)


class ElasticSampler:
    """Batch sampler whose state is `consumed`: samples handed out by the whole job since its start.

    `n` is the number of samples in an epoch; the rest of an epoch smaller than a global batch is skipped, on all ranks.
    `digest` tells what the shards hold: a resumed run refuses others of the same counts.
    `global_batch` is a multiple of world * batch_size (None: that, one round a step).
    Raises UserError when a global batch is larger than the data.
    """

    def __init__(
        self,
        counts: Sequence[int],
        *,
        batch_size: int,
        rank: int,
        world: int,
        seed: int,
        window: int,
        global_batch: int | None = None,
        digest: str = "",
    ) -> None:
        self.counts, self.digest = np.asarray(counts, np.int64), digest
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.round = batch_size * world
        self.global_batch = global_batch or self.round
        self.seed, self.window = seed, max(1, window)
        self.n = int(self.counts.sum())
        self.consumed = 0
        self.batches = 0  # handed out in this pass, as Lightning counts them; only `len` needs it
        self._resumed = False
        if self.global_batch > self.n:
            raise UserError(
                f"data.global_batch={self.global_batch} is more than the {self.n} training samples: lower it or "
                "prepare more data"
            )

    def __len__(self) -> int:
        """Batches of this pass: whole steps only. After a resume on other ranks: those done before plus those left."""
        rounds = self.global_batch // self.round
        partly = self.batches % rounds  # of the step that is being made
        left = (self.n - self.consumed % self.n + partly * self.round) // self.global_batch * rounds - partly
        return self.batches + left if left else self.n // self.global_batch * rounds

    def begin(self) -> None:
        """Start a pass: round up past the end of an epoch that has no whole global batch left."""
        over = self.consumed % self.n
        if self.n - over < self.global_batch:
            self.consumed += self.n - over
        if not self._resumed or self.n - over < self.global_batch:
            self.batches = 0
        self._resumed = False

    def advance(self) -> None:
        """Count one round; called when it is handed out, not when a worker fetched it."""
        self.consumed += self.round
        self.batches += 1

    def __iter__(self) -> Iterator[list[Ticket]]:
        epoch, offset = divmod(self.consumed, self.n)
        order = epoch_order(self.counts, self.seed, epoch, self.window)
        whole = (self.n - offset) // self.global_batch * self.global_batch
        for first in range(offset, offset + whole, self.round):
            mine = first + self.rank * self.batch_size
            yield [Ticket(epoch, int(index)) for index in order[mine : mine + self.batch_size]]

    def _identity(self) -> dict[str, int]:
        """What must not change under a resumed run, and under which name a person knows it."""
        layout = zlib.crc32(self.counts.tobytes())
        content = zlib.crc32(self.digest.encode())
        return {
            "samples": self.n, "seed": self.seed, "shuffle_window": self.window, "shard layout": layout,
            "names, keys and digests": content,
        }  # fmt: skip

    def state_dict(self) -> dict[str, int]:
        """Plain integers, equal on all ranks."""
        return {"consumed": self.consumed, "batches": self.batches, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue there. Raises UserError naming what changed since the checkpoint."""
        for name, now in self._identity().items():
            if state.get(name, now) != now:  # what an older checkpoint does not know cannot be compared
                raise UserError(
                    f"the data's {name} was {state.get(name)} when the checkpoint was written and is {now} now, so the "
                    "run cannot continue exactly; restore it, or start a new run with another name"
                )
        self.consumed, self.batches = int(state["consumed"]), int(state["batches"])
        self._resumed = True


class OnceSampler:
    """Validation order: every sample exactly once over all ranks, the same number of batches on each.

    Rank r takes r, r + world, …; ranks that come out one short repeat the last sample with `repeat=True`. A repeated
    sample is delivered without its masks, so it counts in no metric; all ranks meet at every step, so none hangs.
    """

    def __init__(self, n: int, *, batch_size: int, rank: int, world: int) -> None:
        self.n, self.batch_size, self.rank, self.world = n, batch_size, rank, world

    @property
    def _each(self) -> int:
        return -(-self.n // self.world)

    def __len__(self) -> int:
        return -(-self._each // self.batch_size)

    def __iter__(self) -> Iterator[list[Ticket]]:
        mine = range(self.rank, self._each * self.world, self.world)
        tickets = [Ticket(0, min(index, self.n - 1), repeat=index >= self.n) for index in mine]
        for first in range(0, len(tickets), self.batch_size):
            yield tickets[first : first + self.batch_size]


TIMEOUT = 300.0
"""Seconds after which a batch that no worker delivers is an error: a worker that cannot send one says nothing."""


@contextlib.contextmanager
def dead_workers_are_a_sentence() -> Iterator[None]:
    """Turn what torch says when workers die, or cannot hand a batch over, into UserError with the usual causes."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if not re.match(DEAD, str(error)):
            raise
        free = shutil.disk_usage("/dev/shm").free >> 20 if os.path.isdir("/dev/shm") else 0
        raise UserError(
            f"the loader's worker processes died or are stuck ({str(error).splitlines()[0]}): batches travel through "
            f"shared memory, where /dev/shm has {free} MiB free (a container: --shm-size=8g), and open files "
            "(ulimit -n 65536); or set workers=0"
        ) from error


DEAD = r"(DataLoader worker \(pid|DataLoader timed out|.*(Too many open files|ancdata|shared memory|Connection reset))"
"""The first line of those; that of an error inside a worker's own code is "Caught … in DataLoader worker process"."""


class Loader:
    """A DataLoader over a batch sampler that has a length and turns a worker's Failure into its UserError."""

    def __init__(
        self, dataset: Dataset, sampler: Any, *, collate: Callable[[list], Any], workers: int = 0, pin: bool = False
    ) -> None:
        # Named `order`: Lightning takes an object with a `sampler` for a torch DataLoader and looks inside.
        self.dataset, self.order = dataset, sampler
        self.loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=pin,
            persistent_workers=workers > 0,
            prefetch_factor=2 if workers else None,
            timeout=TIMEOUT if workers else 0,
        )

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Any]:
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        with dead_workers_are_a_sentence():
            for batch in self.loader:
                if isinstance(batch, Failure):
                    raise UserError(batch.sentence)
                yield batch


class ElasticLoader(Loader):
    """Training loader with Lightning's state protocol; see ElasticSampler for what the state means."""

    order: ElasticSampler

    def __iter__(self) -> Iterator[Any]:
        self.order.begin()  # now, not at the first `next`: Lightning asks for the length in between
        return self._counted()

    def _counted(self) -> Iterator[Any]:
        for batch in self._batches():
            self.order.advance()
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The sampler's."""
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The sampler's. Raises UserError when the data changed."""
        self.order.load_state_dict(state)
