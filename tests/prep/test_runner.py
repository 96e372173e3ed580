"""The runner: same bytes from any number of processes, tasks and kills; nothing half-written; sentences."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from frisket.data.index import build_index
from frisket.data.shards import expand
from frisket.errors import UserError
from frisket.place import Place
from frisket.prep import sa1b
from frisket.prep.records import PrepConfig
from frisket.prep.run import _sha256, prep
from frisket.prep.synthetic import Config

Snapshot = Callable[[Path], dict[str, bytes]]


def synthetic(out: Path, workers: int = 1, **changes: object) -> Config:
    """Twelve small images in six units."""
    values = {"count": 12, "image_size": 96, "samples_per_shard": 2} | changes
    return Config(out=str(out), place=Place(workers=workers), **values)  # type: ignore[arg-type]


def tars(out: Path, inputs: Path | str, workers: int = 1, **changes: object) -> PrepConfig:
    """Meta's tars."""
    return sa1b.Config(out=str(out), inputs=str(inputs), place=Place(workers=workers), **changes)  # type: ignore[arg-type]


def test_index_json_tells_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    totals = prep(synthetic(tmp_path))
    index = json.loads((tmp_path / "index.json").read_text())
    assert totals == {"images": 12, "masks": index["masks"], "rejected": 0, "shards": 6}
    assert (index["images"], index["rejected"], len(index["units"])) == (12, 0, 6)
    assert [shard["name"] for shard in index["shards"]] == [shard.name for shard in map(Path, expand(tmp_path))]
    for shard in index["shards"]:
        path = tmp_path / shard["name"]
        assert (shard["sha256"], shard["bytes"], shard["count"]) == (_sha256(path), path.stat().st_size, 2)
    assert index["source"] == "synthetic" and index["config"]["seed"] == 0
    assert (tmp_path / "rejected.jsonl").read_text() == ""
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 7 and all("images/s" in line for line in printed[:6])
    assert "12 images" in printed[-1] and "6 shards" in printed[-1] and "0 rejected" in printed[-1]


def test_two_processes_and_an_array_write_the_same_bytes_as_one(tmp_path: Path, snapshot: Snapshot) -> None:
    prep(synthetic(tmp_path / "one"))
    prep(synthetic(tmp_path / "two", workers=2))
    for task in (2, 0, 1):  # in any order
        assert not (tmp_path / "array/index.json").exists()
        prep(synthetic(tmp_path / "array", task=f"{task}/3"))
    one = snapshot(tmp_path / "one")
    assert one == snapshot(tmp_path / "two") == snapshot(tmp_path / "array")
    assert "index.json" in one


