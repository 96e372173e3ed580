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
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch

from frisket.data.identity import Identity, of_pixels
from frisket.errors import UserError
from frisket.eval.clock import switched
from frisket.eval.cost import conditions, macs, memory
from frisket.eval.subject import Photo, Subject, photo, photographs
from frisket.eval.task import BaseTask, PhotographConfig, Row
from frisket.everything.strategy import chosen
from frisket.kernels.attention import describe
from frisket.models.sam import Sam
from frisket.place import Place

Part = Literal["encoder", "box", "point", "points64", "post", "end_to_end", "everything"]
PARTS: tuple[str, ...] = get_args(Part)


@dataclass
class Config(PhotographConfig):
    """What to measure; see the top of this file. `data` may also be a folder of pictures, one picture, or nothing for
    seeded noise; `pictures` and place.workers do not apply."""

    renamed: ClassVar[dict[str, str]] = {"generator": "everything", "threads": "place.threads"}
    place: Place = field(default_factory=lambda: Place(devices="1", workers=0, threads=1))
    """Where it runs: one device."""
    parts: list[Part] = field(default_factory=lambda: list(get_args(Part)))
    """What is timed."""
    precision: Literal["32-true", "bf16-true", "16-true"] = "32-true"
    """Of encoder and decoder, weights included."""
    compile: Literal["", "default", "reduce-overhead", "max-autotune"] = ""
    """torch.compile's mode for the encoder; empty: eager."""
    tf32: bool = False
    """Allow it."""
    warmup: int | None = field(default=None, metadata={"least": 0})
    """Calls before the timed ones; null: 50 on a GPU, 2 on a CPU."""
    repeats: int | None = field(default=None, metadata={"least": 1})
    """Timed calls of each part, over all rounds; null: 200 on a GPU, 30 on a CPU."""
    rounds: int = field(default=3, metadata={"least": 1})
    """Models' turns."""
    everything_repeats: int = field(default=3, metadata={"least": 0})
    """Timed calls of segment everything."""
    everything: dict[str, Any] = field(default_factory=dict)
    """Its strategy and settings, see frisket.everything.strategy."""
    batches: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64], metadata={"least": 1})
    """Of the sweep; empty: none."""
    calls: int | None = field(default=None, metadata={"least": 1})
    """Under one clock, in the sweep; null: 100 on a GPU, 3 on a CPU."""
    inputs: int = field(default=8, metadata={"least": 1})
    """Distinct photographs in rotation, at most `limit`."""
    memory: bool = True
    """Measure it, in a fresh process."""
    agreement: float = 0.99
    """Least mean mask IoU with eager fp32."""
    seed: int = field(default=0, metadata={"least": 0, "most": 2**32 - 1})
    """Of noise and prompts."""


@dataclass(frozen=True)
class Plan:
    """One measurement of every model in turn: `what` is check, macs, memory, conditions, sweep or a part; `round` 0…"""

    what: str
    round: int = 0


class Task(BaseTask):
    """Items are `Plan`s, so models take turns. A row holds one measurement; times are in ms."""

    protocol = "latency"
    resumes = False  # whether a model agrees, and what it was warmed up to, is known only to its process

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
        told = {name: getattr(self.settings, name) for name in ("precision", "compile", "tf32", "rounds")}
        return {"image_size": self.image_size, "threads": self.threads, **told}

    @property
    def threads(self) -> int:
        """Of a CPU."""
        return self.settings.place.threads or 1

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
                measured = subject.check(self.settings.agreement)
            elif item.what == "macs":
                measured = {f"{name}_g": value for name, value in macs(sam, self.image_size).items()}
            elif item.what == "memory":
                measured = memory(
                    sam, side=self.image_size, precision=self.settings.precision, device=sam.device,
                    threads=self.threads,
                )  # fmt: skip
                measured = {f"{name}_mib" if name != "whole_life" else name: value for name, value in measured.items()}
            elif item.what == "conditions":
                measured = conditions(sam.device) | ({"setup": self._setup(sam.device)} if item.round == 0 else {})
            elif not subject.agrees:
                measured = {"error": "outputs differ from eager fp32"}
            elif item.what == "sweep":
                measured = subject.sweep(self.settings.batches, self._count("calls", sam.device))
            else:
                measured = subject.time(item.what, *self._share(item, sam.device))
        return row | measured

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
        parts = [part for part in PARTS if any(f"{part}/ms" in values for values in numbers.values())]
        columns = [
            *((part, f"{part}/ms", "ms") for part in parts),
            ("images/s", "throughput/best_images_per_second", ""),
            ("encoder", "macs/encoder_g", "GMAC"),
            ("weights", "memory/weights_mib", "MiB"),
            ("peak", "memory/peak_mib", "MiB"),
        ]
        columns = [column for column in columns if any(column[1] in values for values in numbers.values())]
        width = max(len(label) for label in numbers)
        heads = [f"{name} {unit}".strip() for name, _, unit in columns]
        lines = [" " * width + "".join(f"{head:>{max(12, len(head) + 2)}}" for head in heads)]
        for label, values in numbers.items():
            cells = (
                f"{_short(values.get(key)):>{max(12, len(head) + 2)}}" for head, (_, key, _) in zip(heads, columns)
            )
            lines.append(f"{label:{width}}" + "".join(cells))
        failed = [label for label, values in numbers.items() if not values["agreement/ok"]]
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
        return self.threads if device.type == "cpu" else None

    def _count(self, name: str, device: torch.device) -> int:
        usual = {"warmup": (2, 50), "repeats": (30, 200), "calls": (3, 100)}[name][device.type == "cuda"]
        given = getattr(self.settings, name)
        return usual if given is None else given

    def _setup(self, device: torch.device) -> dict[str, Any]:
        """Everything about the measurement that is not the machine."""
        config, on_gpu = self.settings, device.type == "cuda"
        return {
            "clock": "cuda events" if on_gpu else f"wall time, {self.threads} CPU thread(s)",
            "device": str(device),
            "precision": config.precision,
            "compile": config.compile or "eager",
            "tf32": config.tf32,
            "cudnn": torch.backends.cudnn.version() if on_gpu else None,
            "threads": self.threads,
            "attention": describe(),
            "inputs": self.source,
            **{name: self._count(name, device) for name in ("warmup", "repeats", "calls")},
            "rounds": config.rounds,
        }


def checked(config: Config) -> Config:
    """The config, when it asks for a known strategy and one device. Raises UserError."""
    chosen(config.everything)
    if config.place.devices != "1" or config.place.num_nodes != 1:
        raise UserError("latency is measured on one device: leave place.devices and num_nodes at 1 (one Slurm task)")
    return config


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
