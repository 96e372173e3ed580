"""`frisket prep` from the keyboard and from data_prep/*.sh, on small real input."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from frisket import config
from frisket.cli.main import main
from frisket.data.shards import IndexedShards, expand
from frisket.prep.records import PrepConfig

ROOT = Path(__file__).parents[2]
YAMLS = sorted((ROOT / "configs").glob("prep_*.yaml"))
SHELLS = sorted((ROOT / "data_prep").glob("*.sh"))


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_yaml_loads_and_says_what_it_is(path: Path) -> None:
    loaded = config.load(PrepConfig, [path])
    assert path.stem == f"prep_{loaded.source}"
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert {line.split()[1] for line in head} >= {"Run", "Needs", "Cost", "Expect"}


def test_a_small_run_from_yaml_and_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = str(ROOT / "configs/prep_synthetic.yaml")
    words = ["prep", yaml, f"out={tmp_path}", "count=3", "side=96", "workers=1", "samples_per_shard=2"]
    assert main(words) == 0
    assert "3 images" in capsys.readouterr().out.splitlines()[-1]
    assert len(IndexedShards(expand(tmp_path))) == 3
    assert json.loads((tmp_path / "index.json").read_text())["config"]["count"] == 3
    assert main(words) == 0  # again: nothing to do
    assert "(0 units" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["worker=2"], "did you mean 'workers'"),
        (["source=sa1c"], "source"),
        (["task=4/4"], "0 <= k < n"),
        (["inputs=/nowhere/at/all", "source=bsds500"], "has no images/train"),
        (["inputs=/nowhere/at/all.tar", "source=sa1b"], "there is no shard or folder"),
    ],
)
def test_mistakes_are_one_sentence_and_code_2(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["prep", str(ROOT / "configs/prep_synthetic.yaml"), f"out={tmp_path / 'out'}", *words])
    said = capsys.readouterr().err.strip()
    assert (code, "\n" in said) == (2, False)
    assert sentence in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", SHELLS, ids=lambda path: path.stem)
def test_shells_refuse_a_missing_folder_in_one_sentence(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    assert "set -euo pipefail" in text and os.access(path, os.X_OK)
    assert len(re.findall(r"frisket (?:prep|eval) ", text)) == 1  # runs it, or only checks and says what comes next
    for argument in ([], [str(tmp_path / "gone")]):
        done = subprocess.run([str(path), *argument], capture_output=True, text=True)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1 and "is not a folder" in done.stderr


@pytest.mark.slow
def test_the_synthetic_shell_runs(tmp_path: Path) -> None:
    scripts = sysconfig.get_path("scripts")
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    command = [str(SHELLS[-1]), str(tmp_path), "count=2", "side=96"]
    assert SHELLS[-1].stem == "synthetic"
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(IndexedShards(expand(tmp_path / "train"))) == 2


@pytest.mark.slow
def test_prep_needs_no_lightning_nor_wandb() -> None:
    code = "import sys, frisket.prep.run; print(sorted({'lightning', 'wandb', 'deepspeed'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
