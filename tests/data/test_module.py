"""ShardData: batches, workers, bad samples, settings that contradict each other."""

import json
import multiprocessing

import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from numpy.random import default_rng

from frisket import config as configs
from frisket.data.module import DataConfig, ShardData, collate
from frisket.data.shards import IndexedShards, ShardWriter, expand
from frisket.errors import UserError
from frisket.sample import Batch


def data(folder, **how):
    workers = how.pop("workers", 0)
    settings = {"global_batch": 2, "masks_per_image": 3, "image_size": 64, **how}
    return ShardData(DataConfig(train=str(folder), **settings), workers=workers, seed=5)


def test_batch_layout(shards):
    loader = data(shards(8)).train_dataloader()
    assert len(loader) == 4
    for batch in loader:
        assert isinstance(batch, Batch) and batch.images.shape == (2, 3, 64, 64) and batch.images.dtype == torch.uint8
        n = len(batch.masks)
        assert batch.masks.shape == (n, 16, 16) and batch.masks.dtype == torch.bool
        assert batch.boxes.shape == (n, 4) and batch.areas.shape == batch.image_index.shape == (n,)
        assert batch.image_index.tolist() == sorted(batch.image_index.tolist()) and n == 6
        for image, (height, width), frame in zip(batch.images, batch.sizes.tolist(), batch.frames, strict=True):
            assert (height, width) == frame.size
            assert image[:, :height, :width].any() and not image[:, height:].any() and not image[:, :, width:].any()


def test_masks_do_not_depend_on_workers_and_differ_between_epochs(shards):
    folder = shards(8)
    runs = []
    for workers in (0, 2):
        loader = data(folder, workers=workers).train_dataloader()
        runs.append([{k: a for b in loader for k, a in zip(b.keys, b.areas.reshape(2, 3).tolist())} for _ in range(2)])
    assert runs[0] == runs[1]
    assert runs[0][0].keys() == runs[0][1].keys() and runs[0][0] != runs[0][1]


def test_samples_without_masks(shards):
    loader = data(shards(4, masks=0)).train_dataloader()
    batch = next(iter(loader))
    assert batch.masks.shape == (0, 16, 16) and batch.boxes.shape == (0, 4) and batch.image_index.shape == (0,)
    moved = move_data_to_device(batch, torch.device("cpu"))
    assert moved.keys == batch.keys and moved.frames == batch.frames


def broken(tmp_path, record, at=2):
    with ShardWriter(tmp_path / "bad", "toy", max_count=4) as out:
        for number in range(8):
            raw = record(number)
            if number == at:
                content = json.loads(raw["json"])
                del content["annotations"]
                raw["json"] = json.dumps(content).encode()
            out.write(raw)
    return tmp_path / "bad"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_stops_with_one_sentence(tmp_path, record, workers):
    loader = data(broken(tmp_path, record), workers=workers).train_dataloader()
    with pytest.raises(UserError, match=r"^shard .*toy-000000\.tar, sample sa_2: the \.json has no `annotations`$"):
        list(loader)
    assert len(multiprocessing.active_children()) <= workers


def test_a_bad_sample_is_skipped_when_asked(tmp_path, record, caplog):
    folder = broken(tmp_path, record)
    keys = [key for b in data(folder, on_bad_sample="skip").train_dataloader() for key in b.keys]
    assert sorted(keys) == sorted([f"sa_{n}" for n in range(8) if n != 2] + ["sa_3"])
    assert "sample sa_2" in caplog.text
    module = ShardData(DataConfig(val=str(folder), image_size=64, masks_per_image=2, on_bad_sample="skip"))
    counts = {}
    for batch in module.val_dataloader():
        counts.setdefault(batch.keys[0], []).append(len(batch.masks))
    assert sorted(counts.pop("sa_3")) == [0, 2] and all(c == [2] for c in counts.values())


def test_nothing_but_bad_samples_ends(tmp_path, record):
    with ShardWriter(tmp_path / "bad", "toy") as out:
        for number in range(3):
            out.write({**record(number), "jpg": b"no"})
    with pytest.raises(UserError, match="no JPEG"):
        next(iter(data(tmp_path / "bad", on_bad_sample="skip", global_batch=1).train_dataloader()))


def test_validation_is_the_same_each_time_and_optional(shards):
    folder = shards(5)
    loader = ShardData(DataConfig(val=str(folder), image_size=64, masks_per_image=2)).val_dataloader()
    first, second = ([(b.keys, b.areas.tolist()) for b in loader] for _ in range(2))
    assert first == second and [k for keys, _ in first for k in keys] == [f"sa_{n}" for n in range(5)]
    assert data(folder).val_dataloader() == []


def test_streaming_from_pipes(shards, tmp_path):
    folder = shards(8)
    config = DataConfig(train=f"pipe:cat {folder}/toy-{{000000..000001}}.tar", epoch_images=12, image_size=64)
    module = ShardData(config)
    assert module.streaming and module.train_images == 12
    loader = module.train_dataloader()
    assert len(loader) == 12
    passes = [[key for b in loader for key in b.keys] for _ in range(2)]
    assert all(len(p) == 12 for p in passes) and passes[0] != passes[1]
    assert {key for p in passes for key in p} <= {f"sa_{n}" for n in range(8)}
    bad = ShardData(DataConfig(train="pipe:cat /nonexistent.tar", epoch_images=4, image_size=64))
    with pytest.raises(UserError, match=r"streaming from pipe:cat /nonexistent\.tar"):
        list(bad.train_dataloader())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train": None}, "data.train is not set"),
        ({"train": "https://x.org/a.tar"}, "epoch_images=None must be set"),
        ({"train": "https://x.org/a.tar", "streaming": False}, "can only be streamed"),
        ({"train": "https://x.org/a.tar", "epoch_images": 8, "embeddings": "x"}, "data.embeddings needs"),
        ({"global_batch": 9}, "more than the 8 training samples"),
        ({"embeddings": "nowhere"}, r"toy-000000\.emb\.tar \(2 of 2 shards\) are missing"),
    ],
)
def test_settings_that_cannot_work_say_so(shards, settings, words):
    with pytest.raises(UserError, match=words):
        ShardData(DataConfig(**{"train": str(shards(8)), "image_size": 64, **settings})).train_dataloader()
    with pytest.raises(UserError, match="validation reads by index"):
        ShardData(DataConfig(val="https://x.org/a.tar")).val_dataloader()


def test_config_is_a_schema():
    got = configs.load(DataConfig, [], ["train=a/b", "global_batch=2", "embeddings=auto", "epoch_images=9"])
    assert (got.train, got.global_batch, got.embeddings, got.epoch_images, got.streaming) == ("a/b", 2, "auto", 9, None)
    with pytest.raises(UserError, match="global_batch"):
        configs.load(DataConfig, [], ["global_bach=2"])


def test_collate_pads_and_counts(shards):
    module = data(shards(4))
    decode, shard = module.decode(), IndexedShards(expand(module.config.train))
    samples = [decode(shard[n], rng=default_rng(n)) for n in range(3)]
    samples[1].masks, samples[1].boxes, samples[1].areas = (
        samples[1].masks[:0],
        samples[1].boxes[:0],
        samples[1].areas[:0],
    )
    assert collate(samples).image_index.tolist() == [0, 0, 0, 2, 2, 2]
