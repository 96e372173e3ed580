"""The task `fidelity` through the verb: itself as teacher, a stranger, files, two models, mistakes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from frisket import checkpoint
from frisket.cli.main import main
from frisket.eval.fidelity import standard_error
from frisket.models.zoo import build


@pytest.fixture
def student(tmp_path: Path) -> Path:
    checkpoint.save(build("lightening", image_size=64, width=48, depth=2, heads=3, segment=4), tmp_path / "student.pt")
    return tmp_path / "student.pt"


def evaluate(out: Path, *words: str) -> dict:
    assert main(["eval", "configs/eval_fidelity.yaml", f"out={out}", "place.accelerator=cpu", *words]) == 0
    return json.loads((out / "eval.json").read_text())


def test_a_teacher_is_perfectly_true_to_itself_and_a_stranger_is_not(
    tmp_path: Path, tiny_shards: Path, tiny_teacher: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = evaluate(
        tmp_path / "out", f"data={tiny_shards / 'val'}", f"teacher={tiny_teacher}",
        f"checkpoint=[itself:{tiny_teacher},student:{student}]",
    )  # fmt: skip
    itself, other = report["models"]["itself"], report["models"]["student"]
    assert itself["neck_error"] == 0 and itself["agreement/box"] == itself["agreement/click1"] == 1
    assert itself["box/miou"] == itself["teacher/box/miou"] == other["teacher/box/miou"]
    assert other["neck_error"] > 0 and other["agreement/box"] < 1
    assert report["protocol"]["name"] == "fidelity" and len(report["protocol"]["arguments"]["teacher"]) == 64
    with open(tmp_path / "out" / "masks_student.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == other["masks"]
    for column, number in (("box", other["box/miou"]), ("agreement_click1", other["agreement/click1"])):
        assert sum(float(row[column]) for row in rows) / len(rows) == pytest.approx(number)
    lost = sum(float(row["box"]) - float(row["other_box"]) for row in rows) / len(rows)
    assert lost == pytest.approx(other["dependence/box"])
    said = capsys.readouterr().out
    assert "the teacher itself: 1-box" in said
    shuffled = [line for line in said.splitlines() if line.startswith("  shuffled")]
    assert len(shuffled) == 2
    assert float(shuffled[1].split()[1]) == pytest.approx(100 * (other["box/miou"] - other["dependence/box"]), abs=0.06)
    assert f"{100 * other['box/miou']:.1f} ± {100 * other['box/error']:.1f}" in said


def test_a_standard_error_counts_photographs_not_masks() -> None:
    rng = np.random.default_rng(0)
    singly = [rng.random(1) for _ in range(400)]
    assert standard_error(singly) == pytest.approx(np.concatenate(singly).std() / 20)
    copied = [np.repeat(values, 5) for values in singly]  # five masks that say the same are one
    assert standard_error(copied) == pytest.approx(standard_error(singly))


def test_without_a_teacher_only_what_needs_none(tmp_path: Path, tiny_shards: Path, student: Path) -> None:
    report = evaluate(tmp_path / "out", f"data={tiny_shards / 'val'}", f"checkpoint=[{student}]")
    numbers = report["models"]["student.pt"]
    assert "neck_error" not in numbers and "agreement/box" not in numbers and "dependence/box" in numbers


def test_a_teacher_of_another_input_side_is_refused(
    tmp_path: Path, tiny_shards: Path, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(build("lightening", image_size=96, width=48, depth=1, heads=3, segment=4), tmp_path / "large.pt")
    words = [f"data={tiny_shards / 'val'}", f"checkpoint=[{student}]", f"teacher={tmp_path / 'large.pt'}"]
    assert main(["eval", "configs/eval_fidelity.yaml", f"out={tmp_path / 'out'}", "place.accelerator=cpu", *words]) == 2
    assert "takes 96 px and the students 64" in capsys.readouterr().err
