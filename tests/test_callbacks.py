"""What a person sees: rates, the progress line, pictures, the record of samples."""

import io
import json

import lightning as L
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from frisket.callbacks import Gallery, Progress, Samples, Throughput, clock, panels
from frisket.geometry import Frame
from frisket.sample import Batch


def a_batch(side: int = 64) -> Batch:
    """Two photographs (64 x 64 and 32 x 64 valid) with one and two square masks."""
    masks = torch.zeros(3, side // 4, side // 4, dtype=torch.bool)
    masks[0, 2:6, 2:6] = True
    masks[1, 0:4, 0:4] = True
    masks[2, 4:8, 8:16] = True
    frames = [Frame.fit((64, 64), side), Frame.fit((32, 64), side)]
    return Batch(
        keys=["a", "b"],
        images=torch.full((2, 3, side, side), 128, dtype=torch.uint8),
        masks=masks,
        boxes=torch.zeros(3, 4),
        areas=torch.ones(3),
        image_index=torch.tensor([0, 1, 1]),
        frames=frames,
        sizes=torch.tensor([frame.size for frame in frames]),
    )


class Toy(L.LightningModule):
    """One weight; its gallery moves the mask by a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[float] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.seen.append(torch.rand(1).item())
        loss = (self.weight - 1).square().sum()
        self.log("train/loss", loss, on_step=True, batch_size=1)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        self.log("val/box/miou", 0.5, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def gallery_columns(self, batch: Batch) -> dict[str, torch.Tensor]:
        assert not self.training and not torch.is_grad_enabled()
        torch.rand(3)  # what a recipe draws here must not reach training
        return {"student": batch.masks.roll(1, dims=-1)}


class Data(L.LightningDataModule):
    """Four batches to train on, one to validate."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(range(4), batch_size=None, collate_fn=lambda _: a_batch())

    def val_dataloader(self) -> DataLoader:
        return DataLoader(range(1), batch_size=None, collate_fn=lambda _: a_batch())


def fit(tmp_path, *callbacks: L.Callback, steps: int = 4, accumulate: int = 1) -> Toy:
    """Train the toy for `steps` steps."""
    torch.manual_seed(0)
    module = Toy()
    L.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, logger=False, enable_checkpointing=False, max_epochs=-1,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, callbacks=list(callbacks),
        accumulate_grad_batches=accumulate, default_root_dir=tmp_path, use_distributed_sampler=False,
    ).fit(module, datamodule=Data())  # fmt: skip
    return module


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_plain_lines_where_there_is_no_terminal(tmp_path):
    stream, speed = io.StringIO(), Throughput(every=2)
    fit(tmp_path, speed, Progress(speed, every=2, stream=stream), accumulate=2)
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    assert [line.split("  ")[0] for line in lines] == ["step 1/4", "step 2/4", "val", "step 4/4", "val"]
    for part in ("loss ", " img/s", "wait ", "mem ", "eta 0:00:0"):
        assert part in lines[1]
    assert lines[-1].endswith("box/miou 0.5")
    assert "loss 1" in lines[0]  # (0 - 1)^2, although Lightning hands back half of it per accumulated batch


def test_a_terminal_gets_one_line_redrawn(tmp_path):
    stream, speed = Terminal(), Throughput(every=1)
    fit(tmp_path, speed, Progress(speed, every=1, stream=stream), steps=3)
    drawn = stream.getvalue()
    assert drawn.count("\r") == 3 and drawn.count("\n") == 1


def test_throughput_counts_images_and_leaves_validation_out(tmp_path):
    speed = Throughput(every=1)
    fit(tmp_path, speed, Progress(speed, every=100, stream=io.StringIO()))
    assert speed.values["images_per_second"] > 0
    assert 0 <= speed.values["data_wait"] <= 1
    assert 0.01 < speed.values["memory_gib"] < 64
    assert "mfu" not in speed.values  # no peak is known for a CPU


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00:00"), (59.6, "0:01:00"), (3 * 3600 + 62, "3:01:02")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_gallery_draws_on_its_steps_and_disturbs_nothing(tmp_path):
    with_gallery = fit(tmp_path, Gallery(tmp_path, every=2, images=8))
    assert sorted(p.name for p in (tmp_path / "gallery").iterdir()) == ["step-000002.png", "step-000004.png"]
    assert fit(tmp_path).seen == with_gallery.seen  # the same random numbers with and without
    sheet = Image.open(tmp_path / "gallery" / "step-000002.png")
    assert sheet.width == 3 * 224 + 4 * 8  # image, student, truth
    assert 224 + 112 < sheet.height < 2 * 224 + 80  # the second photograph is half as high


def test_panels_pair_masks_and_photographs():
    batch = a_batch()
    image, student, truth = panels(batch, {"student": batch.masks.roll(1, -1)}, 0)
    height, width = batch.sizes[0].tolist()
    assert tuple(image.image.shape) == (3, height, width) and image.masks is None
    mine = batch.masks[batch.image_index == 0][:, : height // 4, : width // 4]
    assert torch.equal(truth.masks, mine)
    assert not torch.equal(student.masks, mine) and "IoU" in student.title


def test_samples_are_written_per_batch_under_their_step(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"step": 9, "keys": ["old"]}\n{"step": 1, "ke')
    fit(tmp_path, Samples(tmp_path), steps=2, accumulate=2)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert rows == [{"step": step, "keys": ["a", "b"]} for step in (1, 1, 2, 2)]
