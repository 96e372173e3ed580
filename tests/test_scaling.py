"""docs/scaling.md says what is computed here from the shipped YAMLs: work, bytes and hours of every recipe at any size.

FRISKET_WRITE_GOLDEN=1 pytest tests/test_scaling.py writes its tables anew.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from weightless import built, weights_of_no_value  # noqa: F401

from frisket.budget import MFU, PEAK_FLOPS, SA1B, gpu_hours
from frisket.data.embeddings import numbers
from frisket.eval.cost import count, macs, on_meta
from frisket.geometry import Frame
from frisket.models import zoo
from frisket.models.encoder import Tap
from frisket.recipes.base import RECIPES

DOCS = Path(__file__).parents[1] / "docs"
GPUS = (1, 8, 64, 512)
IMAGES = SA1B["images"]
AGAIN = 4  # a prompt forward, once more in the backward pass (place.prompts_at_once), and twice back
FOCUS = [Tap(1280)] * 3  # blocks 11, 21, 32 of ViT-H
UNPACK = 0.036  # seconds of a core to read that and the neck from int8: measured, docs/scaling.md says where
PHOTO = Frame.fit((1500, 2250), 1024)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("weights_of_no_value")]


@dataclass
class Work:
    """A shipped recipe: FLOP for an image, by part; images a step; steps; bytes of the gradients."""

    name: str
    encoder: float
    teacher: float
    decoder: float
    proposals: float
    batch: int
    steps: int
    gradients: int

    @property
    def image(self) -> float:
        return self.encoder + self.teacher + self.decoder + self.proposals


def prompts(config: Any) -> float:
    """Passes of a decoder for an image: every round there and back, or TinySAM's search, teacher and student."""
    masks = config.data.masks_per_image
    if hasattr(config, "prompts"):
        return masks * config.prompts.rounds * AGAIN
    if hasattr(config, "hard"):  # on average half the rounds, of what is asked by clicks
        return masks * (config.hard.rounds / 2 * (1 - config.hard.box_probability) + 1 + AGAIN)
    return 0.0


