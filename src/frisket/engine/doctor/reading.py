"""Checks of the data: is it there and enough, can it be read, and how fast."""

import itertools
import time

import numpy as np

from frisket.data.module import Decoded
from frisket.data.sampler import Failure, Ticket
from frisket.data.shards import IndexedShards, expand
from frisket.engine.doctor.plan import Plan
from frisket.errors import UserError

SAMPLED = 8
"""Shards that are looked into."""
TIMED = 10
"""Batches that are timed."""


def shards(plan: Plan) -> str:
    """What the indexes say, and that the loaders can be made: the sentences are their own."""
    batches, data = len(plan.data.train_dataloader()), plan.data
    plan.data.val_dataloader()
    if data.streaming:
        return f"{len(data.train_tars)} streamed shards, every rank draws from all; {batches} batches an epoch"
    counts = data.train_shards.counts
    empty = [str(tar) for tar, count in zip(data.train_tars, counts) if not count]
    hollow = f", {len(empty)} of them empty ({empty[0]})" if empty else ""
    return (
        f"{counts.sum()} images in {len(counts)} shards{hollow}; {batches} batches an epoch on each of {plan.world} "
        f"ranks, which share images, not shards; {plan.division}"
    )


def samples(plan: Plan) -> str:
    """The first and the last sample of some shards, spread over all, decoded as training does."""
    if plan.data.streaming:
        return "not checked: streamed shards cannot be read by position; the speed below is that of reading them"
    val, read = plan.config.data.val, 0
    for whole in (plan.data.train_shards, *([IndexedShards(expand(val))] if val else [])):
        decoded = Decoded(whole, plan.data.decode(train=False), seed=plan.config.seed)
        full = np.flatnonzero(whole.counts)
        for shard in full[np.unique(np.linspace(0, max(0, len(full) - 1), min(SAMPLED, len(full))).astype(int))]:
            for index in {int(whole.starts[shard]), int(whole.starts[shard + 1]) - 1}:
                sample = decoded[Ticket(0, index)]
                if isinstance(sample, Failure):
                    raise UserError(sample.sentence)
                read += 1
    return f"{read} samples of shards spread over all decode"


def speed(plan: Plan) -> str:
    """Images per second of this machine's loader alone, and how long the run takes at the least. What its workers had
    prepared before is not counted."""
    loader = plan.data.train_dataloader()
    batches = itertools.chain.from_iterable(loader for _ in itertools.count())  # pass after pass
    for _ in range(2 * plan.config.place.workers + 1):
        next(batches)
    begun = time.monotonic()
    images = sum(len(next(batches).keys) for _ in range(TIMED))
    rate = images / (time.monotonic() - begun)
    workers, steps, batch = plan.config.place.workers, plan.config.trainer.max_steps, plan.config.data.global_batch
    hours = steps * batch / (rate * plan.world) / 3600
    return (
        f"{rate:.3g} images/s read with place.workers={workers}; {steps} steps of {batch} are {steps * batch:.3g} "
        f"images: reading alone takes {hours:.2g} h"
    )
