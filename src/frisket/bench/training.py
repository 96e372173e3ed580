"""Row: an optimizer step under our Trainer against a bare PyTorch loop that does the same maths, in one process.

    frisket bench rows=[train_step]

Both sides train one small model from one start on the same batches in memory, with the same loss, clipping, AdamW and
schedule. Ours is `frisket train`'s Trainer with its callbacks and metrics.csv; its loader, asked for the next batch,
takes a step of the bare loop first, so that the two go by turns inside one fit and starting up counts for neither. A
guard says that their weights are equal bit for bit. The model is small: what a step costs beside its maths shows most.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import numpy as np
import torch

from frisket.bench.harness import Case, Row, Setting, at_most
from frisket.data import sa1b
from frisket.data.module import collate
from frisket.engine import signals
from frisket.engine.batch import Division
from frisket.engine.fit import _callbacks, _rhythm
from frisket.engine.preempt import Preempt
from frisket.engine.rundir import CsvLog, RunDir
from frisket.engine.save import KeepLast
from frisket.engine.strategy import place, quiet
from frisket.prep.synthetic import Config as Scenes
from frisket.prep.synthetic import records, units
from frisket.recipes.recipe_config import ModelSpec
from frisket.recipes.train_sam import Config, Module
from frisket.sample import Batch

WARM = 5
"""Steps of each side before the first sample."""


class Bare:
    """The loop that a person would write."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)
        self.module = Loop(config)
        made = self.module.configure_optimizers()
        self.optimizer, self.schedule, self.clip = (
            made["optimizer"],
            made["lr_scheduler"]["scheduler"],
            config.trainer.clip,
        )
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]  # the order of its norm

    def step(self, batch: Batch) -> None:
        """One."""
        self.module.on_train_batch_start(batch, 0)
        loss = self.module.training_step(batch, 0)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.clip)
        self.optimizer.step()
        self.schedule.step()
        self.module.steps += 1


class Loop(Module):
    """The recipe without a Trainer."""

    steps = 0

    @property
    def global_step(self) -> int:
        return self.steps

    def report(self, *_: object, **__: object) -> None:
        """A bare loop logs nothing."""


class Turns:
    """Batches for a Trainer; in between steps of the bare loop. Collects the seconds of each side's steps."""

    def __init__(self, batches: list[Batch], bare: Bare, steps: int, one_thread: bool) -> None:
        self.batches, self.bare, self.steps = batches, bare, steps
        self.tick = time.thread_time if one_thread else time.perf_counter
        self.seconds: dict[str, list[float]] = {"baseline": [], "ours": []}

    def __len__(self) -> int:
        return self.steps + 1

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self.steps + 1):
            batch = self.batches[number % len(self.batches)]
            if number < self.steps:
                start = self.now()
                self.bare.step(batch)
                self.seconds["baseline"].append(self.now() - start)
            start = self.now()
            yield batch
            self.seconds["ours"].append(self.now() - start)

    def now(self) -> float:
        """The clock, with a GPU's work done."""
        if self.batches[0].images.is_cuda:
            torch.cuda.synchronize()
        return self.tick()


def a_run(setting: Setting, steps: int) -> tuple[dict[str, list[float]], float]:
    """{side: seconds of each step} of `steps` steps each, and the largest difference of their weights afterwards."""
    side = 64 if setting.quick else 128
    config = Config(
        recipe="train_sam", model=ModelSpec("sam_vit_t", {"depth": 2 if setting.quick else 4, "global_blocks": [1]})
    )
    config.seed, config.data.image_size, config.data.global_batch = setting.seed, side, 2 if setting.quick else 8
    config.prompts.clicks = config.prompts.refines = 0
    config.trainer.max_steps, config.trainer.checkpoint_every = steps, 10**9
    config.place.accelerator = "cuda" if setting.device.type == "cuda" else "cpu"
    config.place.devices, config.log.gallery_every = "1", 0
    quiet()
    with tempfile.TemporaryDirectory() as folder, signals.held():
        bare, batches = Bare(config), photographs(config, 4)
        bare.module.to(setting.device)
        turns = Turns([batch.to(setting.device) for batch in batches], bare, steps, torch.get_num_threads() == 1)
        torch.manual_seed(config.seed)
        recipe, run = Module(config), RunDir(Path(folder) / "run")
        run.checkpoints.mkdir(parents=True)
        preempt = Preempt(run)
        trainer = L.Trainer(
            **place(config.place), **_rhythm(config, Division(config.data.global_batch, 1, 1)),
            logger=[CsvLog(run.metrics)], default_root_dir=folder,
            callbacks=[c for c in _callbacks(config, run, None, KeepLast(run, 10**9), preempt) if keeps(c)],
        )  # fmt: skip
        trainer.fit(recipe, train_dataloaders=turns)
    mine, theirs = recipe.sam.state_dict(), bare.module.sam.state_dict()
    return turns.seconds, max(float((mine[key].cpu() - theirs[key].cpu()).abs().max()) for key in mine)


def keeps(callback: L.Callback) -> bool:
    """All but the last step's checkpoint, which would count for one step what is written once in 500."""
    return not isinstance(callback, KeepLast)


def photographs(config: Config, count: int) -> list[Batch]:
    """Batches of drawn scenes."""
    data, wanted = config.data, count * config.data.global_batch
    scenes = Scenes(out="", count=wanted, image_size=data.image_size, samples_per_shard=wanted)
    drawn = [record for unit in units(scenes) for record in records(scenes, unit, lambda *_: None)]
    samples = [
        sa1b.decode(
            {"__key__": record.key, "jpg": record.jpg, "json": record.json}, image_size=data.image_size,
            masks_per_image=data.masks_per_image, rng=np.random.default_rng(number),
        )
        for number, record in enumerate(drawn)
    ]  # fmt: skip
    size = data.global_batch
    return [collate(samples[first : first + size]) for first in range(0, len(samples), size)]


def train_step(setting: Setting) -> Case:
    """Ours may cost a twentieth more at most (issue 13): a ratio of 0.95."""
    guard = at_most("weights differ by", lambda: a_run(setting, WARM)[1], 0.0)

    def sampled(repeats: int) -> dict[str, list[float]]:
        seconds, _ = a_run(setting, WARM + repeats + 1)  # the last one is not asked for another batch
        return {side: values[WARM:][:repeats] for side, values in seconds.items()}

    return Case(lambda: None, lambda: None, [guard], note="train_sam, ViT-T, 8 drawings", grad=True, sampled=sampled)


ROWS = [Row("train_step", "an optimizer step under our Trainer vs a bare PyTorch loop, same maths", train_step)]
