"""A toy run for tests: drawn shards, a 64 px Sam of two blocks, and the command line in a subprocess.

data = toy_shards(tmp_path / "data")
done = frisket("train", *toy_run(data, out=tmp_path, max_steps=6))
"""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import webdataset

from frisket.place import Place
from frisket.prep.synthetic import Config, records, units

ROOT = Path(__file__).parents[1]


def toy_shards(folder: Path, count: int = 12, split: str = "train", per_shard: int = 5) -> Path:
    """Write `count` drawn pictures of 96 px as WebDataset tars into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = Config(out=str(folder), count=count, image_size=96, split=split, samples_per_shard=per_shard)
    for unit in units(config):
        with webdataset.TarWriter(str(folder / f"{split}-{unit.name}.tar")) as writer:
            for record in records(config, unit, lambda *reason: None):
                writer.write({"__key__": record.key, "jpg": record.jpg, "json": record.json})
    return folder


def toy_run(data: Path, out: Path, val: Path | None = None, **settings: object) -> list[str]:
    """Return the key=value words of a tiny train_sam run; keywords are settings of trainer or place (max_steps=6)."""
    words = [
        "recipe=train_sam",
        f"out={out}",
        f"data.train={data}",
        "data.image_size=64",
        "place.workers=0",
        "data.masks_per_image=4",
        "model.encoder={depth: 2, width: 32, heads: 2}",
        "prompts.clicks=1",
        "prompts.refines=0",
        "log.wandb=off",
        "log.samples=true",
        "place.accelerator=cpu",
        "place.threads=1",
        "trainer.log_every=1",
    ]
    if val is not None:
        words.append(f"data.val={val}")
    places = {field.name for field in fields(Place)}
    return words + [f"{'place' if key in places else 'trainer'}.{key}={value}" for key, value in settings.items()]


def environment(**more: str) -> dict[str, str]:
    """The environment of a subprocess: this checkout, one thread, no W&B, no Slurm."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "WANDB_"))}
    return kept | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more


def command(*words: str) -> list[str]:
    """The argument list of `frisket words…`."""
    return [sys.executable, "-m", "frisket", *words]


def frisket(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `frisket words…` to its end and return what it printed."""
    return subprocess.run(command(*words), env=environment(**env), capture_output=True, text=True)
