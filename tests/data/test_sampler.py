"""Order, state and evenness of the samplers, without Lightning."""

import subprocess
import sys
from itertools import chain, islice

import numpy as np
import pytest
from toyrun import environment

from frisket.data.sampler import ElasticSampler, OnceSampler, epoch_order
from frisket.errors import UserError

COUNTS = [4, 4, 3, 5, 4, 1]  # 21 samples


def sampler(batch=2, rank=0, world=1, **how):
    return ElasticSampler(COUNTS, **{"batch_size": batch, "rank": rank, "world": world, "seed": 1, "window": 2, **how})


def take(s, batches):
    """Hand out batches as the loader does, over as many passes as it takes."""
    out = []
    while len(out) < batches:
        s.begin()
        for tickets in islice(iter(s), batches - len(out)):
            s.advance()
            out.append([(t.epoch, t.index) for t in tickets])
    return out


def test_order_is_a_local_shuffle_that_changes_with_seed_and_epoch():
    order = epoch_order(np.array(COUNTS), 1, 0, 2)
    assert sorted(order) == list(range(21)) and list(order) == list(epoch_order(np.array(COUNTS), 1, 0, 2))
    assert list(order) != list(epoch_order(np.array(COUNTS), 1, 1, 2))
    assert list(order) != list(epoch_order(np.array(COUNTS), 2, 0, 2))
    shard = np.repeat(np.arange(6), COUNTS)[order]
    seen, start = [], 0
    while start < 21:  # windows of two whole shards follow each other
        pair = set(shard[start:][: sum(COUNTS)][:1])
        stop = start
        while stop < 21 and len(pair | {shard[stop]}) <= 2:
            pair |= {shard[stop]}
            stop += 1
        assert stop - start == sum(COUNTS[s] for s in pair)
        seen += pair
        start = stop
    assert sorted(seen) == list(range(6))


@pytest.mark.parametrize("stop", range(1, 12))
def test_any_stop_resumes_on_any_number_of_ranks(stop):
    """Global batch 4 as 1 x 4, 2 x 2, 4 x 1: one stream; a state saved by any resumes on any other."""
    straight = [sorted(batch) for batch in take(sampler(4), 12)]
    for world in (1, 2, 4):
        ranks = [sampler(4 // world, rank, world) for rank in range(world)]
        before = [take(s, stop) for s in ranks]
        assert [sorted(chain(*step)) for step in zip(*before, strict=True)] == straight[:stop]
        states = [s.state_dict() for s in ranks]
        assert all(state == states[0] for state in states)
        for other in (1, 2, 4):
            again = [sampler(4 // other, rank, other) for rank in range(other)]
            for s in again:
                s.load_state_dict(states[0])
                assert len(s) == 5
            after = [take(s, 12 - stop) for s in again]
            assert [sorted(chain(*step)) for step in zip(*after, strict=True)] == straight[stop:]


def test_a_smaller_global_batch_finishes_the_epoch():
    s = sampler(4)
    took = take(s, 5)  # 20 of 21
    smaller = sampler(1)
    smaller.load_state_dict(s.state_dict())
    assert len(smaller) == 5 + 1
    last, first = take(smaller, 2)
    assert last[0][0] == 0 and first[0][0] == 1
    assert sorted(i for batch in [*took, last] for _, i in batch) == list(range(21))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 2}, "seed was 1 .* is 2"),
        ({"window": 3}, "shuffle_window was 2"),
        (None, "shard layout"),
        (0, "samples"),
    ],
)
def test_changed_data_is_refused(change, words):
    state = sampler().state_dict()
    other = sampler(**change) if isinstance(change, dict) else sampler()
    if not isinstance(change, dict):
        counts = COUNTS[::-1] if change is None else COUNTS[:-1]
        other = ElasticSampler(counts, batch_size=2, rank=0, world=1, seed=1, window=2)
    with pytest.raises(UserError, match=words):
        other.load_state_dict(state)


def test_too_large_a_global_batch_is_refused():
    with pytest.raises(UserError, match=r"data\.global_batch=24 is more than the 21"):
        sampler(6, 0, 4)
    assert len(sampler(21)) == 1


@pytest.mark.parametrize(("n", "batch", "world"), [(19, 2, 2), (1, 3, 4), (8, 2, 4), (7, 1, 3), (10, 4, 1)])
def test_validation_sees_every_sample_once_in_equal_steps(n, batch, world):
    ranks = [list(OnceSampler(n, batch_size=batch, rank=r, world=world)) for r in range(world)]
    assert len({len(r) for r in ranks}) == 1
    assert len(ranks[0]) == len(OnceSampler(n, batch_size=batch, rank=0, world=world))
    tickets = [t for rank in ranks for group in rank for t in group]
    assert sorted(t.index for t in tickets if not t.repeat) == list(range(n))
    assert sum(t.repeat for t in tickets) == -n % world


STUCK = """
import os, torch
from frisket.data import sampler
from frisket.engine import signals
from frisket.errors import UserError

class Numbers(torch.utils.data.Dataset):
    def __getitem__(self, index):
        if index == 3:
            {deed}
        return torch.zeros(1)

sampler.TIMEOUT = 5.0
with signals.held():  # as a training run holds them: the workers cannot be ended by SIGTERM
    try:
        for batch in sampler.Loader(Numbers(), [[i] for i in range(6)], collate=lambda s: s[0], workers=1):
            print("batch", flush=True)
    except UserError as error:
        print(error, flush=True)
"""


@pytest.mark.parametrize(
    "deed",
    [
        "os.kill(os.getpid(), 9)",
        "return lambda: 0",  # cannot be sent, and torch says nothing: as where /dev/shm is full
    ],
)
def test_a_dead_or_stuck_worker_is_a_sentence_about_shared_memory(deed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUCK.format(deed=deed)], env=environment(), capture_output=True, text=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert set(lines[:-1]) <= {"batch"} and len(lines) <= 4, done.stdout + done.stderr
    assert "the loader's worker processes died or are stuck" in lines[-1] and "/dev/shm has" in lines[-1]
