"""Source embed: a teacher's image embeddings, stored once beside prepared shards so that training need not run it.

    frisket prep configs/prep_embed.yaml inputs=data/sa1b/train teacher=sam_vit_h

inputs  prepared shards. out defaults to `<their folder>-embeddings`, where training looks (data.embeddings=auto).
Unit    one shard -> `<shard>.emb.tar`, the same keys in the same order; format: frisket.data.embeddings.
        Units run one after another on one device; for more devices, run an array (task=k/n).
Refused a folder that already holds another teacher's embeddings, or another input side's.
Source  storing embeddings: MobileSAM (arXiv 2306.14289), EdgeSAM (arXiv 2312.06660); the format is our choice.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from frisket import checkpoint
from frisket.data.embeddings import Stamp, folder_for, pack, path_for, stamp_of
from frisket.data.sa1b import decode
from frisket.data.shards import IndexedShards, TarOut, expand
from frisket.errors import UserError
from frisket.geometry import pad_square
from frisket.models.sam import Sam
from frisket.place import autocast, device
from frisket.prep.records import PrepConfig, Reject, Unit, unit_name
from frisket.sample import Sample


@dataclass(kw_only=True)
class Config(PrepConfig):
    """A teacher and the shards it looks at. place.precision is that of the teacher's computation."""

    renamed: ClassVar[dict[str, str]] = {
        "device": "place.accelerator",
        "precision": "place.precision (32-true or bf16-mixed)",
    }

    source: str = "embed"
    inputs: str = ""
    """Prepared shards: a folder, a glob or a brace pattern."""
    teacher: str = "sam_vit_h"
    """A zoo name or weights, as frisket.checkpoint.load takes it."""
    dtype: Literal["fp16", "int8"] = "fp16"
    """As stored."""
    batch: int = field(default=4, metadata={"least": 1})
    """Images per forward pass."""
    image_size: int = field(default=1024, metadata={"least": 16, "most": 16384})
    """The teacher's input side."""


def stamp_for(sam: Sam, image_size: int) -> Stamp:
    """What embeddings of this teacher at input side `image_size` carry, and what training must ask for."""
    return Stamp(checkpoint.weights_digest(sam.image_encoder), image_size)


def shards(config: Config) -> list[Path]:
    """The image shards. Raises UserError when one is not a local file."""
    named = expand(config.inputs)
    for shard in named:
        if not isinstance(shard, Path):
            raise UserError(f"inputs: '{shard}' is not a file; embeddings are stored beside shards on disk")
    return [Path(shard) for shard in named]


def default_out(config: Config) -> str:
    """The folder training looks in. Raises UserError when the shards lie in several folders."""
    folders = sorted({str(folder_for(shard)) for shard in shards(config)})
    if len(folders) > 1:
        raise UserError(f"inputs lie in {len(folders)} folders: embed one folder at a time, or give out=")
    return folders[0]


def units(config: Config) -> list[Unit]:
    """One unit per image shard. Loads the teacher. Raises UserError when it is missing, or out holds another's work."""
    if config.image_size % 16:
        raise UserError(f"image_size={config.image_size} must be a multiple of 16: correct the config")
    sam = checkpoint.load(config.teacher, device=device(config.place))
    stamp = stamp_for(sam, config.image_size)
    made = []
    for shard in shards(config):
        there = path_for(shard, Path(config.out))
        if there.is_file():
            first = IndexedShards([there], exts=("emb",))[0]
            before = stamp_of(first["emb"], where=str(there))
            if before != stamp:
                raise UserError(f"{there} is of {before}, now it is {stamp}: choose another out= or delete that folder")
        marks = [shard.stat().st_size, *dataclasses.astuple(stamp)]
        made.append(Unit(unit_name(shard.stem), str(shard), marks, (shard, sam, stamp), output=shard.stem))
    return made


def write(config: Config, unit: Unit, reject: Reject) -> dict[str, Any]:
    """Embed one shard; returns {"images", "masks", "shards"}. Nothing is rejected: every image needs its embedding.

    Raises UserError for a damaged record or an embedding that cannot be stored, naming shard and sample.
    """
    shard, sam, stamp = unit.payload
    count = 0
    with TarOut(path_for(shard, Path(config.out))) as out:
        for samples in _batches(config, shard):
            for sample, embedding in zip(samples, _embed(config, sam, samples), strict=True):
                try:
                    data = pack(embedding, sample.frame, stamp=stamp, dtype=config.dtype)
                except ValueError as error:
                    raise UserError(f"shard {shard}, sample {sample.key}: {error}") from error
                out.write({"__key__": sample.key, "emb": data})
                count += 1
    assert out.record is not None
    return {"images": count, "masks": 0, "shards": [dataclasses.asdict(out.record)]}


def _batches(config: Config, shard: Path) -> Iterator[list[Sample]]:
    """The shard's samples in order, decoded as training decodes them (masks are not needed; one costs little)."""
    dataset = IndexedShards([shard])
    rng = np.random.default_rng(0)
    for start in range(0, len(dataset), config.batch):
        raws = [dataset[i] for i in range(start, min(start + config.batch, len(dataset)))]
        yield [decode(raw, image_size=config.image_size, masks_per_image=1, rng=rng) for raw in raws]


@torch.no_grad()
def _embed(config: Config, sam: Sam, samples: list[Sample]) -> torch.Tensor:
    """(B, 256, S/16, S/16) float32 on the CPU."""
    images = torch.stack([pad_square(sample.image, config.image_size) for sample in samples])
    sizes = torch.tensor([sample.frame.size for sample in samples])
    with autocast(config.place, sam.device):
        return sam.encode(images.to(sam.device), sizes.to(sam.device)).float().cpu()
