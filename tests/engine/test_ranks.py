"""Ranks that find rank 0 refused or dead at the start: they leave, and none waits for ever. Two real processes."""

import os
import signal
import socket
from datetime import timedelta

import pytest
from toyfit import fit, ranks

from frisket.engine import rundir, strategy
from frisket.engine.rundir import RunDir
from frisket.errors import UserError


def opened(folder: os.PathLike[str], said: str) -> int:
    """2 when opening the run folder is refused with `said`, else what is no exit code of ours."""
    try:
        RunDir(folder).open()
    except UserError as error:
        return 2 if said in str(error) else 3
    return 0


def test_all_ranks_of_a_second_job_leave_when_rank_0_is_refused(tmp_path):
    """At once: what they would wait otherwise (PATIENCE) is far beyond the deadline of `ranks`."""
    first = RunDir(tmp_path)
    first.open()
    try:
        assert ranks(lambda rank: opened(tmp_path, "another process is training in")) == [2, 2]
    finally:
        first.close()
    assert first.refused.exists()
    for _ in range(2):  # two launches, one after the other
        assert ranks(lambda rank: opened(tmp_path, "")) == [0, 0]
    assert not first.refused.exists()


def test_a_rank_whose_rank_0_died_before_it_opened_the_run_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "PATIENCE", timedelta(seconds=1))

    def work(rank: int) -> int:
        if rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return opened(tmp_path, "rank 0 did not open")

    assert ranks(work) == [-signal.SIGKILL, 2]


def test_a_rank_whose_rank_0_died_before_they_met_does_not_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(strategy, "PATIENCE", timedelta(seconds=1))

    def work(rank: int) -> int:
        if rank == 0:
            RunDir(tmp_path).open()
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(UserError, match=r"rank 1 never met the others, or lost them .*timed out"):
            fit(tmp_path, devices=2)
        return 3

    assert ranks(work) == [-signal.SIGKILL, 3]


def test_a_port_that_another_program_holds_is_one_sentence(tmp_path):
    """Of rank 0: the other program may keep rank 1 waiting, until srun (slurm/env.sh) or torchrun ends it."""
    with socket.create_server(("127.0.0.1", 0)) as other:

        def work(rank: int) -> int:
            os.environ["MASTER_PORT"] = str(other.getsockname()[1])
            if rank == 0:
                with pytest.raises(UserError, match=r"rank 0 never met the others, .*address already in use"):
                    fit(tmp_path, devices=2)
            return 3

        assert ranks(work) == [3, 3]
