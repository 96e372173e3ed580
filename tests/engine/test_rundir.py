"""The run folder: appendable metrics, one id, one process, W&B's mode."""

import ctypes
import errno
import os
import platform
import signal
import socket
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from toyfit import fit, in_a_child
from toyrun import environment, toy_run, toy_shards

from frisket.cli.main import main
from frisket.engine import rundir
from frisket.engine.rundir import CsvLog, RunDir, read_csv, wandb_log
from frisket.engine.save import AtomicIO, tidy
from frisket.errors import UserError
from frisket.files import atomic
from frisket.recipes.train_sam import Module
from frisket.sample import Batch


def test_csv_is_appended_to_and_cut_at_the_resumed_step(tmp_path):
    path = tmp_path / "metrics.csv"
    first = CsvLog(path)
    for step in range(5):
        first.log_metrics({"loss": torch.tensor(0.5 * step)}, step)
    with open(path, "a") as file:
        file.write("6,0.")  # what a kill in the middle of a write leaves

    second = CsvLog(path, resume_step=3)
    second.log_metrics({"loss": 9.0}, 3)
    second.log_metrics({"val": 0.25}, 3)  # a new column
    rows = [{k: v for k, v in row.items() if v} for row in read_csv(path)]
    assert rows == [
        {"step": "1", "loss": "0.0"},
        {"step": "2", "loss": "0.5"},
        {"step": "3", "loss": "1.0"},
        {"step": "4", "loss": "9.0"},
        {"step": "4", "val": "0.25"},
    ]


def test_a_repeated_validation_gives_one_row(tmp_path):
    path = tmp_path / "metrics.csv"
    first = CsvLog(path)
    first.log_metrics({"loss": 1.0}, 0)
    first.log_metrics({"val": 0.5}, 0)
    second = CsvLog(path, resume_step=1)
    second.log_metrics({"val": 0.5}, 0)
    second.log_metrics({"loss": 2.0}, 1)
    assert [row["step"] for row in read_csv(path)] == ["1", "1", "2"]


def test_wandb_id_is_made_once_and_differs_between_folders(tmp_path):
    a, b = RunDir(tmp_path / "a" / "run"), RunDir(tmp_path / "b" / "run")
    assert a.wandb_id() == RunDir(a.path).wandb_id() != b.wandb_id()
    assert a.wandb_id().startswith("run-")


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    hold = """if True:
        import sys
        from frisket.engine.rundir import RunDir
        run = RunDir(sys.argv[1])
        run.open()
        print("open", flush=True)
        sys.stdin.read()
    """
    words = [sys.executable, "-c", hold, tmp_path]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        try:
            with pytest.raises(UserError, match="another process is training"):
                RunDir(tmp_path).open()
        finally:
            process.kill()
    run = RunDir(tmp_path)
    run.open()
    run.close()


def test_a_run_is_finished_when_it_has_its_summary_and_its_model(tmp_path):
    run = RunDir(tmp_path)
    assert run.finished() is None
    run.finish(3, {"val/loss": 0.5}, "toy")
    assert run.finished() is None  # somebody took the model away: the end is made again
    run.model.touch()
    assert run.finished() == {"step": 3, "recipe": "toy", "metrics": {"val/loss": 0.5}}


def test_an_unwritable_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        RunDir(tmp_path / "file" / "run").open()


class Instruction(ctypes.Structure):
    """linux/filter.h: struct sock_filter."""

    _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32)]


class Program(ctypes.Structure):
    """linux/filter.h: struct sock_fprog."""

    _fields_ = [("count", ctypes.c_ushort), ("first", ctypes.POINTER(Instruction))]


def refuse_locks(number: int) -> None:
    """From now on, and for good, the kernel answers fcntl(F_SETLK) in this process with errno `number` (seccomp)."""
    fcntl_call = {"x86_64": 72, "aarch64": 25}[platform.machine()]
    load, equal, leave = 0x20, 0x15, 0x06
    steps = [
        (load, 0, 0, 0), (equal, 0, 3, fcntl_call),  # another system call: allowed
        (load, 0, 0, 24), (equal, 0, 1, 6),  # its second argument is not F_SETLK: allowed
        (leave, 0, 0, 0x00050000 | number), (leave, 0, 0, 0x7FFF0000),
    ]  # fmt: skip
    program = Program(len(steps), (Instruction * len(steps))(*(Instruction(*step) for step in steps)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program), 0, 0):  # NO_NEW_PRIVS, SECCOMP filter
        raise OSError(ctypes.get_errno(), "no seccomp")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="knows the system calls of x86_64, aarch64")
@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_warned_of_and_used(tmp_path, capfd, number):
    def work() -> None:
        refuse_locks(number)
        for _ in range(2):
            run = RunDir(tmp_path)
            run.open()
            run.finish(1, {}, "toy")
            run.close()

    assert in_a_child(work) == 0
    said = f"frisket: {tmp_path} is on a file system without locks ({os.strerror(number)}): start no second run in it\n"
    assert capfd.readouterr().err == said * 2
    assert RunDir(tmp_path).summary.exists()


