"""The wheel stands alone: what is imported is declared, and outside the checkout, with its run-time dependencies and
nothing else, it prepares, trains, predicts and judges, its YAMLs found by name."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# run-time packages that we reach through another's door: Lightning's WandbLogger, torch's ONNX exporter
UNSEEN = {"wandb", "lvis", "onnx", "onnxscript"}

ALL = """
import json, sys
from frisket.cli.main import main
for words in sys.argv[1:]:
    assert main(json.loads(words)) == 0, words
"""


def plain(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def imported() -> set[str]:
    """The distributions that src/ imports, in functions too."""
    names: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    homes = importlib.metadata.packages_distributions()
    foreign = names - sys.stdlib_module_names - {"frisket"}
    return {plain(home) for name in foreign for home in homes.get(name, [name])}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    needed = {plain(Requirement(line).name) for line in PROJECT["dependencies"]}
    extras = {
        plain(Requirement(line).name)
        for extra, lines in PROJECT["optional-dependencies"].items()
        for line in lines
        if extra != "dev"
    }
    assert imported() - needed - extras == set()
    assert (needed | extras) - imported() - UNSEEN == set()


def closure(wanted: list[Requirement]) -> Iterator[importlib.metadata.Distribution]:
    """The installed distributions that `wanted` need, themselves included."""
    seen: set[tuple[str, str]] = set()
    while wanted:
        requirement = wanted.pop()
        for extra in ("", *requirement.extras):
            if (plain(requirement.name), extra) not in seen:
                seen.add((plain(requirement.name), extra))
                distribution = importlib.metadata.distribution(requirement.name)
                lines = [Requirement(line) for line in distribution.requires or []]
                wanted += [line for line in lines if not line.marker or line.marker.evaluate({"extra": extra})]
                if not extra:
                    yield distribution


def link(distribution: importlib.metadata.Distribution, site: Path) -> None:
    """Make an installed distribution importable from `site`: links to its packages and files."""
    for file in distribution.files or []:
        if ".." in file.parts:
            continue  # its scripts
        for depth in range(1, len(file.parts) + 1):
            part = Path(*file.parts[:depth])
            source = Path(str(distribution.locate_file(part)))
            if source.is_file() or (source / "__init__.py").is_file():
                (site / part).parent.mkdir(parents=True, exist_ok=True)
                if not (site / part).is_symlink():
                    (site / part).symlink_to(source)
                break


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that holds the wheel and what it declares."""
    folder = tmp_path_factory.mktemp("packaged")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    ignore = shutil.ignore_patterns("*.egg-info", "__pycache__")
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", "dist", "."], cwd=folder, check=True)
    (wheel,) = (folder / "dist").glob("frisket-*.whl")
    home = folder / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    python = str(home / "bin" / "python")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    for distribution in closure([Requirement(line) for line in PROJECT["dependencies"]]):
        link(distribution, site)
    shutil.rmtree(folder / "src")
    shutil.rmtree(folder / "configs")
    return home / "bin"


def run(program: Path, *words: str, cwd: Path) -> str:
    """What `program words…` printed; it must succeed."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "WANDB_", "PYTHON"))}
    env = kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([program, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_prepares_trains_predicts_and_judges_elsewhere(installed: Path, tmp_path: Path) -> None:
    where = "import frisket, importlib.util as u; print(frisket.__file__, u.find_spec('pytest'), u.find_spec('ruff'))"
    said = run(installed / "python", "-c", where, cwd=tmp_path)
    assert said.startswith(str(installed.parent)) and said.endswith(" None None\n")
    small = ["data.image_size=64", "data.masks_per_image=2", "model.name=lightening", "prompts.clicks=1"]
    small += ["model.encoder={depth: 1, width: 32, heads: 2}", "trainer.max_steps=1", "optim.warmup_steps=0"]
    picture = "runs/eval/masks.png"  # any picture will do
    commands = (
        ["prep", "prep_synthetic", "count=4", "image_size=96", "place.workers=1", "out=data"],
        ["train", "train_sam", "demo/debug", "on/cpu", "data.train=data", "data.val=null", *small],
        ["eval", "eval_miou", "checkpoint=runs/train_sam", "data=data", "limit=2", "pictures=1"],
        ["report", "runs/eval"],
        ["predict", picture, "checkpoint=runs/train_sam", "box=[4,4,40,40]"],
    )
    # in one process: starting costs more than all the work
    run(installed / "python", "-c", ALL, *(json.dumps(words) for words in commands), cwd=tmp_path)
    assert (tmp_path / "runs" / "eval" / "eval.json").is_file()
    assert (tmp_path / "runs" / "predict" / "masks.json").is_file()
    assert "prefers-color-scheme" in (tmp_path / "runs" / "report.html").read_text()
    assert "frisket" in run(installed / "frisket", "--version", cwd=tmp_path)
