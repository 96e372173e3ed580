"""`frisket eval` of several tasks: settings are shared and checked first, and one page stands over the results."""

import json
from pathlib import Path

import pytest

from frisket.cli.eval import run
from frisket.errors import UserError


def suite(folder: Path, text: str) -> str:
    file = folder / "suite.yaml"
    file.write_text(text)
    return str(file)


def test_a_suite_runs_every_task_and_writes_the_page(tmp_path: Path, tiny_teacher: Path, tiny_shards: Path) -> None:
    tasks = "tasks: {miou: {protocol: [sam, edgesam]}, everything: {generator: {points_per_side: 2}}}"
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
