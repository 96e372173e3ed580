"""Shards: finding, indexing, reading in any order and wrapping, writing whole or not at all, one sentence per fault."""

import gzip
import json
import os
import re
import subprocess
import time

import pytest
import webdataset

from frisket.data import shards as module
from frisket.data.index import build_index, index_path
from frisket.data.pairs import read_pairs
from frisket.data.shards import IndexedShards, ShardWriter, expand, is_remote
from frisket.errors import UserError


def test_expand_folder_glob_braces_and_lists(shards):
    folder = shards(9, per_shard=3)
    three = [folder / f"toy-00000{n}.tar" for n in range(3)]
    (folder / ".toy-000009.tar.7.tmp").write_bytes(b"half")
    assert expand(folder) == expand(f"{folder}/*.tar") == expand(f"{folder}/toy-{{000000..000002}}.tar") == three
    assert expand(f"{folder}/toy-{{000000,000002}}.tar") == [three[0], three[2]]
    assert expand(f"{three[2]}, {three[0]}") == [three[2], three[0]]
    assert expand("pipe:cat a,b.tar") == ["pipe:cat a,b.tar"]
    assert expand("https://x.org/a-{00..01}.tar") == ["https://x.org/a-00.tar", "https://x.org/a-01.tar"]
    assert is_remote("s3://b/x.tar") and not is_remote(three[0])


@pytest.mark.parametrize("pattern", ["{0}/nothing-*.tar", "{0}/toy-{{000000..000004}}.tar", "{0}/empty", ""])
def test_expand_says_what_is_missing(shards, pattern):
    folder = shards(2)
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"no shard|holds no"):
        expand(pattern.format(folder))


