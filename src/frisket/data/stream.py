"""Streaming mode, for shards that cannot be read by index: `pipe:` commands and URLs, through webdataset.

Each worker of each rank draws shards at random with replacement (webdataset's ResampledShards, seeded), shuffles their
samples in a buffer, and goes on without end; an epoch is a fixed number of batches, so ranks never run out unevenly.
Not exact on resume: a resumed run continues with the seed of a pass that was never drawn before. Our choice, after
webdataset's own advice for uneven shards.
"""

import logging
import random
import signal
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.gopen import gopen, set_options
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import ResampledShards

from frisket.data.pairs import read_stream
from frisket.data.sampler import SKIP_LIMIT, TIMEOUT, Failure, dead_workers_are_a_sentence
from frisket.errors import UserError

log = logging.getLogger(__name__)


class Stream(IterableDataset):
    """Endless batches of one rank; (seed, `number` of the pass, rank) and the worker's number fix what is drawn."""

    def __init__(
        self,
        urls: list[str],
        decode: Callable[..., Any],
        *,
        collate: Callable[[list], Any],
        batch_size: int,
        rank: int,
        seed: int,
        buffer: int = 256,
        skip: bool = False,
    ) -> None:
        self.urls, self.decode, self.collate, self.batch_size = urls, decode, collate, batch_size
        self.rank, self.seed, self.buffer, self.skip = rank, seed, buffer, skip
        self.number = 0
        self._bad = 0  # in a row
        self._empty: list[str] = []  # shards in a row

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        seeds = (self.seed, self.number, self.rank, worker.id if worker else 0)
        draw = int(np.random.SeedSequence(seeds).generate_state(1)[0])
        raws = DataPipeline(
            ResampledShards(self.urls, seed=draw, deterministic=True, worker_seed=lambda: 0),
            self._records,
            shuffle(self.buffer, initial=self.buffer // 4, rng=random.Random(draw)),
        )
        batch: list[Any] = []
        try:
            for count, raw in enumerate(raws):
                try:
                    batch.append(self.decode(raw, rng=np.random.default_rng([*seeds, count])))
                    self._bad = 0
                except UserError as error:
                    self._pass(error)
                if len(batch) == self.batch_size:
                    yield self.collate(batch)
                    batch = []
        except UserError as error:
            yield Failure(str(error))
        except (OSError, ValueError) as error:  # webdataset: a command that fails, a bad URL
            yield Failure(f"streaming from {self.urls[0]} (one of {len(self.urls)}) failed: {error}; check it by hand")

    def _records(self, sources: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The pairs of each shard; what prep would refuse of a tar is refused here."""
        for url in (source["url"] for source in sources):
            empty = True

            def reject(key: str, reason: str, url: str = url) -> None:
                nonlocal empty
                empty = False
                self._pass(UserError(f"shard {url}{' ' if key == '*' else f', sample {key}: '}{reason}"))

            with gopen(url) as stream:
                # not to be read to its end is no failure of a command
                set_options(stream, ignore_status=[0, 23, 141, -signal.SIGPIPE])
                for key, pair in read_stream(stream, url, reject):
                    empty = False
                    name = key.encode("utf-8", "surrogateescape").decode(errors="backslashreplace")
                    yield {"__key__": name, "__shard__": url, **pair}
            self._empty = [*self._empty, url] if empty else []
            if len(self._empty) >= SKIP_LIMIT:
                raise UserError(
                    f"shard {min(self._empty)} holds no sample, nor do the {SKIP_LIMIT - 1} drawn before or after it: "
                    "look at data.train"
                )
            if empty and url not in self._empty[:-1]:
                log.warning("passed over: shard %s holds no sample", url)

    def _pass(self, error: UserError) -> None:
        """Log it and go on if that was asked for, but not for ever."""
        self._bad += 1
        if not self.skip or self._bad >= SKIP_LIMIT:
            raise error
        log.warning("skipped: %s", error)


class StreamLoader:
    """`length` batches of `stream` per pass, each pass with its own number; has Lightning's state."""

    def __init__(self, stream: Stream, length: int, *, workers: int = 0, pin: bool = False) -> None:
        self.stream, self.length, self.workers, self.pin = stream, length, workers, pin
        self.passes = 0  # passes begun; each draws other shards
        self.done = 0  # batches handed out in this pass
        self._resumed = False

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        self.stream.number = self.passes
        self.passes += 1
        if not self._resumed or self.done >= self.length:
            self.done = 0
        self._resumed = False
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        wait = TIMEOUT if self.workers else 0
        loader = DataLoader(self.stream, batch_size=None, num_workers=self.workers, pin_memory=self.pin, timeout=wait)
        with dead_workers_are_a_sentence():
            for batch in islice(loader, self.length - self.done):
                if isinstance(batch, Failure):
                    raise UserError(batch.sentence)
                self.done += 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        """How far the run is; plain integers, equal on all ranks."""
        return {"passes": self.passes, "done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue the interrupted pass's count, with samples drawn anew."""
        self.passes, self.done = int(state["passes"]), int(state["done"])
        self._resumed = True
