"""What was written before the redesign (at e8050a0) still loads, still computes the same, and is still continued.

tests/assets/e8050a0: shards of three drawn pictures by `frisket prep`, and model.pt and last.ckpt of two steps of
train_sam with a small Lightening encoder at 64 px; every tensor was replaced by a short pattern, so that they compress.
"""

import gzip
import shutil
from pathlib import Path

import pytest
import torch
from toyrun import frisket, toy_run

from frisket import checkpoint
from frisket.data.module import DataConfig, ShardData
from frisket.sample import Prompts

ASSETS = Path(__file__).parent / "assets" / "e8050a0"
CHANGES = {"image_size": 64, "depth": 1, "width": 32, "heads": 2, "segment": 8, "dilation": 2, "backend": "sdpa"}
DIGEST = "fadffe3611cb336a5457484375119782b942f1ea515fc5ba597bf50859487db3"  # by the code of then


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as it was left."""
    folder = tmp_path_factory.mktemp("before") / "train_sam"
    for name in ("model.pt", "checkpoints/last.ckpt"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.decompress((ASSETS / f"{path.name}.gz").read_bytes()))
    return folder


@pytest.mark.parametrize("name", ["", "model.pt", "checkpoints/last.ckpt"])
def test_old_weights_load_and_compute_the_same(run: Path, name: str) -> None:
    sam = checkpoint.load(run / name)
    assert (sam.name, sam.changes, checkpoint.weights_digest(sam)) == ("lightening", CHANGES, DIGEST)
    images = (torch.arange(3 * 64 * 64) % 251).to(torch.uint8).reshape(1, 3, 64, 64)
    with torch.no_grad():
        embedding = sam.encode(images, torch.tensor([[64, 64]]))
        box = Prompts(boxes=torch.tensor([[4.0, 8.0, 40.0, 50.0]]))
        prediction = sam.decode(embedding, torch.zeros(1, dtype=torch.long), box, multimask=True)
    assert embedding.abs().mean().item() == pytest.approx(0.022530948974633702, rel=1e-4)
    assert prediction.logits.abs().mean().item() == pytest.approx(0.08331473240139076, rel=1e-4)
    assert prediction.iou[0].tolist() == pytest.approx([-0.0031457822, 0.117677085, 0.009798511], abs=1e-5)


def test_old_shards_read() -> None:
    config = DataConfig(train=str(ASSETS / "shards"), image_size=64, global_batch=3, masks_per_image=2)
    batch = next(iter(ShardData(config).train_dataloader()))
    assert batch.num_images == 3 and batch.images.shape == (3, 3, 64, 64)
    assert len(set(batch.keys)) == 3 and batch.masks.flatten(1).any(1).all()


@pytest.mark.slow
def test_an_old_run_goes_on(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "train_sam")
    (tmp_path / "train_sam" / "model.pt").unlink()
    encoder = ", ".join(f"{key}: {value}" for key, value in CHANGES.items() if key != "image_size")
    words = [*toy_run(ASSETS / "shards", tmp_path, max_steps=4), "model.name=lightening", "data.masks_per_image=2"]
    done = frisket("train", *words, f"model.encoder={{{encoder}}}")
    assert done.returncode == 0, done.stderr
    assert "continuing from" in done.stdout and "step 1/4" not in done.stdout and "finished at step 4" in done.stdout
