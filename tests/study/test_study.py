"""A study through the verb, with real runs: cells, judge, table; a second start does nothing; a stop goes on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tinystudy import write

from frisket import config
from frisket.cli.main import main
from frisket.study.collect import MEASURES, finish
from frisket.study.plan import StudyConfig, merged, plan
from frisket.study.run import check, remember

STUDIES = Path(__file__).parents[2] / "configs" / "studies"


@pytest.fixture
def tiny(tmp_path: Path, tiny_teacher: Path) -> list[str]:
    return ["study", str(write(tmp_path / "tiny.yaml", tiny_teacher)), f"out={tmp_path / 'out'}", "jobs=2"]


@contextlib.contextmanager
def started(words: list[str], ready: Callable[[subprocess.Popen], object]) -> Iterator[subprocess.Popen]:
    """The study as a process of its own, once `ready` (or it has ended before)."""
    with subprocess.Popen([sys.executable, "-m", "frisket", *words], stdout=subprocess.PIPE, text=True) as process:
        while not ready(process) and process.poll() is None:
            time.sleep(0.05)
        yield process


def runs(process: int) -> bool:
    """Whether it has not ended; one that nobody has asked for its end is still listed."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def children(process: subprocess.Popen) -> list[int]:
    """The commands that a study runs now."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(word) for task in tasks for word in task.read_text().split()]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds a study's commands in /proc")
def test_a_study_killed_twice_says_what_one_says_that_ran_through(
    tmp_path: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "tiny.yaml", tiny_teacher, seeds="[3]", steps=40)
    words, out = ["study", str(file), f"out={tmp_path / 'out'}"], tmp_path / "out"
    with started(words, lambda _: (out / "train" / "index.json").is_file()) as process:
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=240)[0]
    assert process.returncode == 75, said
    assert "goes on from there" in said and not (out / "study.json").exists()

    # a training dies at once, between two checkpoints; the other cells are judged, its own is left out of the table
    with started(words, lambda _: any(out.glob("*/seed3/checkpoints/last.ckpt"))) as process:
        os.kill(children(process)[0], signal.SIGKILL)
        said = process.communicate(timeout=240)[0]
    assert process.returncode == 1, said
    assert "not finished, and left out" in said

    # the study itself, and its command with it: the next start finds no folder in use
    with started(words, children) as process:
        (command,) = children(process)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    end = time.monotonic() + 60
    while runs(command):
        assert time.monotonic() < end, "the command outlived its study"

    assert main(words) == 0
    assert "continuing from" in "".join(log.read_text() for log in out.glob("*/*.log"))
    result = json.loads((out / "study.json").read_text())
    assert main([*words[:2], f"out={tmp_path / 'whole'}", "jobs=2"]) == 0
    assert json.loads((tmp_path / "whole" / "study.json").read_text()) == result
    assert (tmp_path / "whole" / "study.md").read_text() == (out / "study.md").read_text()

    assert set(result) == {"arms", "pairs"}
    assert set(result["arms"]) == {"cascade", "neck"} and list(result["pairs"]) == ["neck-cascade"]
    assert set(result["arms"]["cascade"]) == set(result["pairs"]["neck-cascade"]) == set(MEASURES)
    cell = json.loads((out / "neck" / "seed3" / "eval" / "eval.json").read_text())["models"]["neck"]
    assert result["arms"]["neck"]["box"]["values"] == [pytest.approx(cell["box/miou"])]
    assert result["arms"]["neck"]["neck_error"]["values"] == [pytest.approx(cell["neck_error"])]
    assert (out / "report.html").is_file() and "Difference from `cascade`" in (out / "study.md").read_text()

    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.pt")}
    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("model.pt")} == before

    file.write_text(file.read_text().replace("max_steps: 40", "max_steps: 50"))
    capsys.readouterr()
    assert main(words) == 2
    assert "holds other settings than the study asks for" in capsys.readouterr().err


@pytest.mark.slow
def test_an_arm_may_quantize_another_and_everything_be_judged(tiny: list[str], tmp_path: Path) -> None:
    search = "search: {candidates: 2, rounds: 1, rows: 16}, place: {accelerator: cpu}"
    how = (
        "quantize: quant_tiny, after: neck, data: '@train', gate: 0, calibration: 1, check: 1, quant: {weight_bits: 6}"
    )
    quantized = f"{{{how}, {search}}}"
    grid = "{data: '@train', everything: {points_per_side: 4, pred_iou_thresh: -9, stability_score_thresh: 0}}"
    words = ["arms.cascade=null", "against=neck", "seeds=[0]", f"arms.w8a8={quantized}", f"everything.grid={grid}"]
    assert main([*tiny, *words]) == 0
    out = tmp_path / "out"
    made = json.loads((out / "w8a8" / "seed0" / "quant.json").read_text())
    assert made["checkpoint"] == str(out / "neck" / "seed0") and made["settings"]["quant"]["weight_bits"] == 6
    arms = json.loads((out / "study.json").read_text())["arms"]
    assert arms["w8a8"]["neck_error"]["mean"] != arms["neck"]["neck_error"]["mean"]
    # all that is found of everything, too: the same numbers as the evaluation's own
    whole = json.loads((out / "neck" / "seed0" / "everything_grid" / "eval.json").read_text())["models"]["neck"]
    assert arms["neck"]["grid/ar1000"]["mean"] == pytest.approx(whole["ar1000"])
    assert 0 < arms["neck"]["grid/miou"]["mean"] == pytest.approx(whole["miou"])
    assert "AR@1000, grid" in (out / "study.md").read_text()
    assert "| w8a8 |" in (out / "study.md").read_text() and "w8a8" in (out / "report.html").read_text()


def test_a_wrong_key_of_an_arm_is_found_before_anything_runs(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text((tmp_path / "tiny.yaml").read_text().replace("schedule: neck", "schedul: neck"))
    assert main(tiny) == 2
    said = capsys.readouterr().err
    assert "the study's neck: unknown key 'distill.schedul'" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("everything.grid={everythin: {}}", "the study's everything_grid: unknown key 'everythin'"),
        ("everything.grid={data: '@val'}", "everything.grid: @val is nothing prepared before it"),
        ("everything.grid={everything: {strategy: autoppn, pionts: 3}}", "unknown key 'pionts', did you mean 'points'"),
        ("everything.grid=3", "everything: give a name of letters and digits, and its settings"),
        ("judge.dat=here", "the study's judge: unknown key 'dat'"),
    ],
)
def test_wrong_settings_of_a_judge_are_found_before_anything_runs(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, said: str
) -> None:
    assert main([*tiny, word]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("shipped", sorted(path.stem for path in STUDIES.glob("*.yaml")))
def test_every_shipped_study_is_laid_out_and_its_settings_load(
    shipped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["lightening", shipped] if shipped == "lightening_bsds500" else [shipped]  # laid over the first
    monkeypatch.delenv("FRISKET_DATA", raising=False)  # a study says where all its data are
    given = ["prepare.photographs.inputs=BSDS500"] if "lightening_bsds500" in words else []
    study = config.load(StudyConfig, [STUDIES / f"{word}.yaml" for word in words], [f"out={tmp_path}", *given])
    laid = plan(study, words[-1])
    remember(laid)
    check(laid)
    assert len(laid.cells()) == len(laid.arms) * len(study.seeds) >= 3


def test_studies_that_share_data_and_models_make_them_alike() -> None:
    """So that a copy of one study's folders serves another, as their headers say."""
    lightening, tinysam, hosts = (
        config.read(STUDIES / f"{name}.yaml") for name in ("lightening", "tinysam", "autoppn_hosts")
    )
    assert lightening["prepare"] == tinysam["prepare"] and set(tinysam["prepare"]) == {"train", "val", "teacher"}
    students = {
        "lightening": merged(lightening["recipes"]["distill_lightening"], lightening["arms"]["cascade"]),
        "tinysam": merged(tinysam["recipes"]["distill_tiny"], tinysam["arms"]["full"]),
    }
    assert hosts["prepare"] == {**lightening["prepare"], **students}


def test_of_nothing_finished_the_table_says_so(tiny: list[str], tmp_path: Path) -> None:
    laid = plan(config.load(StudyConfig, [tiny[1]], [tiny[2]]), "tiny")
    assert finish(laid, []) == {"arms": {}, "pairs": {}}
    assert "not finished, and left out: cascade, neck" in (tmp_path / "out" / "study.md").read_text()


def test_slurm_without_a_cluster_is_a_sentence(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*tiny, "slurm=--gres=gpu:1"]) == 2
    assert "needs sbatch" in capsys.readouterr().err
