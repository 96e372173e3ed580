"""Plug-ins: a module from outside joins a room; what cannot be imported is one sentence; every verb takes the key."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from frisket import plugins
from frisket.cli.main import main
from frisket.errors import UserError
from frisket.eval.task import TASKS
from frisket.recipes.base import RECIPES

TASK = """
from dataclasses import dataclass
from frisket.eval.task import BaseTask, TaskConfig

@dataclass
class Config(TaskConfig):
    grains: int = 3

class Task(BaseTask):
    pass
"""


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder for plug-ins, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if name.startswith("outside_"):
            del sys.modules[name]


def test_a_folder_of_modules_joins_the_rooms_they_are_made_for(outside: Path) -> None:
    (outside / "outside_things").mkdir()
    (outside / "outside_things" / "sand.py").write_text(TASK)
    plugins.load(["outside_things.sand"])
    assert TASKS.names()[-1] == "sand" and "sand" not in RECIPES.names()
    assert TASKS.find("sand").Config().grains == 3
    assert TASKS.modules()["sand"] is plugins.loaded()["outside_things.sand"]
    with pytest.raises(UserError, match="task 'sans' does not exist: did you mean 'sand'"):
        TASKS.find("sans")


def test_every_verb_loads_what_a_yaml_or_a_word_names(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (outside / "outside_sand.py").write_text(TASK)
    (outside / "sand.yaml").write_text("task: outside_sand\nplugins: [outside_sand]\n")
    assert main(["show", "task=outside_sand"]) == 2
    assert "task 'outside_sand' does not exist" in capsys.readouterr().err
    assert main(["show", "sand.yaml", "grains=4"]) == 0
    said = capsys.readouterr().out
    assert "grains: 4" in said and "\n- outside_sand\n" in said  # a saved configuration keeps it
    assert main(["show", "task=outside_sand", "plugins=outside_sand"]) == 0


def test_a_plug_in_that_cannot_be_imported_is_one_sentence(outside: Path) -> None:
    (outside / "outside_broken.py").write_text("1 / 0")
    with pytest.raises(UserError, match=r"plug-in outside_broken cannot be imported \(ZeroDivisionError: .*mend or"):
        plugins.load(["outside_broken"])


def test_ours_win(outside: Path) -> None:
    (outside / "outside_things").mkdir()
    (outside / "outside_things" / "miou.py").write_text(TASK)
    plugins.load(["outside_things.miou"])
    assert TASKS.find("miou").__name__ == "frisket.eval.miou"
