"""The run folder: appendable metrics, one id, one process, W&B's mode."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from frisket.engine import rundir
from frisket.engine.rundir import CsvLog, RunDir, read_csv, wandb_log
from frisket.engine.save import AtomicIO, tidy
from frisket.errors import UserError


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
        import sys, time
        from frisket.engine.rundir import RunDir
        run = RunDir(sys.argv[1])
        run.open()
        print("open", flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", hold, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        try:
            with pytest.raises(UserError, match="another process is training"):
                RunDir(tmp_path).open()
        finally:
            process.kill()
    run = RunDir(tmp_path)
    run.open()
    run.close()


def test_an_unwritable_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        RunDir(tmp_path / "file" / "run").open()


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


def test_wandb_is_offline_without_a_network_and_says_so_fast(no_key, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "https://frisket.invalid")  # a name that never resolves (RFC 2606)
    begin = time.monotonic()
    _, said = wandb_log(RunDir(tmp_path / "run"), mode="auto", project="p", config={})
    assert "W&B offline" in said and "frisket.invalid does not answer" in said
    assert time.monotonic() - begin < 15  # two seconds of waiting; the rest is importing wandb


def test_wandb_mode_from_the_environment_and_off(no_key, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_log(RunDir(tmp_path), mode="auto", project="p", config={}) == (None, "W&B off (WANDB_MODE=disabled)")
    assert wandb_log(RunDir(tmp_path), mode="off", project="p", config={})[0] is None


def test_a_host_that_accepts_counts_as_answering():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert rundir.answers("127.0.0.1", port, seconds=5)
    assert not rundir.answers("127.0.0.1", port, seconds=1)


def test_read_csv_of_a_missing_file(tmp_path):
    assert read_csv(Path(tmp_path / "none.csv")) == []
