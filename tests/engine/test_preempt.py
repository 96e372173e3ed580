"""A run stopped anywhere and started again equals one that was never stopped: losses, data, validations, weights."""

import multiprocessing
import os
import signal
from pathlib import Path

import lightning as L
import pytest
from toyfit import Ask, Kill, fit, killed_after_rename, ranks

from frisket.engine import signals
from frisket.engine.rundir import read_csv
from frisket.errors import UserError
from frisket.runfiles import RunFiles


def curve(folder: Path) -> list[dict[str, str]]:
    """The metrics file: rows with the columns that have a value."""
    return [{k: v for k, v in row.items() if v and k != "epoch"} for row in read_csv(folder / "metrics.csv")]


@pytest.fixture(scope="module", params=[(3, 1), (4, 1), (2, 2)], ids=["mid-epoch", "epoch-end", "accumulate"])
def straight(request, tmp_path_factory):
    """(settings, curve, weights) of an uninterrupted run: epochs of 4 batches, validation every 3, 4 or 2 steps."""
    settings = {"val_every": request.param[0], "accumulate": request.param[1]}
    folder = tmp_path_factory.mktemp("straight")
    left, weights = fit(folder, **settings)
    rows = curve(folder)
    assert left is None
    assert [int(row["step"]) for row in rows if "train/loss" in row] == list(range(1, 11))
    every = request.param[0]
    assert [int(row["step"]) for row in rows if "val/loss" in row] == list(range(every, 11, every))
    return settings, rows, weights


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 3, 4, 6, 8, 9])
def test_stop_at_a_step_and_go_on(straight, tmp_path, step, number):
    settings, rows, weights = straight
    left, _ = fit(tmp_path, Ask(step, number), **settings)
    assert left == step
    assert (tmp_path / "checkpoints" / "preempt.ckpt").exists()
    assert fit(tmp_path, **settings) == (None, weights)
    assert curve(tmp_path) == rows


def test_stop_inside_validation_repeats_it_whole(straight, tmp_path):
    settings, rows, weights = straight
    step = settings["val_every"]
    left, _ = fit(tmp_path, Ask(step, validating=True), **settings)
    assert left == step
    assert fit(tmp_path, **settings) == (None, weights)
    assert curve(tmp_path) == rows


@pytest.mark.parametrize("step", [1, 4, 5, 8, 9])
def test_a_crash_after_a_step_goes_on_from_the_last_checkpoint(straight, tmp_path, step):
    settings, rows, weights = straight
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path, Kill(step), **settings)
    assert fit(tmp_path, **settings) == (None, weights)
    assert curve(tmp_path) == rows


def test_a_crash_inside_validation_repeats_it(straight, tmp_path):
    settings, rows, weights = straight
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path, Kill(settings["val_every"] * 2, validating=True), **settings)
    assert fit(tmp_path, **settings) == (None, weights)
    assert curve(tmp_path) == rows


def test_a_stop_waits_for_no_validation(tmp_path):
    """Lightning itself would validate once more when it is told to stop."""
    steps: list[int] = []
    watch = L.pytorch.callbacks.LambdaCallback(on_validation_start=lambda trainer, _: steps.append(trainer.global_step))
    assert fit(tmp_path, Ask(4), watch)[0] == 4
    assert steps == [3]


def test_a_run_asked_at_its_last_step_just_finishes(tmp_path):
    assert fit(tmp_path, Ask(4), steps=4)[0] is None
    run = RunFiles(tmp_path)
    assert run.last.exists() and not run.preempt.exists()


def test_twice_in_a_row(straight, tmp_path):
    settings, rows, weights = straight
    assert fit(tmp_path, Ask(3), **settings)[0] == 3
    assert fit(tmp_path, Ask(4), **settings)[0] == 4
    assert fit(tmp_path, **settings) == (None, weights)
    assert curve(tmp_path) == rows
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["last.ckpt", "previous.ckpt"]  # preempt.ckpt was older


