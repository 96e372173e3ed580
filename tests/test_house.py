"""The house law: a module imports only its own room and floors strictly below; some packages have one door each; a
folder is its own registry; a word means one thing; the global batch is one field."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from frisket.cli.main import VERBS, stem
from frisket.eval.task import TASKS
from frisket.everything.strategy import STRATEGIES
from frisket.models.zoo import MODELS
from frisket.plugins import Room
from frisket.prep.records import SOURCES
from frisket.recipes.base import RECIPES

SRC = Path(__file__).parents[1] / "src" / "frisket"
FLOORS = (
    {"bounds", "config", "errors", "files", "geometry", "plugins", "runfiles"},
    {"sample", "kernels", "losses", "optim", "place", "budget"},
    {"models", "prompts", "picture", "environment", "proposals"},
    {"data", "weights", "predict", "fidelity"},
    {"everything", "quant"},
    {"checkpoint"},
    {"eval"},
    {"recipes", "segment_anything", "report", "export", "prep", "callbacks"},
    {"engine"},
    {"bench", "study"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: n for n, rooms in enumerate(FLOORS) for room in rooms}
GROUND_ORDER = (
    "errors",
    "plugins",
    "files",
    "bounds",
    "config",
    "geometry",
)  # floor 0's own order: config may raise and write
DOORS = {
    "lightning": ("data/module.py", "recipes/", "callbacks.py", "engine/", "cli/", "bench/training.py"),
    "flash_attn": ("kernels/attention.py",),
    "omegaconf": ("config.py",),
    "wandb": ("callbacks.py", "engine/", "cli/"),
    "deepspeed": ("engine/zero.py", "weights/deepspeed.py"),
}
FILES = sorted(SRC.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SRC).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[str]:
    """Every dotted name imported anywhere in the file: at the top, in functions, for types only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} relative import: write frisket.… in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) != "__init__"], ids=lambda p: str(p.relative_to(SRC)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    for name in imported(path):
        if not name.startswith("frisket.") or name == "frisket.__version__":
            continue
        other = name.split(".")[1]
        if other == room:
            continue
        if room in GROUND_ORDER and other in GROUND_ORDER:
            assert GROUND_ORDER.index(other) < GROUND_ORDER.index(room), f"{path} imports {other}"
        else:
            assert FLOOR[other] < FLOOR[room], f"{path.relative_to(SRC)} imports {other}, floor {FLOOR[other]}"


@pytest.mark.parametrize("package", sorted(DOORS))
def test_one_door_for_each_foreign_thing(package: str) -> None:
    users = [str(p.relative_to(SRC)) for p in FILES if any(n.split(".")[0] == package for n in imported(p))]
    assert all(user.startswith(DOORS[package]) for user in users), f"{package} is imported by {users}"


def test_models_need_no_training_packages() -> None:
    blocked = ("lightning", "wandb", "deepspeed", "flash_attn", "webdataset", "omegaconf")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import frisket.models; "
        "import frisket.models.zoo as z; z.build('sam_vit_t', image_size=64)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


ROOMS = (RECIPES, TASKS, STRATEGIES, SOURCES, MODELS)
HISTORY = {"prep/run.py"}  # tells what older folders called their settings, source by source
ONLY_IN = {
    "judge": "engine/judge.py",
    "match": "kernels/matching.py",
    "save": "weights/ours.py",
}  # a word with one meaning: who may define it


def literals(tree: ast.AST) -> Iterator[set[str]]:
    """The strings of each list, tuple, set, mapping's keys and Literal written out in a file."""
    for node in ast.walk(tree):
        parts: list[ast.expr | None] = []
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            parts = [*node.elts]
        elif isinstance(node, ast.Dict):
            parts = [*node.keys]
        yield {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.package)
def test_a_folder_is_its_registry_and_no_file_lists_its_entries(room: Room) -> None:
    names = set(room.files())
    assert names, f"{room.package} has no entry"
    for path in FILES:
        if str(path.relative_to(SRC)) not in HISTORY:
            listed = [strings & names for strings in literals(ast.parse(path.read_text())) if len(strings & names) > 1]
            assert not listed, f"{path.relative_to(SRC)} lists {listed}, entries of {room.package}"


def test_every_verb_is_a_file_of_cli_and_offers_its_schema() -> None:
    files = {path.stem: path for path in (SRC / "cli").glob("*.py")}
    assert {stem(verb) for verb in VERBS} == files.keys() - {"__init__", "main"}
    for verb in VERBS:
        named = {n.name for n in ast.parse(files[stem(verb)].read_text()).body if isinstance(n, ast.FunctionDef)}
        assert "run" in named and ("schema" in named or verb == "show")


@pytest.mark.parametrize("word", sorted(ONLY_IN))
def test_a_word_means_one_thing(word: str) -> None:
    for path in FILES:
        named = {n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        assert word not in named or str(path.relative_to(SRC)) == ONLY_IN[word], path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_a_variable_says_what_it_holds(path: Path) -> None:
    """Never that it was found, nor that it is one of several: a stranger cannot search for that."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name | ast.arg)]
    named = [(node.id if isinstance(node, ast.Name) else node.arg, node.lineno) for node in nodes]
    assert [(name, line) for name, line in named if name in ("found", "one")] == []


def test_the_global_batch_is_one_field_and_nobody_else_counts_batches() -> None:
    owners: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            for part in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(part, ast.AnnAssign):
                    owners.setdefault(ast.unparse(part.target), []).append(f"{path.stem}.{node.name}")
    assert owners["global_batch"] == ["module.DataConfig"]
    assert owners["images_per_device"] == ["place.Place"]
    old = ("accumulate", "images_per_gpu", "batch_size", "image_side", "input_size")
    assert [name for name in old if name in owners] == []
