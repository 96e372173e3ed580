"""Every YAML under configs/ loads into its schema, alone or over what it belongs to; recipes and models build."""

import importlib
import re
from pathlib import Path

import pytest
import torch

from frisket import checkpoint, config
from frisket.cli import show
from frisket.errors import UserError
from frisket.models import zoo
from frisket.recipes.base import Recipe, RecipeConfig

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))
RECIPES = [path for path in FILES if re.search(r"^recipe:", path.read_text(), re.MULTILINE)]
PLACES = sorted((CONFIGS / "on").glob("*.yaml"))
NEEDED = {"predict.yaml": ["image=x.jpg"], "eval_": ["checkpoint=[x]", "data=x"], "prep_": ["inputs=x"]}


def schema(path: Path) -> type:
    """The dataclass that the verb of this YAML loads it into."""
    verb, files = show.verb([str(path)], [])
    return importlib.import_module(f"frisket.cli.{verb}").schema(files, [])


def needed(path: Path) -> list[str]:
    """What only a person can say."""
    return next((given for name, given in NEEDED.items() if path.name.startswith(name)), [])


@pytest.fixture(autouse=True)
def data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRISKET_DATA", "/data")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_yaml_loads(path: Path) -> None:
    loaded = config.load(schema(path), [path], needed(path))
    assert config.show(loaded)


def bases(place: Path) -> list[Path]:
    """The recipes an overlay belongs over: the one it is named after, else all."""
    named = [path for path in RECIPES if place.stem.endswith(path.stem)]
    return named or RECIPES


@pytest.mark.parametrize(
    ("place", "recipe"), [(p, r) for p in PLACES for r in bases(p)], ids=lambda p: p.stem if isinstance(p, Path) else ""
)
def test_every_overlay_loads_over_its_recipes(place: Path, recipe: Path) -> None:
    kind = schema(recipe)
    alone, over = config.load(kind, [recipe]), config.load(kind, [recipe, place])
    assert config.flatten(alone) != config.flatten(over)  # an overlay that changes nothing is a mistake


@pytest.mark.parametrize("path", [*FILES, *PLACES], ids=lambda p: p.stem)
def test_every_yaml_opens_with_its_promise(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert text.startswith("# ")
    if path in FILES:
        lines = [line[2:].split(" ", 1)[0] for line in text.splitlines() if line.startswith("# ")]
        assert {"Run", "Needs", "Cost", "Expect"} <= set(lines)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipes_name_is_its_files(path: Path) -> None:
    assert config.peek([path], [], "recipe") == path.stem


def test_every_recipe_has_a_yaml() -> None:
    folder = Path(importlib.import_module("frisket.recipes").__path__[0])
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "base", "interactive"}
    assert modules == {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_builds_as_its_yaml_says(path: Path, tiny_teacher: Path) -> None:
    """The models of the YAML itself. What starts from weights gets tiny ones; the big one is built without memory."""
    module = importlib.import_module(f"frisket.recipes.{path.stem}")
    given = [f"{key}={tiny_teacher}" for key in ("teacher", "init_from") if config.peek([path], [], key)]
    loaded: RecipeConfig = config.load(module.Config, [path], given)
    with torch.device("cpu" if given else "meta"):
        recipe: Recipe = module.Module(loaded)
    trained = [name for name, p in recipe.named_parameters() if p.requires_grad]
    assert trained
    (optimizer,) = [recipe.configure_optimizers()["optimizer"]]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)


@pytest.mark.parametrize("name", zoo.names())
def test_every_model_builds_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        sam = zoo.build(name)
        side = sam.image_size // 16
        assert sam.image_encoder(torch.empty(1, 3, sam.image_size, sam.image_size)).shape == (1, 256, side, side)


def test_missing_weights_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRISKET_WEIGHTS", raising=False)
    with pytest.raises(UserError, match="FRISKET_WEIGHTS"):
        checkpoint.load("sam_vit_h")
