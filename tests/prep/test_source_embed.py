"""Source embed: what is stored is what the teacher says, aligned with the shards; other teachers are refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from frisket import checkpoint
from frisket.data.embeddings import StoredEmbeddings, folder_for
from frisket.data.sa1b import decode
from frisket.data.shards import IndexedShards, expand
from frisket.errors import UserError
from frisket.geometry import Frame, pad_square
from frisket.models.sam import Sam
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


def live(sam: Sam, raw: dict[str, Any], side: int, taps: list[int]) -> tuple[Frame, list[torch.Tensor]]:
    """What the teacher says of a photograph as training shows it: embedding and features, channels first."""
    sample = decode(raw, image_size=side, masks_per_image=1, rng=np.random.default_rng(0))
    pixels = sam.preprocess(pad_square(sample.image, side)[None], torch.tensor([sample.frame.size]))
    with torch.no_grad():
        neck, features = sam.image_encoder.forward_features(pixels, taps)
    return sample.frame, [neck[0], *(feature[0].movedim(-1, 0) for feature in features)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 1e-3), ("int8", 5e-3)])
def test_features_of_blocks_are_stored_beside(
    shards: Path, tiny_teacher: Path, dtype: str, tolerance: float, capsys: pytest.CaptureFixture[str]
) -> None:
    totals = prep(embed(shards, tiny_teacher, blocks=[2, 4], dtype=dtype))
    assert totals == {"images": 7, "masks": 0, "rejected": 0, "shards": 9}  # of each shard an embedding and two blocks
    images, sam = IndexedShards(expand(shards)), checkpoint.load(tiny_teacher)
    taps = {block: sam.image_encoder.taps[block - 1] for block in (4, 2)}  # in the order asked
    stored = StoredEmbeddings(images, None, stamp_for(sam, SIDE), taps)
    for i in range(7):
        frame, (neck, second, fourth) = live(sam, images[i], SIDE, [1, 3])
        rows, cols = frame.valid_tokens()
        for kept, said in zip((stored.fetch(i, frame), *stored.features(i, frame)), (neck, fourth, second)):
            assert (kept - said)[:, :rows, :cols].abs().max() <= tolerance * said.abs().max()
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith(f"computed, for photographs of 3:2: the embedding and blocks [2, 4] as {dtype}: ")
    size = 7 * 3 * 4 * (256 + 2 * 64) * (2 if dtype == "fp16" else 1)  # 3 of 4 rows hold photograph
    flops = 2 * sam.image_encoder.macs(SIDE)
    assert f"{size / 1e12:.3g} TB for these 7 images ({size / 7 * 1.12e5 / 1e12:.3g} for 1 % of SA-1B" in line
    assert f"{flops / 1e9:,.0f} GFLOP an image, {7 * flops / (0.4 * 312e12) / 3600:.3g} GPU-hours an epoch" in line


def test_a_folder_is_of_one_choice_of_blocks(shards: Path, tiny_teacher: Path) -> None:
    """And the features of a unit are begun anew with it."""
    for blocks in ([0], [5], [2, 2], [4, 2]):
        with pytest.raises(UserError, match=r"blocks=\[.*\] must rise within 1\.\.4, the blocks of teacher="):
            prep(embed(shards, tiny_teacher, blocks=blocks))
    prep(embed(shards, tiny_teacher, blocks=[2]))
    with pytest.raises(UserError, match=r"was prepared with blocks=\[2\], now it is \[\]: choose another out="):
        prep(embed(shards, tiny_teacher))
    tars = sorted(folder_for(next(shards.glob("*.tar"))).glob("*.block2.emb.tar"))
    before = {tar: tar.read_bytes() for tar in tars}
    tars[0].unlink()
    tars[1].write_bytes(b"broken")
    prep(embed(shards, tiny_teacher, blocks=[2]))
    assert len(tars) == 3 and before == {tar: tar.read_bytes() for tar in tars}


def test_half_precision_is_used_where_it_is_nearer_than_int8s_rounding(shards: Path, tiny_teacher: Path) -> None:
    """Of small models fp16 is, by far, and bf16, with three bits less, is not: refused."""
    out = folder_for(next(shards.glob("*.tar")))
    bf16 = embed(shards, tiny_teacher, blocks=[4], place=Place(accelerator="cpu", precision="bf16-mixed"))
    with pytest.raises(UserError, match=r"in bf16-mixed the embedding is 1\.\d times as far .*: set place\.precision="):
        prep(bf16)
    assert not list(out.glob("*.tar"))
    shutil.rmtree(out)
    prep(embed(shards, tiny_teacher, blocks=[4], place=Place(accelerator="cpu", precision="16-mixed")))
    images, sam = IndexedShards(expand(shards)), checkpoint.load(tiny_teacher)
    stored = StoredEmbeddings(images, None, None, {4: sam.image_encoder.taps[3]})
    errors = torch.zeros(2, 2)
    for i in range(len(images)):
        frame, said = live(sam, images[i], SIDE, [3])
        rows, cols = frame.valid_tokens()
        for n, (kept, exact) in enumerate(zip((stored.fetch(i, frame), *stored.features(i, frame)), said)):
            exact = exact[:, :rows, :cols]
            step = exact.abs().amax((1, 2), keepdim=True) / 127
            rounded = (exact / step).round() * step
            errors[n] += torch.stack([(x - exact).square().sum() for x in (kept[:, :rows, :cols], rounded)])
    assert (errors[:, 0] > 0).all() and (errors[:, 0].sqrt() < 0.5 * errors[:, 1].sqrt()).all()


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
