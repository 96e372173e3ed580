"""A real, tiny Lightning training run on shards, for test_resume.py: python tests/data/elastic_job.py '{"train": …}'.

Keys: train, val, out (folder), devices, workers, images, max_steps, save_at (list of steps), resume (checkpoint path),
streaming (epoch images). Every rank appends one JSON line per step to
`<out>/<split>-<rank>.jsonl`: step, keys, areas of the masks drawn.
"""

import json
import sys
from pathlib import Path

import lightning as L
import torch

from frisket.data.module import DataConfig, ShardData


class Toy(L.LightningModule):
    """One weight that every sample moves, so that a wrong order shows in the loss too."""

    def __init__(self, job):
        super().__init__()
        self.job = job
        self.layer = torch.nn.Linear(3, 1)
        self.save_at = job.get("save_at", [])

    def note(self, split, batch, **more):
        objects = batch.areas.long().tolist()
        line = {"step": self.global_step, "keys": batch.keys, "areas": objects, **more}
        with open(Path(self.job["out"]) / f"{split}-{self.global_rank}.jsonl", "a") as f:
            f.write(json.dumps(line) + "\n")

    def training_step(self, batch, _):
        loss = self.layer(batch.images.float().mean(dim=(2, 3)) / 255).square().mean() + batch.masks.float().mean()
        self.note("train", batch, loss=loss.item(), epoch=self.current_epoch)
        return loss

    def validation_step(self, batch, _):
        self.note("val", batch)

    def on_train_batch_end(self, *_):
        if self.global_step in self.save_at:
            self.trainer.save_checkpoint(Path(self.job["out"]) / f"step{self.global_step}.ckpt")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def main(job):
    """Run the job to its end."""
    Path(job["out"]).mkdir(parents=True, exist_ok=True)
    L.seed_everything(1, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=job.get("devices", 1),
        strategy="ddp" if job.get("devices", 1) > 1 else "auto",
        max_steps=job["max_steps"],
        max_epochs=-1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    config = DataConfig(
        train=job["train"],
        val=job.get("val"),
        global_batch=job.get("images", 2) * job.get("devices", 1),
        masks_per_image=2,
        image_size=64,
        shuffle_window=2,
        streaming=True if job.get("streaming") else None,
        epoch_images=job.get("streaming"),
    )
    data = ShardData(config, workers=job.get("workers", 0), seed=3)
    trainer.fit(Toy(job), data, ckpt_path=job.get("resume"), weights_only=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
