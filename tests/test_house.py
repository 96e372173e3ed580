"""The house law: a module imports only its own room and floors strictly below; some packages have one door each."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "frisket"
FLOORS = (
    {"config", "errors", "files", "geometry", "plugins", "runfiles"},
    {"sample", "kernels", "losses", "optim", "place"},
    {"models", "prompts", "picture", "environment"},
    {"data", "weights", "predict", "quant"},
    {"everything"},
    {"checkpoint", "eval"},
    {"recipes", "report", "export", "prep", "callbacks"},
    {"engine"},
    {"bench", "study"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: n for n, rooms in enumerate(FLOORS) for room in rooms}
GROUND_ORDER = ("errors", "plugins", "files", "config", "geometry")  # floor 0's own order: config may raise and write
DOORS = {
    "lightning": ("data/module.py", "recipes/", "callbacks.py", "engine/", "cli/"),
    "flash_attn": ("kernels/attention.py",),
    "omegaconf": ("config.py",),
    "wandb": ("callbacks.py", "engine/", "cli/"),
    "deepspeed": ("engine/strategy.py", "weights/deepspeed.py"),
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