class Fill(L.Callback):
    """Before step 2 the disk under `path` is full: Linux's /dev/full takes no byte."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == 1:
            self.path.unlink()
            self.path.symlink_to("/dev/full")


@pytest.mark.parametrize("name", ["metrics.csv", "samples.jsonl"])
def test_a_disk_that_fills_while_a_run_appends_is_one_sentence(tmp_path, name):
    with pytest.raises(UserError, match=rf"the disk is full while writing .*{name}: free some space or choose another"):
        fit(tmp_path, Fill(tmp_path / name))


def test_what_killed_processes_left_half_written_is_cleared_at_the_next_start(tmp_path):
    run = RunDir(tmp_path)
    for path in (run.metrics, run.model, run.last, run.pictures(3)):

        def half(path: Path = path) -> None:
            with atomic(path) as tmp:
                tmp.write_text("half")
                os.kill(os.getpid(), signal.SIGKILL)

        assert in_a_child(half) == -signal.SIGKILL
    (run.checkpoints / ".last.ckpt.new").mkdir()
    (tmp_path / "notes.tmp").write_text("mine")
    assert len(list(tmp_path.rglob(".*"))) == 5
    run.open()
    run.close()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [".lock", "notes.tmp"]
    assert not list(run.checkpoints.iterdir())


def test_tidy_finishes_an_interrupted_swap_of_folders(tmp_path):
    (tmp_path / "last.ckpt.old").mkdir()
    (tmp_path / "last.ckpt.old" / "latest").write_text("kept")
    (tmp_path / ".last.ckpt.new").mkdir()
    (tmp_path / ".preempt.ckpt.17.tmp").write_text("half")
    tidy(tmp_path)
    assert (tmp_path / "last.ckpt" / "latest").read_text() == "kept"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt"]


def test_a_failed_save_leaves_the_previous_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicIO().save_checkpoint({"step": 1}, path)
    with pytest.raises(AttributeError, match="pickle"):
        AtomicIO().save_checkpoint({"step": lambda: 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt"]


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    """No W&B setting of this machine's user reaches the test."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_wandb_is_offline_without_a_key(no_key, tmp_path):
    logger, said = wandb_log(RunDir(tmp_path / "run"), mode="auto", project="p", config={})
    assert said.startswith("W&B offline, run run-") and "no API key" in said
    assert logger is not None


def test_wandb_starts_without_a_warning(no_key, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "false")  # our default would hide it in this process
    logger, _ = wandb_log(RunDir(tmp_path / "run"), mode="offline", project="p", config={})
    assert logger is not None and logger.experiment.id
    logger.close()
    said = capfd.readouterr()
    assert "anonymous" not in said.out + said.err


SERVICE_KILLED = """
import os, signal, subprocess, sys
from frisket.engine.rundir import RunDir, wandb_log
logger, _ = wandb_log(RunDir(sys.argv[1]), mode="offline", project="frisket", config={})
logger.log_metrics({"loss": 1.0}, 0)
for number in subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "wandb"], capture_output=True).stdout.split():
    os.kill(int(number), signal.SIGKILL)
    os.waitpid(int(number), 0)
for step in range(1, 200):  # until the broken pipe is noticed
    logger.log_metrics({"loss": 1.0}, step)
logger.close()
print("went on")
"""


def test_a_killed_wandb_service_stops_no_training(no_key, tmp_path):
    """scancel's SIGTERM reaches it, too."""
    words = [sys.executable, "-c", SERVICE_KILLED, str(tmp_path)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    assert "went on" in done.stdout and done.returncode == 0, done.stderr
    assert done.stderr.count("W&B failed (") == 1


def test_wandb_is_offline_without_a_network_and_says_so(no_key, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "https://frisket.invalid")  # a name that never resolves (RFC 2606)
    _, said = wandb_log(RunDir(tmp_path / "run"), mode="auto", project="p", config={})
    assert "W&B offline" in said and "frisket.invalid does not answer" in said


def test_wandb_mode_from_the_environment_and_off(no_key, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_log(RunDir(tmp_path), mode="auto", project="p", config={}) == (None, "W&B off (WANDB_MODE=disabled)")
    assert wandb_log(RunDir(tmp_path), mode="off", project="p", config={})[0] is None


def test_a_host_that_accepts_counts_as_answering():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert rundir.answers("127.0.0.1", port, seconds=120)
    assert not rundir.answers("127.0.0.1", port, seconds=1)


def test_read_csv_of_a_missing_file(tmp_path):
    assert read_csv(Path(tmp_path / "none.csv")) == []


def test_a_row_holds_what_its_own_step_reported(tmp_path, monkeypatch):
    """Not again what an earlier step of the epoch did, as Lightning would have it."""
    report = Module.training_step

    def now_and_then(module: Module, batch: Batch, index: int) -> torch.Tensor:
        if module.global_step == 0:
            module.report("train", {"once": 1.0})
        return report(module, batch, index)

    monkeypatch.setattr(Module, "training_step", now_and_then)
    data = toy_shards(tmp_path / "data", 8)
    words = toy_run(data, tmp_path, max_steps=4, images_per_device=1)
    assert main(["train", *words, "data.global_batch=2", "trainer.log_every=1"]) == 0
    rows = read_csv(RunDir(tmp_path / "train_sam").metrics)
    assert [row["train/once"] for row in rows] == ["1.0", "", "", ""]
    assert all(row["train/loss"] and row["speed/data_wait"] for row in rows)
