"""Odd records, tars, sidecars and stored embeddings: one sentence each, and past them where that was asked for.

Every case once raised something else, hung, or was believed.
"""

import dataclasses
import functools
import gzip
import http.server
import io
import json
import os
import shutil
import struct
import tarfile
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from frisket.data.embeddings import Stamp, StoredEmbeddings, pack, path_for, unpack
from frisket.data.index import build_index, index_path
from frisket.data.module import DataConfig, ShardData
from frisket.data.pairs import read_pairs
from frisket.data.sa1b import RecordError, check_record, decode_jpeg, jpeg_size, parse
from frisket.data.shards import IndexedShards, TarOut, expand
from frisket.errors import UserError
from frisket.geometry import Frame
from frisket.place import Place
from frisket.prep import sa1b as source
from frisket.prep import synthetic
from frisket.prep.run import prep


def broken(record, **changes):
    """The record with values of its image, or of its second annotation, replaced; `json` replaces all of it."""
    raw = record(1)
    notes = json.loads(raw["json"])
    for name, value in changes.items():
        if name == "json":
            return {**raw, "json": value}
        part = notes["image"] if name in ("image_id", "width", "height") else notes["annotations"][1]
        part[name] = value
    return {**raw, "json": json.dumps(notes).encode()}


ODD = {
    "image_id is a word": {"image_id": "abc"},
    "image_id is null": {"image_id": None},
    "image_id is NaN": {"image_id": float("nan")},
    "width is NaN": {"width": float("nan")},
    "height is infinite": {"height": float("inf")},
    "width is absurd": {"width": 10**400},
    "picture of a terapixel": {"width": 1 << 20, "height": 1 << 20},
    "deep json": {"json": b'{"image":' + b"[" * 100_000},
    "empty json": {"json": b""},
    "segmentation is a number": {"segmentation": 5},
    "size is a number": {"segmentation": {"size": 5, "counts": "0"}},
    "size is null": {"segmentation": {"size": None, "counts": "0"}},
    "counts is a number": {"segmentation": {"size": [60, 90], "counts": 5}},
    "area of 400 digits": {"area": 10**400},
    "area is NaN": {"area": float("nan")},
    "area is a list": {"area": [1]},
    "bbox is infinite": {"bbox": [0, 0, float("inf"), 1]},
    "bbox far away": {"bbox": [0, 0, 1e30, 1]},
    "bbox outside": {"bbox": [100, 10, 20, 20]},
    "bbox of negative size": {"bbox": [20, 20, -5, 5]},
    "bbox of three": {"bbox": [1, 2, 3]},
    "bbox is null": {"bbox": None},
    "score is a word": {"predicted_iou": "good"},
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_record_is_one_sentence(name, record):
    raw = broken(record, **ODD[name])
    with pytest.raises(RecordError) as caught:
        check_record(raw["__key__"], raw["jpg"], raw["json"], shard="x.tar")
    assert str(caught.value).startswith("shard x.tar, sample sa_1: ") and len(str(caught.value)) < 300


def tar_of(path, members):
    """members: (name or bytes, data) or a TarInfo, written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = info.size or len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def sparse(name):
    """A member that claims 100 GB and has no data."""
    info = tarfile.TarInfo(name)
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    return info


def odd_tar(path, record):
    """Good records first and last; between them every odd one, a sparse member and a name that is no UTF-8."""
    rows = [(f"sa_{100 + n}", broken(record, **ODD[name])) for n, name in enumerate(ODD)]
    rows = [("sa_1", record(1)), *rows, ("sa_9\udcff", record(9)), ("sa_2", record(2))]
    members = [(f"{key}.{ext}", raw[ext]) for key, raw in rows for ext in ("jpg", "json")]
    tar_of(path, [*members[:-2], ("sa_3.jpg", record(3)["jpg"]), (sparse("sa_3.json"), b""), *members[-2:]])
    data = bytearray(path.read_bytes())
    at = data.index(b"sa_3.json\0")
    data[at + 124 : at + 136] = b"\x80" + (0).to_bytes(11, "big")  # on disk nothing
    data[at + 483 : at + 495] = b"\x80" + (100 << 30).to_bytes(11, "big")  # unpacked 100 GB
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("gz", [False, True])
def test_prep_goes_on_past_everything_odd(gz, record, tmp_path):
    path = odd_tar(tmp_path / "in/sa_000000.tar", record)
    if gz:
        path.write_bytes(gzip.compress(path.read_bytes(), 1))
    out = tmp_path / "out"
    totals = prep(source.Config(inputs=str(path), out=str(out), place=Place(workers=1)))
    rows = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert (totals["images"], totals["rejected"]) == (2, len(ODD) + 2)
    assert {row["key"] for row in rows} == {f"sa_{100 + n}" for n in range(len(ODD))} | {"sa_9\udcff", "sa_3"}


@pytest.fixture
def served(tmp_path):
    """The address under which the test's folder is served over HTTP."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


READ = ["{folder}/train", "pipe:cat {folder}/train/x.tar", "pipe:gzip -c {folder}/train/x.tar", "{served}/train/x.tar"]
"""By position, and only forwards."""


@pytest.mark.parametrize("train", READ)
def test_training_goes_on_past_everything_odd(train, record, tmp_path, served, caplog):
    if "served" in train and shutil.which("curl") is None:
        pytest.skip("webdataset reads URLs with curl, which is not installed")
    odd_tar(tmp_path / "train/x.tar", record)
    train = train.format(folder=tmp_path, served=served)
    more = {"epoch_images": 30, "stream_buffer": 1} if ":" in train else {}  # far more than SKIP_LIMIT, never in a row
    config = DataConfig(train=train, image_size=64, global_batch=1, on_bad_sample="skip", **more)
    keys = {key for batch in ShardData(config).train_dataloader() for key in batch.keys}
    assert keys == {"sa_1", "sa_2", r"sa_9\xff"}
    skipped = {row.message for row in caplog.records if "skipped" in row.message}
    assert len(skipped) == len(ODD) + 1 and all("x.tar, sample sa_" in line for line in skipped)
    with pytest.raises(UserError, match=r"x\.tar, sample sa_\d+: "):
        list(ShardData(dataclasses.replace(config, on_bad_sample="stop")).train_dataloader())


def halves(path, record):
    """A pair whose halves lie apart, a half alone, a member twice."""
    one, two = record(1), record(2)
    return tar_of(path, [("sa_1.jpg", one["jpg"]), ("sa_3.json", b"{}"), ("d/sa_2.jpeg", two["jpg"]),
                         ("sa_1.json", one["json"]), ("sa_1.json", b"{}"), ("sa_2.json", two["json"])])  # fmt: skip


def test_a_stream_pairs_halves_that_lie_apart(record, tmp_path, caplog):
    tar = halves(tmp_path / "x.tar", record)
    how = {"image_size": 64, "epoch_images": 4, "stream_buffer": 1, "on_bad_sample": "skip"}
    keys = {
        key for batch in ShardData(DataConfig(train=f"pipe:cat {tar}", **how)).train_dataloader() for key in batch.keys
    }
    assert keys == {"sa_1", "sa_2"}
    assert {row.message.rpartition(": ")[2] for row in caplog.records if "skipped" in row.message} == {
        "member .json is there twice, the first one counts", "has no .jpg member",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["empty", "all bad", "cut off", "garbage"])
@pytest.mark.parametrize("skip", ["skip", "stop"])
def test_a_stream_without_a_good_sample_ends_with_a_sentence(kind, skip, record, tmp_path):
    tar = tar_of(tmp_path / "x.tar", [] if kind == "empty" else [("sa_1.jpg", b"x"), ("sa_1.json", b"{}")])
    if kind == "cut off":
        tar.write_bytes(tar.read_bytes()[:600])
    elif kind == "garbage":
        tar.write_bytes(b"no tar" * 1000)
    config = DataConfig(train=f"pipe:cat {tar}", image_size=64, epoch_images=4, on_bad_sample=skip)
    with pytest.raises(
        UserError, match=rf"^shard pipe:cat {tar},? .*(no sample|no `image`|is cut off|not a tar|no .json)"
    ):
        list(ShardData(config).train_dataloader())


def test_a_jpeg_that_claims_65500_pixels_is_refused_at_once(record):
    jpg = bytearray(record(1)["jpg"])
    at = jpg.index(b"\xff\xc0")
    jpg[at + 5 : at + 9] = (65_500).to_bytes(2, "big") * 2
    began = time.monotonic()
    for refuse in (lambda: jpeg_size(bytes(jpg)), lambda: decode_jpeg(bytes(jpg), where="image")):
        with pytest.raises(RecordError, match="claims to be 65500x65500 pixels"):
            refuse()
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_a_fifo_or_folder_as_tar_is_refused_not_waited_for(kind, tmp_path):
    tar = tmp_path / "x.tar"
    os.mkfifo(tar) if kind == "fifo" else tar.mkdir()
    for read in (lambda: build_index(expand(tmp_path)[0]), lambda: list(read_pairs(tar))):
        with pytest.raises(UserError, match="not a file"):
            read()
    with pytest.raises(UserError, match="not a file"):
        prep(source.Config(inputs=str(tmp_path), out=str(tmp_path / "out"), place=Place(workers=1)))


@pytest.mark.parametrize("size", [-512, -1024, -(1 << 40), 1 << 60])
def test_headers_with_impossible_sizes_end(size, record, tmp_path):
    raw = record(1)
    tar = tar_of(tmp_path / "x.tar", [("sa_1.jpg", raw["jpg"]), ("sa_1.json", raw["json"]), ("sa_2.jpg", b"x" * 600)])
    data = bytearray(tar.read_bytes())
    at = data.index(b"sa_2.jpg\0")
    data[at + 124 : at + 136] = (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11, "big")
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    tar.write_bytes(data)
    rows = []
    assert [key for key, _ in read_pairs(tar, lambda *row: rows.append(row))] == ["sa_1"]
    assert rows
    with pytest.raises(UserError, match=r"x\.tar"):
        build_index(tar)


@pytest.mark.parametrize(
    "change",
    [
        {"offsets": [[0, 0]] * 4 + [[-5, 0]]},
        {"sizes": [[1 << 50, 5]] * 5},
        {"keys": [1, 2, 3, 4, 5]},
        {"sizes": [[10**400, 1]] * 5},
        {"keys": None},
        {"offsets": "x"},
    ],
)
def test_a_damaged_sidecar_is_made_anew(change, shards):
    (tar,) = expand(shards(5, per_shard=5))
    whole = json.loads(index_path(tar).read_text())
    index_path(tar).write_text(json.dumps({**whole, **change}))
    os.utime(index_path(tar), (time.time() + 9,) * 2)
    index = build_index(tar)
    assert [key.decode() for key in index.keys] == whole["keys"] and index.sizes.tolist() == whole["sizes"]


# ---------------------------------------------------------------- what a folder of shards is


@pytest.fixture
def folder(tmp_path):
    """Four drawings in two shards."""
    out = tmp_path / "train"
    config = synthetic.Config(out=str(out), count=4, image_size=64, samples_per_shard=2, place=Place(workers=1))
    prep(config)
    return config


def loader(folder):
    config = DataConfig(train=str(folder), image_size=64, global_batch=2)
    return ShardData(config).train_dataloader()


def test_a_shard_that_index_json_lists_and_that_is_missing_is_refused(folder):
    first, second = map(Path, expand(folder.out))
    first.rename(first.with_suffix(".away"))
    with pytest.raises(UserError, match=rf"index.json lists {first.name}, which is missing: run the same"):
        expand(folder.out)
    assert expand(f"{folder.out}/*.tar") == [second]  # a pattern asks for what it names
    prep(folder)
    assert expand(folder.out) == [first, second]
    second.write_bytes(second.read_bytes() + bytes(512))
    with pytest.raises(UserError, match="it was changed or swapped"):
        expand(folder.out)


def test_a_damaged_index_json_is_one_sentence(folder):
    for text in ("{", "[]", '{"shards": [1]}', '{"shards": [{"name": 1}]}'):
        (Path(folder.out) / "index.json").write_text(text)
        with pytest.raises(UserError, match=r"index\.json is damaged"):
            expand(folder.out)


def swap(folder, exts):
    first, second = map(Path, expand(folder))
    for ext in exts:
        a, b = Path(f"{first}{ext}"), Path(f"{second}{ext}")
        a.rename(f"{a}.x"), b.rename(a), Path(f"{a}.x").rename(b)


@pytest.mark.parametrize("exts", [[""], ["", ".idx.json"]])
def test_swapped_shards_of_equal_counts_are_refused_at_a_resume(exts, folder):
    sizes = {Path(tar).stat().st_size for tar in expand(folder.out)}
    assert len(sizes) == 1  # index.json's sizes cannot tell them apart
    state = loader(folder.out).state_dict()
    loader(folder.out).load_state_dict(state)
    old = {name: value for name, value in state.items() if not name.startswith("names")}
    loader(folder.out).load_state_dict(old)  # a checkpoint from before still loads
    before = [build_index(tar).keys.tolist() for tar in expand(folder.out)]
    swap(folder.out, exts)
    assert [build_index(tar).keys.tolist() for tar in expand(folder.out)] == before[::-1]
    with pytest.raises(UserError, match="names, keys and digests"):
        loader(folder.out).load_state_dict(state)


def test_shards_drawn_anew_under_the_same_names_are_others(folder, tmp_path):
    before = IndexedShards(expand(folder.out)).digest
    assert IndexedShards(expand(folder.out)).digest == before
    index = Path(folder.out) / "index.json"
    notes = json.loads(index.read_text())
    notes["shards"][0]["sha256"] = "0" * 64
    index.write_text(json.dumps(notes))
    assert IndexedShards(expand(folder.out)).digest != before


def test_a_bit_flipped_finished_shard_is_written_anew(folder):
    first = Path(expand(folder.out)[0])
    whole = first.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    first.write_bytes(flipped)
    build_index(first)  # whoever opened it meanwhile made a fresh sidecar
    prep(folder)
    assert first.read_bytes() == whole
    os.utime(first)  # newer and the same, as in a copy: nothing to do
    moment = first.stat().st_mtime_ns
    prep(folder)
    assert first.stat().st_mtime_ns == moment


def test_a_bit_flipped_under_the_same_size_and_time_is_noticed(folder):
    """By training at the member that it reads, without reading the rest; by prep where it is asked to verify."""
    first = Path(expand(folder.out)[0])
    whole, facts = first.read_bytes(), first.stat()
    sound = IndexedShards(expand(folder.out))
    assert len([sound[n] for n in range(4)]) == 4 and sound.indexes[0].crcs is not None
    index = build_index(first)
    middle = int(index.offsets[1, 0] + index.sizes[1, 0] // 2)
    flipped = bytearray(whole)
    flipped[middle] ^= 1
    first.write_bytes(flipped)
    os.utime(first, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    images = IndexedShards(expand(folder.out))
    assert images[0] == sound[0]
    with pytest.raises(
        UserError, match=rf"{first.name}, sample \S+: the \.jpg is not what was written: .* verify=true"
    ):
        images[1]
    prep(folder)
    assert first.read_bytes() == flipped
    prep(dataclasses.replace(folder, verify=True))
    assert first.read_bytes() == whole and len([IndexedShards([first])[n] for n in range(2)]) == 2


@pytest.mark.parametrize("text", ["[]", "{", "null", '{"shards": [5]}', '{"shards": [], "stamp": [0, 1]}'])
def test_a_damaged_note_is_none(text, folder):
    first = Path(expand(folder.out)[0])
    whole = first.read_bytes()
    (note, *_) = sorted(Path(folder.out).glob(".prep/synthetic*.json"))
    kept = note.read_bytes()
    note.write_text(text)
    prep(folder)
    assert note.read_bytes() == kept and first.read_bytes() == whole
    (Path(folder.out) / ".prep/settings.json").write_text(text)
    if text != '{"shards": [], "stamp": [0, 1]}':
        with pytest.raises(UserError, match=r"settings\.json is damaged|was prepared with"):
            prep(folder)


def test_what_is_no_shard_says_which_prep_makes_them(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.JPG").write_bytes(b"x")
    with pytest.raises(UserError, match=rf"frisket prep prep_masks inputs={tmp_path}/photos out=DATA"):
        expand(tmp_path / "photos")
    with pytest.raises(UserError, match=r"frisket prep prep_coco inputs=instances.json images=FOLDER out=DATA"):
        ShardData(DataConfig(train="instances.json")).train_dataloader()


# ---------------------------------------------------------------- stored embeddings

STAMP = Stamp("ab" * 32, 64)
FRAME = Frame.fit((48, 64), 64)


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_any_flipped_bit_of_a_stored_embedding_is_noticed(dtype):
    tensor = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    data = pack(tensor, FRAME, stamp=STAMP, dtype=dtype)
    right = unpack(data, frame=FRAME, expect=STAMP)
    refused = 0
    for at in range(len(data)):
        for bit in (1, 16, 128):
            flipped = bytearray(data)
            flipped[at] ^= bit
            try:
                assert torch.equal(unpack(bytes(flipped), frame=FRAME, expect=STAMP), right)
            except UserError:
                refused += 1
    assert refused > 2.9 * len(data)


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_embeddings_that_are_not_finite_are_neither_stored_nor_loaded(dtype):
    tensor = torch.zeros(3, 4, 4)
    data = pack(tensor, FRAME, stamp=STAMP, dtype=dtype)
    for value in (torch.nan, torch.inf):
        tensor[1, 2, 3] = value
        with pytest.raises(ValueError, match="not finite"):
            pack(tensor, FRAME, stamp=STAMP, dtype=dtype)
    (length,) = struct.unpack_from("<I", data, 4)
    header, payload = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    payload[:4] = (
        np.array([np.nan], np.float32).tobytes() if dtype == "int8" else np.array([np.inf] * 2, "f2").tobytes()
    )
    if dtype == "int8":
        payload[-1] = payload[12] = 1
    text = json.dumps(header | {"crc": zlib.crc32(payload)}).encode()
    with pytest.raises(UserError, match="not finite"):
        unpack(data[:4] + struct.pack("<I", len(text)) + text + bytes(payload), frame=FRAME, expect=STAMP)


def test_two_teachers_embeddings_are_not_mixed(shards):
    """Without a teacher of its own a run takes the first shard's, and refuses the second's."""
    images = IndexedShards(expand(shards(4, per_shard=2)))
    for index, teacher in zip(images.indexes, ("aa" * 32, "bb" * 32), strict=True):
        with TarOut(path_for(index.tar)) as out:
            for key in index.keys:
                frame = Frame.fit((60, 90), 64)
                data = pack(torch.ones(2, 4, 4), frame, stamp=Stamp(teacher, 64))
                out.write({"__key__": key.decode(), "emb": data})
    stored = StoredEmbeddings(images, None, None)
    frame = Frame.fit((60, 90), 64)
    assert stored.fetch(1, frame).shape == (2, 4, 4)
    with pytest.raises(UserError, match=r"come from teacher bbbbbbbbbbbb at 64 px .* wants teacher aaaaaaaaaaaa"):
        stored.fetch(2, frame)


def test_sound_records_keep_loading(record):
    raw = record(1)
    assert len(parse(raw["json"], where="x")) == 5
    notes = json.loads(raw["json"])
    del notes["image"]["image_id"]
    assert parse(json.dumps(notes), where="x").image_id == -1
