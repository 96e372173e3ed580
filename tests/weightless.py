"""Every shipped recipe's module as its YAML says, without memory: what it weighs and computes can be counted."""

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from frisket import checkpoint, config
from frisket.models import zoo
from frisket.models.blocks import Attend
from frisket.models.sam import Sam
from frisket.quant import packed
from frisket.recipes import qat_tiny

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture
def weights_of_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is the model of its name: values change no byte."""

    def load(name: str, **_: Any) -> Sam:
        if name != "runs/quant_tiny":
            return zoo.build("lightening" if "/" in name else name)
        made = {"checkpoint": "tiny_sam", "weights": ""}
        return packed.build(Path(name), "tiny_sam", {}, {"quant": {}, "kinds": kinds(), "provenance": made})

    monkeypatch.setenv("FRISKET_DATA", "/data")
    monkeypatch.setattr(checkpoint, "load", load)
    monkeypatch.setattr(checkpoint, "weights_digest", lambda _: "")
    monkeypatch.setattr(qat_tiny, "fold", partial(qat_tiny.fold, values=False))


def kinds() -> dict[str, str]:
    """Of every layer of TinySAM that is asked, as frisket.quant.search sees them in a pass."""
    sam = zoo.build("tiny_sam")
    kind = {torch.nn.Linear: "symmetric", Attend: "symmetric", torch.nn.Conv2d: "affine"}
    kind[torch.nn.ConvTranspose2d] = "affine"
    named = {name: kind[type(part)] for name, part in sam.named_modules() if type(part) in kind}
    asked_not = ("image_encoder.head", "prompt_encoder")
    after_gelu = {name: "gelu" for name in named if name.startswith("image_encoder") and name.endswith("mlp.fc2")}
    return {name: value for name, value in (named | after_gelu).items() if not name.startswith(asked_not)}


def built(name: str) -> Any:
    """A shipped recipe's module."""
    module = importlib.import_module(f"frisket.recipes.{name}")
    with torch.device("meta"):
        return module.Module(config.load(module.Config, [CONFIGS / f"{name}.yaml"]))
