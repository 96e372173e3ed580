"""From shards to batches, as a LightningDataModule.

Use     data = ShardData(DataConfig(train="data/train", val="data/val", image_size=1024)); trainer.fit(module, data)
        the Trainer needs use_distributed_sampler=False (the loaders divide the samples themselves)
Modes   indexed (local tars): exact, elastic resume. Streaming (`pipe:`, URLs, or streaming=true): shards drawn at
        random through webdataset, `epoch_images` per epoch; a resumed run draws a new stream.
Source  our choice.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch.utils.data import Dataset

from frisket.data import sa1b
from frisket.data.embeddings import Stamp, StoredEmbeddings, available
from frisket.data.sampler import SKIP_LIMIT, ElasticLoader, ElasticSampler, Failure, Loader, OnceSampler, Ticket
from frisket.data.shards import IndexedShards, expand, is_remote
from frisket.data.stream import Stream, StreamLoader
from frisket.errors import UserError, warn
from frisket.geometry import pad_square
from frisket.models.encoder import Tap
from frisket.sample import Batch, Sample

log = logging.getLogger(__name__)


@dataclass
class DataConfig:
    """Where samples come from and how they are drawn. Processes, seed and images per device are the caller's."""

    train: str | None = None
    """Shards to train on: a folder, glob, brace pattern, comma list, `pipe:` command or URL."""
    val: str | None = None
    """Shards to validate on, on this machine; null: none."""
    global_batch: int = field(default=1, metadata={"least": 1})
    """Images per optimizer step, over all devices and accumulated batches."""
    masks_per_image: int = field(default=16, metadata={"least": 0})
    """Masks drawn of each photograph; 0: all."""
    image_size: int = field(default=1024, metadata={"most": 16384})
    """Side of the model's input in pixels, a multiple of 16."""
    shuffle_window: int = field(default=4, metadata={"least": 1})
    """Shards shuffled together."""
    min_area: float = field(default=0.0, metadata={"least": 0})
    """Masks below this many original pixels are left out."""
    max_area_fraction: float = field(default=0.9, metadata={"least": 0})
    """Masks above this share of the photograph are left out (SAM, appendix A: 90 %)."""
    flip: float = field(default=0.0, metadata={"least": 0, "most": 1})
    """Probability that a training photograph is mirrored."""
    jitter: tuple[float, float] = field(default=(1.0, 1.0), metadata={"least": 0.05, "most": 8})
    """Large-scale jitter of training photographs: the least and the greatest scale (SAM, appendix A, for few data: 0.1
    and 2.0)."""
    embeddings: str | None = None
    """Stored teacher embeddings: a folder, or auto: the default folder where there is one. Training only; they belong
    to photographs as they are, so with flip or jitter auto means none."""
    on_bad_sample: Literal["stop", "skip"] = "stop"
    """skip: log it and take the next sample."""
    streaming: bool | None = None
    """Draw shards at random instead of reading by index; null: only what is remote."""
    epoch_images: int | None = field(default=None, metadata={"least": 1})
    """Samples per epoch when streaming."""
    stream_buffer: int = field(default=256, metadata={"least": 1})
    """Samples held for shuffling when streaming, per worker."""


# ---------------------------------------------------------------- batch


def collate(samples: list[Sample]) -> Batch:
    """Samples (at least one) -> Batch: images padded with zeros right and bottom, objects flat. N may be 0."""
    side = samples[0].frame.side
    counts = torch.tensor([len(sample.masks) for sample in samples])
    stacked = {}
    for name in ("embedding", "heat", "ways"):
        given = [value for sample in samples if (value := getattr(sample, name)) is not None]
        stacked[name] = torch.stack(given) if len(given) == len(samples) else None
    return Batch(
        keys=[sample.key for sample in samples],
        images=torch.stack([pad_square(sample.image, side) for sample in samples]),
        masks=torch.cat([sample.masks for sample in samples]),
        boxes=torch.cat([sample.boxes for sample in samples]),
        areas=torch.cat([sample.areas for sample in samples]),
        image_index=torch.repeat_interleave(torch.arange(len(samples)), counts),
        frames=[sample.frame for sample in samples],
        sizes=torch.tensor([sample.frame.size for sample in samples]),
        features=tuple(map(torch.stack, zip(*(sample.features for sample in samples), strict=True))),
        **stacked,
    )


