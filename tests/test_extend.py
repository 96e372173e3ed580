"""docs/extend.md, executed: its files in a folder of their own; each kind of plug-in is used through `plugins`, its
results load again in every verb, and without it the sentence names what is missing."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from frisket import plugins
from frisket.cli.main import main

PAGE = (Path(__file__).parents[1] / "docs" / "extend.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (my_lab/\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
MODEL = "plugins=[my_lab.by_box,my_lab.plain_cnn]"
TRAIN = [
    "train", "recipe=by_box", MODEL, "model.name=plain_cnn", "model.encoder={width: 16, depth: 1}",
    "data.train=data", "data.image_size=64", "data.masks_per_image=2", "data.global_batch=2", "log.wandb=off",
    "place.accelerator=cpu", "place.workers=0", "optim.lr=1e-3",
]  # fmt: skip


def forget() -> None:
    """No plug-in is loaded any more."""
    plugins._outside.clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "my_lab"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page's files, shards of the page's source and a run of its recipe and encoder; the current folder."""
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(plugins, "_outside", {})
        for name, text in FILES.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "squares.yaml").write_text("source: squares\nplugins: [my_lab.squares]\nout: data\ncount: 4\n")
        assert main(["prep", "squares.yaml", "place.workers=1"]) == 0
        assert main([*TRAIN, "trainer.max_steps=1"]) == 0
        forget()
        yield folder
        forget()


def test_the_page_shows_one_of_each() -> None:
    assert {name.split("/")[1] for name in FILES} == {
        "plain_cnn.py", "by_box.py", "diagonal.py", "confidence.py", "squares.py"
    }  # fmt: skip
    assert len(FILES["my_lab/plain_cnn.py"].splitlines()) <= 50 and len(FILES["my_lab/by_box.py"].splitlines()) <= 45


def test_a_recipe_and_an_encoder_train_and_go_on(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = yaml.safe_load((lab / "runs" / "by_box" / "config.yaml").read_text())
    assert saved["plugins"] == ["my_lab.by_box", "my_lab.plain_cnn"]
    capsys.readouterr()
    assert main([*TRAIN, "trainer.max_steps=2"]) == 0
    assert "continuing from" in capsys.readouterr().out
    forget()
    assert main(["show", "runs/by_box/config.yaml"]) == 0  # names its plug-ins itself
    assert "  width: 16  # Channels of the blocks. (default 64)" in capsys.readouterr().out
    forget()
    assert main([word for word in TRAIN if word != MODEL]) == 2
    assert "recipe 'by_box' does not exist" in capsys.readouterr().err
    assert main([*TRAIN, "plugins=[my_lab.by_box]"]) == 2
    assert "no model is called 'plain_cnn'" in capsys.readouterr().err
    forget()


def test_a_task_judges_the_model(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "eval",
        "task=confidence",
        "checkpoint=runs/by_box",
        "data=data",
        "wandb=off",
        "out=runs/sure",
        "pictures=0",
    ]
    words = [word for word in words if not word.startswith("wandb")]
    assert main([*words, "plugins=[my_lab.confidence,my_lab.plain_cnn]"]) == 0
    numbers = json.loads((lab / "runs" / "sure" / "eval.json").read_text())
    assert abs(numbers["models"]["by_box"]["box/confidence"]) < 2  # a head of two steps may say less than 0
    assert numbers["protocol"]["name"] == "box_confidence"
    forget()
    assert main(words) == 2
    assert "task 'confidence' does not exist" in capsys.readouterr().err
    assert main([*words, "plugins=my_lab.confidence"]) == 2
    assert "a model of the plug-in my_lab.plain_cnn: load that too" in capsys.readouterr().err
    forget()


def test_a_strategy_asks_in_eval_and_predict(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything = "everything={strategy: diagonal, points: 3, pred_iou_thresh: 0, stability_score_thresh: 0}"
    both = "plugins=[my_lab.diagonal,my_lab.plain_cnn]"
    words = ["eval", "task=everything", "checkpoint=runs/by_box", "data=data", everything, "out=runs/all", "pictures=1"]
    assert main([*words, both]) == 0
    strategy = json.loads((lab / "runs" / "all" / "eval.json").read_text())["strategy"]
    assert (strategy["name"], strategy["arguments"]["points"]) == ("diagonal", 3)
    ask = ["predict", "runs/all/masks.png", "checkpoint=runs/by_box", "mode=everything", everything]
    assert main([*ask, both]) == 0
    assert "of 9" in capsys.readouterr().out  # three points, three masks each
    forget()
    assert main([*ask, "plugins=my_lab.plain_cnn"]) == 2
    assert "strategy 'diagonal' does not exist" in capsys.readouterr().err
    forget()


def test_a_source_is_asked_for_by_name_too(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads((lab / "data" / "index.json").read_text())
    assert main(["prep", "--help", "squares.yaml"]) == 0
    assert "  count=100" in capsys.readouterr().out
    forget()
    assert main(["prep", "source=squares", "out=data2"]) == 2
    assert "source 'squares' does not exist" in capsys.readouterr().err
    assert not (lab / "data2").exists()
