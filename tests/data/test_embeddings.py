"""Stored embeddings: exact or nearly exact round trips, zeros in the padding, and refusals that name both sides."""

import dataclasses

import numpy as np
import pytest
import torch

from frisket.data.embeddings import Stamp, StoredEmbeddings, available, folder_for, numbers, pack, path_for, unpack
from frisket.data.module import DataConfig, ShardData
from frisket.data.shards import IndexedShards, TarOut, expand
from frisket.errors import UserError
from frisket.geometry import Frame
from frisket.models.encoder import Tap

STAMP = Stamp(teacher="ab" * 32, image_size=64)
FRAME = Frame.fit((60, 90), 64)


def embedding(seed=0):
    return torch.randn(256, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 2e-3), ("int8", 2e-2)])
def test_round_trip_keeps_valid_tokens_only(dtype, tolerance):
    whole = embedding()
    data = pack(whole, FRAME, stamp=STAMP, dtype=dtype)
    back = unpack(data, frame=FRAME, expect=STAMP)
    rows, cols = FRAME.valid_tokens()
    assert (rows, cols) == (3, 4) and back.shape == whole.shape and back.dtype == torch.float32
    # fp16 has 11 bits (values up to 4); int8's step is max/127, so half of it is under 2e-2 here
    assert (back - whole)[:, :rows, :cols].abs().max() < tolerance
    assert (back[:, rows:] == 0).all()
    assert len(data) < 256 * rows * cols * (2 if dtype == "fp16" else 1) + 1024 + 400


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 2e-3), ("int8", 2e-2)])
def test_a_blocks_features_are_another_record_of_the_same_kind(dtype: str, tolerance: float) -> None:
    """Its own width and cell; half precision in memory; told from the embedding and from other blocks."""
    whole = torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(0))
    data = pack(whole, FRAME, stamp=STAMP, dtype=dtype, block=3, stride=8)
    back = unpack(data, frame=FRAME, expect=STAMP, block=3, stride=8)
    assert back.shape == whole.shape and back.dtype == torch.float16
    rows, cols = FRAME.valid_tokens(8)
    assert (rows, cols) == (6, 8) and (back - whole)[:, :rows].abs().max() < tolerance and not back[:, rows:].any()
    for other in ({}, {"block": 2, "stride": 8}, {"block": 3}):
        with pytest.raises(UserError, match=r"\(block, stride\) \(3, 8\) is stored"):
            unpack(data, frame=FRAME, **other)
    with pytest.raises(ValueError, match="fp16 cannot; leave block 3 out of blocks"):
        pack(whole * 1e6, FRAME, stamp=STAMP, dtype=dtype, block=3, stride=8)
    assert numbers(FRAME, [Tap(5, 8)]) == 256 * 3 * 4 + 5 * 6 * 8


def test_mismatches_are_refused_with_both_names():
    data = pack(embedding(), FRAME, stamp=STAMP)
    with pytest.raises(
        UserError, match=r"abababababab at 64 px .* wants teacher cdcdcdcdcdcd at 64 px.*embeddings=null"
    ):
        unpack(data, expect=Stamp("cd" * 32, 64))
    with pytest.raises(UserError, match="other resize"):
        unpack(data, expect=dataclasses.replace(STAMP, preprocessing="other resize"))
    with pytest.raises(UserError, match=r"\(3, 4\) tokens at 64 px, the image \(4, 3\)"):
        unpack(data, frame=Frame.fit((90, 60), 64))
    with pytest.raises(UserError, match="damaged"):
        unpack(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="damaged"):
        unpack(b"PK")
    with pytest.raises(ValueError, match="do not fit"):
        pack(embedding()[:, :3], FRAME, stamp=STAMP)
    with pytest.raises(ValueError, match="fp16 cannot"):
        pack(embedding() * 1e6, FRAME, stamp=STAMP)


def store(folder, stamp=STAMP):
    for number, tar in enumerate(expand(folder)):
        shard = IndexedShards([tar])
        with TarOut(path_for(tar)) as out:
            for i in range(len(shard)):
                data = pack(embedding(100 * number + i), FRAME, stamp=stamp)
                out.write({"__key__": shard[i]["__key__"], "emb": data})


def test_loader_delivers_them(shards):
    folder = shards(7, per_shard=4)
    assert not available(expand(folder))
    config = DataConfig(train=str(folder), image_size=64, global_batch=2, embeddings="auto")
    plain = next(iter(ShardData(config).train_dataloader()))
    assert plain.embedding is None
    store(folder)
    assert folder_for(expand(folder)[0]).name == "train-embeddings" and available(expand(folder))
    data = ShardData(config, stamp=STAMP)
    assert data.has_embeddings
    batch = next(iter(data.train_dataloader()))
    assert batch.embedding.shape == (2, 256, 4, 4)
    for key, found in zip(batch.keys, batch.embedding, strict=True):
        number = int(key.removeprefix("sa_"))
        want = embedding(100 * (number // 4) + number % 4)
        assert np.allclose(found[:, :3], want[:, :3], atol=2e-3) and not found[:, 3:].any()
    explicit = dataclasses.replace(config, embeddings=str(folder_for(expand(folder)[0])))
    assert next(iter(ShardData(explicit, stamp=STAMP).train_dataloader())).embedding is not None


def test_another_teacher_a_missing_shard_and_other_keys(shards):
    folder = shards(7, per_shard=4)
    store(folder)
    config = DataConfig(train=str(folder), image_size=64, embeddings="auto")
    with pytest.raises(UserError, match=r"toy-000000\.emb\.tar: stored embeddings come from .* but this run wants"):
        ShardData(config, stamp=Stamp("cd" * 32, 64)).train_dataloader()
    tars = expand(folder)
    images = IndexedShards(tars)
    with TarOut(path_for(tars[1])) as out:
        out.write({"__key__": "sa_99", "emb": b"FEMB"})
    with pytest.raises(UserError, match=r"toy-000001\.emb\.tar hold other samples"):
        StoredEmbeddings(images, None, STAMP)
    path_for(tars[1]).unlink()
    with pytest.raises(UserError, match=r"toy-000001\.emb\.tar \(1 of 2 shards\) are missing"):
        ShardData(config).train_dataloader()