def collate_or_fail(samples: list[Sample | Failure]) -> Batch | Failure:
    """`collate`, or the first Failure among the samples."""
    failures = [sample for sample in samples if isinstance(sample, Failure)]
    return failures[0] if failures else collate([sample for sample in samples if isinstance(sample, Sample)])


# ---------------------------------------------------------------- samples


class Decoded(Dataset):
    """Tickets to Samples. What is drawn from a sample depends on (seed, epoch, index) alone, not on the worker.

    skip: a bad sample is replaced by the next good one, without its masks unless `refill` (validation must not count
    that one twice).
    """

    def __init__(
        self,
        shards: IndexedShards,
        decode: Callable[..., Sample],
        *,
        seed: int,
        skip: bool = False,
        refill: bool = True,
        embeddings: StoredEmbeddings | None = None,
    ) -> None:
        self.shards, self.decode, self.seed, self.embeddings = shards, decode, seed, embeddings
        self.skip, self.refill = skip, refill

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, ticket: Ticket) -> Sample | Failure:
        index, tries = ticket.index, 0
        while True:
            try:
                sample = self._read(ticket.epoch, index)
                break
            except UserError as error:
                tries += 1
                if not self.skip or tries >= min(SKIP_LIMIT, len(self)):
                    return Failure(str(error))
                log.warning("skipped: %s", error)
                index = (index + 1) % len(self)
        if ticket.repeat or (tries and not self.refill):
            sample.masks, sample.boxes, sample.areas = sample.masks[:0], sample.boxes[:0], sample.areas[:0]
        return sample

    def _read(self, epoch: int, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, epoch, index])
        sample = self.decode(self.shards[index], rng=rng)
        if self.embeddings is not None:
            sample.embedding = self.embeddings.fetch(index, sample.frame)
            sample.features = self.embeddings.features(index, sample.frame)
        return sample


# ---------------------------------------------------------------- module


