"""Source embed: what is stored is what the teacher says, aligned with the shards; other teachers are refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from frisket import checkpoint
from frisket.data.embeddings import StoredEmbeddings, folder_for
from frisket.data.sa1b import decode
from frisket.data.shards import IndexedShards, expand
from frisket.errors import UserError
from frisket.models.zoo import build
from frisket.place import Place
from frisket.prep import synthetic
from frisket.prep.embed import Config, stamp_for
from frisket.prep.run import prep

SIDE = 64


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Seven 96 px images in shards of 3, 3 and 1."""
    folder = tmp_path / "train"
    prep(synthetic.Config(out=str(folder), count=7, image_size=96, samples_per_shard=3, place=Place(workers=1)))
    return folder


def embed(shards: Path, teacher: Path, **changes: object) -> Config:
    values = {"inputs": str(shards), "teacher": str(teacher), "image_size": SIDE, "batch": 2} | changes
    return Config(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 2e-3), ("int8", 2e-2)])
def test_stored_equals_live(shards: Path, tiny_teacher: Path, dtype: str, tolerance: float) -> None:
    totals = prep(embed(shards, tiny_teacher, dtype=dtype))
    assert totals == {"images": 7, "masks": 0, "rejected": 0, "shards": 3}
    images = IndexedShards(expand(shards))
    sam = checkpoint.load(tiny_teacher)
    stored = StoredEmbeddings(images, None, stamp_for(sam, SIDE))  # None: the folder training looks in
    for i in range(7):
        sample = decode(images[i], image_size=SIDE, masks_per_image=1, rng=np.random.default_rng(0))
        found = stored.fetch(i, sample.frame)
        padded = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
        height, width = sample.frame.size
        padded[0, :, :height, :width] = sample.image
        with torch.no_grad():
            live = sam.encode(padded, torch.tensor([sample.frame.size]))[0]
        rows, cols = sample.frame.valid_tokens()
        # fp16 keeps 11 bits, int8 half a step of 1/127 of a channel's largest value.
        largest = live.abs().max()
        assert (found - live)[:, :rows, :cols].abs().max() <= tolerance * largest
        assert found[:, rows:].eq(0).all() and found[:, :, cols:].eq(0).all()


def test_finished_shards_are_skipped_and_tasks_share_them(
    shards: Path, tiny_teacher: Path, tmp_path: Path, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    prep(embed(shards, tiny_teacher, out=str(tmp_path / "one")))
    for task in (1, 0):
        prep(embed(shards, tiny_teacher, out=str(tmp_path / "array"), task=f"{task}/2"))
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "array")

    kept, lost, *_ = sorted((tmp_path / "one").glob("*.emb.tar"))
    moment = kept.stat().st_mtime_ns
    lost.unlink()
    (tmp_path / f"one/.{lost.name}.99.tmp").write_bytes(b"half")
    prep(embed(shards, tiny_teacher, out=str(tmp_path / "one")))
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "array")
    assert kept.stat().st_mtime_ns == moment


def test_other_weights_under_the_same_name_are_refused(shards: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "model.pt"
    for seed in (0, 1):
        torch.manual_seed(seed)
        sam = build("sam_vit_t", image_size=SIDE, width=48, depth=1, heads=3, global_blocks=(0,))
        checkpoint.save(sam, teacher)
        if seed == 0:
            prep(embed(shards, teacher))
    before = {path: path.read_bytes() for path in folder_for(next(shards.glob("*.tar"))).glob("*.tar")}
    with pytest.raises(UserError, match=r"is of teacher .*, now it is teacher .*: choose another out="):
        prep(embed(shards, teacher))
    assert before == {path: path.read_bytes() for path in before}
    with pytest.raises(UserError, match=r"at 64 px .* at 32 px .*: choose another out="):
        prep(embed(shards, teacher, image_size=32))


def test_the_stamp_follows_the_encoder_alone() -> None:
    sam = build("sam_vit_t", image_size=SIDE, width=48, depth=1, heads=3, global_blocks=(0,))
    before = stamp_for(sam, SIDE)
    with torch.no_grad():
        sam.mask_decoder.iou_token.weight.add_(1)
    assert stamp_for(sam, SIDE) == before
    with torch.no_grad():
        sam.image_encoder.patch_embed.proj.bias[0] += 1e-6  # type: ignore[union-attr, operator]
    assert stamp_for(sam, SIDE) != before


def test_a_missing_teacher_is_one_sentence(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no checkpoint at .*gone\.pt"):
        prep(embed(shards, tmp_path / "gone.pt"))
    monkeypatch.setenv("FRISKET_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"sam_vit_h_4b8939\.pth .*is not there"):
        prep(embed(shards, Path("sam_vit_h")))
    assert not folder_for(next(shards.glob("*.tar"))).exists()


def test_a_damaged_image_stops_with_its_name(shards: Path, tiny_teacher: Path) -> None:
    tar = sorted(shards.glob("*.tar"))[1]
    index = IndexedShards([tar]).indexes[0]
    data = bytearray(tar.read_bytes())
    start, size = int(index.offsets[1, 0]), int(index.sizes[1, 0])
    data[start + size // 2 : start + size] = bytes(size - size // 2)
    tar.write_bytes(data)
    with pytest.raises(UserError, match=f"{tar.name}, sample syn_train_000004"):
        prep(embed(shards, tiny_teacher))
    names = {path.name for path in folder_for(tar).iterdir()}
    assert names == {
        ".prep",
        f"{sorted(shards.glob('*.tar'))[0].stem}.emb.tar",
        f"{sorted(shards.glob('*.tar'))[0].stem}.emb.tar.idx.json",
    }


def test_shards_of_two_folders_need_an_out(shards: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    prep(synthetic.Config(out=str(tmp_path / "val"), split="val", count=1, image_size=96, place=Place(workers=1)))
    with pytest.raises(UserError, match="2 folders"):
        prep(embed(shards, tiny_teacher, inputs=f"{shards},{tmp_path / 'val'}"))
    assert (
        prep(embed(shards, tiny_teacher, inputs=f"{shards},{tmp_path / 'val'}", out=str(tmp_path / "o")))["images"] == 8
    )


def test_image_size_must_fit_the_patches(shards: Path, tiny_teacher: Path) -> None:
    with pytest.raises(UserError, match="multiple of 16"):
        prep(embed(shards, tiny_teacher, image_size=100))
