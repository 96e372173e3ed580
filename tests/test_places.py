"""What autograd keeps of every shipped recipe, counted; and that the presets of GPUs in configs/on/ hold it.

How, and what is not counted: frisket.engine.doctor.model, which counts any recipe, less its own terms.
"""

import importlib
import math
import re
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import nn
from weightless import CONFIGS, built, kinds, weights_of_no_value  # noqa: F401

from frisket import config
from frisket.engine.doctor import model
from frisket.engine.doctor.model import MIB, kept
from frisket.engine.doctor.plan import plan
from frisket.engine.quantize import QuantRun
from frisket.models import zoo
from frisket.quant.layers import QuantConfig, fold, quantize
from frisket.quant.search import share
from frisket.recipes.base import RECIPES
from frisket.recipes.interactive import InteractiveConfig, asked
from frisket.sample import Batch, Prediction, Prompts

TAUGHT = ("distill_tiny", "qat_tiny")  # one loss
GIB = {"a40": 44.4, "a100": 39.4, "a100_80gb": 79.1}  # what CUDA says these GPUs have


pytestmark = pytest.mark.usefixtures("weights_of_no_value")


def fake(recipe: Any) -> AbstractContextManager[None]:
    """Shapes alone, in bf16 as on these GPUs."""
    return model.fake("bf16-mixed", recipe, *model.teachers(recipe))


def batch(images: int, masks: int, side: int) -> Batch:
    """Photographs without padding, `masks` objects in all, and what an AutoPPN is to learn."""
    index, cells = torch.zeros(masks, dtype=torch.long), side // 4
    grid = torch.empty(masks, cells, cells, dtype=torch.bool)
    pixels = torch.empty(images, 3, side, side, dtype=torch.uint8)
    sizes = torch.empty(images, 2, dtype=torch.long)
    heat, ways = torch.empty(images, 3, cells, cells), torch.empty(images, 3, 4, cells, cells)
    boxes, areas = torch.empty(masks, 4), torch.empty(masks)
    return Batch(["x"] * images, pixels, grid, boxes, areas, index, [], sizes, heat=heat, ways=ways)


@cache
def an_image(name: str) -> float:
    """MiB that one image more costs outside the decoder."""
    recipe = built(name)
    side = recipe.config.data.image_size

    def step(images: int) -> int:
        given = batch(images, 0, side)
        if name == "distill_lightening":
            return kept(lambda: recipe.training_step(given, 0), recipe)
        if name == "train_autoppn":
            return kept(lambda: recipe.ppn_loss(torch.empty(images, 256, 64, 64), given), recipe)
        if name == "train_lite":
            return kept(lambda: recipe.ppn_loss(recipe.sam.encode(given.images, given.sizes), given), recipe)
        frozen = not any(weight.requires_grad for weight in recipe.sam.image_encoder.parameters())
        return 0 if frozen else kept(lambda: recipe.sam.encode(given.images, given.sizes), recipe)

    with fake(recipe):
        return (step(2) - step(1)) / MIB