def test_done_units_are_skipped_and_lost_ones_done_again(tmp_path: Path, snapshot: Snapshot) -> None:
    prep(synthetic(tmp_path))
    before = snapshot(tmp_path)
    times = {shard: Path(shard).stat().st_mtime_ns for shard in expand(tmp_path)}
    lost, cut, bare, *_ = expand(tmp_path)
    Path(lost).unlink()
    Path(cut).write_bytes(Path(cut).read_bytes()[:-512])
    Path(f"{bare}.idx.json").unlink()
    prep(synthetic(tmp_path))
    assert snapshot(tmp_path) == before
    again = {shard for shard in expand(tmp_path) if Path(shard).stat().st_mtime_ns != times[shard]}
    assert again == {lost, cut, bare}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_kill_in_the_middle_then_the_same_command(workers: int, tmp_path: Path, snapshot: Snapshot) -> None:
    changes = {"count": 40, "samples_per_shard": 4, "image_size": 128}
    prep(synthetic(tmp_path / "straight", **changes))
    config = synthetic(tmp_path / "killed", workers=workers, **changes)
    words = [f"{k}={v}" for k, v in {**changes, "source": "synthetic", "out": config.out}.items()]
    command = [sys.executable, "-m", "frisket", "prep", f"place.workers={workers}", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert first.startswith("[1/10]")
    process.stdout.read()  # the pipe closes when the last worker is gone: none outlives its parent
    out = tmp_path / "killed"
    assert not (out / "index.json").exists()
    # Also what a kill leaves at the worst moments: a temporary shard, a shard without its note, a half note.
    late = "synthetic-train-00009"
    (out / f".{late}-000000.tar.99.tmp").write_bytes(b"half")
    (out / f"{late}-000007.tar").write_bytes(b"a shard the unit will not write again")
    (out / f".prep/.{late}.json.99.tmp").write_text("{")
    (out / f".prep/{late}.json").write_text('{"unit": "000')
    (out / ".index.json.99.tmp").write_text("{")
    before = {shard: Path(shard).stat().st_mtime_ns for shard in expand(out) if shard.name != f"{late}-000007.tar"}  # type: ignore[union-attr]
    prep(config)
    assert snapshot(out) == snapshot(tmp_path / "straight")
    kept = [shard for shard, moment in before.items() if Path(shard).stat().st_mtime_ns == moment]
    assert 1 <= len(kept) < 10


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    prep(synthetic(tmp_path))
    with pytest.raises(UserError, match=r"prepared with seed=0, now it is 1: choose another out="):
        prep(synthetic(tmp_path, seed=1))
    with pytest.raises(UserError, match="split=train, now it is val"):
        prep(synthetic(tmp_path, split="val"))
    prep(synthetic(tmp_path, workers=2, strict=True))  # how it runs is nobody's business


def test_a_folder_prepared_when_every_source_had_every_key_goes_on(tmp_path: Path) -> None:
    prep(synthetic(tmp_path))
    before = tmp_path / ".prep/settings.json"
    old = {**json.loads(before.read_text()), "side": 96, "image_side": None, "image_size": 1024, "precision": "fp32"}
    before.write_text(json.dumps(old | {"input_sha256": False, "teacher": "sam_vit_h", "jpeg_quality": 90}))
    lost = Path(expand(tmp_path)[0])
    lost.unlink()
    prep(synthetic(tmp_path))
    assert lost.is_file()
    with pytest.raises(UserError, match="prepared with image_size=96, now it is 128"):
        prep(synthetic(tmp_path, image_size=128))


def test_the_quality_counts_where_jpegs_are_made_smaller(meta: Path, tmp_path: Path) -> None:
    prep(tars(tmp_path / "whole", meta))
    prep(tars(tmp_path / "whole", meta, jpeg_quality=50))
    prep(tars(tmp_path / "small", meta, image_size=48))
    with pytest.raises(UserError, match="jpeg_quality=90, now it is 50"):
        prep(tars(tmp_path / "small", meta, image_size=48, jpeg_quality=50))


def test_inputs_may_grow_but_not_shrink(meta: Path, tmp_path: Path) -> None:
    config = tars(tmp_path / "out", meta)
    last = meta / "sa_000002.tar"
    last.rename(tmp_path / "later.tar")
    assert prep(config)["images"] == 8
    (tmp_path / "later.tar").rename(last)
    assert prep(config)["images"] == 12
    assert len(json.loads((tmp_path / "out/index.json").read_text())["shards"]) == 3
    last.unlink()
    with pytest.raises(UserError, match="also holds unit sa1b-train-sa_000002"):
        prep(config)


def test_shards_are_split_by_count_and_size(meta: Path, tmp_path: Path) -> None:
    inputs = str(meta / "sa_000000.tar")
    for name, changes in (("count", {"samples_per_shard": 3}), ("bytes", {"shard_bytes": 1})):
        prep(tars(tmp_path / name, inputs, **changes))
    sizes = [len(build_index(shard)) for name in ("count", "bytes") for shard in expand(tmp_path / name)]
    assert sizes == [3, 1, 1, 1, 1, 1]


def test_units_of_the_same_name_are_refused(meta: Path, tmp_path: Path) -> None:
    other = tmp_path / "b"
    other.mkdir()
    (other / "sa_000000.tar").write_bytes((meta / "sa_000000.tar").read_bytes())
    with pytest.raises(UserError, match="two inputs are both called sa_000000"):
        prep(tars(tmp_path / "out", f"{meta},{other}"))


def test_a_bad_record_in_a_worker_process_stops_a_strict_run(
    photo: Callable[..., tuple[bytes, bytes]], make_tar: Callable[..., Path], tmp_path: Path
) -> None:
    jpg, data = photo(1)
    for n in range(3):
        make_tar(tmp_path / f"meta/sa_{n:06d}.tar", [("sa_1.jpg", jpg), ("sa_1.json", data if n else b"[]")])
    config = tars(tmp_path / "out", tmp_path / "meta", workers=2, strict=True)
    with pytest.raises(UserError, match=r"sa_000000\.tar, sample sa_1: .*no `image`"):
        prep(config)
    assert not list((tmp_path / "out").glob("*sa_000000*"))
    assert not (tmp_path / "out/index.json").exists()


def test_nothing_good_at_all_is_an_error(make_tar: Callable[..., Path], tmp_path: Path) -> None:
    make_tar(tmp_path / "meta/sa_000000.tar", [("sa_1.jpg", b"x"), ("sa_1.json", b"{}")])
    with pytest.raises(UserError, match=r"not one image was good; the first of 1 reasons"):
        prep(tars(tmp_path / "out", tmp_path / "meta"))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"task": "3/3"}, "0 <= k < n"),
        ({"task": "one"}, "0 <= k < n"),
        ({"split": "a-b"}, "letters, digits"),
        ({"out": ""}, "needs out="),
        ({"source": "sa1"}, "did you mean 'sa1b'"),
    ],
)
def test_wrong_settings_are_one_sentence(changes: dict[str, object], word: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        prep(dataclasses.replace(synthetic(tmp_path / "out"), **changes))
    assert word in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"Not a directory|File exists"):
        prep(synthetic(tmp_path / "file"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_sentence_and_leaves_only_whole_units(
    workers: int, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(128)
    config = synthetic(disk, count=24, image_size=128, samples_per_shard=3, workers=workers)
    with pytest.raises(UserError, match=r"disk|No space left") as caught:
        prep(config)
    assert "\n" not in str(caught.value) and str(disk) in str(caught.value)
    names = sorted(str(p.relative_to(disk)) for p in disk.rglob("*") if p.is_file())
    done = [note for note in names if note.startswith(".prep/synthetic")]
    shards = [name for name in names if name.endswith(".tar")]
    assert len(done) == len(shards) >= 1  # the first unit fitted
    expected = {".prep/settings.json", *done, *shards, *(f"{shard}.idx.json" for shard in shards)}
    assert set(names) == expected  # no temporary, no shard without index, no index.json

    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    prep(config)  # room was made: the same command ends the work
    prep(dataclasses.replace(config, out=str(tmp_path / "straight"), place=Place(workers=1)))
    for shard in expand(tmp_path / "straight"):
        assert np.array_equal((disk / Path(shard).name).read_bytes(), Path(shard).read_bytes())


@pytest.mark.slow
def test_a_killed_worker_is_one_sentence(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, threading, time, multiprocessing\n"
        "from frisket.place import Place\n"
        "from frisket.prep.run import prep\n"
        "from frisket.prep.synthetic import Config\n"
        "def kill():\n"
        "    while not multiprocessing.active_children(): time.sleep(0.01)\n"
        "    time.sleep(0.2)\n"
        "    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    threading.Thread(target=kill).start()\n"
        f"    out = {str(tmp_path / 'out')!r}\n"
        "    prep(Config(out=out, count=4000, samples_per_shard=1000, place=Place(workers=2)))\n"
    )
    script = tmp_path / "job.py"
    script.write_text(code)
    began = time.monotonic()
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith("a worker process was killed (out of memory?): run the same command again, with fewer place.workers=")
    )
    assert time.monotonic() - began < 100
