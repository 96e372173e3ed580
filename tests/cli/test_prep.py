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
from frisket.cli import prep
from frisket.cli.main import main
from frisket.data.shards import IndexedShards, expand

ROOT = Path(__file__).parents[2]
YAMLS = sorted((ROOT / "configs").glob("prep_*.yaml"))
SHELLS = sorted((ROOT / "data_prep").glob("*.sh"))


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_yaml_loads_and_says_what_it_is(path: Path) -> None:
    loaded = config.load(prep.schema([str(path)], []), [path])
    assert path.stem == f"prep_{loaded.source}"
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert {line.split()[1] for line in head} >= {"Run", "Needs", "Cost", "Expect"}


def test_a_small_run_from_yaml_and_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = str(ROOT / "configs/prep_synthetic.yaml")
    words = ["prep", yaml, f"out={tmp_path}", "count=3", "image_size=96", "place.workers=1", "samples_per_shard=2"]
    assert main(words) == 0
    assert "3 images" in capsys.readouterr().out.splitlines()[-1]
    assert len(IndexedShards(expand(tmp_path))) == 3
    assert json.loads((tmp_path / "index.json").read_text())["config"]["count"] == 3
    assert main(words) == 0  # again: nothing to do
    assert "(0 units" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["worker=2"], "unknown key 'worker'"),
        (["workers=2"], "workers is now place.workers"),
        (["side=96"], "side is now image_size"),
        (["image_side=96"], "image_side is now image_size"),
        (["image_size=63"], "image_size=63 must be 64 or more"),
        (["source=sa1c"], "source 'sa1c' does not exist: did you mean 'sa1b'"),
        (["inputs=/data"], "unknown key 'inputs'"),
        (["teacher=sam_vit_h"], "unknown key 'teacher'"),
        (["source=bsds500"], "unknown key 'count'"),
        (["source=null"], "no source is named"),
        (["task=4/4"], "0 <= k < n"),
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


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["prep_bsds500", "inputs=/nowhere/at/all"], "has no images/train"),
        (["prep_sa1b", "inputs=/nowhere/at/all.tar"], "there is no shard or folder"),
        (["prep_sa1b"], "source sa1b needs inputs="),
        (["prep_sa1b", "inputs=.", "jpeg_quality=0"], "jpeg_quality=0 must be 1 or more"),
        (["prep_embed", "inputs=.", "device=cpu"], "device is now place.accelerator"),
        (["prep_embed", "inputs=.", "precision=bf16"], "precision is now place.precision (32-true or bf16-mixed)"),
        (["prep_embed", "inputs=.", "place.precision=bf16"], "place.precision"),
    ],
)
def test_what_each_source_refuses(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prep", *words, f"out={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and "\n" not in said
    assert not (tmp_path / "out").exists()


def test_a_yaml_of_one_source_serves_another(tmp_path: Path) -> None:
    assert main(["prep", "prep_sa1b", "source=synthetic", "count=1", "image_size=64", f"out={tmp_path}"]) == 0
    assert len(IndexedShards(expand(tmp_path))) == 1


PLUGIN = '''
"""Source squares: white squares on black."""
import numpy as np
from dataclasses import dataclass
from frisket.data.sa1b import encode_jpeg
from frisket.prep.records import Record, ShardConfig, Unit, record_json

@dataclass(kw_only=True)
class Config(ShardConfig):
    """How many."""
    source: str = "squares"
    amount: int = 4

def units(config):
    return [Unit(f"{n:03d}", f"square {n}", n, n) for n in range(config.amount)]

def records(config, unit, reject):
    mask = np.zeros((48, 64), bool)
    mask[8:24, 8 : 16 + unit.payload] = True
    jpg = encode_jpeg(np.repeat(mask[..., None], 3, 2).astype(np.uint8) * 255)
    yield Record(f"square_{unit.payload}", jpg, record_json(unit.payload, "square.jpg", mask.shape, [mask]))
'''


@pytest.mark.parametrize("workers", [1, 2])
def test_a_source_from_outside(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys are its own, its file's name is its name, and worker processes find it too."""
    (tmp_path / f"squares{workers}.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [f"source=squares{workers}", f"plugins=[squares{workers}]", "amount=3", f"place.workers={workers}"]
    assert main(["prep", *words, f"out={tmp_path / 'out'}"]) == 0
    dataset = IndexedShards(expand(tmp_path / "out"))
    assert [dataset[n]["__key__"] for n in range(len(dataset))] == ["square_0", "square_1", "square_2"]
    assert main(["prep", *words, "count=3", f"out={tmp_path / 'out'}"]) == 2


@pytest.mark.parametrize("path", SHELLS, ids=lambda path: path.stem)
def test_shells_say_how_they_are_used_and_refuse_a_missing_folder(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    assert "set -euo pipefail" in text and os.access(path, os.X_OK)
    assert len(re.findall(r"frisket (?:prep|eval) ", text)) == 1  # runs it, or only checks and says what comes next
    for argument, said in (([], f"usage: data_prep/{path.name} "), ([str(tmp_path / "gone")], "is not a folder")):
        done = subprocess.run([str(path), *argument], capture_output=True, text=True)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1 and said in done.stderr


@pytest.mark.slow
def test_the_synthetic_shell_runs(tmp_path: Path) -> None:
    scripts = sysconfig.get_path("scripts")
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    command = [str(SHELLS[-1]), str(tmp_path), "count=2", "image_size=96"]
    assert SHELLS[-1].stem == "synthetic"
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(IndexedShards(expand(tmp_path / "train"))) == 2


@pytest.mark.slow
def test_prep_needs_no_lightning_nor_wandb() -> None:
    code = "import sys, frisket.prep.run; print(sorted({'lightning', 'wandb', 'deepspeed'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
