"""Every YAML under configs/ loads into its schema, alone or over what it belongs to; recipes and models build."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from frisket import checkpoint, config
from frisket.bench.harness import BenchConfig
from frisket.cli import show
from frisket.cli.predict import PredictConfig
from frisket.cli.report import ReportConfig
from frisket.engine.evaluate import Suite
from frisket.errors import UserError
from frisket.eval.task import TASKS
from frisket.everything.strategy import STRATEGIES
from frisket.models import zoo
from frisket.prep.records import SOURCES
from frisket.recipes.base import RECIPES as ROOM
from frisket.recipes.base import Recipe
from frisket.recipes.recipe_config import RecipeConfig

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.glob("*.yaml"))
RECIPES = [path for path in FILES if re.search(r"^recipe:", path.read_text(), re.MULTILINE)]
PLACES = sorted((CONFIGS / "on").glob("*.yaml"))
DEMO = sorted((CONFIGS / "demo").glob("*.yaml"))
NEEDED = {
    "predict.yaml": ["image=x.jpg"],
    "eval_": ["checkpoint=[x]", "data=x"],
    "prep_synthetic": [],
    "prep_": ["inputs=x"],
}


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


def bases(overlay: Path) -> list[Path]:
    """The recipes an overlay belongs over: the one it is named after, else all."""
    named = [path for path in RECIPES if overlay.stem == path.stem]
    return named or RECIPES


@pytest.mark.parametrize("overlay", [*PLACES, *DEMO], ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_overlay_loads_over_its_recipes_and_every_key_changes_something(overlay: Path) -> None:
    changed = set()
    for recipe in bases(overlay):
        kind = schema(recipe)
        alone, over = (config.flatten(config.load(kind, files)) for files in ([recipe], [recipe, overlay]))
        changed |= {key for key in over if over[key] != alone.get(key)}
    idle = [key for key in config.flatten(config.read(overlay)) if key not in changed]
    assert not idle, f"{overlay} says what its recipes say: {idle}"


@pytest.mark.parametrize("place", PLACES, ids=lambda p: p.stem)
def test_a_place_never_changes_the_experiment(place: Path) -> None:
    other = [key for key in config.flatten(config.read(place)) if not key.startswith(("place.", "log."))]
    assert other == []


def idle(kind: type, given: dict[str, Any], needed: list[str]) -> list[str]:
    """The keys of a YAML that say what its schema says anyway."""
    choice = {key: value for key, value in given.items() if key in ("recipe", "task", "source")}
    words = [*(f"{key}={value}" for key, value in choice.items()), *needed]
    defaults = config.flatten(config.load(kind, [], words))
    return [
        key for key, value in config.flatten(given).items() if key not in choice and defaults.get(key, ...) == value
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_no_key_equals_its_default(path: Path) -> None:
    """What a YAML says is what makes this run; `frisket show` prints the rest."""
    given = config.read(path)
    assert idle(schema(path), given, needed(path)) == []
    for name, part in given.get("tasks", {}).items():  # a suite's tasks have schemas of their own
        assert idle(TASKS.find(name).Config, part, ["checkpoint=[x]"]) == [], name


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_states_batch_rate_and_length_with_their_source(path: Path) -> None:
    own = config.flatten(config.read(path))
    assert {"data.global_batch", "trainer.max_steps"} <= own.keys()
    assert "# Source  " in path.read_text()
    assert (CONFIGS.parent / "slurm" / f"{path.stem}.sh").is_file()


@pytest.mark.parametrize("path", [*FILES, *PLACES, *DEMO], ids=lambda p: p.stem)
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
    assert set(ROOM.files()) == {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_builds_as_its_yaml_says(path: Path, tiny_teacher: Path, tiny_quantized: Path) -> None:
    """The models of the YAML itself. What starts from weights gets tiny ones; the big one is built without memory."""
    module = importlib.import_module(f"frisket.recipes.{path.stem}")
    shipped = config.load(module.Config, [path])
    tiny = {"teacher": tiny_teacher, "init_from": tiny_quantized if path.stem == "qat_tiny" else tiny_teacher}
    given = [f"{key}={weights}" for key, weights in tiny.items() if getattr(shipped, key, None)]
    given += ["data.image_size=64"] if shipped.init_from else []  # the weights' own side; another is refused
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


def schemas() -> dict[str, type]:
    """{what: config dataclass} of everything that a verb can be told."""
    verbs = {"predict": PredictConfig, "report": ReportConfig, "bench": BenchConfig, "suite": Suite}
    rooms = {room.word: room.modules() for room in (ROOM, TASKS, SOURCES, STRATEGIES)}
    chosen = {f"{word} {name}": module.Config for word, modules in rooms.items() for name, module in modules.items()}
    return verbs | chosen | {f"model {name}": type(row.config) for name, row in zoo.entries().items()}


@pytest.mark.parametrize("what", sorted(schemas()))
def test_every_key_has_a_line_that_help_prints(what: str) -> None:
    """The string literal below each field."""
    silent = [knob.key for knob in config.describe(schemas()[what]) if not re.search(r"\w", knob.about)]
    assert not silent, f"{what}: {', '.join(silent)}"