class ShardData(L.LightningDataModule):
    """Training and validation loaders of one DataConfig.

    per_device: images a device takes at once (None: its whole share of the global batch); the global batch over the
    ranks' batches is how many are accumulated. workers: processes that read, per device. Until the loaders are made
    three things may be set: stamp, the teacher that stored embeddings must come from (None: any one), taps, {block:
    Tap} of the features that must be stored with them, and targets, frisket.proposals.targets, for what trains an
    AutoPPN. Rank and world come from the attached trainer. Raises
    UserError for missing shards, settings that contradict each other, and, while iterating, for a sample that cannot
    be used (naming shard and key).
    """

    def __init__(
        self,
        config: DataConfig,
        stamp: Stamp | None = None,
        *,
        per_device: int | None = None,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.workers, self.seed = config, workers, seed
        self.per_device, self.stamp = per_device, stamp
        self.taps: Mapping[int, Tap] = {}
        self.targets: Callable[..., Any] | None = None

    @functools.cached_property
    def train_tars(self) -> list[Path | str]:
        """The training shards. Raises UserError when there are none."""
        if not self.config.train:
            raise UserError("data.train is not set; name the folder or pattern of the training shards")
        return expand(self.config.train)

    @property
    def streaming(self) -> bool:
        """Whether training streams instead of reading by index."""
        remote = any(is_remote(tar) for tar in self.train_tars)
        if self.config.streaming is False and remote:
            raise UserError(f"data.train={self.config.train} is remote and can only be streamed; drop streaming=false")
        return bool(self.config.streaming) or remote

    @functools.cached_property
    def train_shards(self) -> IndexedShards:
        """The training shards by index."""
        return IndexedShards(self.train_tars)

    @property
    def train_images(self) -> int:
        """Samples in an epoch of the whole job; 0 for a stream that does not say."""
        return int(self.config.epoch_images or 0) if self.streaming else len(self.train_shards)

    @functools.cached_property
    def has_embeddings(self) -> bool:
        """Whether training batches will carry stored teacher embeddings. Raises UserError for a folder of them beside
        flip or jitter."""
        c = self.config
        changed = f"data.flip={c.flip} and data.jitter={list(c.jitter)}" if (c.flip, *c.jitter) != (0, 1, 1) else ""
        if changed and c.embeddings not in (None, "auto"):
            raise UserError(
                f"data.embeddings={c.embeddings} belong to photographs as they are, and {changed} show others: set "
                "data.embeddings=null, or leave the photographs alone"
            )
        if changed and c.embeddings and not self.streaming and available(self.train_tars):
            warn(f"stored embeddings are not used: {changed} show other photographs than theirs")
        if c.embeddings == "auto":
            return not changed and not self.streaming and available(self.train_tars)
        return self.config.embeddings is not None

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _batch(self, world: int) -> int:
        return self.per_device or max(1, self.config.global_batch // world)

    def decode(self, train: bool = True) -> Callable[..., Sample]:
        """What makes a Sample of a raw record; training draws views of it."""
        c = self.config
        if c.jitter[0] > c.jitter[1]:
            raise UserError(f"data.jitter={list(c.jitter)} must be the least and then the greatest scale")
        views = {"flip": c.flip, "jitter": c.jitter} if train else {}
        return functools.partial(
            sa1b.decode,
            image_size=c.image_size,
            masks_per_image=c.masks_per_image,
            min_area=c.min_area,
            max_area_fraction=c.max_area_fraction,
            targets=self.targets,
            **views,
        )

    def train_dataloader(self) -> ElasticLoader | StreamLoader:
        """Shuffled, endless over epochs, stateful."""
        c, (rank, world) = self.config, self._place()
        skip, pin = c.on_bad_sample == "skip", torch.cuda.is_available()
        if self.streaming:
            return self._stream(rank, world, skip, pin)
        stored = None
        if self.has_embeddings:
            folder = None if c.embeddings == "auto" else Path(str(c.embeddings))
            stored = StoredEmbeddings(self.train_shards, folder, self.stamp, self.taps)
        dataset = Decoded(self.train_shards, self.decode(), seed=self.seed, skip=skip, embeddings=stored)
        sampler = ElasticSampler(
            self.train_shards.counts.tolist(),
            batch_size=self._batch(world),
            global_batch=c.global_batch,
            rank=rank,
            world=world,
            seed=self.seed,
            window=c.shuffle_window,
            digest=self.train_shards.digest,
        )
        return ElasticLoader(dataset, sampler, collate=collate_or_fail, workers=self.workers, pin=pin)

    def _stream(self, rank: int, world: int, skip: bool, pin: bool) -> StreamLoader:
        c, size = self.config, self._batch(world)
        if c.embeddings not in (None, "auto"):
            raise UserError("data.embeddings needs shards read by index; copy the shards here or set it to null")
        if not c.epoch_images or c.epoch_images < c.global_batch:
            raise UserError(
                f"data.epoch_images={c.epoch_images} must be set for streaming, to data.global_batch={c.global_batch} "
                "or more"
            )
        stream = Stream(
            [str(tar) for tar in self.train_tars],
            self.decode(),
            collate=collate_or_fail,
            batch_size=size,
            rank=rank,
            seed=self.seed,
            buffer=c.stream_buffer,
            skip=skip,
        )
        batches = c.epoch_images // c.global_batch * (c.global_batch // (size * world))
        return StreamLoader(stream, batches, workers=self.workers, pin=pin)

    def val_dataloader(self) -> Loader | Sequence[Any]:
        """Every validation sample once over all ranks (OnceSampler), the same masks each time; [] without data.val."""
        c, (rank, world) = self.config, self._place()
        if not c.val:
            return []
        tars = expand(c.val)
        if any(is_remote(tar) for tar in tars):
            raise UserError(f"data.val={c.val} is remote, but validation reads by index; copy these shards here")
        shards = IndexedShards(tars)
        if not len(shards):
            raise UserError(f"data.val={c.val} holds no sample; prepare validation shards or set data.val=null")
        dataset = Decoded(
            shards, self.decode(train=False), seed=self.seed, skip=c.on_bad_sample == "skip", refill=False
        )
        sampler = OnceSampler(len(shards), batch_size=self._batch(world), rank=rank, world=world)
        return Loader(dataset, sampler, collate=collate_or_fail, workers=self.workers, pin=torch.cuda.is_available())
