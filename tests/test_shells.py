"""Every script in slurm/ and data_prep/ parses, calls frisket once, and names YAML files that exist."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(p for folder in ("slurm", "data_prep") for p in (ROOT / folder).glob("*.sh"))
RUNS = [p for p in SCRIPTS if p.parent.name == "slurm" and p.name != "env.sh"]


def code(script: Path) -> str:
    """The script without its comment lines."""
    return "\n".join(line for line in script.read_text().splitlines() if not line.startswith("#"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_it_parses_and_its_yaml_files_exist(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True).returncode == 0
    for name in re.findall(r"configs/[\w/]+\.yaml", script.read_text()):
        assert (ROOT / name).is_file(), f"{script.name} names {name}"


@pytest.mark.parametrize("script", [p for p in SCRIPTS if p.name != "env.sh"], ids=lambda p: p.name)
def test_it_calls_frisket_once(script):
    assert len(re.findall(r"\bfrisket (train|eval|prep|predict|bench)\b", code(script))) == 1


@pytest.mark.parametrize("script", RUNS, ids=lambda p: p.name)
def test_slurm_scripts_can_be_requeued(script):
    text = script.read_text()
    assert f"#SBATCH --job-name={script.stem}\n" in text
    assert "#SBATCH --requeue\n" in text and "#SBATCH --open-mode=append\n" in text
    assert 'source "${SLURM_SUBMIT_DIR:-$PWD}/slurm/env.sh"' in text
    assert '"$@"' in text
    if "frisket train" in text:
        assert "#SBATCH --signal=SIGUSR1@180\n" in text
        assert "--ntasks-per-node" in text


@pytest.mark.parametrize("script", RUNS, ids=lambda p: p.name)
def test_local_runs_the_command_here(script, tmp_path):
    """LOCAL=1 reaches `frisket` with the script's YAML, no Slurm overlay, and our words last."""
    spy = tmp_path / "frisket"
    spy.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 3\n')
    spy.chmod(0o755)
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LOCAL": "1"}
    done = subprocess.run(
        ["bash", f"slurm/{script.name}", "a=1"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    words = done.stdout.splitlines()
    assert done.returncode == 3, done.stderr
    assert words[-1] == "a=1" and "configs/on/slurm.yaml" not in words
    assert (ROOT / words[1]).is_file()
    if words[0] == "train":
        assert words[1] == f"configs/{script.stem}.yaml"
        done = subprocess.run(
            ["bash", f"slurm/{script.name}"],
            cwd=tmp_path,
            env=env | {"FRISKET_ON": "a100"},
            capture_output=True,
            text=True,
        )
        assert done.stdout.splitlines()[-1] == "configs/on/a100.yaml"