def test_a_kill_after_any_rename_loses_no_row_no_sample_and_no_step(tmp_path):
    """Of a checkpoint above all: what it counts as done must be on disk before it."""
    settings = {"steps": 5, "val_every": 2}  # the validation of a last step is engine.fit's, see test_fit
    _, weights = fit(tmp_path / "straight", **settings)
    rows, samples = curve(tmp_path / "straight"), RunFiles(tmp_path / "straight").samples(0).read_text()
    ended, number = False, 0
    while not ended:
        number += 1
        folder = tmp_path / str(number)
        ended = not killed_after_rename(lambda folder=folder: fit(folder, **settings), number)
        _, made = fit(folder, **settings)
        assert (curve(folder), made) == (rows, weights), f"killed after rename {number}"
        assert RunFiles(folder).samples(0).read_text() == samples
    assert number > 7


def test_the_folder_of_checkpoints_is_synced_after_every_rename_in_it(tmp_path, monkeypatch):
    """A power cut may otherwise undo the renames, and take the only name of a checkpoint away."""
    folder, done = RunFiles(tmp_path).checkpoints, []
    fsync, rename = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        done.append("sync" if Path(os.readlink(f"/proc/self/fd/{descriptor}")) == folder else "")

    def renamed(*paths: os.PathLike[str]) -> None:
        rename(*paths)
        done.append(Path(paths[1]).name if Path(paths[1]).parent == folder else "")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    fit(tmp_path, steps=4)  # saved at 2 and 4
    written = [".last.ckpt.new", "sync"]
    assert [name for name in done if name] == [
        *written,
        "last.ckpt",
        "sync",
        *written,
        "previous.ckpt",
        "last.ckpt",
        "sync",
    ]


def test_ranks_agree_when_one_of_them_is_asked(tmp_path):
    """With gloo, in two processes: at a step, before the first one, where they start with skew, and in validation."""

    def asked_at_3(rank: int) -> int:
        left, _ = fit(tmp_path, *([Ask(3)] if rank == 1 else []), devices=2)
        return -1 if left is None else left

    assert ranks(asked_at_3) == [3, 3]
    assert [int(row["step"]) for row in read_csv(tmp_path / "metrics.csv") if row["train/loss"]] == [1, 2, 3]

    def asked_at_once(rank: int) -> int:
        with signals.held():
            if rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            left, _ = fit(tmp_path, devices=2)
        return -1 if left is None else left

    assert ranks(asked_at_once) == [3, 3]

    def asked_in_validation(rank: int) -> int:
        left, _ = fit(tmp_path / "validation", *([Ask(3, validating=True)] if rank == 1 else []), devices=2)
        return -1 if left is None else left

    assert ranks(asked_in_validation) == [3, 3]


def test_ranks_that_read_different_checkpoints_stop(tmp_path):
    fit(tmp_path / "0", steps=4)
    fit(tmp_path / "1", steps=6)
    RunFiles(tmp_path / "1").lock.unlink()
    RunFiles(tmp_path / "1").lock.symlink_to(tmp_path / "0" / ".lock")  # one folder, of which a node sees an old state

    def work(rank: int) -> int:
        try:
            fit(tmp_path / str(rank), devices=2)
        except UserError as error:
            return 2 if "from steps 4 to 6" in str(error) else 1
        return 0

    assert ranks(work) == [2, 2]


def test_signals_are_held_back_and_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with signals.held():
        assert not signals.asked()
        with signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.asked()
        assert signals.asked()
    assert not signals.asked()
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_signal_that_nobody_asked_for_ends_with_the_context():
    """After the last step nothing is left to save: it must not end the process on the way out either."""
    came: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
    try:
        with signals.held():
            os.kill(os.getpid(), signal.SIGUSR1)
        assert came == [] and not signals.asked()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert came == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_workers_born_while_signals_are_held_end_with_them():
    """They block the SIGTERM with which Python ends them at exit, and Python would wait for ever."""
    fork = multiprocessing.get_context("fork")
    older = fork.Process(target=signal.pause, daemon=True)
    older.start()
    with signals.held():
        worker = fork.Process(target=signal.pause, daemon=True)
        worker.start()
    try:
        assert not worker.is_alive() and older.is_alive()
    finally:
        for process in (worker, older):
            process.kill()
            process.join()