@cache
def a_prompt(name: str) -> float:
    """MiB that one prompt more costs in the decoder and its loss, in the dearest kind of round."""
    recipe, later = built(name), [False] if name in TAUGHT else [False, True]
    side = recipe.config.data.image_size
    cells = side // 4

    def of_round(prompts: int, refine: bool) -> int:
        given, embeddings = batch(2, prompts, side), torch.empty(2, 256, side // 16, side // 16)
        valid = torch.empty(prompts, cells, cells, dtype=torch.bool)
        asking = Prompts(torch.zeros(prompts, 2, 2), torch.zeros(prompts, 2, dtype=torch.long))
        if name in TAUGHT:
            grids, tokens = torch.empty(prompts, 3, 256, 256), torch.empty(prompts, 5, 256)
            wanted: Any = Prediction(grids, torch.empty(prompts, 3), tokens)
            return kept(lambda: recipe.ask(embeddings, wanted, given, asking, slice(None)), recipe)
        asking = asking.refine(torch.empty(prompts, cells, cells)) if refine else asking
        session: Any = {"multimask": not refine, "config": InteractiveConfig(), "valid": valid, "at_once": None}
        return kept(lambda: asked(recipe.sam, embeddings, given, asking, **session), recipe)

    with fake(recipe):
        return max((of_round(8, refine) - of_round(4, refine)) / 4 / MIB for refine in later)


def needed(name: str, place: dict[str, Any]) -> float:
    """GiB that a recipe accounts for at a place."""
    module = importlib.import_module(f"frisket.recipes.{name}")
    loaded = config.load(module.Config, [CONFIGS / f"{name}.yaml"])
    images, total = place["images_per_device"], model.CUDA + model.weights(built(name))
    total += images * an_image(name)
    if name not in ("distill_lightening", "train_autoppn"):  # these two ask the decoder nothing
        masks = images * loaded.data.masks_per_image
        # what each mask holds all the time: the grids that rounds hand on, or those of the teacher's three answers
        held = 3 if name in TAUGHT else loaded.prompts.rounds
        total += (
            min(masks, place["prompts_at_once"]) * a_prompt(name)
            + masks * held * (loaded.data.image_size // 4) ** 2 * 4 / MIB
        )
    return total / 1024


@pytest.mark.slow
@pytest.mark.parametrize("preset", sorted(GIB))
def test_a_preset_holds_every_recipe_and_its_header_does_the_sum(preset: str) -> None:
    text = (CONFIGS / "on" / f"{preset}.yaml").read_text()
    place = config.read(CONFIGS / "on" / f"{preset}.yaml")["place"]
    for name in RECIPES.files():
        said = re.search(rf"^# +{name} +(.*) = ([\d.]+) GiB$", text, re.MULTILINE)
        assert said, f"{preset}.yaml does not say what {name} needs"
        added = sum(math.prod(map(float, term.split(" x "))) for term in said[1].split(" + ")) / 1024
        counted = needed(name, place)
        assert [added, float(said[2])] == pytest.approx([counted, counted], abs=0.06), name
        assert counted <= model.USED * GIB[preset], f"{name}: {counted:.1f} of {GIB[preset]} GiB"


def test_what_quantizing_holds_is_what_its_header_says() -> None:
    """The layers captured together, of all photographs: as frisket.quant.search keeps them."""
    with torch.device("meta"):
        sam = zoo.build("tiny_sam").eval()
    fold(sam, values=False)
    layers, config, mib = quantize(sam, QuantConfig(), kinds()), QuantRun(), dict[str, float]()

    def measure(name: str, module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        captured = share(layers[name], inputs, output, output, config.search.rows, 0)
        numbers = sum(x.numel() for x in captured.inputs if x is not None) + 2 * captured.output.numel()
        mib[name] = 4 * numbers * config.calibration / MIB

    for name, layer in layers.items():
        layer.register_forward_hook(partial(measure, name))
    prompts = Prompts(torch.zeros(16, 2, 2, device="meta"), torch.zeros(16, 2, dtype=torch.long, device="meta"))
    with torch.inference_mode():
        embedding = sam.image_encoder(torch.empty(1, 3, 1024, 1024, device="meta"))
        sam.decode(embedding, torch.zeros(16, dtype=torch.long, device="meta"), prompts, True)
    together = [list(layers)[first : first + config.search.together] for first in range(0, len(layers), 8)]
    most = max(sum(mib[name] for name in group) for group in together) / 1024
    said = re.search(r"([\d.]+) GiB of captured layers", (CONFIGS / "quant_tiny.yaml").read_text())
    assert said and float(said[1]) == pytest.approx(most, abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES.files())
def test_doctor_counts_any_recipe_almost_as_exactly(name: str) -> None:
    """Without its own terms: less than the header's sum, and not much less."""
    module, preset = importlib.import_module(f"frisket.recipes.{name}"), CONFIGS / "on" / "a40.yaml"
    start = plan(module, config.load(module.Config, [CONFIGS / f"{name}.yaml", preset]), anywhere=True)
    start.recipe = built(name)
    said = re.search(rf"^# +{name} +.* = ([\d.]+) GiB$", preset.read_text(), re.MULTILINE)
    assert said and 0.87 * float(said[1]) <= model.needed(start) / 1024 <= 1.02 * float(said[1])
