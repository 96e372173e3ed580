"""Source embed: a teacher's image embeddings, stored once beside prepared shards so that training need not run it.

    frisket prep configs/prep_embed.yaml inputs=data/sa1b/train teacher=sam_vit_h blocks=[11,21,32] dtype=int8

inputs  prepared shards. out defaults to `<their folder>-embeddings`, where training looks (data.embeddings=auto).
Unit    one shard -> `<shard>.emb.tar` and one `<shard>.block<n>.emb.tar` of each of `blocks`, the same keys in the same
        order; format: frisket.data.embeddings. Units run one after another on one device; for more devices, run an
        array (slurm/prep_embed.sh, task=k/n).
Half    with place.precision=bf16-mixed or 16-mixed each shard's first batch is computed in fp32, too, and the shard is
        refused where half precision is further from that than int8's rounding (root mean square, over what is stored).
        Of small models on a CPU bf16 is 1.1 to 1.9 times as far, fp16 0.1 to 0.25 times.
Refused a folder that already holds another teacher's embeddings, or another input side's, or other blocks.
Source  storing embeddings: MobileSAM (arXiv 2306.14289), EdgeSAM (arXiv 2312.06660); the format is our choice.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from frisket import checkpoint
from frisket.budget import MFU, PEAK_FLOPS, SA1B, gpu_hours
from frisket.data.embeddings import NECK, Stamp, folder_for, numbers, pack, path_for, stamp_of
from frisket.data.index import build_index
from frisket.data.sa1b import decode
from frisket.data.shards import IndexedShards, TarOut, expand
from frisket.errors import UserError
from frisket.geometry import Frame, pad_square
from frisket.models.encoder import Tap
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
    blocks: list[int] = field(default_factory=list)
    """Blocks of the teacher, counted from 1, whose features are stored, too: those that distill_lightening compares
    ([11, 21, 32] of ViT-H for a student of six blocks)."""
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
    """One unit per image shard. Loads the teacher and says what storing costs. Raises UserError when it is missing, has
    no such blocks, or out holds another's work."""
    if config.image_size % 16:
        raise UserError(f"image_size={config.image_size} must be a multiple of 16: correct the config")
    sam = checkpoint.load(config.teacher, device=device(config.place))
    stamp, depth = stamp_for(sam, config.image_size), len(sam.image_encoder.taps)
    if config.blocks != sorted(set(config.blocks)) or not all(1 <= block <= depth for block in config.blocks):
        raise UserError(f"blocks={config.blocks} must rise within 1..{depth}, the blocks of teacher={config.teacher}")
    print(cost(config, sam, sum(len(build_index(shard)) for shard in shards(config))), flush=True)
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


def cost(config: Config, sam: Sam, images: int) -> str:
    """A line: the disk that storing takes and the work that it spares, computed."""
    taps = [sam.image_encoder.taps[block - 1] for block in config.blocks]
    kept = numbers(Frame.fit((1500, 2250), config.image_size), taps) * (2 if config.dtype == "fp16" else 1) / 1e12
    flops, sizes = 2.0 * sam.image_encoder.macs(config.image_size), (images, SA1B["images"] / 100, SA1B["images"])
    what = f"the embedding and blocks {config.blocks}" if taps else "the embedding"
    disk = "{:.3g} TB for these {:,} images ({:.3g} for 1 % of SA-1B, {:.3g} for all)".format(
        sizes[0] * kept, images, *(kept * size for size in sizes[1:])
    )
    hours = "{:.3g} GPU-hours an epoch ({:.3g}, {:.3g})".format(*(gpu_hours(flops * size) for size in sizes))
    return (
        f"computed, for photographs of 3:2: {what} as {config.dtype}: {disk}; spared: a teacher of "
        f"{flops / 1e9:,.0f} GFLOP an image, {hours} of an A100 at {MFU:.0%} of {PEAK_FLOPS['A100'] / 1e12:.0f} TFLOP/s"
    )


