"""Every script in slurm/ and data_prep/ parses, calls frisket once, and names YAML files that exist."""

import re
import shutil
import socket
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
    assert len(re.findall(r"\bfrisket (train|eval|prep|predict|bench|quant|study)\b", code(script))) == 1


@pytest.mark.parametrize("script", RUNS, ids=lambda p: p.name)
def test_slurm_scripts_can_be_requeued(script):
    text = script.read_text()
    assert f"#SBATCH --job-name={script.stem}\n" in text
    assert "#SBATCH --requeue\n" in text and "#SBATCH --open-mode=append\n" in text
    assert 'source "${SLURM_SUBMIT_DIR:-$PWD}/slurm/env.sh"' in text
    assert '"$@"' in text
    if "frisket train" in text or "frisket quant" in text:
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
    assert words[0] in ("eval", "study") or words[1] == f"configs/{script.stem}.yaml"
    done = subprocess.run(
        ["bash", f"slurm/{script.name}", "a=1"], cwd=tmp_path, env=env | {"FRISKET_ON": "a100"}, capture_output=True,
        text=True,
    )  # fmt: skip
    place = [] if words[0] == "study" else ["configs/on/a100.yaml"]  # a study says it for every cell, in its own YAML
    assert done.stdout.splitlines() == [*words[:2], *place, "a=1"]


def test_a_port_that_somebody_listens_on_is_passed_over():
    """The same draw twice; between the two, somebody took the port."""
    draw = ["bash", "-c", "source slurm/env.sh; RANDOM=7; free_port"]
    env = {"PATH": "/usr/bin:/bin", "LOCAL": "1"}

    def port() -> int:
        return int(subprocess.run(draw, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout)

    first = port()
    assert 10000 <= first < 30000
    with socket.create_server(("127.0.0.1", first)):
        assert port() != first


@pytest.mark.parametrize("name", ["train-sam", "distill-lightening", "finetune-decoder", "quant-tiny"])
def test_make_finds_its_runs_in_the_folder(name: str) -> None:
    done = subprocess.run(["make", "-n", name, "LOCAL=1", "READY="], cwd=ROOT, capture_output=True, text=True)
    assert f"slurm/{name.replace('-', '_')}.sh" in done.stdout, done.stderr
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert name in listed


# ---------------------------------------------------------------- what data_prep/*.sh checks


def checked(script: str, *words: str | Path) -> tuple[int, str]:
    """(code, what it said) of a data_prep script, with a `frisket` that only repeats its words."""
    folder = Path(words[0]).parent / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "frisket").write_text('#!/bin/sh\necho "$@"\n')
    (folder / "frisket").chmod(0o755)
    done = subprocess.run(
        ["bash", ROOT / "data_prep" / script, *words], env={"PATH": f"{folder}:/usr/bin:/bin"}, capture_output=True,
        text=True,
    )  # fmt: skip
    said = done.stderr if done.returncode else done.stdout
    assert said.count("\n") == 1, said
    return done.returncode, said


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_bsds500_counts_its_photographs(tmp_path: Path) -> None:
    root = tmp_path / "B"
    for kind, end in (("images", "jpg"), ("groundTruth", "mat")):
        touch(root / "BSDS500/data" / kind / "val", *(f"{n}.{end}" for n in range(100)))
    code, said = checked("bsds500.sh", root, "val", "workers=1")
    assert code == 0 and f"inputs={root} split=val out=data/bsds500/val workers=1" in said
    (root / "BSDS500/data/groundTruth/val/7.mat").unlink()
    code, said = checked("bsds500.sh", root, "val")
    assert code == 2 and "groundTruth/val holds 99 .mat files, not 100" in said
    assert "images/test holds 0 .jpg files, not 200" in checked("bsds500.sh", root, "test")[1]
    assert "'workers=1' is not a split" in checked("bsds500.sh", root, "workers=1")[1]


def test_coco_counts_photographs_and_objects(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    root.mkdir()
    assert "instances_val2017.json is not there" in checked("coco.sh", root)[1]
    (root / "annotations").mkdir()
    (root / "annotations/instances_val2017.json").write_text('{"iscrowd": 0}' * 36781)
    assert "val2017 is not there" in checked("coco.sh", root)[1]
    touch(root / "val2017", *(f"{n:012}.jpg" for n in range(4999)))
    assert checked("coco.sh", root) == (
        2, f"data_prep/coco.sh: {root}/val2017 holds 4999 photographs, not 5000: unpack val2017.zip again\n"
    )  # fmt: skip
    touch(root / "val2017", "last.jpg")
    code, said = checked("coco.sh", root)
    assert code == 0 and f"data={root}/annotations/instances_val2017.json images={root}/val2017" in said
    (root / "annotations/instances_val2017.json").write_text("{}")
    assert "holds 0 objects, not 36781" in checked("coco.sh", root)[1]


def test_lvis_counts_and_looks_for_every_photograph(tmp_path: Path) -> None:
    root = tmp_path / "lvis"
    root.mkdir()
    assert "lvis_v1_val.json is not there" in checked("lvis.sh", root)[1]
    urls = "".join(
        f'{{"coco_url": "http://x/{name}"}}' for name in ("train2017/000000000001.jpg", "val2017/000000000002.jpg")
    )
    notes = root / "lvis_v1_val.json"
    notes.write_text(urls + '"neg_category_ids"' * 19808 + '"segmentation"' * 244707)
    assert "lists 19808 images, not 19809" in checked("lvis.sh", root)[1]
    notes.write_text(urls + '"neg_category_ids"' * 19809 + '"segmentation"' * 3)
    assert "holds 3 objects, not 244707" in checked("lvis.sh", root)[1]
    notes.write_text(urls + '"neg_category_ids"' * 19809 + '"segmentation"' * 244707)
    touch(root / "val2017", "000000000002.jpg")
    assert f"1 photographs are missing, such as {root}/train2017/000000000001.jpg" in checked("lvis.sh", root)[1]
    touch(root / "train2017", "000000000001.jpg", "000000000003.jpg")
    code, said = checked("lvis.sh", root)
    assert code == 0 and f"data={notes} images={root}" in said


def test_evaluate_takes_another_tasks_yaml_alone(tmp_path):
    spy = tmp_path / "frisket"
    spy.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    spy.chmod(0o755)
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LOCAL": "1"}
    words = ["bash", "slurm/evaluate.sh", "configs/eval_edges.yaml", "maps=sobel"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["eval", "configs/eval_edges.yaml", "maps=sobel"], done.stderr
