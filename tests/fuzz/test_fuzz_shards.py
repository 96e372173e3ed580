"""Tars with damaged bytes and headers, and the sidecars beside them."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hostile import ODD, changed, damaged, fuzz
from hypothesis import strategies as st

from frisket.data.index import build_index, index_path
from frisket.data.module import DataConfig, ShardData
from frisket.data.pairs import read_pairs
from frisket.data.shards import IndexedShards, ShardWriter, expand
from frisket.place import Place
from frisket.prep import synthetic
from frisket.prep.run import prep

FIELDS = {"name": (0, 100), "mode": (100, 8), "size": (124, 12), "time": (136, 12), "type": (156, 1),
          "link": (157, 100), "magic": (257, 8), "prefix": (345, 155), "sparse": (386, 126)}  # fmt: skip
"""Of a tar header: offset and length."""


@pytest.fixture(scope="module")
def whole(good: dict[str, bytes]) -> bytes:
    """A tar of two records, one of them with a name too long for a header."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for key in ("sa_1", "b" * 120):
            for ext, data in good.items():
                info = tarfile.TarInfo(f"{key}.{ext}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@st.composite
def tars(draw: st.DrawFn, whole: bytes) -> bytes:
    """A tar whose headers say odd things under a right checksum, whose bytes are damaged, or both."""
    data, headers = bytearray(whole), [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.sampled_from(headers))
        offset, length = FIELDS[draw(st.sampled_from(sorted(FIELDS)))]
        number = draw(st.sampled_from([0, 1, 511, 1 << 20, 1 << 33, (1 << 60) + 1, -1, -512, -(1 << 40)]))
        value = draw(
            st.one_of(
                st.just((b"\x80" if number >= 0 else b"\xff") + (number % (1 << 88)).to_bytes(11, "big")),
                st.just(b"%011o\0" % max(0, number)),
                st.sampled_from(
                    [b"0", b"1", b"2", b"5", b"x", b"g", b"L", b"K", b"S", b"sa_1.jpg\0", b"../../x.json\0"]
                ),
                st.binary(max_size=length),
            )
        )[:length]
        data[at + offset : at + offset + len(value)] = value
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return draw(damaged(bytes(data))) if draw(st.booleans()) else bytes(data)


def indexed(tar: Path) -> None:
    """Read every record by position, as training does."""
    index_path(tar).unlink(missing_ok=True)
    images = IndexedShards([tar])
    for number in range(len(images)):
        images[number]


def test_tars_by_position(whole: bytes, tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"

    def attack(data: bytes) -> None:
        tar.write_bytes(data)
        indexed(tar)

    tally = fuzz(tars(whole), 200, attack)
    assert min(tally["answered"], tally["refused"]) > 20


@pytest.mark.parametrize("wrapped", [False, True])
def test_tars_in_one_pass(wrapped: bool, whole: bytes, tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"

    def attack(data: bytes) -> None:
        tar.write_bytes(gzip.compress(data, 1) if wrapped else data)
        list(read_pairs(tar, lambda key, reason: None))
        list(read_pairs(tar))

    tally = fuzz(tars(whole), 200, attack)
    assert min(tally["answered"], tally["refused"]) > 20


def test_damaged_gzip(whole: bytes, tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"

    def attack(data: bytes) -> None:
        tar.write_bytes(data)
        list(read_pairs(tar, lambda key, reason: None))

    assert fuzz(damaged(gzip.compress(whole, 1)), 150, attack)["answered"] > 20


@pytest.mark.timeout(60)
def test_tars_streamed(whole: bytes, tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"

    def attack(data: bytes) -> None:
        tar.write_bytes(data)
        config = DataConfig(
            train=f"pipe:cat {tar}", image_size=32, epoch_images=2, stream_buffer=1, on_bad_sample="skip"
        )
        assert len(list(ShardData(config).train_dataloader())) == 2

    tally = fuzz(tars(whole), 80, attack)
    assert min(tally["answered"], tally["refused"]) > 10


# ---------------------------------------------------------------- sidecars


def test_the_index_beside_a_tar(good: dict[str, bytes], tmp_path: Path) -> None:
    """Damaged, it is made anew or refused; what is read is what the tar holds."""
    with ShardWriter(tmp_path, "x") as out:
        for key in ("a", "b"):
            out.write({"__key__": key, **good})
    (tar,) = expand(tmp_path)
    side = index_path(tar)
    text, moment = side.read_bytes(), os.stat(tar).st_mtime_ns

    def attack(data: bytes) -> None:
        side.write_bytes(data)
        os.utime(side, ns=(moment + 1, moment + 1))
        images = IndexedShards([tar])
        for number in range(len(images)):
            images[number]

    values = st.one_of(changed(json.loads(text)).map(lambda value: json.dumps(value).encode()), damaged(text))
    assert fuzz(values, 250, attack)["answered"] > 100
    side.unlink()
    assert len(build_index(tar)) == 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The settings of two drawings in a shard each."""
    out = tmp_path_factory.mktemp("drawn") / "train"
    config = synthetic.Config(out=str(out), count=2, image_size=64, samples_per_shard=1, place=Place(workers=1))
    prep(config)
    return config


@pytest.mark.parametrize("name", ["index.json", ".prep/settings.json", ".prep/synthetic-train-00000.json"])
def test_what_prep_leaves_beside_shards(name: str, folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Read as it is, then after the same prep again, which leaves the folder whole unless it refuses."""
    path = Path(folder.out) / name
    text = path.read_bytes()

    def attack(data: bytes) -> None:
        path.write_bytes(data)
        try:
            prep(folder)
            assert len(IndexedShards(expand(folder.out))) == 2
        finally:
            path.write_bytes(data)
            try:
                IndexedShards(expand(folder.out)).digest  # noqa: B018  # it reads index.json
            finally:
                path.write_bytes(text)

    values = st.one_of(
        changed(json.loads(text)).map(lambda value: json.dumps(value).encode()),
        damaged(text),
        ODD.map(lambda value: json.dumps(value).encode()),
    )
    fuzz(values, 80, attack)
    capsys.readouterr()
    prep(folder)
    assert len(IndexedShards(expand(folder.out))) == 2
