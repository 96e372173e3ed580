"""`frisket eval` of several tasks: settings are shared and checked first, and one page stands over the results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toyrun import command, environment

from frisket import checkpoint
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
        ("limit=0", "limit=0 must be 1 or more"),
        ("pictures=-1", "pictures=-1 must be 0 or more"),
        ("place.workers=-1", "place.workers=-1 must be 0 or more"),
        ("place.num_nodes=0", "place.num_nodes=0 must be 1 or more"),
        ("place.prompts_at_once=0", "place.prompts_at_once=0 must be 1 or more"),
        ("seed=-1", "seed=-1 must be 0 or more"),
        ("image_size=8", "image_size=8 must be 16 or more"),
        ("image_size=100", "image_size=100 of task miou must be a multiple of 16"),
        ("place.devices=none", "place.devices=none of task miou is no number"),
        ("place.devices=0", "place.devices=0 of task miou is no number"),
        ("place.accelerator=cpus", "place.accelerator=cpus must be one of .*: did you mean 'cpu'"),
        ("accelerator=cpu", "accelerator is now place.accelerator"),
        ("wandb=off", "wandb is now log.wandb"),
        ("batch=4", "batch is now place.prompts_at_once"),
    ],
)
def test_a_value_no_task_can_work_with_is_one_sentence(tmp_path: Path, word: str, sentence: str) -> None:
    words = ["checkpoint=nowhere", "data=nowhere", f"out={tmp_path / 'all'}"]
    with pytest.raises(UserError, match=sentence):
        run([suite(tmp_path, "task: miou")], [*words, word])
    *parents, rest = word.replace("=", ": ").split(".")
    own = f"tasks: {{everything: {{}}, miou: {{{''.join(f'{p}: {{' for p in parents)}{rest}{'}' * len(parents)}}}}}"
    with pytest.raises(UserError, match=sentence):
        run([suite(tmp_path, own)], words)
    assert not (tmp_path / "all").exists()


def test_a_gpu_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="accelerator=gpu of task miou but torch sees no GPU"):
        run([suite(tmp_path, "task: miou")], ["checkpoint=nowhere", "data=nowhere", "place.accelerator=gpu"])


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
    assert (out / "miou" / "masks.png").is_file()
    start("pictures=0")  # no picture of an older result stays beside a new one
    assert not list((out / "miou").glob("*.png"))


def interrupted(*_: object) -> None:
    raise UserError("stopped")


@pytest.mark.slow
def test_two_ranks_decide_alike_and_one_writes(tmp_path: Path, tiny_teacher: Path, tiny_shards: Path) -> None:
    out = tmp_path / "all"
    yaml = suite(
        tmp_path,
        "tasks: {miou: {place: {devices: 2}}, everything: {place: {devices: 1}, everything: {points_per_side: 2}}}",
    )
    words = [f"checkpoint=[one:{tiny_teacher}]", f"data={tiny_shards / 'val'}", f"out={out}", "limit=2", "pictures=0"]

    def start() -> list[str]:
        line = command("eval", yaml, *words, "place.accelerator=cpu")
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


STOPPED = """
import os, signal, sys
from frisket.engine import journal
add, count, last = journal.Journal.add, [0], int(sys.argv[1])
number = getattr(signal, sys.argv[2])  # left in argv: the other rank is started with it

def told(self, *words):
    add(self, *words)
    count[0] += 1
    if count[0] == last and self.rank == 0:
        os.kill(os.getpid(), number)

journal.Journal.add = told
from frisket.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize(
    ("name", "code", "devices"),
    [("SIGTERM", 75, 1), ("SIGINT", 130, 1), pytest.param("SIGTERM", 75, 2, marks=pytest.mark.slow)],
)
def test_asked_to_stop_it_leaves_and_goes_on_with_the_same_numbers(
    tmp_path: Path, tiny_teacher: Path, tiny_shards: Path, name: str, code: int, devices: int
) -> None:
    (tmp_path / "stopped.py").write_text(STOPPED)
    words = [
        "eval", "task=miou", f"checkpoint=one:{tiny_teacher}", f"data={tiny_shards / 'val'}", "clicks=[2]",
        "place.accelerator=cpu", "limit=4", "pictures=1",
    ]  # fmt: skip

    def start(after: int, out: str, *more: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, str(tmp_path / "stopped.py"), str(after), name, *words, f"out={tmp_path / out}", *more]
        return subprocess.run(line, capture_output=True, text=True, timeout=240, env=environment())

    cut = start(1, "cut", f"place.devices={devices}")
    assert cut.returncode == code, cut.stderr[-2000:]
    assert "stopped on request in task miou; the same command goes on" in cut.stdout
    assert not (tmp_path / "cut" / "eval.json").exists()
    kept = list((tmp_path / "cut").glob(".judged-*.jsonl"))
    assert len(kept) == devices
    done = sum(len(path.read_text().splitlines()) - 1 for path in kept)
    assert 1 <= done < 4
    rest = start(99, "cut")  # on one rank, whatever it was before
    assert rest.returncode == 0, rest.stderr[-2000:]
    assert f"{done} of 4 were judged before" in rest.stdout
    assert not list((tmp_path / "cut").glob(".judged-*"))
    assert start(99, "whole").returncode == 0
    first, second = (json.loads((tmp_path / out / "eval.json").read_text()) for out in ("cut", "whole"))
    assert first["models"] == second["models"]
    assert (tmp_path / "cut/per_image.csv").read_bytes() == (tmp_path / "whole/per_image.csv").read_bytes()


def test_it_is_told_before_it_starts_that_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = ["checkpoint=nowhere", "data=nowhere", f"out={tmp_path / 'file' / 'eval'}"]
    with pytest.raises(UserError, match="of task miou cannot be written"):
        run([suite(tmp_path, "task: miou")], words)
    assert run_outs(tmp_path) == ["file", "suite.yaml"]  # and asking leaves nothing behind


def run_outs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_suite_loads_and_hashes_a_checkpoint_once(
    tmp_path: Path, tiny_teacher: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for name in ("load", "weights_digest"):
        plain = getattr(checkpoint, name)
        monkeypatch.setattr(
            checkpoint, name, lambda x, name=name, plain=plain, **more: (seen.append(name), plain(x, **more))[1]
        )
    words = [f"checkpoint=[one:{tiny_teacher}]", f"data={tiny_shards / 'val'}", f"out={tmp_path / 'all'}"]
    tasks = "tasks: {miou: {}, everything: {everything: {points_per_side: 2}, limit: 1}}"
    assert run([suite(tmp_path, tasks)], [*words, "limit=2", "pictures=0", "place.workers=1"]) == 0
    assert seen == ["load", "weights_digest"]
    told = {name: json.loads((tmp_path / "all" / name / "eval.json").read_text()) for name in TWO}
    assert [told[name]["dataset"]["images"] for name in TWO] == [2, 1]  # shared, and a task's own
    assert all(told[name]["settings"]["place.workers"] == 1 for name in TWO)
