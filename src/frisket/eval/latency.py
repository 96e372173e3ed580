"""How long each part of a model takes, how many images a second it can embed, what memory and MACs it needs.

Run     `frisket eval configs/eval_latency.yaml checkpoint=[teacher:sam_vit_b,mine:runs/finetune_decoder] data=PHOTOS`
Parts   (what is inside, and nothing else)
        encoder     normalisation, padding, image encoder; one S x S uint8 image already on the device
        box         prompt encoder and mask decoder: one box, one mask; the embedding is given
        point       the same: one click, three masks
        points64    the same: 64 clicks at once, three masks each
        post        one low-resolution mask to the photograph's own size, thresholded
        end_to_end  RGB array in memory -> resize, copy to the device, encoder, one box, post, bool mask in memory; no
                    file is read or decoded
        everything  segment everything (the `everything` block, SAM's grid of 32 x 32 points by default), from RGB array
                    to masks as RLE; how many it keeps, and so what they cost, is the model's
Method  Our choice, after what papers leave out: batch 1; warm-up; CUDA events around each call (wall clock on a CPU,
        whose threads are set and named); median, p5, p95 and n, every sample kept; distinct inputs in rotation. Models
        take turns within every round, so that a drifting clock disturbs all alike. Throughput: one clock around many
        calls, batch after batch until memory or a plateau. A reduced or compiled model must first give the masks of
        the eager fp32 one; when it does not, it gets no times.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from frisket.data.identity import Identity, of_pixels
from frisket.errors import UserError, nearest
from frisket.eval.cost import PRECISIONS, conditions, macs, memory
from frisket.eval.subject import Photo, Subject, photo, photographs, switched
from frisket.eval.task import BaseTask, Row, TaskConfig
from frisket.everything.strategy import chosen
from frisket.kernels.attention import describe
from frisket.models.sam import Sam

PARTS = ("encoder", "box", "point", "points64", "post", "end_to_end", "everything")
COMPILE = ("", "default", "reduce-overhead", "max-autotune")


@dataclass
class Config(TaskConfig):
    """What to measure; see the top of this file.

    data: photographs (any annotated set with its images and split, a folder of pictures, one picture; empty: seeded
    noise); inputs: how many distinct ones rotate, at most `limit`. pictures and workers do not apply.
    precision: fp32, bf16, fp16 of encoder and decoder; compile: torch.compile's mode for the encoder, empty for eager;
    tf32: allow it. threads: of a CPU. warmup, repeats (timed calls of each part, over all rounds) and calls (under one
    clock, in the sweep): 50, 200, 100 on a GPU and 2, 30, 3 on a CPU when unset. rounds: models' turns.
    everything_repeats: timed calls of segment everything (0: none); everything: its settings. batches: of the
    sweep (empty: none). memory: measure it, in a fresh process. agreement: least mean mask IoU with eager fp32.
    """

    renamed: ClassVar[dict[str, str]] = {"generator": "everything"}
    devices: str = "1"
    images: str = ""
    split: str = "val"
    parts: list[str] = field(default_factory=lambda: list(PARTS))
    precision: str = "fp32"
    compile: str = ""
    tf32: bool = False
    threads: int = 1
    warmup: int | None = None
    repeats: int | None = None
    rounds: int = 3
    everything_repeats: int = 3
    everything: dict[str, Any] = field(default_factory=dict)
    batches: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64])
    calls: int | None = None
    inputs: int = 8
    memory: bool = True
    agreement: float = 0.99
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """One measurement of every model in turn: `what` is check, macs, memory, conditions, sweep or a part; `round` 0…"""

    what: str
    round: int = 0


class Task(BaseTask):
    """Items are `Plan`s, so models take turns. A row holds one measurement; times are in ms."""

    protocol = "latency"

    def __init__(self, config: Config, image_size: int) -> None:
        # limit counts photographs, not measurements, and a picture would be drawn by measuring again
        super().__init__(replace(config, limit=None, pictures=0), image_size)
        self.settings = checked(config)
        inputs = min(config.inputs, config.limit or config.inputs)
        self.pixels = photographs(config.data, inputs, config.seed, images=config.images, split=config.split)
        self.photos: dict[torch.device, list[Photo]] = {}
        self.subjects: dict[int, Subject] = {}

    @cached_property
    def plans(self) -> list[Plan]:
        """In order: the check first, since it decides whether times count."""
        config = self.settings
        turns = dict.fromkeys((part for part in PARTS if part in config.parts), config.rounds)
        if "everything" in turns:
            turns["everything"] = min(config.rounds, config.everything_repeats)
        rounds = [Plan(part, number) for number in range(config.rounds) for part in turns if number < turns[part]]
        return [
            Plan("check"),
            Plan("macs"),
            *([Plan("memory")] if config.memory else []),
            Plan("conditions", 0),
            *rounds,
            *([Plan("sweep")] if config.batches else []),
            Plan("conditions", 1),
        ]

    @property
    def sentence(self) -> str:
        """How the numbers were taken, in one line."""
        config = self.settings
        mode = f"compile={config.compile}" if config.compile else "eager"
        tf32 = ", TF32 allowed" if config.tf32 else ""
        return (
            f"latency at batch 1, {self.image_size} px, {config.precision}, {mode}{tf32}: median of single calls after "
            f"warm-up, models in turn over {config.rounds} round(s); inputs: {self.source}; encoder, prompts with "
            "decoder, upscaling and end-to-end apart; file decoding outside"
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """What decides a time, apart from the machine."""
        names = ("precision", "compile", "tf32", "threads", "rounds")
        return {"image_size": self.image_size, **{name: getattr(self.settings, name) for name in names}}

    def dataset(self, images: int) -> Identity:
        """The inputs."""
        return of_pixels("photographs" if self.settings.data else "noise", self.pixels)

    @property
    def source(self) -> str:
        """What the inputs are."""
        number = len(self.pixels)
        return f"{number} photograph(s) in rotation" if self.settings.data else f"{number} images of seeded noise"

    def __len__(self) -> int:
        return len(self.plans)

    def load(self, index: int) -> Plan:
        """Measurement `index`."""
        return self.plans[index]

    def answer(self, sam: Sam | None, item: Plan) -> Row:
        """Measure one model."""
        assert sam is not None
        subject = self._subject(sam)
        row: Row = {"key": f"{item.what}, round {item.round + 1}", "what": item.what, "round": item.round + 1}
        with switched(threads=self._threads(sam.device), tf32=self.settings.tf32):
            if item.what == "check":
                found = subject.check(self.settings.agreement)
            elif item.what == "macs":
                found = {f"{name}_g": value for name, value in macs(sam, self.image_size).items()}
            elif item.what == "memory":
                found = memory(
                    sam, side=self.image_size, precision=self.settings.precision, device=sam.device,
                    threads=self.settings.threads,
                )  # fmt: skip
                found = {f"{name}_mib" if name != "whole_life" else name: value for name, value in found.items()}
            elif item.what == "conditions":
                found = conditions(sam.device) | ({"setup": self._setup(sam.device)} if item.round == 0 else {})
            elif not subject.agrees:
                found = {"error": "outputs differ from eager fp32"}
            elif item.what == "sweep":
                found = subject.sweep(self.settings.batches, self._count("calls", sam.device))
            else:
                found = subject.time(item.what, *self._share(item, sam.device))
        return row | found

    def summarise(self, rows: list[Row]) -> dict[str, Any]:
        """{"encoder/ms", "…_p5", "…_p95", "…/n", "macs/…_g", "memory/…_mib", "throughput/…"}: docs/evaluation.md."""
        numbers: dict[str, Any] = {}
        samples: dict[str, list[float]] = {}
        kept_masks: list[float] = []
        before, after = (r for r in rows if r["what"] == "conditions")
        for row in rows:
            facts = {k: v for k, v in row.items() if k not in ("key", "what", "round", "setup")}
            if row["what"] in PARTS:
                samples.setdefault(row["what"], []).extend(row.get("samples", []))
                if "masks" in row:
                    kept_masks.append(row["masks"])
                if "error" in row:
                    numbers[f"{row['what']}/error"] = row["error"]
            elif row["what"] != "conditions":
                name = {"check": "agreement", "sweep": "throughput"}.get(row["what"], row["what"])
                numbers |= {f"{name}/{key}": value for key, value in facts.items()}
        for part, taken in samples.items():
            if taken:
                low, middle, high = np.percentile(taken, [5, 50, 95]).tolist()
                numbers |= {f"{part}/ms": middle, f"{part}/ms_p5": low, f"{part}/ms_p95": high}
                numbers[f"{part}/n"] = float(len(taken))
        if kept_masks:
            numbers["everything/masks"] = float(np.mean(kept_masks))
        told = {k: [before[k], after[k]] for k in before if k in after and k not in ("key", "what", "round")}
        kept = {f"samples/{part}": taken for part, taken in samples.items() if taken}
        return numbers | {"setup": before["setup"], "conditions": told} | kept

    def table(self, numbers: dict[str, dict[str, Any]]) -> str:
        """Models as rows: median ms of each part, images/s, MACs, weights and peak memory."""
        parts = [part for part in PARTS if any(f"{part}/ms" in found for found in numbers.values())]
        columns = [
            *((part, f"{part}/ms", "ms") for part in parts),
            ("images/s", "throughput/best_images_per_second", ""),
            ("encoder", "macs/encoder_g", "GMAC"),
            ("weights", "memory/weights_mib", "MiB"),
            ("peak", "memory/peak_mib", "MiB"),
        ]
        columns = [column for column in columns if any(column[1] in found for found in numbers.values())]
        width = max(len(label) for label in numbers)
        heads = [f"{name} {unit}".strip() for name, _, unit in columns]
        lines = [" " * width + "".join(f"{head:>{max(12, len(head) + 2)}}" for head in heads)]
        for label, found in numbers.items():
            cells = (f"{_short(found.get(key)):>{max(12, len(head) + 2)}}" for head, (_, key, _) in zip(heads, columns))
            lines.append(f"{label:{width}}" + "".join(cells))
        failed = [label for label, found in numbers.items() if not found["agreement/ok"]]
        if failed:
            lines.append(
                f"FAIL: the masks of {', '.join(failed)} are not those of eager fp32 (IoU below "
                f"{self.settings.agreement:g} or not finite), so there are no times"
            )
        return "\n".join([*lines, self.sentence])

    def _subject(self, sam: Sam) -> Subject:
        """What is timed of `sam`, made once."""
        if id(sam) not in self.subjects:
            if sam.device not in self.photos:
                self.photos[sam.device] = [
                    photo(pixels, self.image_size, sam.device, self.settings.seed + number)
                    for number, pixels in enumerate(self.pixels)
                ]
            with switched(threads=self._threads(sam.device), tf32=self.settings.tf32):
                self.subjects[id(sam)] = Subject(
                    sam,
                    self.photos[sam.device],
                    precision=self.settings.precision,
                    compiled=self.settings.compile,
                    tf32=self.settings.tf32,
                    filters=chosen(self.settings.everything),
                )
        return self.subjects[id(sam)]

    def _share(self, item: Plan, device: torch.device) -> tuple[int, int]:
        """(warm-up calls, timed calls) of one round."""
        if item.what == "everything":  # takes seconds
            return int(item.round == 0), len(range(item.round, self.settings.everything_repeats, self.settings.rounds))
        warmup = self._count("warmup", device)
        repeats = len(range(item.round, self._count("repeats", device), self.settings.rounds))
        return warmup if item.round == 0 else min(warmup, 3), repeats

    def _threads(self, device: torch.device) -> int | None:
        return self.settings.threads if device.type == "cpu" else None

    def _count(self, name: str, device: torch.device) -> int:
        usual = {"warmup": (2, 50), "repeats": (30, 200), "calls": (3, 100)}[name][device.type == "cuda"]
        given = getattr(self.settings, name)
        return usual if given is None else given

    def _setup(self, device: torch.device) -> dict[str, Any]:
        """Everything about the measurement that is not the machine."""
        config, on_gpu = self.settings, device.type == "cuda"
        return {
            "clock": "cuda events" if on_gpu else f"wall time, {config.threads} CPU thread(s)",
            "device": str(device),
            "precision": config.precision,
            "compile": config.compile or "eager",
            "tf32": config.tf32,
            "cudnn": torch.backends.cudnn.version() if on_gpu else None,
            "threads": config.threads,
            "attention": describe(),
            "inputs": self.source,
            **{name: self._count(name, device) for name in ("warmup", "repeats", "calls")},
            "rounds": config.rounds,
        }


def checked(config: Config) -> Config:
    """The config, when it asks for something that can be measured. Raises UserError."""
    for name, known in (("precision", PRECISIONS), ("compile", COMPILE)):
        value = getattr(config, name)
        if value not in known:
            raise UserError(f"latency: {name}={value} is unknown: {nearest(value, [k for k in known if k])}")
    for part in config.parts:
        if part not in PARTS:
            raise UserError(f"latency: there is no part '{part}': {nearest(part, PARTS)}")
    for name in ("rounds", "repeats", "calls", "threads", "inputs"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"latency: {name}={value} must be 1 or more")
    chosen(config.everything)
    if any(batch < 1 for batch in config.batches):
        raise UserError(f"latency: batches={config.batches} must all be 1 or more")
    if str(config.devices) != "1" or config.num_nodes != 1:
        raise UserError("latency is measured on one device: leave devices and num_nodes at 1 (one task under Slurm)")
    return config


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