def test_written_shards_are_webdataset_and_indexed(shards, record):
    folder = shards(10, per_shard=4)
    tars = expand(folder)
    assert all(index_path(tar).is_file() for tar in tars)
    dataset = IndexedShards(tars)
    assert len(dataset) == 10 and dataset.counts.tolist() == [4, 4, 2]
    for number in range(10):
        raw, want = dataset[number], record(number)
        assert (raw["__key__"], raw["jpg"], raw["json"]) == (want["__key__"], want["jpg"], want["json"])
        assert raw["__shard__"] == str(tars[number // 4])
    streamed = list(webdataset.WebDataset([str(t) for t in tars], shardshuffle=False))
    assert [s["__key__"] for s in streamed] == [f"sa_{n}" for n in range(10)]
    assert streamed[3]["jpg"] == record(3)["jpg"]


def test_equal_samples_give_equal_bytes_and_records_tell_the_truth(tmp_path, record):
    records = []
    for name in ("a", "b"):
        with ShardWriter(tmp_path / name, "x", max_size=1) as out:
            for number in range(3):
                out.write(record(number))
        records.append(out.records)
        time.sleep(0.01)
    assert records[0] == records[1] and len(records[0]) == 3
    for r in records[0]:
        tar = tmp_path / "a" / r.name
        digest = subprocess.run(["sha256sum", tar], capture_output=True, text=True, check=True).stdout.split()[0]
        assert (r.sha256, r.bytes, r.count) == (digest, tar.stat().st_size, 1)


def test_index_is_rebuilt_when_stale(shards, record):
    tar = expand(shards(3))[0]
    side = index_path(tar)
    good = side.read_bytes()
    side.write_text('{"version": 1}')
    content = json.loads(good)
    headers = {key: value for key, value in content.items() if key != "crcs"}  # reading them makes no checksum
    assert len(build_index(tar)) == 3 and json.loads(side.read_bytes()) == headers
    side.write_text(json.dumps({**content, "bytes": content["bytes"] + 1, "keys": ["a", "b", "c"]}))
    assert build_index(tar).keys.tolist() == [b"sa_0", b"sa_1", b"sa_2"]
    side.write_text(json.dumps({**content, "keys": ["a", "b", "c"]}))
    os.utime(side, (1, 1))
    assert build_index(tar).keys.tolist() == [b"sa_0", b"sa_1", b"sa_2"]
    side.write_text(json.dumps({**content, "keys": ["a", "b", "c"]}))
    assert build_index(tar).keys.tolist() == [b"sa_0", b"sa_1", b"sa_2"], (
        "another tar's sidecar is noticed, fresh or not"
    )


def test_open_files_are_bounded_and_not_shared_with_workers(shards, monkeypatch):
    monkeypatch.setattr(module, "OPEN_FILES", 2)
    dataset = IndexedShards(expand(shards(5, per_shard=1)))
    assert [dataset[n]["__key__"] for n in (0, 1, 2, 3, 4, 0)] == ["sa_0", "sa_1", "sa_2", "sa_3", "sa_4", "sa_0"]
    assert len(dataset._files) == 2
    before = dict(dataset._files)
    pid = os.fork()
    if pid == 0:
        ok = dataset[3]["__key__"] == "sa_3" and all(key in dataset._files for key in before)
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_files_are_closed_with_the_dataset_that_opened_them(shards):
    """Else a task that embeds a thousand shards ends at the limit of open files. A fork closes none of its parent's."""
    tars, before = expand(shards(3, per_shard=1)), len(os.listdir("/proc/self/fd"))
    dataset = IndexedShards(tars)
    assert len({dataset[n]["__key__"] for n in range(3)}) == 3 and len(os.listdir("/proc/self/fd")) == before + 3
    pid = os.fork()
    if pid == 0:
        del dataset
        os._exit(0 if len(os.listdir("/proc/self/fd")) == before + 3 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    del dataset
    assert len(os.listdir("/proc/self/fd")) == before


def test_members_apart_in_folders_and_gzip(tmp_path, raw_tar, record):
    r = [record(n) for n in range(4)]
    members = [(f"images/{x['__key__']}.jpg", x["jpg"]) for x in r]
    members += [(f"./other/{x['__key__']}.json", x["json"]) for x in reversed(r)]
    members += [("images/notes.txt", b"hello")]
    plain = raw_tar(tmp_path / "plain.tar", members)
    wrapped = tmp_path / "wrapped.tar"
    wrapped.write_bytes(gzip.compress(plain.read_bytes()))
    for tar in (plain, wrapped):
        got = dict(read_pairs(tar))
        assert got == {x["__key__"]: {"jpg": x["jpg"], "json": x["json"]} for x in r}
    assert [raw["__key__"] for raw in map(IndexedShards([plain]).__getitem__, range(4))] == [x["__key__"] for x in r]
    with pytest.raises(UserError, match=r"wrapped\.tar is gzip-compressed"):
        build_index(wrapped)


@pytest.mark.parametrize("wrap", [False, True])
def test_lone_halves_and_doubles_are_named(tmp_path, raw_tar, record, wrap):
    a, b = record(1), record(2)
    tar = raw_tar(
        tmp_path / "x.tar",
        [("sa_1.jpg", a["jpg"]), ("sa_2.json", b["json"]), ("sa_1.json", a["json"]), ("sa_1.json", b"other")],
    )
    if not wrap:
        with pytest.raises(UserError, match=r"x\.tar holds sa_1\.json twice"):
            build_index(tar)
    else:
        tar.write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(UserError, match=r"x\.tar, sample sa_[12]"):
        list(read_pairs(tar))
    rejected: dict[str, str] = {}
    got = dict(read_pairs(tar, on_reject=rejected.__setitem__))
    assert got == {"sa_1": {"jpg": a["jpg"], "json": a["json"]}}
    assert "no .jpg" in rejected["sa_2"] and "twice" in rejected["sa_1"]


def bytes_read() -> int:
    """What this process has read from files and pipes so far."""
    return int(next(line.split()[1] for line in open("/proc/self/io") if line.startswith("rchar")))


@pytest.mark.parametrize("wrap", [False, True])
def test_what_keep_refuses_is_stepped_over(tmp_path, raw_tar, record, wrap):
    big = b"x" * 1_000_000  # no photograph: whoever looked inside would complain
    members = [(f"sa_{n}.{ext}", big) for n in range(8) for ext in ("jpg", "json")]
    mine = record(8)
    tar = raw_tar(tmp_path / "x.tar", [("sa_9.jpg", big), *members, *((f"sa_8.{e}", mine[e]) for e in ("json", "jpg"))])
    size = tar.stat().st_size
    if wrap:
        tar.write_bytes(gzip.compress(tar.read_bytes(), compresslevel=1))
    before = bytes_read()
    # no on_reject: the lone half sa_9.jpg would raise
    got = dict(read_pairs(tar, keep=lambda key: key == "sa_8"))
    assert got == {"sa_8": {"jpg": mine["jpg"], "json": mine["json"]}}
    assert bytes_read() - before < size / 10


def test_lone_half_in_an_indexed_shard(tmp_path, raw_tar, record):
    tar = raw_tar(tmp_path / "x.tar", [("sa_1.jpg", record(1)["jpg"])])
    with pytest.raises(UserError, match=r"x\.tar, sample sa_1: no \.json"):
        build_index(tar)


@pytest.mark.parametrize("where", ["inside", "boundary", "header"])
@pytest.mark.parametrize("wrap", [False, True])
def test_truncated_and_damaged_tars(tmp_path, raw_tar, record, where, wrap):
    r = [record(n) for n in range(4)]
    tar = raw_tar(tmp_path / "x.tar", [(f"{x['__key__']}.{e}", x[e]) for x in r for e in ("jpg", "json")])
    offset = int(build_index(tar).offsets[2, 0])
    whole = tar.read_bytes()
    cut = {
        "inside": whole[: offset + 700],
        "boundary": whole[: offset - 512],
        "header": whole[: offset - 512] + b"\x07" * 512 + whole[offset:] * 20,
    }[where]
    tar.write_bytes(gzip.compress(cut) if wrap else cut)
    rejected: dict[str, str] = {}
    got = dict(read_pairs(tar, on_reject=rejected.__setitem__))
    assert list(got) == ["sa_0", "sa_1"]
    sentence = {
        "inside": r"is cut off",
        "boundary": r"is cut off after member sa_1\.json: the mark that ends a tar is missing",
        "header": r"is damaged after member sa_1\.json",
    }[where]
    assert re.match(sentence, rejected["*"])
    with pytest.raises(UserError, match=rf"^shard \S+/x\.tar {sentence}.*; download it again"):
        list(read_pairs(tar))
    if not wrap:
        with pytest.raises(UserError, match=rf"x\.tar {sentence}.*: download or write it again"):
            IndexedShards([tar])


def test_truncated_gzip(tmp_path, raw_tar, record):
    r = [{**record(n), "jpg": os.urandom(50_000)} for n in range(4)]
    tar = raw_tar(tmp_path / "x.tar", [(f"{x['__key__']}.{e}", x[e]) for x in r for e in ("jpg", "json")])
    tar.write_bytes(gzip.compress(tar.read_bytes())[:-70_000])
    rejected: dict[str, str] = {}
    got = dict(read_pairs(tar, on_reject=rejected.__setitem__))
    assert 0 < len(got) < 4 and "cut off" in rejected["*"]


def test_truncated_gzip_of_which_nothing_is_kept(tmp_path, raw_tar, record):
    tar = raw_tar(tmp_path / "x.tar", [(f"sa_{n}.{e}", record(n)[e]) for n in range(4) for e in ("jpg", "json")])
    tar.write_bytes(gzip.compress(tar.read_bytes()[:3000]))
    with pytest.raises(UserError, match=r"x\.tar is cut off after member sa_"):
        list(read_pairs(tar, keep=lambda key: False))


@pytest.mark.parametrize("lost", [1, 8])
def test_gzip_without_its_trailer(tmp_path, raw_tar, record, lost):
    tar = raw_tar(tmp_path / "x.tar", [(f"sa_1.{e}", record(1)[e]) for e in ("jpg", "json")])
    tar.write_bytes(gzip.compress(tar.read_bytes())[:-lost])
    with pytest.raises(UserError, match=r"x\.tar is cut off after member sa_1\.json"):
        list(read_pairs(tar))


@pytest.mark.parametrize("blocks", [1, 2, 20])
@pytest.mark.parametrize("wrap", [False, True])
def test_any_end_mark_will_do(tmp_path, raw_tar, record, blocks, wrap):
    """One block of zeros is enough: some programs write no second, and most pad to 20."""
    tar = raw_tar(tmp_path / "x.tar", [(f"sa_1.{e}", record(1)[e]) for e in ("jpg", "json")])
    index = build_index(tar)
    end = -(-int((index.offsets + index.sizes).max()) // 512) * 512
    plain = tar.read_bytes()[:end] + bytes(512 * blocks)
    tar.write_bytes(gzip.compress(plain) if wrap else plain)
    assert list(dict(read_pairs(tar))) == ["sa_1"]


@pytest.mark.parametrize(
    "content",
    [b"this is a web page, not a tar" * 100, b"", gzip.compress(b"page" * 500)],
    ids=["text", "empty", "gzip"],  # gzip's bytes hold the time, and every test process must see the same names
)
def test_not_a_tar(tmp_path, content):
    tar = tmp_path / "x.tar"
    tar.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.tar is (not a tar file|gzip)"):
        build_index(tar)
    with pytest.raises(UserError, match=r"x\.tar is not a tar file"):
        list(read_pairs(tar, on_reject=lambda key, reason: None))


def test_missing_and_shrunk_files(shards):
    tar = expand(shards(3))[0]
    dataset = IndexedShards([tar])
    with open(tar, "r+b") as f:
        f.truncate(2048)
    with pytest.raises(UserError, match=r"sample sa_2: the tar was cut off"):
        dataset[2]
    with pytest.raises(UserError, match=r"gone\.tar cannot be read"):
        IndexedShards([tar.with_name("gone.tar")])


def test_an_error_while_writing_leaves_only_whole_shards(tmp_path, record):
    with pytest.raises(RuntimeError, match="power"), ShardWriter(tmp_path / "out", "x", max_count=2) as out:
        for number in range(3):
            out.write(record(number))
        raise RuntimeError("power")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["x-000000.tar", "x-000000.tar.idx.json"]


def test_full_disk_is_one_sentence_and_leaves_nothing(record, small_disk):
    folder = small_disk(64)
    with pytest.raises(UserError, match=r"full|No space"), ShardWriter(folder, "x") as out:
        for number in range(200):
            out.write(record(number))
    assert list(folder.iterdir()) == []
