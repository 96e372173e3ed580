"""A study through the verb, with real runs: cells, judge, table; a second start does nothing; a stop goes on."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from frisket import config
from frisket.cli.main import main
from frisket.study.plan import StudyConfig, plan
from frisket.study.run import check, remember

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "studies").glob("*.yaml"))
TINY = """
seeds: [0, 1]
against: cascade
prepare:
  train: {{prep: prep_synthetic, count: 4, image_size: 64, samples_per_shard: 4, place: {{workers: 1}}}}
recipes:
  distill_lightening:
    teacher: {teacher}
    student: {{encoder: {{width: 48, depth: 2, heads: 3, segment: 4, dilation: 2}}}}
    data: {{train: "@train", val: null, image_size: 64, global_batch: 2, masks_per_image: 2}}
    trainer: {{max_steps: 2, log_every: 1}}
    place: {{accelerator: cpu, devices: "1", precision: 32-true, workers: 0, images_per_device: null}}
    log: {{wandb: "off"}}
arms:
  cascade: {{train: distill_lightening}}
  neck: {{train: distill_lightening, distill: {{schedule: neck}}}}
judge: {{teacher: {teacher}, data: "@train"}}
"""


@pytest.fixture
def tiny(tmp_path: Path, tiny_teacher: Path) -> list[str]:
    (tmp_path / "tiny.yaml").write_text(TINY.format(teacher=tiny_teacher))
    return ["study", str(tmp_path / "tiny.yaml"), f"out={tmp_path / 'out'}", "jobs=2"]


@pytest.mark.slow
def test_a_study_runs_stops_goes_on_and_says_what_differs(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-m", "frisket", *tiny], stdout=subprocess.PIPE, text=True) as process:
        while not (out / "train" / "index.json").is_file() and process.poll() is None:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=240)[0]
    assert process.returncode == 75, said
    assert "goes on from there" in said and not (out / "study.json").exists()

    assert main(tiny) == 0
    result = json.loads((out / "study.json").read_text())
    assert set(result["arms"]) == {"cascade", "neck"} and list(result["pairs"]) == ["neck-cascade"]
    assert all(
        len(result["arms"]["cascade"][name]["values"]) == 2 for name in ("box", "click1", "neck_error", "dependence")
    )
    cell = json.loads((out / "neck" / "seed1" / "eval" / "eval.json").read_text())["models"]["neck"]
    assert result["arms"]["neck"]["box"]["values"][1] == pytest.approx(cell["box/miou"])
    assert result["arms"]["neck"]["neck_error"]["values"][1] == pytest.approx(cell["neck_error"])
    assert (out / "report.html").is_file() and "Difference from `cascade`" in (out / "study.md").read_text()

    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.pt")}
    assert main(tiny) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("model.pt")} == before
    assert json.loads((out / "study.json").read_text()) == result

    changed = (tmp_path / "tiny.yaml").read_text().replace("max_steps: 2", "max_steps: 3")
    (tmp_path / "tiny.yaml").write_text(changed)
    capsys.readouterr()
    assert main(tiny) == 2
    assert "holds other settings than the study asks for" in capsys.readouterr().err


def test_a_wrong_key_of_an_arm_is_found_before_anything_runs(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text((tmp_path / "tiny.yaml").read_text().replace("schedule: neck", "schedul: neck"))
    assert main(tiny) == 2
    assert "distill.schedul" in capsys.readouterr().err
    assert not (tmp_path / "out" / "train").exists()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_study_is_laid_out_and_its_settings_load(path: Path, tmp_path: Path) -> None:
    study = config.load(StudyConfig, [path], [f"out={tmp_path}"])
    laid = plan(study, path.stem)
    remember(laid)
    check(laid)
    assert len(laid.cells()) == len(laid.arms) * len(study.seeds) >= 3
