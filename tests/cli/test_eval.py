"""`frisket eval` of several tasks: settings are shared and checked first, and one page stands over the results."""

import json
import subprocess
from pathlib import Path

import pytest
from toyrun import command, environment

from frisket.cli.eval import run
from frisket.errors import UserError

TWO = ("miou", "everything")


def suite(folder: Path, text: str) -> str:
    file = folder / "suite.yaml"
    file.write_text(text)
    return str(file)


def test_a_suite_runs_every_task_and_writes_the_page(tmp_path: Path, tiny_teacher: Path, tiny_shards: Path) -> None:
    tasks = "tasks: {miou: {protocol: [sam, edgesam]}, everything: {everything: {points_per_side: 2}}}"
    words = [
        f"checkpoint=[one:{tiny_teacher}]",
        f"data={tiny_shards / 'val'}",
        f"out={tmp_path / 'all'}",
        "limit=2",
        "pictures=1",
    ]
    assert run([suite(tmp_path, tasks)], words) == 0
    miou = json.loads((tmp_path / "all" / "miou" / "eval.json").read_text())
    assert {"sam/box/miou", "edgesam/box/miou"} <= set(miou["models"]["one"])
    assert miou["settings"]["limit"] == 2 and miou["models"]["one"]["images"] <= 2
    assert (tmp_path / "all" / "everything" / "eval.json").is_file()
    page = (tmp_path / "all" / "report.html").read_text()
    assert "edgesam" in page and "one" in page


def test_a_wrong_key_of_the_last_task_stops_before_the_first(tmp_path: Path, tiny_teacher: Path) -> None:
    tasks = "tasks: {miou: {}, everything: {max_mask: 3}}"
    with pytest.raises(UserError, match="max_masks"):
        run([suite(tmp_path, tasks)], [f"checkpoint={tiny_teacher}", "data=nowhere", f"out={tmp_path / 'all'}"])
    assert not (tmp_path / "all").exists()


def test_an_unknown_task_of_a_suite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="edges"):
        run([suite(tmp_path, "tasks: {edge: {}}")], [f"out={tmp_path}"])


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("limit=0", "limit=0 of task miou is too small: give 1 or more"),
        ("pictures=-1", "pictures=-1 of task miou is too small: give 0 or more"),
        ("workers=-1", "workers=-1 of task miou is too small"),
        ("num_nodes=0", "num_nodes=0 of task miou is too small"),
        ("batch=0", "batch=0 of task miou is too small"),
        ("seed=-1", "seed=-1 of task miou is too small"),
        ("image_size=8", "image_size=8 of task miou does not fit .* a multiple of 16"),
        ("image_size=100", "image_size=100 of task miou does not fit"),
        ("devices=none", "devices=none of task miou is no number"),
        ("devices=0", "devices=0 of task miou is no number"),
        ("accelerator=cpus", "accelerator=cpus of task miou is unknown: did you mean 'cpu'"),
    ],
)
def test_a_value_no_task_can_work_with_is_one_sentence(tmp_path: Path, word: str, sentence: str) -> None:
    words = ["checkpoint=nowhere", "data=nowhere", f"out={tmp_path / 'all'}"]
    with pytest.raises(UserError, match=sentence):
        run([suite(tmp_path, "task: miou")], [*words, word])
    own = f"tasks: {{everything: {{}}, miou: {{{word.replace('=', ': ')}}}}}"
    with pytest.raises(UserError, match=sentence):
        run([suite(tmp_path, own)], words)
    assert not (tmp_path / "all").exists()


def test_a_gpu_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="accelerator=gpu of task miou but torch sees no GPU"):
        run([suite(tmp_path, "task: miou")], ["checkpoint=nowhere", "data=nowhere", "accelerator=gpu"])


def test_a_second_start_skips_what_is_finished(
    tmp_path: Path,
    tiny_teacher: Path,
    tiny_shards: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "all"
    yaml = suite(tmp_path, "tasks: {miou: {}, everything: {everything: {points_per_side: 2}}}")
    words = [f"checkpoint=[one:{tiny_teacher}]", f"data={tiny_shards / 'val'}", f"out={out}", "limit=1", "pictures=1"]

    def start(*more: str) -> list[str]:
        assert run([yaml], [*words, *more]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("==")]

    with monkeypatch.context() as patch:  # interrupted in the second task: the first one's page is there
        patch.setattr("frisket.eval.everything.Task.answer", interrupted)
        with pytest.raises(UserError, match="stopped"):
            run([yaml], words)
    assert "miou" in (out / "report.html").read_text()
    assert not (out / "everything" / "eval.json").exists()
    capsys.readouterr()

    skipped = f"== miou: finished already, {out / 'miou' / 'eval.json'} (delete the folder to judge again)"
    assert start() == [skipped, "== everything"]
    assert start()[1].startswith("== everything: finished already")
    assert start("limit=2") == ["== miou", "== everything"]  # other settings
    for key, value in {"image_size": 48, "weights": {"one": "other"}, "settings": {}}.items():
        file = out / "miou" / "eval.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
        assert start("limit=2")[0] == "== miou"
    file.write_text("{")
    assert start("limit=2")[0] == "== miou"


def interrupted(*_: object) -> None:
    raise UserError("stopped")


@pytest.mark.slow
def test_two_ranks_decide_alike_and_one_writes(tmp_path: Path, tiny_teacher: Path, tiny_shards: Path) -> None:
    out = tmp_path / "all"
    yaml = suite(tmp_path, "tasks: {miou: {devices: 2}, everything: {devices: 1, everything: {points_per_side: 2}}}")
    words = [f"checkpoint=[one:{tiny_teacher}]", f"data={tiny_shards / 'val'}", f"out={out}", "limit=2", "pictures=0"]

    def start() -> list[str]:
        line = command("eval", yaml, *words, "accelerator=cpu")
        done = subprocess.run(line, capture_output=True, text=True, timeout=240, env=environment())
        assert done.returncode == 0, done.stderr[-2000:]
        return [line.split(",")[0] for line in done.stdout.splitlines() if line.startswith(("==", "numbers", "report"))]

    miou, everything = (
        f"numbers: {out / name / 'eval.json'}   per image: {out / name / 'per_image.csv'}" for name in TWO
    )
    report = f"report: {out / 'report.html'}"
    assert start() == ["== miou", miou, "== everything", everything, report]
    (out / "miou" / "eval.json").unlink()
    assert start() == ["== miou", miou, "== everything: finished already", report]
    assert start() == ["== miou: finished already", "== everything: finished already", report]