def write(config: Config, unit: Unit, reject: Reject) -> dict[str, Any]:
    """Embed one shard; returns {"images", "masks", "shards"}. Nothing is rejected: every image needs its embedding.

    Raises UserError for a damaged record or an embedding that cannot be stored, naming shard and sample.
    """
    shard, sam, stamp = unit.payload
    count = 0
    layers = {0: NECK} | {block: sam.image_encoder.taps[block - 1] for block in config.blocks}
    with contextlib.ExitStack() as stack:
        outs = [stack.enter_context(TarOut(path_for(shard, Path(config.out), block))) for block in layers]
        for samples in _batches(config, shard):
            made = _embed(config, sam, samples)
            if not count and config.place.precision != "32-true":
                exact = dataclasses.replace(config, place=dataclasses.replace(config.place, precision="32-true"))
                _compare(config, layers, samples, made, _embed(exact, sam, samples), shard)
            for row, sample in enumerate(samples):
                for out, (block, tap), values in zip(outs, layers.items(), made, strict=True):
                    try:
                        data = pack(
                            values[row], sample.frame, stamp=stamp, dtype=config.dtype, block=block, stride=tap.stride
                        )
                    except ValueError as error:
                        raise UserError(f"shard {shard}, sample {sample.key}: {error}") from error
                    out.write({"__key__": sample.key, "emb": data})
                count += 1
    records = [out.record for out in outs if out.record is not None]
    return {"images": count, "masks": 0, "shards": [dataclasses.asdict(record) for record in records]}


def _compare(
    config: Config,
    layers: dict[int, Tap],
    samples: list[Sample],
    half: list[torch.Tensor],
    exact: list[torch.Tensor],
    shard: Path,
) -> None:
    """Raise UserError where half precision is further from fp32 than int8's rounding, over the stored tokens."""
    for (block, tap), rough, fine in zip(layers.items(), half, exact, strict=True):
        errors = torch.zeros(2)
        for sample, a, b in zip(samples, rough, fine, strict=True):
            rows, cols = sample.frame.valid_tokens(tap.stride)
            a, b = a[:, :rows, :cols], b[:, :rows, :cols]
            step = b.abs().amax((1, 2), keepdim=True).clamp(min=1e-12) / 127
            errors += torch.stack([(x - b).square().sum() for x in (a, (b / step).round() * step)])
        mine, int8 = errors.sqrt().tolist()
        if not mine < int8:
            what = f"block {block}" if block else "the embedding"
            raise UserError(
                f"shard {shard}: in {config.place.precision} {what} is {mine / int8:.2g} times as far from fp32 as "
                "int8's rounding: set place.precision=16-mixed (three bits more), or 32-true"
            )


def _batches(config: Config, shard: Path) -> Iterator[list[Sample]]:
    """The shard's samples in order, decoded as training decodes them (masks are not needed; one costs little)."""
    dataset = IndexedShards([shard])
    rng = np.random.default_rng(0)
    for start in range(0, len(dataset), config.batch):
        raws = [dataset[i] for i in range(start, min(start + config.batch, len(dataset)))]
        yield [decode(raw, image_size=config.image_size, masks_per_image=1, rng=rng) for raw in raws]


@torch.no_grad()
def _embed(config: Config, sam: Sam, samples: list[Sample]) -> list[torch.Tensor]:
    """The embedding (B, 256, S/16, S/16) and the features (B, width, S/stride, S/stride) of `blocks`, float32, on the
    CPU."""
    images = torch.stack([pad_square(sample.image, config.image_size) for sample in samples])
    sizes = torch.tensor([sample.frame.size for sample in samples])
    with autocast(config.place, sam.device):
        pixels = sam.preprocess(images.to(sam.device), sizes.to(sam.device))
        neck, features = sam.image_encoder.forward_features(pixels, [block - 1 for block in config.blocks])
    return [x.float().cpu() for x in (neck, *(feature.movedim(-1, 1) for feature in features))]