def work(name: str) -> Work:
    recipe = built(name)
    config, sam, side = recipe.config, recipe.sam, recipe.config.data.image_size
    with torch.device("meta"):
        plain = zoo.build(sam.name, image_size=side)
    ppn = 0.0
    if recipe.proposes:
        proposals, embedding = on_meta(sam.auto_ppn), torch.empty(1, 256, side // 16, side // 16, device="meta")
        ppn = 3 * 2e9 * count(lambda: proposals(embedding))
    whole, trained = recipe.model_flops_per_image(), any(p.requires_grad for p in sam.image_encoder.parameters())
    encoder = 2.0 * sam.image_encoder.macs(side) * (3 if trained else 1)
    decoder = prompts(config) * 2e9 * macs(plain, side)["point"]
    gradients = 4 * sum(weight.numel() for weight in recipe.parameters() if weight.requires_grad)
    return Work(
        name, encoder, whole - encoder, decoder, ppn, config.data.global_batch, config.trainer.max_steps, gradients
    )  # fmt: skip


def row(*cells: Any) -> str:
    return f"| {' | '.join(cell if isinstance(cell, str) else number(cell) for cell in cells)} |"


def number(value: float) -> str:
    """Three digits."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}" if value else "–"


def tables() -> Iterator[tuple[str, list[str]]]:
    """(name, lines) of each table."""
    every = [work(name) for name in RECIPES.files()]
    header = (
        "| recipe | encoder | teacher | decoder | AutoPPN | GFLOP an image | batch | TFLOP a step | MB of gradients |"
    )
    yield "work", [header, "|---" * 9 + "|"] + [
        row(w.name, *(x / 1e9 for x in (w.encoder, w.teacher, w.decoder, w.proposals, w.image)), str(w.batch),
            w.image * w.batch / 1e12, w.gradients / 1e6)
        for w in every
    ]  # fmt: skip
    names = ["the run as shipped, 1 A100", "1 %, 1 A100", *(f"100 %, {n}" for n in GPUS)]
    yield "hours", [f"| recipe | {' | '.join(names)} |", "|---" * 7 + "|"] + [
        row(w.name, *(gpu_hours(w.image * images) / n for images, n in (
            (w.batch * w.steps, 1), (IMAGES / 100, 1), *((IMAGES, n) for n in GPUS)
        )))
        for w in every
    ]  # fmt: skip
    shipped, kinds = SA1B["bytes"] / IMAGES, []
    for what, taps in (("neck", []), ("neck and blocks 11, 21, 32", FOCUS)):
        kinds += [(f"ViT-H's {what}, {kind}", numbers(PHOTO, taps) * size) for kind, size in (("int8", 1), ("fp16", 2))]
    yield (
        "bytes",
        ["| what | MB an image | TB for 1 % | TB for 100 % |", "|---" * 4 + "|"]
        + [
            row(what, size / 1e6, size * IMAGES / 1e14, size * IMAGES / 1e12)
            for what, size in [("as Meta ships it", shipped), *kinds]
        ],
    )
    benched = json.loads((DOCS / "results" / "bench_cpu.json").read_text())["rows"]
    core = next(line["ours_seconds"] for line in benched if line["name"] == "sa1b_raw")
    fed = [(w.name, w.image, shipped, core) for w in every]
    stored = next(w for w in every if w.name == "distill_lightening")
    fed.append((f"{stored.name}, all stored, int8", stored.encoder, shipped + numbers(PHOTO, FOCUS), core + UNPACK))
    header = "| recipe | images/s of an A100 | cores for it |"
    yield (
        "loading",
        [header + "".join(f" GB/s, {n} |" for n in GPUS), "|---" * 7 + "|"]
        + [
            row(name, *(MFU * PEAK_FLOPS["A100"] / flops * x for x in (1, seconds, *(n * size / 1e9 for n in GPUS))))
            for name, flops, size, seconds in fed
        ],
    )
    yield (
        "reduce",
        [f"| recipe | {' | '.join(f'{n} A100' for n in GPUS[1:])} |", "|---" * len(GPUS) + "|"]
        + [row(w.name, *(reduced(w, n) for n in GPUS[1:])) for w in every],
    )


def reduced(w: Work, gpus: int) -> str:
    """What a GPU sends in a step of DDP's ring, how long the step is, and the wire that takes a tenth of it."""
    batch = max(w.batch, gpus)
    sent, seconds = 2 * (gpus - 1) / gpus * w.gradients, w.image * batch / gpus / (MFU * PEAK_FLOPS["A100"])
    mark = " *" if batch > w.batch else ""
    return f"{number(sent / 1e6)} MB, {number(1000 * seconds)} ms, {number(sent / 1e9 / (0.1 * seconds))} GB/s{mark}"


def test_the_page_says_what_is_computed() -> None:
    page = (DOCS / "scaling.md").read_text()
    with torch.device("meta"):
        teacher = 2 * zoo.build("sam_vit_h").image_encoder.macs(1024)
    assert f"{teacher / 1e9:,.0f} GFLOP an image and epoch: {gpu_hours(teacher * IMAGES / 100):.1f} A100-hours" in page
    assert f"for 1 %, {gpu_hours(teacher * IMAGES):.0f} for 100 %" in page
    for name, lines in tables():
        block = re.compile(rf"(<!-- {name} -->\n)(.*?\n)(?=\n|\Z)", re.DOTALL)
        said, text = block.search(page), "\n".join(lines) + "\n"
        assert said, f"docs/scaling.md has no table {name}"
        if os.environ.get("FRISKET_WRITE_GOLDEN"):
            page = block.sub(lambda match, text=text: match[1] + text, page)
            (DOCS / "scaling.md").write_text(page)
        else:
            assert said[2] == text, f"{name}: FRISKET_WRITE_GOLDEN=1 writes it anew"
