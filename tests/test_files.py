"""Whole files or none: after an error, a kill -9 or a full disk, the final name never holds half a file."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from frisket.errors import UserError
from frisket.files import atomic, write_json, write_text


def test_success_renames_and_leaves_nothing_else(tmp_path: Path) -> None:
    with atomic(tmp_path / "deep" / "er" / "a.bin") as tmp:
        tmp.write_bytes(b"whole")
        assert not (tmp_path / "deep/er/a.bin").exists()
    assert (tmp_path / "deep/er/a.bin").read_bytes() == b"whole"
    assert os.listdir(tmp_path / "deep/er") == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_error_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(error), atomic(path) as tmp:
        tmp.write_text("half")
        raise error("stop")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_data_are_synced_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut may leave an empty file under the final name, or neither name."""
    done: list[str] = []
    fsync, rename = os.fsync, os.replace

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        done.append(f"synced {os.readlink(f'/proc/self/fd/{descriptor}')}")

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(os, "replace", lambda *paths: rename(*paths) or done.append(f"renamed {paths[0]}"))
    write_text(tmp_path / "a.txt", "whole")
    tmp = tmp_path / f".a.txt.{os.getpid()}.tmp"
    assert done == [f"synced {tmp}", f"renamed {tmp}", f"synced {tmp_path}"]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with atomic(tmp_path / "run") as tmp:
            tmp.mkdir()
            (tmp / content).write_text(content)
    assert os.listdir(tmp_path) == ["run"]
    assert os.listdir(tmp_path / "run") == ["two"]


def test_a_failed_folder_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError), atomic(tmp_path / "run") as tmp:
        tmp.mkdir()
        (tmp / "half").write_text("half")
        raise ValueError
    assert os.listdir(tmp_path) == []


def test_json_is_readable_and_ends_with_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, 2], "a": "é"})
    text = (tmp_path / "a.json").read_text()
    assert text.index('"b"') < text.index('"a"')
    assert text.endswith("}\n")


def test_json_stays_json_where_a_number_is_missing(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ap": float("nan"), "curve": [0.5, float("inf")], "deep": {"x": (float("nan"),)}})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert found == {"ap": None, "curve": [0.5, None], "deep": {"x": [None]}}


def test_kill_9_leaves_no_final_file(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    code = (
        "import sys, time\nfrom frisket.files import atomic\n"
        "with atomic(sys.argv[1]) as tmp:\n    tmp.write_bytes(b'half'); print('ready', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=10)
    assert not path.exists()
    assert list(tmp_path.glob("*.tar")) == []  # the leftover is hidden and ends in .tmp, so globs pass it by
    write_text(path, "whole")
    assert path.read_text() == "whole"


def test_full_disk_is_one_sentence_and_leaves_nothing(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(256)
    with (
        pytest.raises(UserError, match=r"disk is full while writing .*big\.bin"),
        atomic(disk / "big.bin") as tmp,
    ):
        tmp.write_bytes(b"x" * 1_000_000)
    assert os.listdir(disk) == []


def test_full_disk_inside_torch_save(small_disk: Callable[[int], Path]) -> None:
    """torch's zip writer hides the errno in a RuntimeError."""
    disk = small_disk(256)
    with (
        pytest.raises(UserError, match=r"disk is full while writing .*model\.pt"),
        atomic(disk / "model.pt") as tmp,
    ):
        torch.save({"weights": torch.zeros(1_000_000)}, tmp)
    assert os.listdir(disk) == []


def test_full_disk_keeps_the_old_file(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(256)
    write_text(disk / "a.txt", "old")
    with pytest.raises(UserError):
        write_text(disk / "a.txt", "x" * 1_000_000)
    assert (disk / "a.txt").read_text() == "old"
    assert os.listdir(disk) == ["a.txt"]
